"""Jobs in processes of their own: the order of their results, and a process that is killed."""

from __future__ import annotations

import os
import signal

import pytest

from backbones.errors import MachineError
from engine.launch.pool import in_processes


def place_of(number: int) -> tuple[int, int]:
    return number, os.getpid()


def end(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_jobs(workers: int) -> None:
    found = list(in_processes(place_of, range(20), workers, "counted"))
    assert [number for number, _ in found] == list(range(20))
    assert ({pid for _, pid in found} == {os.getpid()}) == (workers == 1)


def test_a_process_that_is_killed_is_one_line() -> None:
    with pytest.raises(MachineError, match=r"^a process that counted was killed, probably for lack of memory$"):
        list(in_processes(end, range(4), 2, "counted"))
