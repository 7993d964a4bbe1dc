"""A clock for the tests of the benchmarks."""

from __future__ import annotations

from collections.abc import Callable

import pytest


class Clock:
    """A clock that only the pretended work advances."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds: float) -> Callable[[], None]:
        def step() -> None:
            self.log.append(name)
            self.now += seconds

        return step


@pytest.fixture
def clock() -> Clock:
    """A new clock at 0."""
    return Clock()
