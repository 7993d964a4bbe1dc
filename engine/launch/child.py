"""Child processes that end with the block that started them: steps of the demo, repeated trainings, trials."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from backbones.files import open_file
from convnext_dense_signals import Terminated, stop_signals
from engine.launch.exit_codes import EXIT_HUNG

_COLOUR_CODE = re.compile(r"\x1b\[[0-9;]*m")
POLL_SECONDS = 0.05
LINES_SECONDS = 0.5  # between two readings of a log
STOPPED_SECONDS = 30.0  # less than a step may take, so that what was stopped is not said to hang
MAX_POLL_GAP_SECONDS = 3.0  # more between two looks means that this process was stopped itself


class ChildProcess:
    """A running program, used as a context: however the block is left, the program ends.

    With a log the program runs in a session of its own, and everything that it has started ends with it. Without one it
    shares the terminal, so that Ctrl-C reaches it too. A program that is waited for and was stopped by a
    signal is killed after ``STOPPED_SECONDS`` unless it is continued, with a line in its log or on stderr.

    Args:
        command: Program and arguments.
        log: File to which its output is appended; ``None`` for the output of this process.
        grace: Seconds from SIGTERM to SIGKILL if the block is left before the program has ended; 0 for SIGKILL alone.
        env: Environment variables; ``None`` for those of this process.
        cwd: Working directory.
        pass_fds: File descriptors that the program keeps open.

    Attributes:
        exit_code: Exit code, negative for a signal, 124 if it was stopped and not continued; ``None`` as long as the
            program runs.
        memory_bytes: Largest resident size of the program, or of a process that it waited for, once it has ended. Never
            below this process's own size, which Linux counts in up to the program's start; trainings are above it.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path | None = None,
        grace: float = 0.0,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        pass_fds: Collection[int] = (),
    ) -> None:
        self.exit_code: int | None = None
        self.memory_bytes = 0
        self._log, self._grace = log, grace
        self._started = self._polled = time.monotonic()
        self._stopped_since: float | None = None
        with log.open("ab") if log is not None else nullcontext() as output:
            self._log_start = output.tell() if output is not None else 0
            self._process = subprocess.Popen(
                command,
                stdin=None if log is None else subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=env,
                cwd=cwd,
                pass_fds=pass_fds,
                start_new_session=log is not None,
            )

    @property
    def pid(self) -> int:
        """Process id of the program."""
        return self._process.pid

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the program, with or without a limit in seconds; returns the exit code.

        Raises:
            subprocess.TimeoutExpired: If the program still runs.
        """
        until = time.monotonic() + (timeout or 0.0)
        while self.exit_code is None:
            blocks = timeout is None and self._stopped_since is None
            kinds = os.WUNTRACED | os.WCONTINUED | (0 if blocks else os.WNOHANG)
            pid, status, usage = os.wait4(self._process.pid, kinds)
            if pid and (os.WIFSTOPPED(status) or os.WIFCONTINUED(status)):
                self._stopped_since = time.monotonic() if os.WIFSTOPPED(status) else None
            elif pid:
                self.exit_code = self._process.returncode = os.waitstatus_to_exitcode(status)
                self.memory_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            elif self._stopped_too_long():
                self._end_stopped()
            elif timeout is not None and time.monotonic() >= until:
                raise subprocess.TimeoutExpired(self._process.args, timeout)
            else:
                time.sleep(POLL_SECONDS)
        return self.exit_code

    def _stopped_too_long(self) -> bool:
        now, last = time.monotonic(), self._polled
        self._polled = now
        if self._stopped_since is None:
            return False
        if now - max(last, self._stopped_since) > MAX_POLL_GAP_SECONDS:
            self._stopped_since = now
        return now - self._stopped_since > STOPPED_SECONDS

    def _end_stopped(self) -> None:
        """Kill the program and say why."""
        line = f"error: process {self.pid} was stopped by a signal {STOPPED_SECONDS:.0f} s ago, and not continued"
        self._kill()
        self._stopped_since = None
        self.wait()
        self.exit_code = EXIT_HUNG
        with self._log.open("a", encoding="utf-8") if self._log is not None else nullcontext(sys.stderr) as output:
            print(f"{line} (kill -CONT)", file=output)

    def _kill(self) -> None:
        if self._log is None:
            os.kill(self._process.pid, signal.SIGKILL)
        else:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def lines(self) -> Iterator[str | None]:
        """The lines of the log as they are written, and ``None`` after each reading, until the program has ended."""
        assert self._log is not None, "a program on the terminal has no log"
        rest = b""
        with self._log.open("rb") as file:
            file.seek(self._log_start)
            while True:
                with suppress(subprocess.TimeoutExpired):
                    self.wait(LINES_SECONDS)
                ended = self.exit_code is not None  # before reading: its last output is in the file by then
                *lines, rest = (rest + file.read()).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines)
                yield None
                if ended:
                    return

    def __enter__(self) -> ChildProcess:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.exit_code is None and self._grace:
                os.kill(self._process.pid, signal.SIGTERM)  # Popen's would take its exit code from wait, had it ended
                with suppress(subprocess.TimeoutExpired):
                    self.wait(self._grace)
        finally:
            if self._log is not None or self.exit_code is None:
                self._kill()
            self.wait()


def plain_lines(log: Path) -> list[str]:
    """The lines of a program's output that are not empty, without the codes that colour a terminal."""
    try:
        with open_file(log) as file:
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.strip() for line in _COLOUR_CODE.sub("", text).splitlines() if line.strip()]


@contextmanager
def handle_signals(handlers: Mapping[signal.Signals, Callable[..., None]]) -> Iterator[None]:
    """Install signal handlers for the duration of this context; only the main thread may and does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interrupt_on_signals() -> Iterator[None]:
    """Context in which a signal that asks to stop raises ``Terminated``, as Ctrl-C does ``KeyboardInterrupt``.

    Both are raised again at the end of the context if something in it caught them. A process that is forked inside of
    it ends by a signal that asks to stop, as one that has no handler.
    """
    process = os.getpid()
    asked: list[KeyboardInterrupt] = []

    def interrupt(number: int, _: object) -> None:
        if os.getpid() != process and number != signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        asked.append(KeyboardInterrupt() if number == signal.SIGINT else Terminated(number))
        raise asked[-1]

    handlers = dict.fromkeys(stop_signals(), interrupt)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in the background
        handlers[signal.SIGINT] = interrupt
    with handle_signals(handlers):
        try:
            yield
        except Exception:  # of code that catches everything, as mmengine's layout of a config does
            if not asked:
                raise
        if asked:
            raise asked[0]
