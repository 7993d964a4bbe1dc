"""Signals that ask a run to stop: it saves at a step that all processes agree on, and exits with a code of its own."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

from convnext_dense_signals import ASKED_TO_STOP
from engine.distributed.agreement import StopRequest
from engine.launch.child import handle_signals
from engine.launch.exit_codes import EXIT_INTERRUPTED, EXIT_SAVED

EXIT_CODES = {StopRequest.INTERRUPT: EXIT_INTERRUPTED, StopRequest.LEAVE: EXIT_SAVED}
# The terminal and the launcher both send Ctrl-C: within this time they are one.
REPEATED_INTERRUPT_SECONDS = 2.0


class Stop(Exception):
    """Ends the training loop at a step from which the run can be resumed.

    Args:
        stop_request: ``StopRequest.INTERRUPT`` or ``StopRequest.LEAVE``.
    """

    def __init__(self, stop_request: StopRequest) -> None:
        super().__init__(stop_request)
        self.exit_code = EXIT_CODES[stop_request]


class Signals:
    """Turns SIGTERM and SIGUSR1 (a scheduler's warning) and Ctrl-C into stop requests.

    Attributes:
        stop_request: Most urgent request so far.
    """

    def __init__(self) -> None:
        self.stop_request = StopRequest.NOTHING
        self._interrupted = float("inf")

    def handled(self) -> AbstractContextManager[None]:
        """Context in which signals are stop requests; a second Ctrl-C, seconds after the first, ends at once."""
        return handle_signals(
            {signal.SIGTERM: self._leave, signal.SIGUSR1: self._leave, signal.SIGINT: self._interrupt}
        )

    def _leave(self, *_: Any) -> None:
        self.stop_request = StopRequest.LEAVE

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._interrupted > REPEATED_INTERRUPT_SECONDS:
            signal.default_int_handler(number, frame)
        self._interrupted = min(now, self._interrupted)
        self.stop_request = max(self.stop_request, StopRequest.INTERRUPT)


@contextmanager
def exiting_on_signals() -> Iterator[None]:
    """Exit at a scheduler's signal inside of this context, before the first step, with the code of a saved run.

    ``tools/train.py`` does the same during its imports. Ctrl-C raises ``KeyboardInterrupt``,
    at the end of the context if something in it caught it.
    """
    asked: list[int] = []

    def leave(number: int, _: Any) -> None:
        if not asked and number != signal.SIGINT:
            print(ASKED_TO_STOP, file=sys.stderr)
        asked.append(number)
        raise end(number)

    def end(number: int) -> BaseException:
        return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(EXIT_SAVED)

    handlers = dict.fromkeys((signal.SIGTERM, signal.SIGUSR1), leave)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored, as in the background
        handlers[signal.SIGINT] = leave
    with handle_signals(handlers):
        try:
            yield
        except Exception:  # of code that catches everything, as mmengine's layout of a config does
            if not asked:
                raise
        if asked:
            raise end(asked[0])
