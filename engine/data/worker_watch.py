"""Notices a worker of a data loader that does nothing any more, while the process waits for its batch.

torch waits for ever for a worker that lives. Here a thread looks every few seconds at the one that is waited for: a
worker that neither computes nor reads for the better part of a minute is named, with its sample and its stack, and
killed, which ends the waiting with an error. One that still computes or reads, or waits for a disk, is slow: a warning.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import active_children
from pathlib import Path
from threading import Event, Thread
from typing import Any

from mmengine.logging import MMLogger
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from backbones.errors import MachineError, printable
from engine.launch.exit_codes import EXIT_HUNG
from engine.launch.heartbeat import STACK_SIGNAL, STACKS_FILE, read_frames, request_stacks
from engine.launch.leftovers import STOPPED_STATE, process_state, worker_folder
from engine.launch.workers import LostWorkerError, lost_worker

WORKER_PATIENCE_SECONDS = (
    45.0  # without CPU time and bytes; with WORKER_POLL_SECONDS and the stack it is still within the minute
)
WORKER_POLL_SECONDS = 3.0
SHOWN_FRAMES = 3
PROC = Path("/proc")
_WAITS_FOR_DISK = "D"  # state of Linux
_IDLE, _PREPARES, _COLLATES, _BEGINS = range(4)


class HungWorkerError(MachineError):
    """A worker of a data loader that does nothing; the launcher may start the job again."""

    exit_code = EXIT_HUNG


class WatchedLoader(DataLoader):
    """A data loader that waits for no worker that has stopped; ``timeout`` leaves this to torch, after so long."""

    notes: Tensor  # of each worker: its process, the number of its sample, and what it does (_IDLE, ...)

    def __iter__(self) -> Any:
        """Iterate, with a thread that looks after the workers."""
        if not self.num_workers or self.timeout:
            return super().__iter__()
        before = {child.pid for child in active_children()}
        batches = super().__iter__()
        started = {child.pid for child in active_children() if child.pid is not None} - before
        return _watched(self.notes, self.dataset, batches, started)


def note_samples(notes: Tensor) -> None:
    """In a worker: note which sample it prepares, and write its stacks when it is asked to."""
    info: Any = get_worker_info()
    kind, mine = type(info.dataset), notes[info.id]
    mine[0], mine[2] = os.getpid(), _BEGINS
    stacks = open(worker_folder(os.getpid()) / STACKS_FILE, "w", encoding="utf-8")  # noqa: SIM115  (open until the end)
    faulthandler.register(STACK_SIGNAL, stacks)
    get = kind.__getitem__

    def noting(dataset: Any, index: Any) -> Any:
        if isinstance(index, int):
            mine[1] = int(index)
        mine[2] = _PREPARES
        try:
            return get(dataset, index)
        finally:
            mine[2] = _IDLE

    kind.__getitem__ = noting  # in this process alone


def note_begun(notes: Tensor, worker_id: int) -> None:
    """In a worker: note that it is ready for samples."""
    notes[worker_id, 2] = _IDLE


class NotingCollate:
    """A loader's ``collate_fn``, which a worker also notes when it begins and ends to collate.

    Args:
        collate: The loader's own.
        notes: ``notes`` of :class:`WatchedLoader`.
    """

    def __init__(self, collate: Callable[[Any], Any], notes: Tensor) -> None:
        self._collate, self._notes = collate, notes

    def __call__(self, samples: Any) -> Any:
        """Collate the samples."""
        info = get_worker_info()
        if info is None:
            return self._collate(samples)
        self._notes[info.id, 2] = _COLLATES
        try:
            return self._collate(samples)
        finally:
            self._notes[info.id, 2] = _IDLE


def _watched(notes: Tensor, dataset: Any, batches: Any, started: set[int]) -> Iterator[Any]:
    watch = _Watch(notes, dataset, started)
    try:
        while True:
            watch.waits_since = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:  # torch's about a worker that was killed
                if watch.diagnosis:
                    raise HungWorkerError(watch.diagnosis) from error
                if lost := lost_worker(error):
                    raise LostWorkerError(watch.describe_lost(*lost)) from error
                raise
            watch.waits_since = None
            yield batch
    finally:
        watch.ended.set()


class _Watch:
    """The thread beside one iteration over a loader."""

    def __init__(self, notes: Tensor, dataset: Any, started: set[int]) -> None:
        self.waits_since: float | None = None
        self.diagnosis = ""
        self.ended = Event()
        self._notes, self._dataset, self._started = notes, dataset, started
        self._since: dict[int, tuple[tuple[int, int], float]] = {}  # by process: its progress, and since when
        self._warned_of: float | None = None
        # mmengine looks a logger up under a lock, which an error in the main thread may leave locked for all others.
        self._logger = MMLogger.get_current_instance()
        Thread(target=self._run, name="workers", daemon=True).start()

    def _run(self) -> None:
        last = time.monotonic()
        while not self.ended.wait(WORKER_POLL_SECONDS) and not self.diagnosis:
            now = time.monotonic()
            if now - last > 3 * WORKER_POLL_SECONDS:  # this process itself was stopped or starved
                self._since.clear()
            last = now
            rows = [(number, *row) for number, row in enumerate(self._notes.tolist())]
            # A worker that was forked while another thread held a lock may wait for it before it notes anything.
            rows += [(-1, pid, -1, _BEGINS) for pid in self._started - {pid for _, pid, *_ in rows}]
            for number, pid, sample, does in rows:
                with suppress(OSError, ValueError, IndexError, StopIteration):  # it ends, which torch notices; no /proc
                    if pid and not self.diagnosis:
                        self._look_at(number, pid, sample, does, now)

    def describe_lost(self, pid: int, end: str) -> str:
        """One line about a worker that died.

        Args:
            pid: Its process.
            end: Description of its end, from :func:`engine.launch.workers.lost_worker`.
        """
        for number, (noted, sample, does) in enumerate(self._notes.tolist()):
            if noted == pid and does != _IDLE:
                return f"{self._name(number, pid, sample, does)} {end}"
        return f"a worker of a data loader (process {pid}) {end}"

    def _name(self, number: int, pid: int, sample: int, does: int) -> str:
        if does == _BEGINS:
            return f"a worker of a data loader (process {pid}, which has not begun to load)"
        what = "collating a batch, of which the last is sample" if does == _COLLATES else "sample"
        return f"worker {number} of a data loader (process {pid}, {what} {sample}{_path_of(self._dataset, sample)})"

    def _look_at(self, number: int, pid: int, sample: int, does: int, now: float) -> None:
        """Kill a worker that is in the way of the batch that is waited for, or warn of one."""
        idle, state, waits_since = self._idle_seconds(pid, now), process_state(pid), self.waits_since
        busy = does != _IDLE
        if waits_since is None or now - waits_since < WORKER_PATIENCE_SECONDS or not (busy or state == STOPPED_STATE):
            return
        who = self._name(number, pid, sample, does)
        if idle >= WORKER_PATIENCE_SECONDS and state != _WAITS_FOR_DISK:
            self.diagnosis = f"{who} {_reason(pid, state, idle)}"
            os.kill(pid, signal.SIGKILL)
        elif busy and self._warned_of != waits_since:
            self._warned_of = waits_since
            why = "still computes or reads: slow storage, or too few workers"
            self._logger.warning(f"{who} takes long ({now - waits_since:.0f} s), and {why}")

    def _idle_seconds(self, pid: int, now: float) -> float:
        """Seconds in which a process has neither computed nor read, as far as it was looked at."""
        progress = _progress(pid)
        if pid not in self._since or self._since[pid][0] != progress:
            self._since[pid] = (progress, now)
        return now - self._since[pid][1]


def _reason(pid: int, state: str, idle: float) -> str:
    """Why a worker gives nothing, with its innermost frames where it can still write them."""
    if state == STOPPED_STATE:
        return f"was stopped by a signal, {idle:.0f} s ago or more: kill -CONT would have let it go on"
    folder, frames = worker_folder(pid), []
    if (folder / STACKS_FILE).exists():  # the signal that asks for its stack ends a process that does not expect it
        request_stacks({pid: folder})
        frames = read_frames(folder)[:SHOWN_FRAMES]
    where = f", at {' < '.join(frames)}" if frames else ""
    longer = "timeout=SECONDS of the loader waits longer"
    return f"hangs: no CPU time and no byte read in {idle:.0f} s{where}; {longer}"


def _path_of(dataset: Any, sample: int) -> str:
    find: Callable[[int], Any] | None = getattr(dataset, "get_data_info", None)
    with suppress(Exception):  # any data set's own code
        if find is not None and (path := find(sample).get("img_path")):
            return f", {printable(path)}"
    return ""


def _progress(pid: int) -> tuple[int, int]:
    """CPU time and bytes read so far, of which a process that works has more each time."""
    fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    read = next(line for line in (PROC / str(pid) / "io").read_text().splitlines() if line.startswith("rchar"))
    return int(fields[11]) + int(fields[12]), int(read.split()[1])
