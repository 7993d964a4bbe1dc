"""Programs that end with the block that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from convnext_dense_signals import Terminated
from engine.launch import child
from engine.launch.child import ChildProcess, interrupt_on_signals
from engine.launch.exit_codes import EXIT_HUNG, EXIT_SAVED
from engine.launch.leftovers import STOPPED_STATE, is_running, process_state
from tests.programs import PATIENCE


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)


def test_exit_code_memory_and_lines_of_a_program(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("of the start before\n")
    program = (
        "import sys; print('one', flush=True); print('two', file=sys.stderr); print('no end', end=''); sys.exit(3)"
    )
    with ChildProcess([sys.executable, "-c", program], log, env={"NAME": "value"}) as child:
        assert [line for line in child.lines() if line is not None] == ["one", "two"]
    assert child.exit_code == child.wait() == 3
    assert 2**22 < child.memory_bytes < 2**36
    assert log.read_text() == "of the start before\none\ntwo\nno end"


def test_lines_come_while_the_program_runs(tmp_path: Path) -> None:
    with ChildProcess(["bash", "-c", "echo first; sleep 1000"], tmp_path / "log") as child:
        lines = child.lines()
        assert next(line for line in lines if line) == "first"
        assert next(lines) is None
        assert child.exit_code is None
    assert child.exit_code == -signal.SIGKILL


def test_a_wait_has_a_limit_and_the_end_of_the_block_ends_what_the_program_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = f"sleep 1000 & echo $! >> {pids}; echo $$ >> {pids}; wait"
    with ChildProcess(["bash", "-c", program], tmp_path / "log") as child:
        wait_until(lambda: pids.exists() and pids.read_text().count("\n") == 2)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.1)
    both = [int(pid) for pid in pids.read_text().split()]
    wait_until(lambda: not any(map(is_running, both)))
    assert not any(map(is_running, both))


@pytest.mark.parametrize(("reaction", "grace", "code"), [("exit 7", PATIENCE, 7), ("", 1.0, -signal.SIGKILL)])
def test_a_program_has_time_to_save(tmp_path: Path, reaction: str, grace: float, code: int) -> None:
    """``trap ''`` ignores the signal, and so does its ``sleep``."""
    ready = tmp_path / "ready"
    program = f"trap '{reaction}' TERM; touch {ready}; while :; do sleep 0.05; done"
    with ChildProcess(["bash", "-c", program], grace=grace) as child:
        wait_until(ready.exists)
    assert child.exit_code == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
def test_a_signal_is_an_interrupt_and_an_ignored_one_is_not(number: signal.Signals) -> None:
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, usual)  # the tests may have been started with it ignored
    try:
        with pytest.raises(KeyboardInterrupt) as raised, interrupt_on_signals():
            os.kill(os.getpid(), number)
        if number == signal.SIGINT:
            assert not isinstance(raised.value, Terminated)
        else:
            assert raised.value.exit_code == EXIT_SAVED
            assert str(raised.value) == f"stopped by {number.name}: start again with the same command"
        assert signal.getsignal(number) is usual
        signal.signal(number, signal.SIG_IGN)
        with interrupt_on_signals():
            os.kill(os.getpid(), number)
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("instead", [None, SyntaxError("cannot be laid out")])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_that_something_catches_is_not_lost(
    number: signal.Signals, instead: Exception | None, nested: bool
) -> None:
    def swallow() -> None:
        try:
            os.kill(os.getpid(), number)
        except BaseException:
            if instead is not None:
                raise instead from None

    before = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    try:
        outer = interrupt_on_signals() if nested else nullcontext()
        with pytest.raises(KeyboardInterrupt) as raised, outer, interrupt_on_signals():
            swallow()
    finally:
        signal.signal(number, before)
    assert isinstance(raised.value, Terminated) == (number == signal.SIGTERM)


def test_an_error_without_a_signal_is_not_hidden() -> None:
    with pytest.raises(SyntaxError), interrupt_on_signals():
        raise SyntaxError


def test_a_forked_process_ends_by_the_signal() -> None:
    """It has nothing to say, and must not go on in the code of the one that it was forked from."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with interrupt_on_signals():
            forked = os.fork()
            if not forked:
                try:
                    os.kill(os.getpid(), signal.SIGTERM)
                finally:
                    os._exit(7)
            _, status = os.waitpid(forked, 0)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM


@pytest.mark.parametrize("logged", [False, True])
def test_a_program_that_is_stopped_is_ended_by_name(
    logged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(child, "STOPPED_SECONDS", 0.5)
    log = tmp_path / "log" if logged else None
    with ChildProcess(["bash", "-c", "kill -STOP $$; sleep 1000"], log) as program:
        ended = [*program.lines(), program.exit_code][-1] if logged else program.wait()
    assert ended == EXIT_HUNG
    said = log.read_text() if log is not None else capsys.readouterr().err
    assert said.startswith(f"error: process {program.pid} was stopped by a signal ")
    assert len(said.splitlines()) == 1


def test_time_in_which_nobody_looked_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process may have been stopped with the program."""
    now = [100.0]
    monkeypatch.setattr(child.time, "monotonic", lambda: now[0])
    with ChildProcess(["true"]) as program:
        program._stopped_since = 100.0
        now[0] += child.STOPPED_SECONDS + child.MAX_POLL_GAP_SECONDS
        assert not program._stopped_too_long()
        now[0] += 1.0
        assert not program._stopped_too_long()
        for _ in range(round(child.STOPPED_SECONDS)):
            now[0] += 1.0
            late = program._stopped_too_long()
        assert late


@pytest.mark.parametrize("grace", [0.0, PATIENCE])
def test_a_program_that_has_ended_before_it_is_told_to_has_its_exit_code(grace: float) -> None:
    with ChildProcess(["bash", "-c", "exit 7"], grace=grace) as program:
        os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
    assert program.exit_code == 7


def test_a_program_that_is_continued_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ChildProcess(["bash", "-c", "kill -STOP $$; exit 7"], tmp_path / "log") as program:
        wait_until(lambda: process_state(program.pid) == STOPPED_STATE)
        with pytest.raises(subprocess.TimeoutExpired):
            program.wait(0.1)
        os.kill(program.pid, signal.SIGCONT)
        monkeypatch.setattr(child, "STOPPED_SECONDS", 0.0)
        assert program.wait() == 7


@pytest.mark.parametrize(("logged", "code"), [(True, 1), (False, 7)])
def test_only_a_program_on_the_terminal_reads_from_it(logged: bool, code: int, tmp_path: Path) -> None:
    ours, before = os.pipe(), os.dup(0)
    os.write(ours[1], b"a line\n")
    os.dup2(ours[0], 0)
    try:
        with ChildProcess(["bash", "-c", "read line && exit 7"], tmp_path / "log" if logged else None) as program:
            assert program.wait() == code
    finally:
        os.dup2(before, 0)
        for one in (*ours, before):
            os.close(one)
