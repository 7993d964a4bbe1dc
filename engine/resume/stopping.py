"""Being asked to stop: the processes agree on the step, save, and leave with a code that says so."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import is_main_process

from backbones.errors import UserError
from engine.launch.exit_codes import INTERRUPTED, SAVED_AND_LEFT
from engine.resume.checkpoints import begin_run

NEVER_BEGUN = "none"  # name of a training, of which there is no checkpoint
NOTHING, SAVE, INTERRUPT, LEAVE = range(4)
EXIT_CODES = {INTERRUPT: INTERRUPTED, LEAVE: SAVED_AND_LEFT}
# A launcher passes Ctrl-C on to processes that the terminal has told already: within this time it is the same one.
SAME_INTERRUPT = 2.0  # seconds
CONTROL_TIMEOUT = timedelta(minutes=30)


class Stop(Exception):
    """Leaves the loops at a point from which the run can go on.

    Args:
        wish: ``INTERRUPT`` or ``LEAVE``.
    """

    def __init__(self, wish: int) -> None:
        super().__init__(wish)
        self.exit_code = EXIT_CODES[wish]


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
        wish: The most urgent one so far.
    """

    def __init__(self) -> None:
        self.wish = NOTHING
        self._interrupted = float("inf")

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Inside of this context a signal is a wish; a second Ctrl-C, seconds after the first, still ends at once."""
        ours = {signal.SIGTERM: self._leave, signal.SIGUSR1: self._leave, signal.SIGINT: self._interrupt}
        with _handled(ours):
            yield

    def _leave(self, *_: Any) -> None:
        self.wish = LEAVE

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._interrupted > SAME_INTERRUPT:
            signal.default_int_handler(number, frame)
        self._interrupted = min(now, self._interrupted)
        self.wish = max(self.wish, INTERRUPT)


@contextmanager
def leaving_at_once(begins: Path | None) -> Iterator[None]:
    """Inside of this context, before the first step, a scheduler's signal ends the process as one that saved would end.

    Args:
        begins: The folder of a training that begins: what an earlier one has left there is nothing to go on from when
            it is started again. ``None`` for one that goes on.
    """

    def leave(*_: Any) -> None:
        if begins is not None and is_main_process():
            begin_run(begins, NEVER_BEGUN)
        print("asked to stop before the first step: start again with --resume", file=sys.stderr)
        raise SystemExit(SAVED_AND_LEFT)

    with _handled({signal.SIGTERM: leave, signal.SIGUSR1: leave}):
        yield


class Agreement:
    """All processes learn, at the same step, the most urgent wish of any of them.

    The wishes of a step travel while the step is worked on, beside the gradients and on the CPU: nobody waits.
    """

    def __init__(self) -> None:
        self._group: Any = None
        self._pending: tuple[Any, torch.Tensor] | None = None
        if dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)

    def at_step(self, wish: int) -> int:
        """Hand in a wish after a step.

        Returns:
            The common wish, equal in all processes; among several that of the step before.
        """
        if self._group is None:
            return wish
        common = self._result()
        votes = torch.tensor(wish)
        self._pending = dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._group, async_op=True), votes
        return common

    def at_rest(self, wish: int) -> int:
        """Hand in a wish where all processes may wait for each other."""
        before = self.at_step(wish)
        return max(before, self._result())

    def meet(self) -> None:
        """Wait until all processes are here."""
        if self._group is not None:
            dist.barrier(group=self._group)

    def gather(self, value: Any) -> list[Any]:
        """The plain data of all processes, in the order of their ranks."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value, group=self._group)
        return values

    def from_main(self, find: Callable[[], Any]) -> Any:
        """What the main process finds, in all processes; or, in all of them, its :class:`UserError`."""
        found: Any = None
        if is_main_process():
            try:
                found = find()
            except UserError as error:
                found = error
        found = self.gather(found)[0]
        if isinstance(found, UserError):
            raise found
        return found

    def _result(self) -> int:
        if self._pending is None:
            return NOTHING
        work, votes = self._pending
        self._pending = None
        work.wait()
        return int(votes)
