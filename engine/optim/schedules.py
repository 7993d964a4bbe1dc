"""Schedules that mmengine lacks, schedules of unequal parameter groups, and rates after a resume with another schedule.

The rates after such a resume are those that the schedule would have given from the start. mmengine restores with a
scheduler's position its shape too: a training that goes on for longer, or at another rate, would stay on the old curve,
or on its last value.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmengine.optim import CosineAnnealingParamScheduler, LinearLR, PolyLR, PolyParamScheduler
from mmengine.optim.scheduler import CosineRestartParamScheduler
from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin
from mmengine.registry import PARAM_SCHEDULERS

from engine.config.building import registered_class

# What a scheduler's state holds beside its settings: its position, and what a schedule by metric has seen.
POSITION_KEYS = (
    *("last_step", "_global_step", "_last_value", "verbose"),
    *("best", "num_bad_epochs", "cooldown_counter"),
)
WARM_UP_SHARE = 10  # a tenth of the training, where a warm-up is advised

Placed = tuple[str, Any]  # a schedule's place in the config and its settings


def stated_schedules(cfg: Mapping[str, Any]) -> list[Placed]:
    """The schedules of a config, of which a single one may stand without a list."""
    stated = cfg.get("param_scheduler") or []
    if isinstance(stated, Mapping):
        return [("param_scheduler", stated)]
    return [(f"param_scheduler.{index}", one) for index, one in enumerate(stated)]


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


class _PolyOfGroups:
    """Polynomial decay in which each parameter group ends at its own share of ``eta_min``."""

    last_step: int
    total_iters: int
    power: float
    eta_min: float
    base_values: list[float]
    optimizer: Any
    param_name: str

    def _get_value(self) -> list[float]:
        factor = (1 - 1 / (self.total_iters - self.last_step + 1)) ** self.power if self.last_step else 1.0
        floors = (self.eta_min * base / (self.base_values[-1] or 1.0) for base in self.base_values)
        groups = zip(self.optimizer.param_groups, floors, strict=True)
        return [(group[self.param_name] - floor) * factor + floor for group, floor in groups]


@PARAM_SCHEDULERS.register_module()
class GroupPolyParamScheduler(_PolyOfGroups, PolyParamScheduler):
    """mmengine's ``PolyParamScheduler`` of any setting, in which each group ends at its own share of ``eta_min``."""


@PARAM_SCHEDULERS.register_module()
class GroupPolyLR(_PolyOfGroups, PolyLR):
    """mmengine's ``PolyLR``, in which each parameter group ends at its own share of ``eta_min``."""


@PARAM_SCHEDULERS.register_module()
class PolyDecayLR(GroupPolyLR):
    """Polynomial decay in which ``end``, the training's unless stated, is the first step after it, as in mmcv.

    mmengine's ``PolyLR`` is at its last value, often 0, one step earlier. For the arguments see there.
    """

    def __init__(self, optimizer: Any, *, begin: int = 0, end: int, **settings: Any) -> None:
        super().__init__(optimizer, begin=begin, end=end + 1, **settings)


def own_shares(settings: Any, wrapper: Any) -> Any:
    """Schedules in which a lowest or highest value is that of the config's rate, and each group has its share of it.

    So do ConvNeXt's released code (engine.py:41, utils.py:440) and timm (scheduler/scheduler.py:96): the whole curve is
    scaled, and 0 stays 0. mmengine brings all groups to the same value, from below too.

    Args:
        settings: ``param_scheduler`` of a config.
        wrapper: Optimizer wrapper; the settings are returned as they are if its groups are equal.
    """
    if not getattr(wrapper, "base_param_settings", None):  # the config's own values, the last of several groups
        return settings
    listed = settings if isinstance(settings, list | tuple) else [settings]
    return [_own_share(one, wrapper.param_groups) for one in listed]


def _own_share(one: Any, groups: Sequence[Mapping[str, Any]]) -> Any:
    kind = registered_class(PARAM_SCHEDULERS, one.get("type")) if isinstance(one, Mapping) else None
    if not isinstance(kind, type):
        return one
    name = "lr" if issubclass(kind, LRSchedulerMixin) else one.get("param_name")
    values = [group.get(f"initial_{name}", group.get(name)) for group in groups]
    if not values[-1] or len(set(values)) == 1:
        return one
    if kind in (PolyLR, PolyParamScheduler):
        return {**one, "type": GroupPolyLR if kind is PolyLR else GroupPolyParamScheduler}
    if issubclass(kind, CosineAnnealingParamScheduler | CosineRestartParamScheduler) and one.get("eta_min"):
        return {**one, "eta_min": None, "eta_min_ratio": one["eta_min"] / values[-1]}
    if isinstance(one.get("eta_max"), int | float):  # OneCycleLR
        return {**one, "eta_max": [one["eta_max"] * value / values[-1] for value in values]}
    return one


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
