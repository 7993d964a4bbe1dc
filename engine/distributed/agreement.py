"""Decisions that all processes share, made without waiting for each other within a step."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import all_gather_object, is_main_process

from backbones.errors import UserError

CONTROL_TIMEOUT = timedelta(minutes=30)  # of the gloo group


class StopRequest(IntEnum):
    """Request to a run at its next step, in ascending urgency."""

    NOTHING = 0
    SAVE = 1
    INTERRUPT = 2
    LEAVE = 3


class Agreement:
    """Shares the most urgent stop request of any process with all processes at the same step.

    The requests are reduced asynchronously over gloo, on the CPU, while the next step runs: no process waits.
    """

    def __init__(self) -> None:
        self._group: Any = None
        self._pending: tuple[Any, torch.Tensor] | None = None
        if dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)

    def at_step(self, stop_request: StopRequest) -> StopRequest:
        """Submit the request of this process after a step.

        Returns:
            Most urgent request of all processes; with several processes that of the previous step.
        """
        if self._group is None:
            return stop_request
        common = self._result()
        votes = torch.tensor(stop_request)
        self._pending = dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._group, async_op=True), votes
        return common

    def at_rest(self, stop_request: StopRequest) -> StopRequest:
        """Submit a request and wait for the most urgent one of all processes at this step."""
        before = self.at_step(stop_request)
        return max(before, self._result())

    def barrier(self) -> None:
        """Wait until all processes have called this."""
        if self._group is not None:
            dist.barrier(group=self._group)

    def gather(self, value: Any) -> list[Any]:
        """Gather picklable data of all processes, in the order of their ranks."""
        return list(all_gather_object(value, self._group))

    def from_main(self, find: Callable[[], Any]) -> Any:
        """Call a function in the main process alone and share its result.

        Args:
            find: Function without arguments; its result is picklable.

        Returns:
            The result, in all processes.

        Raises:
            UserError: The one that the function raised, in all processes.
        """
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
