"""Rates after a resume with another schedule: those that the schedule would have given from the start.

mmengine restores with a scheduler's position its shape too: a training that goes on for longer, or at another rate,
would stay on the old curve, or on its last value.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

SHAPE_KEYS = (
    *("begin", "end", "total_iters", "T_max", "milestones", "gamma", "power", "base_values"),
    *("start_factor", "end_factor", "eta_min", "eta_min_ratio"),
)


def schedule_shapes(schedulers: Sequence[Any]) -> list[dict[str, Any]]:
    """What of schedulers a config states, without their position."""
    return [{key: value for key, value in one.state_dict().items() if key in SHAPE_KEYS} for one in schedulers]


def replay_schedules(
    build: Callable[[], list[Any]], groups: Sequence[dict[str, Any]], peaks: Sequence[float], steps: int, epoch: int
) -> list[Any]:
    """Build schedulers anew and bring them to a step.

    Args:
        build: Makes the schedulers of the config on the optimizer.
        groups: The optimizer's parameter groups; their rates become those of the step.
        peaks: The config's rate of each group.
        steps: Optimizer steps that are behind.
        epoch: Optimizer steps of an epoch.

    Returns:
        The schedulers.
    """
    for group, peak in zip(groups, peaks, strict=True):
        group["lr"] = group["initial_lr"] = peak
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's advice on the order of steps; there are none of the optimizer here
        schedulers = build()
        for step in range(1, steps + 1):
            for one in schedulers:
                if not one.by_epoch or step % epoch == 0:
                    one.step()
    return schedulers
