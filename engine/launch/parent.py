"""Processes that end with the one that started them, also when that one is killed."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import time
from threading import Thread

PR_SET_PDEATHSIG = 1  # of Linux' prctl
WATCH_SECONDS = 1.0


def end_with_parent(number: signal.Signals = signal.SIGKILL, parent: int | None = None) -> None:
    """Send this process a signal when its parent ends: by the kernel on Linux, by a thread that watches elsewhere.

    A worker of a data loader would otherwise stay for ever where it waits for room in a pipe that other workers hold
    open.

    Args:
        number: Signal; SIGKILL for a process that has nothing to save.
        parent: Process that started this one; by default the one that Python's multiprocessing names. If it has ended
            already, the signal comes at once.
    """
    before = os.getppid()
    if parent is None and (started_by := multiprocessing.parent_process()) is not None:
        parent = started_by.pid
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    except (OSError, AttributeError):
        Thread(target=_watch, args=(before, number), name="parent", daemon=True).start()
    if parent is not None and not _exists(parent):
        os.kill(os.getpid(), number)


def _watch(parent: int, number: signal.Signals) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os.kill(os.getpid(), number)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
