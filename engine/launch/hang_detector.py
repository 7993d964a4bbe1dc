"""When a job hangs, and who is to blame: the launcher's judgement of the positions that its ranks announce.

A job hangs when every rank has stayed where it is for longer than its phase may take. One rank that still moves, or
that has a long phase's patience left, acquits all who wait for it: an evaluation on rank 0, a checkpoint on slow
storage. The one to blame is behind the others, or does something else while they wait in a step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from engine.launch.heartbeat import Phase, Position

STEP_PATIENCE = 45.0  # seconds, at least
STEPS_OF_PATIENCE = 10  # times the median step
WARM_UP_STEPS = 5  # steps that may compile and measure
LONG_PATIENCE = 1800.0  # as long as a collective of torch may take
DATA_PATIENCE = 600.0
LONGEST_GAP = 3.0  # seconds between two looks that count; more passed while the launcher itself was stopped
STEPS_REMEMBERED = 50
# Functions in which a rank waits for the others; a rank that sits somewhere else keeps them waiting.
WAITING_FILES = ("distributed/distributed_c10d.py", "autograd/graph.py")


@dataclass(frozen=True)
class Status:
    """A rank that has stayed where it is for too long.

    Attributes:
        rank: Its number in the whole job.
        steps: Steps that it has begun.
        phase: What it does.
        place: The announcement in words.
        age: Seconds since then.
        frames: Python frames of its main thread, innermost first.
    """

    rank: int
    steps: int
    phase: int
    place: str
    age: float
    frames: tuple[str, ...] = ()

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Status:
        """Undo :meth:`plain`."""
        return cls(**{**values, "frames": tuple(values["frames"])})

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    def __str__(self) -> str:
        sits = f", at {' < '.join(self.frames[:3])}" if self.frames else ""
        return f"rank {self.rank}: {self.place} for {self.age:.0f} s{sits}"


class Judge:
    """Follows the ranks of one machine.

    Time is counted by :meth:`look` itself, so that a job that was suspended as a whole is not taken for one that hangs.
    """

    def __init__(self) -> None:
        self._clock = 0.0
        self._last: float | None = None
        self._seen: dict[int, Position] = {}
        self._since: dict[int, float] = {}
        self._stepped: dict[int, float] = {}
        self._durations: deque[float] = deque(maxlen=STEPS_REMEMBERED)

    def look(self, positions: Mapping[int, Position], now: float) -> list[Status]:
        """Take in where the ranks are.

        Args:
            positions: Of each rank that runs.
            now: Seconds of a steady clock.

        Returns:
            The ranks that have been where they are for too long.
        """
        self._clock += min(now - self._last, LONGEST_GAP) if self._last is not None else 0.0
        self._last = now
        for rank, position in positions.items():
            before = self._seen.get(rank, Position())
            if rank not in self._seen or position.sequence != before.sequence:
                self._since[rank] = self._clock
            if position.steps > before.steps:
                if rank in self._stepped:
                    self._durations.append((self._clock - self._stepped[rank]) / (position.steps - before.steps))
                self._stepped[rank] = self._clock
            self._seen[rank] = position
        ages = {rank: self._clock - self._since[rank] for rank in positions}
        return [
            Status(rank, position.steps, position.phase, str(position), ages[rank])
            for rank, position in positions.items()
            if ages[rank] > self.patience(position)
        ]

    def patience(self, position: Position) -> float:
        """Seconds that a rank may stay where it is."""
        if position.phase == Phase.STARTING:
            return float("inf")  # only the program knows; torch itself ends a collective that nobody joins
        if position.phase == Phase.DATA:
            return max(DATA_PATIENCE, position.patience)
        if position.phase != Phase.STEP or position.steps <= WARM_UP_STEPS:
            return max(LONG_PATIENCE, position.patience)
        usual = median(self._durations) if self._durations else 0.0
        return position.patience or max(STEP_PATIENCE, STEPS_OF_PATIENCE * usual)


def accused(statuses: Iterable[Status]) -> list[Status]:
    """Those of the waiting ranks whom the others wait for.

    Args:
        statuses: Every rank of a job that hangs.

    Returns:
        The ranks that are furthest behind; of equal ones those that do not wait in a collective.
    """
    everyone = sorted(statuses, key=lambda status: status.rank)
    behind = min(everyone, key=_order)
    return [status for status in everyone if _order(status) == _order(behind)]


def _order(status: Status) -> tuple[int, bool, bool]:
    waits = bool(status.frames) and status.frames[0].startswith(WAITING_FILES)
    return status.steps, status.phase == Phase.STEP, waits


def verdict(statuses: Iterable[Status]) -> str:
    """One line for a person: who hangs, where, since when."""
    everyone = list(statuses)
    guilty = accused(everyone)
    first = guilty[0]
    who = f"rank {first.rank} hangs" if len(guilty) == 1 else f"ranks {', '.join(str(s.rank) for s in guilty)} hang"
    where = f", at {first.frames[0]}" if first.frames else ""
    others = "; the other ranks wait for it" if len(everyone) > len(guilty) == 1 else ""
    return f"{who} ({first.age:.0f} s without progress); its last line: {first.place}{where}{others}"
