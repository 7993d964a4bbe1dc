"""Jobs in processes of their own, whose results come in the order of the jobs, and the cores there are for them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from backbones.errors import MachineError
from engine.launch.parent import end_with_parent

Job = TypeVar("Job")
Result = TypeVar("Result")


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, doing: str) -> Iterator[Result]:
    """Results of a function for all jobs, as they come in turn.

    Args:
        function: Function of a module; its jobs and results are pickled.
        jobs: Arguments, one for each call.
        workers: Number of processes; below 2 this one does the work.
        doing: Work of a process in words, such as ``wrote shards``, for the error if it is killed.

    Raises:
        MachineError: If a process is killed.
    """
    if workers < 2:
        yield from map(function, jobs)
        return
    # Forked processes need no imports; they live for this call.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("fork"), initializer=end_with_parent)
    try:
        yield from pool.map(function, jobs)
    except BrokenProcessPool as error:
        raise MachineError(f"a process that {doing} was killed, probably for lack of memory") from error
    finally:
        pool.shutdown(cancel_futures=True)
