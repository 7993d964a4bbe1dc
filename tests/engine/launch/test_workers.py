"""What torch says about a worker that died is told from all other errors; whole workers die in tests of the loader."""

from __future__ import annotations

import pytest

from engine.launch.workers import lost_worker

SAID = "DataLoader worker (pid 12) is killed by signal: Killed. "


def test_it_is_said_by_the_error_or_by_its_cause() -> None:
    """By the error itself where torch's handler of signals raises it, wherever the process is then."""
    pid, end = lost_worker(RuntimeError(SAID)) or (0, "")
    assert (pid, end.partition(",")[0]) == (12, "was ended by a signal (Killed)")
    outer = RuntimeError("DataLoader worker (pid(s) 12) exited unexpectedly")
    assert lost_worker(outer) is None
    outer.__cause__ = RuntimeError("DataLoader worker (pid 12) exited unexpectedly with exit code 3. Details are lost.")
    assert lost_worker(outer) == (12, "left with exit code 3")


@pytest.mark.parametrize("error", [ValueError(SAID), RuntimeError(f"not at its beginning: {SAID}"), RuntimeError()])
def test_another_error_is_none_of_a_worker(error: Exception) -> None:
    assert lost_worker(error) is None
