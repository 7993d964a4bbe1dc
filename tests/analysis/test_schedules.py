"""Rates of a training by its schedules, and warnings of schedules that do not end with it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config, ConfigDict

import engine.training.runner  # noqa: F401  (registers the schedulers)
from analysis.schedules import MAX_STEPS, rate_schedulers, review_schedules, schedule_warnings
from backbones.errors import ConfigError
from engine.planning.plan import Schedule

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
EPOCHS = Schedule(12, 12 * 50, 50)
STEPS = Schedule(None, 600)
CONVERTED = dict(by_epoch=True, convert_to_iter_based=True)
WARM_UP = dict(type="LinearLR", start_factor=0.1, end=2, **CONVERTED)
COSINE = dict(type="CosineAnnealingLR", begin=2, eta_min=1e-6, **CONVERTED)
FOLLOWS = "leave T_max and end out, and it ends with the training"


def review(schedule: Any, length: Schedule = EPOCHS, lr: float = 0.1) -> tuple[list[str], list[str]]:
    cfg = ConfigDict(param_scheduler=schedule, optim_wrapper=dict(optimizer=dict(lr=lr)), default_scope="mmengine")
    return review_schedules(cfg, length)


def problems(schedule: Any, length: Schedule = EPOCHS) -> list[str]:
    return review(schedule, length)[1]


def found(schedule: Any, length: Schedule = EPOCHS) -> tuple[float, ...]:
    ((line,), _) = review(schedule, length)
    numbers = re.fullmatch(r"rates: (\S+) in the first step, (\S+) at most, (\S+) in the last( \(if .*\))?", line)
    assert numbers is not None
    return tuple(map(float, numbers.groups()[:3]))


@pytest.mark.parametrize(
    "schedule",
    [
        None,
        [],
        COSINE | {"begin": 0},
        [WARM_UP, COSINE],
        [dict(type="LinearLR", start_factor=0.1, end=51, by_epoch=False), COSINE | {"begin": 0}],
        [dict(type="LinearLR", start_factor=0.1, end=51, by_epoch=False), dict(type="PolyDecayLR", by_epoch=False)],
        [dict(type="LinearLR", start_factor=0.1, end=51, by_epoch=False), dict(type="CosineAnnealingLR", begin=6)],
        [COSINE | {"begin": 0, "end": 10}, dict(type="ConstantLR", factor=1.0, begin=10)],
        dict(type="PolyLR", by_epoch=True, end=13),
        dict(type="OneCycleLR", eta_max=0.2, **CONVERTED),
        dict(type="CosineRestartLR", periods=[4, 8], restart_weights=[1, 0.5], eta_min=0.0),
        dict(type="MultiStepLR", milestones=[8, 11]),
        dict(type="StepLR", step_size=3),
        dict(type="ReduceOnPlateauLR", monitor="top1", end=3),
        dict(type="CosineAnnealingMomentum", end=3),
    ],
    ids=str,
)
def test_a_schedule_that_ends_with_the_training_is_no_problem(schedule: Any) -> None:
    assert problems(schedule) == []
    assert problems(schedule, Schedule(12, None)) == []


@pytest.mark.parametrize(
    "schedule, said",
    [
        (
            [WARM_UP, COSINE | {"T_max": 28}],
            "param_scheduler.1: it falls until epoch 30, and the training ends at 12: " + FOLLOWS,
        ),
        (
            [WARM_UP, COSINE | {"T_max": 4}],
            "param_scheduler.1: it falls until epoch 6 and rises again until the training ends at 12: " + FOLLOWS,
        ),
        (
            [WARM_UP, COSINE | {"T_max": 4, "end": 6}],
            "param_scheduler.1: it falls until epoch 6 and stays until the training ends at 12: " + FOLLOWS,
        ),
        (
            COSINE | {"begin": 0, "T_max": 6},
            "param_scheduler: it falls until epoch 6 and rises again until the training ends at 12: " + FOLLOWS,
        ),
        (
            [dict(type="PolyLR", end=801, by_epoch=False)],
            "param_scheduler.0: it falls until step 801, and the training ends at 600: " + FOLLOWS,
        ),
        (
            [dict(type="OneCycleLR", eta_max=0.2, total_steps=20)],
            "param_scheduler.0: it falls until epoch 20, and the training ends at 12: " + FOLLOWS,
        ),
        (
            [dict(type="LinearLR", end=901, by_epoch=False)],
            "param_scheduler.0: it rises until step 901, and the training ends at 600: --cfg-options "
            "param_scheduler.0.end=60 shortens it",
        ),
        (
            [dict(type="MultiStepLR", milestones=[27, 33])],
            "param_scheduler.0: its cut of the rate at epoch 33 is not before the end of the training at 12: "
            "--cfg-options param_scheduler.0.milestones=[9,11] follows its length",
        ),
        (
            [dict(type="MultiStepLR", milestones=[3, 4])],
            "param_scheduler.0: its cut of the rate at epoch 4 is early in 12 epochs: "
            "--cfg-options param_scheduler.0.milestones=[8,11] follows its length",
        ),
        (
            [dict(type="MultiStepLR", milestones=[0])],
            "param_scheduler.0: its cut of the rate at epoch 0 is early in 12 epochs: "
            "--cfg-options param_scheduler.0.milestones=[11] follows its length",
        ),
        (
            [WARM_UP, COSINE | {"begin": 5}],
            "param_scheduler.1: it begins at epoch 5, param_scheduler.0 ends at 2: a gap; state one for both",
        ),
        (
            [WARM_UP | {"end": 8}, COSINE],
            "param_scheduler.1: it begins at epoch 2, param_scheduler.0 ends at 8: an overlap; state one for both",
        ),
        (
            [COSINE | {"begin": 0}, dict(type="ExponentialLR", gamma=0.5)],
            "param_scheduler.1: it begins at epoch 0, param_scheduler.0 ends at 12: an overlap; state one for both",
        ),
    ],
    ids=str,
)
def test_another_is_named_with_its_numbers_and_what_to_change(schedule: Any, said: str) -> None:
    assert problems(schedule) == [said]


@pytest.mark.parametrize("length", [1, 2, 3, 6, 24, 36, 48, 72])
def test_the_milestones_that_are_proposed_fit(length: int) -> None:
    cuts = dict(type="MultiStepLR", milestones=[27, 33])
    for said in problems([cuts], Schedule(length, None)):
        proposed = [int(one) for one in re.findall(r"\d+", said.partition("milestones=")[2])]
        assert proposed == sorted(set(proposed))
        assert all(0 < one < length for one in proposed)
        assert problems([cuts | {"milestones": proposed}], Schedule(length, None)) == []
    assert bool(problems([cuts], Schedule(length, None))) == (length not in (36, 48))


def test_what_is_counted_in_steps_is_judged_when_they_are_known() -> None:
    schedule = [dict(type="PolyLR", end=801, by_epoch=False)]
    assert problems(schedule, Schedule(12, None)) == []
    assert len(problems(schedule, STEPS)) == len(problems(schedule, EPOCHS)) == 1


def test_the_rates_are_those_of_the_schedulers() -> None:
    first, highest, last = found([WARM_UP, COSINE])
    assert (first, highest) == (0.01, 0.1)
    assert last == pytest.approx(1e-6 + 0.5 * 0.1 * (1 + math.cos(math.pi * 499 / 500)), rel=0.01)
    assert found([dict(type="PolyDecayLR", by_epoch=False)], STEPS) == (0.1, 0.1, pytest.approx(0.1 / 600, rel=0.01))
    cuts = [
        dict(type="LinearLR", start_factor=0.001, end=101, by_epoch=False),
        dict(type="MultiStepLR", milestones=[9]),
    ]
    assert found(cuts) == found(cuts, Schedule(12, None)) == (1e-4, 0.1, 0.01)
    assert found(dict(type="CosineAnnealingLR")) == (
        0.1,
        0.1,
        pytest.approx(0.05 * (1 + math.cos(math.pi * 11 / 12)), rel=0.01),
    )
    assert found(None) == found(dict(type="ReduceOnPlateauLR", monitor="top1")) == (0.1, 0.1, 0.1)


def test_a_very_long_training_has_no_line_of_rates_but_its_warnings() -> None:
    facts, warnings = review([dict(type="PolyLR", end=50, by_epoch=False)], Schedule(None, MAX_STEPS + 1))
    assert facts == []
    assert len(warnings) == 1


def test_a_scheduler_that_does_not_build_is_named() -> None:
    with pytest.raises(ConfigError, match="param_scheduler"):
        review([COSINE | {"eta_mim": 0.1}])
    with pytest.raises(ConfigError, match="param_scheduler"):
        review([dict(type="PolyLR", by_epoch=False, end=None)], Schedule(12, None))
    with pytest.raises(ConfigError, match=r"param_scheduler.*CosineAnealingLR"):
        review([COSINE | {"type": "CosineAnealingLR"}])


@pytest.mark.parametrize(
    "path",
    [one for part in ("classification", "detection", "segmentation") for one in sorted((CONFIGS / part).glob("*.py"))],
    ids=lambda path: path.stem,
)
def test_the_schedules_of_every_recipe_end_with_its_training(path: Path) -> None:
    cfg = Config.fromfile(path)
    loop = cfg.train_cfg
    for scale in (1, 2):
        epochs, steps = (one and one * scale for one in (loop.get("max_epochs"), loop.get("max_iters")))
        said = schedule_warnings(rate_schedulers(cfg), epochs, steps or epochs * 600)
        assert bool(said) == (scale == 2 and cfg.param_scheduler[-1].type == "MultiStepLR")
