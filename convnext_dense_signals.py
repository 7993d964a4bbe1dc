"""Signals in the first seconds of a program: a module that is imported first and itself imports next to nothing."""

from __future__ import annotations

import os
import signal

ASKED_TO_STOP = "asked to stop before the first step: start again with the same command"


def leave_on_signals() -> None:
    """From now on end at a scheduler's signal with the exit code of a saved run, in the midst of imports too."""
    for early in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(early, _leave)


def _leave(*_: object) -> None:
    os.write(2, f"{ASKED_TO_STOP}\n".encode())
    os._exit(75)  # engine.launch.exit_codes.EXIT_SAVED, whose import takes longer
