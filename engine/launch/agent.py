"""torchrun's agent, which in addition sees hangs, names the rank that failed, and knows the exit codes of our tools.

torch's agent starts the processes of one machine, numbers them and starts them again. What it lacks is here: who failed
first and what it said last, a hang (:mod:`engine.launch.hang_detector`), the ends of the other machines
(:mod:`engine.launch.node_channel`), time to save for processes that are told to stop, and no second try for what would
fail again.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from engine.launch.hang_detector import Judge, Status, verdict
from engine.launch.heartbeat import STACK_SIGNAL, STACKS_FILE, read_error_report, read_frames, read_position
from engine.launch.node_channel import Ended, Mail

LEFT = {
    EXIT_SAVED: "stopped with everything saved: go on with the same command and --resume",
    EXIT_INTERRUPTED: "interrupted: the same command and --resume go on from what was saved",
}
CRASHES = (-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGFPE, -signal.SIGILL, -signal.SIGABRT)
ONCE = (EXIT_BAD_INPUT, EXIT_NONFINITE, *LEFT)  # another try would end in the same way, or is not wanted
LOOK_EVERY = 1.0  # seconds
ROOT_CAUSE = 1.0  # seconds in which ranks that fail together are compared
LOST_PEER = 5.0  # seconds to wait for the failure that a rank which lost another one complains about
FAREWELL = 10.0  # seconds from SIGTERM to SIGKILL for the ranks that are left when one has failed
STACKS_WITHIN = 1.0  # seconds for a rank to write its stacks
SAME_SIGNAL = 2.0  # seconds in which a second Ctrl-C does not count
FORWARDED = {
    signal.SIGINT: signal.SIGINT,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGHUP: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
}


class Agent(LocalElasticAgent):
    """Runs the processes of this machine.

    Args:
        spec: What to run.
        logs: Where each process has its folder.
        grace: Seconds to save for processes that are told to stop.
        nodes: Machines of the job.
        node: Number of this one.

    Attributes:
        ended: How it ended, where that was not well.
        mail: To and from the other machines, where there are any.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        logs: DefaultLogsSpecs,
        grace: float,
        nodes: int = 1,
        node: int = 0,
    ) -> None:
        super().__init__(spec, logs)
        self._grace, self._nodes, self._node = grace, nodes, node
        self.ended: Ended | None = None
        self.mail: Mail | None = None
        self._signals: list[tuple[signal.Signals, float]] = []
        self._told = 0

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self.ended = None
        self._judge, self._looked = Judge(), 0.0
        self._ends: dict[int, float] = {}
        self._dumped: dict[int, tuple[int, tuple[str, ...]]] = {}
        started = super()._start_workers(worker_group)
        for number in FORWARDED:  # after torch's own handlers, which would end everything at once
            signal.signal(number, self._on_signal)
        if self._nodes > 1:
            attempt = worker_group.spec.max_restarts - self._remaining_restarts
            store: Any = worker_group.store
            self.mail = Mail(store.clone(), self._node, self._nodes, attempt)
        return started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        codes = {rank: process.poll() for rank, process in self._processes().items()}
        self._pass_signals_on()
        self.ended = self._how_it_ended(codes)
        if self.ended is None:
            if any(code is None or code for code in codes.values()):
                return RunResult(state=WorkerState.HEALTHY)
            return super()._monitor_workers(worker_group)
        self._end_all(0.0 if self.ended.code == EXIT_HUNG else FAREWELL)
        if not self.ended.again or self._signals:
            self._remaining_restarts = 0
        elif self._remaining_restarts:
            done = worker_group.spec.max_restarts - self._remaining_restarts + 1
            say(f"{self.ended.line}: starting again ({done} of {worker_group.spec.max_restarts})")
        if self.mail is not None and self._remaining_restarts:
            self.mail.close()
        return RunResult(state=WorkerState.FAILED)

    def _processes(self) -> dict[int, Any]:
        """The process of each rank of this machine."""
        handlers: dict[int, Any] = self._pcontext.subprocess_handlers  # type: ignore[union-attr]
        return {worker.global_rank: handlers[worker.local_rank].proc for worker in self._worker_group.workers}

    def _folders(self) -> dict[int, Path]:
        """The folder of each rank of this machine."""
        files: dict[int, str] = self._pcontext.error_files  # type: ignore[union-attr]
        return {worker.global_rank: Path(files[worker.local_rank]).parent for worker in self._worker_group.workers}

    def _on_signal(self, number: int, _: Any) -> None:
        self._signals.append((signal.Signals(number), time.monotonic()))

    def _pass_signals_on(self) -> None:
        """Tell the processes themselves, not their data workers, which they still need in order to save."""
        for number, _ in self._signals[self._told :]:
            for process in self._processes().values():
                process.send_signal(FORWARDED[number])
            self._told += 1

    def _how_it_ended(self, codes: dict[int, int | None]) -> Ended | None:
        """What ends the job, as soon as something does and its cause is known."""
        now = time.monotonic()
        for rank, code in codes.items():
            if code is not None:
                self._ends.setdefault(rank, now)
        received = self.mail.received() if self.mail is not None else None
        found = received or self._told_to_stop(codes, now) or self._failure(codes, now) or self._hang(codes, now)
        # Ranks that leave well do so on all machines, each in its time.
        if self.mail is not None and found is not None and found.code not in LEFT:
            self.mail.post(found)
        return found

    def _told_to_stop(self, codes: dict[int, int | None], now: float) -> Ended | None:
        """The end of a job that was told to stop and does not."""
        running = [rank for rank, code in codes.items() if code is None]
        if not self._signals or not running:
            return None
        number, first = self._signals[0]
        ranks = f"rank{'s' if len(running) > 1 else ''} {', '.join(map(str, running))}"
        if now - first > self._grace:
            self._end_all(0.0)
            return Ended(f"{ranks} did not end within {self._grace:.0f} s of {number.name}", 128 + number, again=False)
        if any(other == signal.SIGINT and at - first > SAME_SIGNAL for other, at in self._signals):
            self._end_all(0.0)
            return Ended(f"interrupted twice: {ranks} ended without saving", EXIT_INTERRUPTED, again=False)
        return None

    def _failure(self, codes: dict[int, int | None], now: float) -> Ended | None:
        """The first cause among the ranks that ended badly, once it can be told."""
        failed = {rank: code for rank, code in codes.items() if code}
        if not failed:
            return None
        words = {rank: read_error_report(self._folders()[rank]) for rank in failed}

        def order(rank: int) -> tuple[int, float, int]:
            kind = 2 if words[rank][1] else 1 if failed[rank] in LEFT else 0
            return kind, self._ends[rank], rank

        rank = min(failed, key=order)
        kind, code = order(rank)[0], failed[rank]
        waits = None in codes.values() or (kind == 2 and self.mail is not None)
        if waits and now - min(self._ends[one] for one in failed) < (ROOT_CAUSE, self._grace, LOST_PEER)[kind]:
            return None
        if code in LEFT and None not in codes.values():
            return Ended(LEFT[code], code, again=False)
        if self._signals and -code in FORWARDED.values():
            name = signal.Signals(-code).name
            return Ended(f"stopped by {name} before anything was there to save", 128 - code, again=False)
        said, position = words[rank][0], str(read_position(self._folders()[rank]))
        if said and code == -signal.SIGABRT:
            code = EXIT_FAILED  # of an exception; gloo's threads then abort a process that leaves without their consent
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        frames = read_frames(self._folders()[rank])[:1] if code in CRASHES else []
        if said and code != EXIT_BAD_INPUT:
            said = f"{said}, in {position}"
        line = f"rank {rank} ended with {how}; its last line: {', at '.join([said or position, *frames])}"
        return Ended(line, 128 - code if code < 0 else code, again=code not in ONCE)

    def _hang(self, codes: dict[int, int | None], now: float) -> Ended | None:
        """Look at the positions, once a second."""
        if now - self._looked < LOOK_EVERY:
            return None
        self._looked = now
        folders = self._folders()
        positions = {rank: read_position(folders[rank]) for rank, code in codes.items() if code is None}
        late = self._judge.look(positions, now)
        statuses = self._with_frames(late, positions) if len(late) == len(positions) else None
        if self.mail is not None:
            self.mail.publish(statuses)
            statuses = self.mail.hung() if self._node == 0 else None
        return Ended(verdict(statuses), EXIT_HUNG, again=True) if statuses else None

    def _with_frames(self, late: list[Status], positions: dict[int, Any]) -> list[Status]:
        """Let the ranks write where in the code they are, once for each announcement."""
        folders = self._folders()
        known = {rank: sequence for rank, (sequence, _) in self._dumped.items()}
        new = [status for status in late if known.get(status.rank) != positions[status.rank].sequence]
        for status in new:
            # Only a rank that has its page open has said what to do on this signal.
            if positions[status.rank].sequence and (folders[status.rank] / STACKS_FILE).exists():
                self._processes()[status.rank].send_signal(STACK_SIGNAL)
        if new:
            time.sleep(STACKS_WITHIN)
        for status in new:
            frames = tuple(read_frames(folders[status.rank])[:5])
            self._dumped[status.rank] = (positions[status.rank].sequence, frames)
        return [replace(status, frames=self._dumped[status.rank][1]) for status in late]

    def tell_stacks(self) -> None:
        """Print where each rank of this machine sat, and keep the stacks of all its threads in the work directory."""
        kept: Path | None = None
        for rank, folder in self._folders().items():
            position = read_position(folder)
            frames = self._dumped.get(rank, (0, ()))[1]
            say(f"rank {rank}: {position}" + (f", at {' < '.join(frames[:3])}" if frames else ""))
            if frames and position.folder:
                with suppress(OSError):
                    kept = Path(position.folder) / "stacks"
                    kept.mkdir(parents=True, exist_ok=True)
                    shutil.copy(folder / STACKS_FILE, kept / f"rank_{rank}.txt")
        if kept is not None:
            say(f"the stacks of all threads are in {kept}")

    def _end_all(self, farewell: float) -> None:
        """SIGTERM to the ranks that are left, then SIGKILL to them and their data workers."""
        running = [process for process in self._processes().values() if process.poll() is None]
        until = time.monotonic() + farewell
        for process in running:
            if farewell:
                process.terminate()
        while farewell and time.monotonic() < until and any(process.poll() is None for process in running):
            time.sleep(0.05)
        for process in running:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def say(line: str) -> None:
    """One line to the person, whole even where several processes write."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
