"""The warm-up of ConvNeXt V2; and a training that is resumed with another schedule has its rates from the start."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from mmengine.registry import PARAM_SCHEDULERS

import engine.training.runner  # noqa: F401  (registers the schedulers)
from engine.optim.schedules import replay_schedules, schedule_shapes

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
