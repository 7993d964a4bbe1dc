"""Timing several implementations of the same work in turns, and comparing what they compute before that.

The sides take turns, A B A B, in one process, so that a machine that is busy for a while is busy for all of them. A
ratio is taken within a round; the median is over rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backbones.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TURN_SECONDS = 0.1  # a turn repeats the step until it lasts about this long
MAX_STEPS_PER_TURN = 100


class MismatchError(UserError):
    """Two implementations that should be the same compute different things: their speed is not compared."""

    exit_code = 1


@dataclass(frozen=True)
class Speedup:
    """Ratio of another side's time to ours, which says how many times faster ours is.

    Attributes:
        median: Median over the rounds.
        quartiles: First and third quartile over the rounds.
    """

    median: float
    quartiles: tuple[float, float]

    @classmethod
    def between(cls, ours: Sequence[float], theirs: Sequence[float]) -> Speedup:
        """The speedup from the seconds of both sides, round by round."""
        values = ratios(ours, theirs)
        return cls(statistics.median(values), quartiles(values))

    def as_dict(self) -> dict[str, Any]:
        """The speedup as plain data."""
        return {"ours_is_times_faster": self.median, "ours_is_times_faster_quartiles": list(self.quartiles)}

    def __str__(self) -> str:
        return "{:.2f} ({:.2f}-{:.2f})".format(self.median, *self.quartiles)


@dataclass(frozen=True)
class WorkComparison:
    """Times of one kind of work.

    Attributes:
        work: The work in words.
        same: Evidence that the outputs of all sides are equal, or what else is known of them, in words.
        seconds: Seconds of each side in each round; the others are compared with the first.
    """

    work: str
    same: str
    seconds: dict[str, tuple[float, ...]]

    def as_dict(self) -> dict[str, Any]:
        """The comparison as plain data."""
        ours = next(iter(self.seconds.values()))
        sides = {
            name: {"seconds": list(taken), "median": statistics.median(taken)} | Speedup.between(ours, taken).as_dict()
            for name, taken in self.seconds.items()
        }
        return {"work": self.work, "same": self.same, "sides": sides}

    def __str__(self) -> str:
        first, ours = next(iter(self.seconds.items()))
        row = "  {:44} {:>10} {:>17} {:>20}"
        lines = [self.work, f"  {self.same}", row.format("", "s", "quartiles", f"{first} is x faster").rstrip()]
        for name, taken in self.seconds.items():
            speedup = "" if name == first else str(Speedup.between(ours, taken))
            between = "{:.3f}-{:.3f}".format(*quartiles(taken))
            lines.append(row.format(name, f"{statistics.median(taken):.3f}", between, speedup).rstrip())
        return "\n".join(lines)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ratio of their time to ours in each round."""
    return [their / our for our, their in zip(ours, theirs, strict=True)]


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """First and third quartile."""
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def rates(seconds: Sequence[float], images: float = 1) -> tuple[float, tuple[float, float]]:
    """Images per second: median and quartiles over rounds in which so many images took these seconds."""
    low, high = (images / one for one in quartiles(seconds)[::-1])
    return images / statistics.median(seconds), (low, high)


def take_turns(
    steps: Mapping[str, Callable[[], object]],
    rounds: int,
    wait: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, tuple[float, ...]]:
    """Time steps in turns: A B A B.

    Args:
        steps: Warmed-up steps by name.
        rounds: Number of turns of each step.
        wait: Function that waits until the device has finished its work.
        clock: Function that returns the present time in seconds.

    Returns:
        Seconds of one step in each round, by name.
    """

    def seconds(step: Callable[[], object], repeats: int) -> float:
        wait()
        begin = clock()
        for _ in range(repeats):
            step()
        wait()
        return (clock() - begin) / repeats

    repeats = {}
    for name, step in steps.items():
        repeats[name] = min(max(int(TURN_SECONDS / max(seconds(step, 1), 1e-6)), 1), MAX_STEPS_PER_TURN)
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            taken[name].append(seconds(step, repeats[name]))
    return {name: tuple(times) for name, times in taken.items()}


def warm_up(step: Callable[[], object], times: int = 2) -> None:
    """Run a step a few times, so that caches are filled and choices are made before it is timed."""
    for _ in range(times):
        step()


def synchronize(device: str) -> None:
    """Wait until the device, ``cpu`` or ``cuda``, has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def autocast(device: str, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Context of mixed precision in ``dtype``; of none for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device, dtype)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))
