"""What all processes decide together, without any of them waiting for the others within a step."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import is_main_process

from backbones.errors import UserError

CONTROL_TIMEOUT = timedelta(minutes=30)


class StopRequest(IntEnum):
    """What a run is asked to do at the next step, the most urgent last."""

    NOTHING = 0
    SAVE = 1
    INTERRUPT = 2
    LEAVE = 3


class Agreement:
    """All processes learn, at the same step, the most urgent stop request of any of them.

    The requests of a step travel while the step is worked on, beside the gradients and on the CPU: nobody waits.
    """

    def __init__(self) -> None:
        self._group: Any = None
        self._pending: tuple[Any, torch.Tensor] | None = None
        if dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)

    def at_step(self, stop_request: StopRequest) -> StopRequest:
        """Hand in a request after a step.

        Returns:
            The common request, equal in all processes; among several that of the step before.
        """
        if self._group is None:
            return stop_request
        common = self._result()
        votes = torch.tensor(stop_request)
        self._pending = dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._group, async_op=True), votes
        return common

    def at_rest(self, stop_request: StopRequest) -> StopRequest:
        """Hand in a request where all processes may wait for each other."""
        before = self.at_step(stop_request)
        return max(before, self._result())

    def barrier(self) -> None:
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

    def _result(self) -> StopRequest:
        if self._pending is None:
            return StopRequest.NOTHING
        work, votes = self._pending
        self._pending = None
        work.wait()
        return StopRequest(int(votes))
