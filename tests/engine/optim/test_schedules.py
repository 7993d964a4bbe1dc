"""The warm-up of ConvNeXt V2; and a training that is resumed with another schedule has its rates from the start."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

import engine.training.runner  # noqa: F401  (registers the schedulers)
from engine.optim.schedules import own_shares, replay_schedules, schedule_shapes

EPOCH = 4
SCHEDULE = [
    dict(type="LinearLR", start_factor=0.1, end=3, by_epoch=False),
    dict(type="CosineAnnealingLR", begin=3, T_max=13, end=16, eta_min=0.01, by_epoch=False),
]


def build(optimizer: Any, schedule: list[dict[str, Any]]) -> list[Any]:
    return [PARAM_SCHEDULERS.build(dict(one), default_args=dict(optimizer=optimizer)) for one in schedule]


def optimizer(lr: float) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr * scale} for scale in (1.0, 0.5)]
    return torch.optim.SGD(groups, lr=lr)


def shapes(schedulers: list[Any]) -> list[dict[str, Any]]:
    return schedule_shapes([one.state_dict() for one in schedulers])


def rates(one: Any, schedulers: list[Any], first: int, last: int) -> list[list[float]]:
    seen = []
    for step in range(first, last + 1):
        seen.append([group["lr"] for group in one.param_groups])
        one.step()
        for scheduler in schedulers:
            if not scheduler.by_epoch or step % EPOCH == 0:
                scheduler.step()
    return seen


@pytest.mark.parametrize("schedule", [SCHEDULE, [dict(type="MultiStepLR", milestones=[1, 3], gamma=0.1)]], ids=len)
def test_replayed_rates_are_those_of_the_whole_training(schedule: list[dict[str, Any]]) -> None:
    whole = optimizer(0.4)
    expected = rates(whole, build(whole, schedule), 1, 16)
    later = optimizer(9.0)  # what a checkpoint of another schedule left
    schedulers = replay_schedules(lambda: build(later, schedule), later.param_groups, [0.4, 0.2], steps=6, epoch=EPOCH)
    for ours, theirs in zip(rates(later, schedulers, 7, 16), expected[6:], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-12)


def test_the_shape_has_the_settings_and_not_the_position() -> None:
    one = optimizer(0.4)
    schedulers = build(one, SCHEDULE)
    before = shapes(schedulers)
    rates(one, schedulers, 1, 5)
    assert shapes(schedulers) == before
    longer = [SCHEDULE[0], {**SCHEDULE[1], "T_max": 17, "end": 20}]
    assert shapes(build(optimizer(0.4), longer)) != before
    assert shapes(build(optimizer(0.3), SCHEDULE)) != before


@pytest.mark.parametrize("by_epoch", [False, True])
def test_the_warm_up_is_over_in_the_first_step_after_it(by_epoch: bool) -> None:
    warm, epoch = 8, dict(by_epoch=True, convert_to_iter_based=True, epoch_length=EPOCH)
    end, counted = (warm // EPOCH, epoch) if by_epoch else (warm, dict(by_epoch=False))
    one = optimizer(0.4)
    schedulers = build(one, [dict(type="LinearWarmUpLR", start_factor=1e-9, end=end, **counted)])
    for step, (head, stem) in enumerate(rates(one, schedulers, 0, warm + 3)):
        assert head == pytest.approx(0.4 * min(step / warm, 1), abs=1e-8)
        assert stem == pytest.approx(head / 2)


def test_a_warm_up_and_the_cosine_after_it_meet_at_the_peak() -> None:
    warm = dict(type="LinearWarmUpLR", start_factor=1e-9, end=3, by_epoch=False)
    one = optimizer(0.4)
    seen = [head for head, _ in rates(one, build(one, [warm, SCHEDULE[1]]), 0, 15)]
    cosine = [0.01 + 0.39 * 0.5 * (1 + math.cos(math.pi * step / 13)) for step in range(13)]
    assert seen == pytest.approx([0.0, 0.4 / 3, 0.8 / 3, *cosine], abs=1e-8)


SCALES = (1.0, 0.5, 0.65**13, 0.0)  # of a head, a layer, a layer far below the floor of 1e-6, and what is not trained
COUNTED = dict(by_epoch=False, end=20)
FALLING = {
    "cosine": dict(type="CosineAnnealingLR", eta_min=1e-6, **COUNTED),
    "ratio": dict(type="CosineAnnealingLR", eta_min_ratio=1e-2, **COUNTED),
    "restarts": dict(type="CosineRestartLR", periods=[8, 12], restart_weights=[1, 0.5], eta_min=1e-6, **COUNTED),
    "poly": dict(type="PolyLR", eta_min=1e-6, power=0.9, **COUNTED),
    "decay": dict(type="PolyDecayLR", eta_min=1e-6, **COUNTED),
    "cycle": dict(type="OneCycleLR", eta_max=3e-4, **COUNTED),
    "warm-up": dict(type="LinearLR", start_factor=0.1, **COUNTED),
    "constant": dict(type="ConstantLR", factor=0.5, **COUNTED),
    "cuts": dict(type="MultiStepLR", milestones=[5, 9], **COUNTED),
    "exponential": dict(type="ExponentialLR", gamma=0.5, **COUNTED),
    "plateau": dict(type="ReduceOnPlateauLR", monitor="top1", min_value=1e-6),
    "any parameter": dict(type="CosineAnnealingParamScheduler", param_name="lr", eta_min=1e-6, **COUNTED),
}


def wrapper(lr: float = 1e-4) -> OptimWrapper:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr * scale} for scale in SCALES]
    return OptimWrapper(torch.optim.SGD(groups, lr=lr))


def group_rates(schedule: list[dict[str, Any]], steps: int = 20) -> list[list[float]]:
    """The rate of each group in each step, of schedules as the runner builds them."""
    ours = wrapper()
    schedulers = build(ours, own_shares(schedule, ours))
    seen = []
    for _ in range(steps):
        seen.append([group["lr"] for group in ours.optimizer.param_groups])
        for one in schedulers:
            one.step()
    return seen


@pytest.mark.parametrize("name", FALLING)
def test_a_group_has_its_share_of_the_rate_in_every_step_and_a_rate_of_0_stays_0(name: str) -> None:
    warm = dict(type="LinearLR", start_factor=0.01, end=5, by_epoch=False)
    for schedule in ([FALLING[name]], [warm, FALLING[name]]):
        seen = group_rates(schedule)
        for head, *others in seen:
            assert others == pytest.approx([head * scale for scale in SCALES[1:]], rel=1e-9, abs=0)
            assert others[-1] == 0
        assert name == "plateau" or len({head for head, *_ in seen}) > 1


def test_mmengine_alone_would_lift_a_rate_below_the_end() -> None:
    """Why there are shares: a layer of 4e-7 would climb to 1e-6, and one of 0 would learn."""
    ours = wrapper()
    (scheduler,) = build(ours, [FALLING["cosine"]])
    for _ in range(19):
        scheduler.step()
    *_, deep, frozen = (group["lr"] for group in ours.optimizer.param_groups)
    assert deep > 1e-4 * SCALES[2]
    assert frozen > 5e-7


def test_the_cosine_of_each_group_is_that_of_the_released_code() -> None:
    # facebookresearch/ConvNeXt, utils.py:438-440 (curve of the whole rate), engine.py:41 (its share)
    seen = group_rates([FALLING["cosine"]])
    for step, found in enumerate(seen):
        whole = 1e-6 + 0.5 * (1e-4 - 1e-6) * (1 + math.cos(math.pi * step / 20))
        assert found == pytest.approx([whole * scale for scale in SCALES], rel=1e-9, abs=0)


def test_a_poly_decay_ends_after_its_last_step_as_in_mmcv() -> None:
    # open-mmlab/mmcv v1.3.0, mmcv/runner/hooks/lr_updater.py:210-211
    seen = group_rates([FALLING["decay"]])
    assert [head for head, *_ in seen] == pytest.approx([(1e-4 - 1e-6) * (1 - step / 20) + 1e-6 for step in range(20)])


@pytest.mark.parametrize("kind", ["CosineAnnealingParamScheduler", "PolyParamScheduler"])
def test_a_weight_decay_that_grows_leaves_groups_without_it_alone(kind: str) -> None:
    # facebookresearch/ConvNeXt, engine.py:42-43: only where there is some
    params = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [param], "weight_decay": decay} for param, decay in zip(params, (0.05, 0.0), strict=True)]
    ours = OptimWrapper(torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.05))
    grow = dict(type=kind, param_name="weight_decay", eta_min=0.4, **COUNTED)
    (scheduler,) = build(ours, own_shares([grow], ours))
    for _ in range(19):
        scheduler.step()
    decayed, exempt = (group["weight_decay"] for group in ours.optimizer.param_groups)
    assert decayed == pytest.approx(0.4, rel=0.01)
    assert exempt == 0


def test_schedules_of_equal_groups_are_built_as_they_are_stated() -> None:
    one = torch.nn.Parameter(torch.zeros(1))
    equal = OptimWrapper(torch.optim.SGD([{"params": [one]}, {"params": [torch.nn.Parameter(torch.ones(1))]}], lr=1e-4))
    for schedule in FALLING.values():
        assert own_shares([schedule], equal) == [schedule]
    momentum = dict(type="CosineAnnealingMomentum", eta_min=0.5, **COUNTED)
    assert own_shares(momentum, wrapper()) == [momentum]
    assert own_shares(momentum, OptimWrapper(torch.optim.SGD([one], lr=1e-4))) is momentum


@pytest.mark.parametrize("name", [name for name in FALLING if name != "plateau"])
def test_shares_are_kept_when_a_schedule_is_replayed(name: str) -> None:
    ours, schedule = wrapper(), [FALLING[name]]
    build(ours, own_shares(schedule, ours))
    peaks = [group["initial_lr"] for group in ours.param_groups]
    replay_schedules(lambda: build(ours, own_shares(schedule, ours)), ours.param_groups, peaks, steps=7, epoch=4)
    rates = [group["lr"] for group in ours.optimizer.param_groups]
    assert rates == pytest.approx(group_rates(schedule, 8)[-1], rel=1e-9, abs=0)
