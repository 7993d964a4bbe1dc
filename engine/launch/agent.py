"""torchrun's agent with hang detection, named failures and the exit codes of the tools.

torch's agent starts the processes of one machine, assigns their ranks and restarts them. Added here: the rank that
failed first with its last line, hangs (:mod:`engine.launch.hang_detector`), the end of the job on other machines
(:mod:`engine.launch.node_channel`), time to save for processes that are told to stop, and no restart after a failure
that would repeat.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs

from engine.launch.exit_codes import (
    EXIT_BAD_INPUT,
    EXIT_FAILED,
    EXIT_HUNG,
    EXIT_INTERRUPTED,
    EXIT_NONFINITE,
    EXIT_SAVED,
)
from engine.launch.hang_detector import HangDetector, StalledRank, StopDetector, describe_hang
from engine.launch.heartbeat import (
    LAUNCHER_PROCESS,
    STACKS_FILE,
    Position,
    read_error_report,
    read_frames,
    read_position,
    request_stacks,
)
from engine.launch.node_channel import JobEnd, NodeChannel

SAVED_MESSAGES = {
    EXIT_SAVED: "stopped with everything saved: go on with the same command and --resume",
    EXIT_INTERRUPTED: "interrupted: the same command and --resume go on from what was saved",
}
CRASH_CODES = (-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGFPE, -signal.SIGILL, -signal.SIGABRT)
NO_RETRY_CODES = (EXIT_BAD_INPUT, EXIT_NONFINITE, *SAVED_MESSAGES)  # would end in the same way, or is not wanted
POSITION_POLL_SECONDS = 1.0
ROOT_CAUSE_SECONDS = 1.0  # in which failures of several ranks are compared
LOST_PEER_SECONDS = 5.0  # for the failure that caused another rank to lose its peer
TERMINATE_SECONDS = 10.0  # from SIGTERM to SIGKILL for the other ranks when one has failed
REPEATED_SIGNAL_SECONDS = 2.0  # within which a second Ctrl-C counts as the same one
TORCH_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")  # that torch handles unless told which
FORWARDED_SIGNALS = {
    signal.SIGINT: signal.SIGINT,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGHUP: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
}


class LocalRank(NamedTuple):
    """A process of this machine and the folder of its heartbeat files."""

    process: subprocess.Popen[bytes]
    folder: Path


class LaunchAgent(LocalElasticAgent):
    """Runs the processes of this machine.

    Args:
        spec: Program, number of processes, rendezvous and restarts.
        logs: Location of the processes' folders.
        grace: Seconds to save for processes that are told to stop.
        nodes: Number of machines.
        node: Number of this machine.

    Attributes:
        end: The end of the job, if it did not succeed.
        channel: Connection to the other machines, if there are any.
    """

    def __init__(self, spec: WorkerSpec, logs: DefaultLogsSpecs, grace: float, nodes: int = 1, node: int = 0) -> None:
        super().__init__(spec, logs)
        self._grace, self._nodes, self._node = grace, nodes, node
        self.end: JobEnd | None = None
        self.channel: NodeChannel | None = None
        self._signals: list[tuple[signal.Signals, float]] = []
        self._signals_sent = 0

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self.end = None
        self._hang_detector, self._stop_detector, self._polled_at = HangDetector(), StopDetector(), 0.0
        self._ended_at: dict[int, float] = {}
        self._stacks: dict[int, tuple[int, list[str]]] = {}  # by rank: number of the announcement, frames
        os.environ[LAUNCHER_PROCESS] = str(os.getpid())  # the ranks inherit it
        # An ignored one stays ignored, as nohup has it: torch would handle it.
        kept = [name for name in TORCH_SIGNALS if signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN]
        os.environ.setdefault("TORCHELASTIC_SIGNALS_TO_HANDLE", ",".join(kept))
        started = super()._start_workers(worker_group)
        for number in FORWARDED_SIGNALS:  # after torch's own handlers, which would end everything at once
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        if self._nodes > 1:
            attempt = worker_group.spec.max_restarts - self._remaining_restarts
            store: Any = worker_group.store
            self.channel = NodeChannel(store.clone(), self._node, self._nodes, attempt)
        return started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        codes = {rank: local.process.poll() for rank, local in self._local_ranks().items()}
        self._forward_signals()
        self.end = self._find_end(codes)
        if self.end is None:
            if any(code is None or code for code in codes.values()):
                return RunResult(state=WorkerState.HEALTHY)
            return super()._monitor_workers(worker_group)
        self._stop_all(0.0 if self.end.exit_code == EXIT_HUNG else TERMINATE_SECONDS)
        if not self.end.retry or self._signals:
            self._remaining_restarts = 0
        elif self._remaining_restarts:
            done = worker_group.spec.max_restarts - self._remaining_restarts + 1
            print_line(f"{self.end.message}: starting again ({done} of {worker_group.spec.max_restarts})")
        if self.channel is not None and self._remaining_restarts:
            self.channel.close()
        return RunResult(state=WorkerState.FAILED)

    def _local_ranks(self) -> dict[int, LocalRank]:
        """The processes of this machine by global rank."""
        # torch's agent keeps its processes in a private attribute, and has no public method that returns them.
        context: Any = self._pcontext
        return {
            worker.global_rank: LocalRank(
                context.subprocess_handlers[worker.local_rank].proc, Path(context.error_files[worker.local_rank]).parent
            )
            for worker in self.get_worker_group().workers
        }

    def _on_signal(self, number: int, _: Any) -> None:
        self._signals.append((signal.Signals(number), time.monotonic()))

    def _forward_signals(self) -> None:
        """Signal the processes alone: they need their data workers in order to save."""
        for number, _ in self._signals[self._signals_sent :]:
            for local in self._local_ranks().values():
                local.process.send_signal(FORWARDED_SIGNALS[number])
            self._signals_sent += 1

    def _find_end(self, codes: dict[int, int | None]) -> JobEnd | None:
        """The end of the job, as soon as there is one and its cause is known."""
        now = time.monotonic()
        for rank, code in codes.items():
            if code is not None:
                self._ended_at.setdefault(rank, now)
        received = self.channel.received() if self.channel is not None else None
        end = received or self._stop_requested(codes, now) or self._failure(codes, now)
        if any(codes.values()):  # the others wait for a rank that failed, and do not hang
            if self.channel is not None:
                self.channel.stalled = None
        else:
            end = end or self._hang(codes, now)
        # Ranks that have saved exit on all machines, each in its own time.
        if self.channel is not None and end is not None and end.exit_code not in SAVED_MESSAGES:
            self.channel.post(end)
        return end

    def _stop_requested(self, codes: dict[int, int | None], now: float) -> JobEnd | None:
        """The end of a job that was told to stop and does not."""
        running = [rank for rank, code in codes.items() if code is None]
        if not self._signals or not running:
            return None
        number, first = self._signals[0]
        ranks = f"rank{'s' if len(running) > 1 else ''} {', '.join(map(str, running))}"
        if now - first > self._grace:
            self._stop_all(0.0)
            return JobEnd(f"{ranks} did not end within {self._grace:.0f} s of {number.name}", 128 + number, retry=False)
        if any(other == signal.SIGINT and at - first > REPEATED_SIGNAL_SECONDS for other, at in self._signals):
            self._stop_all(0.0)
            return JobEnd(f"interrupted twice: {ranks} ended without saving", EXIT_INTERRUPTED, retry=False)
        return None

    def _failure(self, codes: dict[int, int | None], now: float) -> JobEnd | None:
        """The first cause among the failed ranks, once it can be told from its consequences."""
        failed = {rank: code for rank, code in codes.items() if code}
        if not failed:
            return None
        folders = {rank: local.folder for rank, local in self._local_ranks().items()}
        reports = {rank: read_error_report(folders[rank]) for rank in failed}

        def order(rank: int) -> tuple[int, float, int]:
            kind = 2 if reports[rank][1] else 1 if failed[rank] in SAVED_MESSAGES else 0
            return kind, self._ended_at[rank], rank

        rank = min(failed, key=order)
        kind, code = order(rank)[0], failed[rank]
        waits = None in codes.values() or (kind == 2 and self.channel is not None)
        patience = (ROOT_CAUSE_SECONDS, self._grace, LOST_PEER_SECONDS)[kind]
        if waits and now - min(self._ended_at[one] for one in failed) < patience:
            return None
        if code in SAVED_MESSAGES and None not in codes.values():
            return JobEnd(SAVED_MESSAGES[code], code, retry=False)
        if self._signals and -code in FORWARDED_SIGNALS.values():
            exit_code = EXIT_INTERRUPTED if -code == signal.SIGINT else EXIT_SAVED
            name = signal.Signals(-code).name
            how = f"stopped by {name} before anything more was saved: start again; what was saved so far is kept"
            return JobEnd(how, exit_code, retry=False)
        return _rank_failure(rank, code, reports[rank][0], folders[rank])

    def _hang(self, codes: dict[int, int | None], now: float) -> JobEnd | None:
        """Compare the positions of the ranks with their time limits, once a second."""
        if now - self._polled_at < POSITION_POLL_SECONDS:
            return None
        self._polled_at = now
        running = {rank: local for rank, local in self._local_ranks().items() if codes[rank] is None}
        positions = {rank: read_position(local.folder) for rank, local in running.items()}
        stopped = self._stop_detector.update({rank: local.process.pid for rank, local in running.items()}, now)
        for rank, seconds in stopped.items():
            how = f"was stopped by a signal {seconds:.0f} s ago, and not continued (kill -CONT)"
            return JobEnd(f"rank {rank} {how}; its last line: {positions[rank]}", EXIT_HUNG, retry=True)
        late = self._hang_detector.update(positions, now)
        stalled = self._with_frames(late, positions) if len(late) == len(positions) else None
        if self.channel is not None:
            self.channel.stalled = stalled
            stalled = self.channel.stalled_everywhere if self._node == 0 else None
        return JobEnd(describe_hang(stalled), EXIT_HUNG, retry=True) if stalled else None

    def _with_frames(self, stalled: list[StalledRank], positions: dict[int, Position]) -> list[StalledRank]:
        """Add the Python frames: the ranks write their stacks once for each announcement."""
        local_ranks = self._local_ranks()
        known = {rank: sequence for rank, (sequence, _) in self._stacks.items()}
        new = [one.rank for one in stalled if known.get(one.rank) != positions[one.rank].sequence]
        # Only a rank that has started its heartbeat handles the signal for it.
        handle = [local_ranks[rank] for rank in new if positions[rank].sequence]
        request_stacks({one.process.pid: one.folder for one in handle if (one.folder / STACKS_FILE).exists()})
        for rank in new:
            self._stacks[rank] = positions[rank].sequence, read_frames(local_ranks[rank].folder)[:5]
        return [replace(one, frames=self._stacks[one.rank][1]) for one in stalled]

    def report_stacks(self) -> None:
        """Print the position of each rank of this machine, and copy all its stacks to the work directory."""
        copies: Path | None = None
        for rank, local in self._local_ranks().items():
            position = read_position(local.folder)
            frames = self._stacks.get(rank, (0, []))[1]
            print_line(f"rank {rank}: {position}" + (f", at {' < '.join(frames[:3])}" if frames else ""))
            if frames and position.folder:
                with suppress(OSError):
                    copies = Path(position.folder) / "stacks"
                    copies.mkdir(parents=True, exist_ok=True)
                    shutil.copy(local.folder / STACKS_FILE, copies / f"rank_{rank}.txt")
        if copies is not None:
            print_line(f"the stacks of all threads are in {copies}")

    def _stop_all(self, timeout: float) -> None:
        """Send SIGTERM to the running ranks and, after a timeout in seconds, SIGKILL to them and their data workers."""
        running = [local.process for local in self._local_ranks().values() if local.process.poll() is None]
        until = time.monotonic() + timeout
        for process in running:
            if timeout:
                process.terminate()
        while timeout and time.monotonic() < until and any(process.poll() is None for process in running):
            time.sleep(0.05)
        for process in running:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _rank_failure(rank: int, code: int, reported: str, folder: Path) -> JobEnd:
    """The end of a job by the failure of a rank, with the line of its error report, and its heartbeat files."""
    position = str(read_position(folder))
    if reported and code == -signal.SIGABRT:
        code = EXIT_FAILED  # an exception; gloo's threads abort the process when it exits
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    frames = read_frames(folder)[:1] if code in CRASH_CODES else []
    if reported and code != EXIT_BAD_INPUT:
        reported = f"{reported}, in {position}"
    message = f"rank {rank} ended with {how}; its last line: {', at '.join([reported or position, *frames])}"
    return JobEnd(message, 128 - code if code < 0 else code, retry=code not in NO_RETRY_CODES)


def print_line(line: str) -> None:
    """Write a whole line to stderr in one call, since several processes write there."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
