"""A warm-up that mmengine lacks, and rates after a resume with another schedule.

The rates after such a resume are those that the schedule would have given from the start. mmengine restores with a
scheduler's position its shape too: a training that goes on for longer, or at another rate, would stay on the old curve,
or on its last value.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmengine.optim import LinearLR
from mmengine.registry import PARAM_SCHEDULERS

# What a scheduler's state holds beside its settings: its position, and what a schedule by metric has seen.
POSITION_KEYS = (
    *("last_step", "_global_step", "_last_value", "verbose"),
    *("best", "num_bad_epochs", "cooldown_counter"),
)


@PARAM_SCHEDULERS.register_module()
class LinearWarmUpLR(LinearLR):
    """Linear warm-up in which ``end`` is the first step at the full rate, as in ConvNeXt V2's released code.

    mmengine's ``LinearLR`` is at the full rate one step earlier, in the last step of the warm-up, which is the
    schedule of ConvNeXt's released code.

    Args:
        optimizer: Optimizer or its wrapper.
        begin: First step of the warm-up.
        end: First step after it; in epochs where the config says so.
        settings: Other arguments of ``LinearLR``.
    """

    def __init__(self, optimizer: Any, *, begin: int = 0, end: int, **settings: Any) -> None:
        super().__init__(optimizer, begin=begin, end=end + 1, **settings)


def schedule_shapes(states: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What of schedulers' states a config states, without their position."""
    return [{key: as_plain(value) for key, value in one.items() if key not in POSITION_KEYS} for one in states]


def scheduled_settings(shapes: Sequence[Mapping[str, Any]]) -> set[str]:
    """Settings of an optimizer that schedules of these shapes change, such as ``lr``."""
    names = {one["param_name"] for one in shapes}
    return names | ({"betas"} if "momentum" in names else set())  # a momentum of Adam is the first of its betas


def follows_scores(shapes: Sequence[Mapping[str, Any]]) -> bool:
    """Whether one of the schedules depends on the scores of the validations (``ReduceOnPlateau``)."""
    return any("monitor" in one for one in shapes)


def as_plain(value: Any) -> Any:
    """A setting of a config or a state for comparisons: tuples as lists, mappings as dictionaries."""
    if isinstance(value, list | tuple):
        return [as_plain(one) for one in value]
    return dict(value) if isinstance(value, Mapping) else value


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
