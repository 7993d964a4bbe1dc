"""Signals that ask a program to stop, from its first second on: a module that itself imports next to nothing."""

from __future__ import annotations

import os
import signal

EXIT_ASKED = 75  # engine.launch.exit_codes.EXIT_SAVED, whose import takes longer


class Terminated(KeyboardInterrupt):
    """Raised by a signal that asks a program to stop: what is done after Ctrl-C is done after it too.

    Args:
        number: Signal.

    Attributes:
        exit_code: Exit code of a program that may be started again.
    """

    exit_code = EXIT_ASKED

    def __init__(self, number: int) -> None:
        super().__init__(_line(number))


def stop_signals() -> list[signal.Signals]:
    """Signals of a scheduler (SIGTERM, SIGUSR1) and of a closed terminal (SIGHUP), but for those that are ignored.

    ``nohup`` starts a program that way so that it goes on.
    """
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


def leave_on_signals() -> None:
    """From now on end at such a signal with the exit code of a saved run, in the midst of imports too."""
    for early in stop_signals():
        signal.signal(early, _leave)


def _leave(number: int, _: object) -> None:
    os.write(2, f"{_line(number)}\n".encode())
    os._exit(EXIT_ASKED)


def _line(number: int) -> str:
    return f"stopped by {signal.Signals(number).name}: start again with the same command"
