"""After a resume the config's settings hold: they are applied and told, or refused; equal ones change nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from mmengine.optim import OptimWrapper

from backbones.errors import ConfigError
from engine.optim.resumption import OptimizerSettings, check_optimizer


def wrapper(kind: type[torch.optim.Optimizer] = torch.optim.AdamW, size: int = 3, **settings: Any) -> Any:
    shapes = (size, 2)
    groups = [{"params": [torch.nn.Parameter(torch.ones(shape))], "layer_id": shape} for shape in shapes]
    return OptimWrapper(kind(groups, **{"lr": 0.1, **settings}))


def resumed(before: Any, **settings: Any) -> tuple[Any, OptimizerSettings]:
    """An optimizer of other settings with the state of one after a step, as mmengine resumes it."""
    for group in before.param_groups[:-1]:
        for param in group["params"]:
            param.grad = torch.ones_like(param)
    before.step()
    now = wrapper(type(before.optimizer), **settings)
    stated = OptimizerSettings.of(now)
    now.load_state_dict(copy.deepcopy(before.state_dict()))
    return now, stated


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"lr": 0.02}, "lr 0.1 -> 0.02"),
        ({"weight_decay": 0.3}, "weight_decay 0.01 -> 0.3"),
        ({"betas": (0.8, 0.9)}, "betas (0.9, 0.999) -> (0.8, 0.9)"),
        ({"eps": 1e-6}, "eps 1e-08 -> 1e-06"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_setting_is_applied_to_all_groups_and_told(settings: dict[str, Any], told: str) -> None:
    now, stated = resumed(wrapper(), **settings)
    ((key, value),) = settings.items()
    assert now.param_groups[0][key] != value, "what is to be repaired"
    assert stated.apply(now, scheduled=()) == [told]
    assert [group[key] for group in now.param_groups] == [value] * 3  # the third is the base rate of the log


def test_equal_settings_change_nothing() -> None:
    now, stated = resumed(wrapper())
    before = copy.deepcopy(now.state_dict())
    assert stated.apply(now, scheduled=()) == []
    after = now.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert after["base_param_settings"] == before["base_param_settings"]


def test_what_a_schedule_has_brought_is_kept() -> None:
    before = wrapper()
    for group in before.param_groups:
        group["lr"], group["initial_lr"] = 0.05, 0.1
    now, stated = resumed(before)
    assert stated.apply(now, scheduled={"lr"}) == []
    assert {group["lr"] for group in now.param_groups} == {0.05}
    assert stated.apply(now, scheduled=()) == ["lr 0.05 -> 0.1"]  # the schedule was taken away


@pytest.mark.parametrize(
    ("kind", "before", "now"),
    [
        (torch.optim.AdamW, {}, {"amsgrad": True}),
        (torch.optim.RMSprop, {}, {"momentum": 0.9}),
        (torch.optim.RMSprop, {}, {"centered": True}),
    ],
    ids=["amsgrad", "momentum", "centered"],
)
def test_what_needs_another_state_is_refused(kind: Any, before: dict[str, Any], now: dict[str, Any]) -> None:
    other, stated = resumed(wrapper(kind, **before), **now)
    with pytest.raises(ConfigError, match=rf"optimizer\.{next(iter(now))} is .* cannot change"):
        stated.apply(other, scheduled=())


def test_another_optimizer_and_other_groups_are_refused() -> None:
    now, _ = resumed(wrapper())
    check_optimizer(now.optimizer, {"type": "AdamW"}, None)
    check_optimizer(now.optimizer, {"type": "AdamW"}, {"type": "AdamW"})
    with pytest.raises(ConfigError, match="optimizer RAdam in the checkpoint, AdamW in the config"):
        check_optimizer(now.optimizer, {"type": "AdamW"}, {"type": "RAdam"})
    other, _ = resumed(wrapper(), size=4)
    with pytest.raises(ConfigError, match="parameter groups are not the checkpoint's"):
        check_optimizer(other.optimizer, {"type": "AdamW"}, None)


class Scaler:
    """What of torch's ``GradScaler`` a wrapper in mixed precision saves."""

    def __init__(self, **state: Any) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = dict(state)


def test_settings_of_the_loss_scaler_are_the_config_s_and_its_scale_the_checkpoint_s() -> None:
    now = wrapper()
    now.loss_scaler = Scaler(scale=65536.0, growth_factor=2.0, growth_interval=100)
    stated = OptimizerSettings.of(now)
    now.loss_scaler.load_state_dict({"scale": 512.0, "growth_factor": 2.0, "growth_interval": 2000})
    assert stated.apply(now, scheduled=()) == ["loss_scale.growth_interval 2000 -> 100"]
    assert now.loss_scaler.state == {"scale": 512.0, "growth_factor": 2.0, "growth_interval": 100}
