"""Being asked to stop: the processes agree on the step, save, and leave with a code that says so."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from mmengine.dist import is_main_process

from engine.checkpoint.store import begin_run
from engine.distributed.agreement import StopRequest
from engine.launch.exit_codes import EXIT_INTERRUPTED, EXIT_SAVED

NEVER_BEGUN = "none"  # name of a training, of which there is no checkpoint
EXIT_CODES = {StopRequest.INTERRUPT: EXIT_INTERRUPTED, StopRequest.LEAVE: EXIT_SAVED}
# A launcher passes Ctrl-C on to processes that the terminal has told already: within this time it is the same one.
SAME_INTERRUPT = 2.0  # seconds


class Stop(Exception):
    """Leaves the loops at a point from which the run can go on.

    Args:
        stop_request: ``StopRequest.INTERRUPT`` or ``StopRequest.LEAVE``.
    """

    def __init__(self, stop_request: StopRequest) -> None:
        super().__init__(stop_request)
        self.exit_code = EXIT_CODES[stop_request]


@contextmanager
def _handled(ours: Mapping[signal.Signals, Callable[..., None]]) -> Iterator[None]:
    """Inside of this context signals go to these handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may decide on signals
        return
    before = {number: signal.signal(number, handler) for number, handler in ours.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Signals:
    """Takes note of SIGTERM and SIGUSR1 (a scheduler's warning) and of Ctrl-C.

    Attributes:
        stop_request: Most urgent request so far.
    """

    def __init__(self) -> None:
        self.stop_request = StopRequest.NOTHING
        self._interrupted = float("inf")

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Context in which signals are stop requests; a second Ctrl-C, seconds after the first, ends at once."""
        ours = {signal.SIGTERM: self._leave, signal.SIGUSR1: self._leave, signal.SIGINT: self._interrupt}
        with _handled(ours):
            yield

    def _leave(self, *_: Any) -> None:
        self.stop_request = StopRequest.LEAVE

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._interrupted > SAME_INTERRUPT:
            signal.default_int_handler(number, frame)
        self._interrupted = min(now, self._interrupted)
        self.stop_request = max(self.stop_request, StopRequest.INTERRUPT)


@contextmanager
def exiting_on_signals(begins: Path | None) -> Iterator[None]:
    """Inside of this context, before the first step, a scheduler's signal ends the process as one that saved would end.

    Args:
        begins: The folder of a training that begins: what an earlier one has left there is nothing to go on from when
            it is started again. ``None`` for one that goes on.
    """

    def leave(*_: Any) -> None:
        if begins is not None and is_main_process():
            begin_run(begins, NEVER_BEGUN)
        print("asked to stop before the first step: start again with --resume", file=sys.stderr)
        raise SystemExit(EXIT_SAVED)

    with _handled({signal.SIGTERM: leave, signal.SIGUSR1: leave}):
        yield
