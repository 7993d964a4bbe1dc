"""Detects hangs from the positions that the ranks announce, and finds the rank that causes them.

A job hangs when every rank has stayed in its position for longer than its phase may take; a step, and a batch of a
validation or a test, may take some times as long as those before. As long as one rank still moves, or is in a phase
that may take longer, the ranks that wait for it do not count as hanging: an evaluation on rank 0, a checkpoint on slow
storage. The cause is the rank that is behind the others, or that is outside of a step while they wait in one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from engine.launch.child import STOPPED_SECONDS
from engine.launch.heartbeat import Phase, Position
from engine.launch.leftovers import STOPPED_STATE, process_state

MIN_STEP_PATIENCE_SECONDS = 45.0  # of a batch too, as all of these
STEP_PATIENCE_FACTOR = 10  # times the median duration of a step
WARM_UP_STEPS = 5  # the first steps may compile and autotune
# For each phase, and for the first steps and batches.
PATIENCE_SECONDS = {
    Phase.STARTING: math.inf,  # of unknown length; torch ends a collective that not all ranks join
    Phase.DATA: 600.0,
    **dict.fromkeys(
        (Phase.STEP, Phase.BATCH, Phase.VALIDATION, Phase.SAVING), 1800.0
    ),  # the timeout of torch's collectives
}
MAX_GAP_SECONDS = 3.0  # counted between two updates; more means that the launcher itself was suspended
STEP_HISTORY = 50  # durations in the median
# Files of the functions in which a rank waits for the others.
WAITING_FILES = ("distributed/distributed_c10d.py", "autograd/graph.py")


@dataclass(frozen=True)
class StalledRank:
    """A rank that has stayed in its position for too long.

    Attributes:
        rank: Global rank.
        progress: Number of steps and batches begun.
        phase: Current activity.
        place: Last announcement in words.
        age: Seconds since the last announcement.
        frames: Python frames of the main thread, innermost first.
    """

    rank: int
    progress: int
    phase: int
    place: str
    age: float
    frames: Sequence[str] = ()


class HangDetector:
    """Follows the positions of the ranks of one machine.

    :meth:`update` counts the time itself, so that a job that was suspended as a whole is not taken for one that hangs.
    """

    def __init__(self) -> None:
        self._clock = 0.0
        self._last: float | None = None
        self._seen: dict[int, Position] = {}
        self._since: dict[int, float] = {}
        self._stepped: dict[int, tuple[Phase, float]] = {}  # by rank: whether step or batch began last, and when
        self._durations: dict[Phase, deque[float]] = {
            phase: deque(maxlen=STEP_HISTORY) for phase in (Phase.STEP, Phase.BATCH)
        }

    def update(self, positions: Mapping[int, Position], now: float) -> list[StalledRank]:
        """Record the current positions.

        Args:
            positions: Position of each running rank.
            now: Seconds of a monotonic clock.

        Returns:
            The ranks that have stayed in their positions for too long.
        """
        self._clock += min(now - self._last, MAX_GAP_SECONDS) if self._last is not None else 0.0
        self._last = now
        for rank, position in positions.items():
            before = self._seen.get(rank, Position())
            if rank not in self._seen or position.sequence != before.sequence:
                self._since[rank] = self._clock
            self._measure(rank, Phase.STEP, position.steps - before.steps)
            self._measure(rank, Phase.BATCH, position.batches - before.batches)
            self._seen[rank] = position
        ages = {rank: self._clock - self._since[rank] for rank in positions}
        return [
            StalledRank(rank, position.steps + position.batches, position.phase, str(position), ages[rank])
            for rank, position in positions.items()
            if ages[rank] > self.patience(position)
        ]

    def patience(self, position: Position) -> float:
        """Seconds that a rank may stay in a position."""
        done = {Phase.STEP: position.steps, Phase.BATCH: position.batches}.get(position.phase, 0)
        if done <= WARM_UP_STEPS:
            return max(PATIENCE_SECONDS[position.phase], position.patience)
        durations = self._durations[position.phase]
        usual = median(durations) if durations else 0.0
        return position.patience or max(MIN_STEP_PATIENCE_SECONDS, STEP_PATIENCE_FACTOR * usual)

    def _measure(self, rank: int, phase: Phase, count: int) -> None:
        """Note how long the steps, or the batches, took that a rank has begun since the last look."""
        if count > 0:
            before, since = self._stepped.get(rank, (None, 0.0))
            if before == phase:
                self._durations[phase].append((self._clock - since) / count)
            self._stepped[rank] = phase, self._clock


class StopDetector:
    """Follows which processes of this machine were stopped by a signal and not continued."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}
        self._last = 0.0

    def update(self, pids: Mapping[int, int], now: float) -> dict[int, float]:
        """Look at the processes.

        Args:
            pids: Process of each running rank.
            now: Seconds of a monotonic clock.

        Returns:
            The ranks that were found stopped for too long, and the seconds.
        """
        if now - self._last > MAX_GAP_SECONDS:  # the launcher itself was suspended, and the job with it
            self._since.clear()
        self._last = now
        stopped = [rank for rank, pid in pids.items() if process_state(pid) == STOPPED_STATE]
        self._since = {rank: self._since.get(rank, now) for rank in stopped}
        return {rank: now - since for rank, since in self._since.items() if now - since > STOPPED_SECONDS}


def find_causes(stalled: Iterable[StalledRank]) -> list[StalledRank]:
    """The ranks that the others of a job that hangs wait for.

    These are the ranks that are furthest behind, among equal ones those that do not wait in a collective.
    """
    ordered = sorted(stalled, key=lambda rank: rank.rank)
    behind = min(map(_progress, ordered))
    return [rank for rank in ordered if _progress(rank) == behind]


def _progress(rank: StalledRank) -> tuple[int, bool, bool]:
    waits = bool(rank.frames) and rank.frames[0].startswith(WAITING_FILES)
    return rank.progress, rank.phase in (Phase.STEP, Phase.BATCH), waits


def describe_hang(stalled: Sequence[StalledRank]) -> str:
    """One line with the ranks that cause a hang, their position and its age."""
    causes = find_causes(stalled)
    first = causes[0]
    who = f"rank {first.rank} hangs" if len(causes) == 1 else f"ranks {', '.join(str(c.rank) for c in causes)} hang"
    where = f", at {first.frames[0]}" if first.frames else ""
    others = "; the other ranks wait for it" if len(stalled) > len(causes) == 1 else ""
    return f"{who} ({first.age:.0f} s without progress); its last line: {first.place}{where}{others}"
