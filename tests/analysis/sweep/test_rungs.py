"""Rungs: schedules that end at each of them, who goes on, and what that saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.sweep.rungs import constant, cost_of, decaying, goes_on, saving, shrunken, trunk_length
from analysis.sweep.study_file import Rungs
from backbones.errors import ConfigError
from engine.config.load import load_config
from engine.config.world import Launch
from engine.planning.plan import training_plan

ROOT = Path(__file__).resolve().parents[3]
TINY = ROOT / "configs/classification/convnext_tiny_in1k_300e.py"
COCO = ROOT / "configs/detection/mask_rcnn_convnext_tiny_coco_3x.py"
ADE = ROOT / "configs/segmentation/upernet_convnext_tiny_ade20k_160k.py"
LR = "optim_wrapper.optimizer.lr"
RATES = {LR: {"grid": [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]}}


def test_a_schedule_shrinks_as_a_whole() -> None:
    cfg = load_config(TINY, None, Launch(), training=False).cfg
    assert shrunken(cfg, 30) == {
        "train_cfg.max_epochs": 30,
        "param_scheduler.0.end": 2,
        "param_scheduler.1.begin": 2,
    }
    cfg = load_config(COCO, None, Launch(), training=False).cfg
    assert shrunken(cfg, 12)["param_scheduler.1.milestones"] == [9, 11]
    assert shrunken(load_config(ADE, None, Launch(), training=False).cfg, 16_000)["train_cfg.max_iters"] == 16_000


def test_a_trunk_and_its_branches() -> None:
    cfg = load_config(TINY, None, Launch(), training=False).cfg
    warm_up = dict(cfg.param_scheduler[0])
    assert constant(cfg, 24) == {"train_cfg.max_epochs": 24, "param_scheduler": [warm_up]}
    branch = decaying(cfg, 24, 30)
    assert branch["train_cfg.max_epochs"] == 30
    assert branch["param_scheduler"][0] == warm_up
    decay = branch["param_scheduler"][1]
    assert (decay["begin"], decay["end"], decay["end_factor"]) == (24, 30, 0.0)
    training_plan(load_config(TINY, branch, Launch()), Launch())  # accepts it
    with pytest.raises(ConfigError, match=r"warm-up of param_scheduler\.0 \(20\) is not over .* \(10\)"):
        constant(cfg, 10)


def test_the_best_of_a_rung_go_on() -> None:
    scores = dict(enumerate([0.1, 0.5, 0.3, 0.9, 0.2, 0.8]))
    assert [one for one in scores if goes_on(one, scores, 1 / 3, "maximize")] == [3, 5]
    assert [one for one in scores if goes_on(one, scores, 0.5, "minimize")] == [0, 2, 4]
    assert goes_on(7, {7: 0.1}, 0.1, "maximize")  # at least one does
    equal = dict.fromkeys(range(3), 0.4)  # as scores on few images are
    assert [one for one in equal if goes_on(one, equal, 0.34, "maximize")] == [0]


def test_the_cost_of_rungs() -> None:
    assert [cost_of(Rungs((3, 9, 27)), rung) for rung in range(3)] == [3, 12, 39]
    decay = Rungs((10, 30), decay=0.2)
    assert [trunk_length(decay, rung) for rung in range(2)] == [8, 24]
    assert [cost_of(decay, rung) for rung in range(2)] == [10, 2 + 30]  # the trunk is trained once
    assert saving(Rungs((3, 27)), {0: 8, 1: 2}) == (
        "trials by the length that they finished: 8 to 3, 2 to 27; 84 trained in place of 270: 69% saved"
    )
    assert "cost additionally" in saving(Rungs((9, 10)), {1: 2})


def test_successive_halving_compares_finished_schedules(sweep: Any) -> None:
    lines = sweep.run(jobs=2, space=RATES, seeds=2, rungs={"lengths": (1, 2, 4), "keep": 0.5})
    trials = sweep.result.by_number()
    assert {n: {run.state for run in runs} for n, runs in trials.items()} == {
        n: {"finished" if n == 2 else "pruned"} for n in range(6)
    }
    assert [len(list(runs)) for runs in trials.values()] == [2] * 6
    assert trials[2][0].rung == 2
    assert trials[2][0].score == pytest.approx(10)
    assert trials[5][1].rung == 0
    starts = sweep.ledger()
    assert all(first == 0 for _, first, _ in starts)  # each rung begins anew
    assert sorted({last for name, _, last in starts if name.startswith("0005")}) == [1]
    assert "trials by the length that they finished: 3 to 1, 2 to 2, 1 to 4" in lines[1]


def test_a_trunk_serves_all_rungs(sweep: Any) -> None:
    sweep.run(space=RATES, seeds=1, config=str(TINY), rungs={"lengths": (40, 60), "keep": 0.3, "decay": 0.25})
    own = [(name.partition("/")[2], first, last) for name, first, last in sweep.ledger() if name.startswith("0002")]
    assert own == [
        ("seed_0_trunk", 0, 30),
        ("seed_0_rung_0", 30, 40),
        ("seed_0_trunk", 30, 45),
        ("seed_0_rung_1", 45, 60),
    ]
    finished = [one for one in sweep.result.trials if one.state == "finished"]
    assert [one.number for one in finished] == [2]
    assert finished[0].work_dir.name == "seed_0_rung_1"


def test_asha_decides_at_once(sweep: Any) -> None:
    sweep.run(space=RATES, seeds=1, rungs={"lengths": (1, 4), "keep": 0.5}, pruner="asha")
    lengths = {name.partition("/")[0]: last for name, _, last in sweep.ledger()}
    assert lengths["0000"] == 4  # the first is the best so far
    assert lengths["0002"] == 4
    assert lengths["0005"] == 1


def test_a_pruner_of_optuna_gets_the_same_scores(sweep: Any) -> None:
    pruner = {"type": "median", "n_startup_trials": 2, "n_warmup_steps": 0}
    sweep.run(space=RATES, seeds=1, rungs={"lengths": (1, 4)}, pruner=pruner)
    assert sweep.result.trials[5].state == "pruned"
