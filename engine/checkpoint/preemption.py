"""Signals that ask a run to stop: it saves at a step that all processes agree on, and exits with a code of its own."""

from __future__ import annotations

import signal
import time
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

from convnext_dense_signals import stop_signals
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
    """Turns SIGTERM, SIGUSR1 (a scheduler's warning), SIGHUP (a closed terminal) and Ctrl-C into stop requests.

    Attributes:
        stop_request: Most urgent request so far.
    """

    def __init__(self) -> None:
        self.stop_request = StopRequest.NOTHING
        self._interrupted = float("inf")

    def handled(self) -> AbstractContextManager[None]:
        """Context in which signals are stop requests; a second Ctrl-C, seconds after the first, ends at once."""
        return handle_signals({**dict.fromkeys(stop_signals(), self._leave), signal.SIGINT: self._interrupt})

    def _leave(self, *_: Any) -> None:
        self.stop_request = StopRequest.LEAVE

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._interrupted > REPEATED_INTERRUPT_SECONDS:
            signal.default_int_handler(number, frame)
        self._interrupted = min(now, self._interrupted)
        self.stop_request = max(self.stop_request, StopRequest.INTERRUPT)
