"""Study files: what they declare, and mistakes in them, each one line before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest

from analysis.sweep.preflight import check_study, dry_run_lines, launch_of
from analysis.sweep.results import Objective
from analysis.sweep.space import grid_points, is_all_grid, settings_of
from analysis.sweep.study_file import Budget, read_study_file
from analysis.sweep.trainings import command_of, option_text, trainings_of
from backbones.errors import ConfigError, MachineError
from engine.config.options import parse_options
from engine.config.world import Launch

ROOT = Path(__file__).resolve().parents[3]
DIGITS = str(ROOT / "configs/classification/digits.py")
SWEEPS = sorted((ROOT / "configs/sweeps").glob("*/*.py"))
TRIALS = {"paper/coco": 48, "paper/ade20k": 12}
LR = "optim_wrapper.optimizer.lr"
RATES = {LR: {"log_uniform": (1e-5, 1e-2)}}


def write(folder: Path, **settings: Any) -> Path:
    declared = {"config": DIGITS, "space": RATES, "objective": "top1", "budget": {"trials": 3}, **settings}
    file = folder / "study.py"
    file.write_text("\n".join(f"{name} = {value!r}" for name, value in declared.items()))
    return file


def test_what_a_study_file_declares(tmp_path: Path) -> None:
    space = {
        LR: {"log_uniform": (1e-5, 1e-2)},
        "model.backbone.drop_path_rate": {"uniform": (0, 0.5), "step": 0.1},
        "train_cfg.max_epochs": {"uniform": (2, 8), "step": 2},
        "optim_wrapper.optimizer.betas": {"choice": [(0.9, 0.999), (0.9, 0.95)]},
        "network": {
            "grid": {"V1": {"model.backbone.type": "convnext_atto"}, "V2": {"config": "b.py", "batch.size": 8}}
        },
    }
    study = read_study_file(write(tmp_path, space=space, seeds=[3, 5], objective={"metric": "val_loss", "at": "best"}))
    assert (study.name, study.seeds, study.budget) == ("study", (3, 5), Budget(trials=3))
    assert study.objective == Objective("val_loss", "minimize", "best")
    assert study.configs == [DIGITS, "b.py"]
    assert json.loads(json.dumps(study.declared_space))["network"]["grid"]["V1"] == {
        "model.backbone.type": "convnext_atto"
    }
    assert grid_points(study.space) == [{"network": "V1"}, {"network": "V2"}]
    assert not is_all_grid(study.space)
    asked = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    values = {one.name: one.suggest(asked) for one in study.space}
    assert 1e-5 <= values[LR] <= 1e-2
    assert values["train_cfg.max_epochs"] in (2, 4, 6, 8)
    assert isinstance(values["train_cfg.max_epochs"], int)
    assert values["optim_wrapper.optimizer.betas"] in ([0.9, 0.999], [0.9, 0.95])
    options = settings_of(study.space, {**values, "network": "V2"}, {"batch.size": 4, "a.b": 1})
    assert (options["batch.size"], options["a.b"], options["config"]) == (8, 1, "b.py")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"seads": 3}, "no setting 'seads'; nearest: seeds"),
        ({"config": 3}, "config is missing"),
        ({"space": {LR: {"log_uniform": (1e-2, 1e-5)}}}, "has no points: a lower limit above 0 and a higher one"),
        ({"space": {LR: {"grid": []}}}, "has no points: name at least one value"),
        ({"space": {LR: {"log_unifrom": (1, 2)}}}, "nearest: log_uniform"),
        ({"space": {LR: {"grid": [1, 1]}}}, "each value once"),
        ({"space": {LR: {"uniform": (0, 1), "step": 3}}}, "step=3: a positive number up to 1"),
        ({"space": {LR: RATES[LR], "x": {"grid": {"a": {LR: 1}}}}}, f"both change {LR}"),
        ({"space": {"randomness.seed": {"grid": [1, 2]}}}, "randomness.seed is set for each training: use seeds"),
        ({"options": {"work_dir": "x"}}, "work_dir is set for each training"),
        ({"sampler": "tpee"}, "sampler='tpee'; nearest: tpe; choose from tpe, gp"),
        ({"sampler": {"type": "tpe", "startup": 3}}, "sampler=.*TypeError"),
        ({"objective": {"metrik": "top1"}}, "a score of the validation is needed"),
        ({"seeds": [1, 1]}, "each once"),
        ({"budget": {"trials": 0}}, "budget.trials=0: a positive whole number"),
        ({"budget": {"days": 1}}, "budget="),
        ({"budget": {}}, "budget is missing: the space is sampled without end"),
        ({"pruner": "median"}, "pruner='median' without rungs: schedules that are not finished do not compare"),
        ({"rungs": (9, 3)}, "rungs=.*rising"),
        ({"rungs": {"lengths": (3, 9), "keep": 2}}, "rungs.keep=2: a fraction between 0 and 1"),
        ({"rungs": (3, 9), "pruner": "hyperband"}, "pruner='hyperband'"),
        ({"gpus_per_trial": 0}, "gpus_per_trial=0"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_study_file(write(tmp_path, **settings))
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read_study_file(tmp_path / "none.py")
    (tmp_path / "broken.py").write_text("config = (")
    with pytest.raises(ConfigError, match=r"broken\.py' cannot be read: SyntaxError"):
        read_study_file(tmp_path / "broken.py")
    with pytest.raises(MachineError, match="pip install cmaes"):
        read_study_file(write(tmp_path, sampler="cmaes"))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"objective": "top2"}, r"^objective\.metric='top2' is no score of the validation: choose from top1, top5"),
        ({"space": {"optim_wraper.optimizer.lr": {"grid": [1]}}}, r"^optim_wraper\.optimizer\.lr: the config has no"),
        (
            {"space": {"batch.size": {"grid": [8, 9]}}, "gpus_per_trial": 2},
            r"batch 9 does not divide.*\(at batch.size=9\)$",
        ),
        ({"space": {"optim_wrapper.optimizer.lrr": {"grid": [1]}}}, r"'lrr'.*\(at optim_wrapper.optimizer.lrr=1\)$"),
        ({"space": {"model.backbone.type": {"grid": ["convnext_atto", "convnext_ato"]}}}, "convnext_ato"),
        ({"rungs": {"lengths": (1, 2), "decay": 0.5}}, "the warm-up of param_scheduler.0 .* is not over"),
    ],
)
def test_trainings_that_would_not_start(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    study = read_study_file(write(tmp_path, **settings))
    with pytest.raises(ConfigError, match=message) as caught:
        check_study(study, Launch(study.gpus_per_trial, "cpu", study.gpus_per_trial))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_the_studies_of_this_project(file: Path) -> None:
    study = read_study_file(file)
    assert str(file.relative_to(ROOT)) in file.read_text(encoding="utf-8"), "the docstring has its command"
    assert study.max_trials == TRIALS.get(f"{file.parent.name}/{file.stem}", study.max_trials)
    first = {one.name: one.examples[0] for one in study.space}
    for training in trainings_of(study, Path("work"), 0, first, study.seeds[0], 0):
        assert command_of(study, training, study.gpus_per_trial)[-1] == f"randomness.seed={study.seeds[0]}"


def test_commands(tmp_path: Path) -> None:
    study = read_study_file(write(tmp_path, options={"model.backbone.weights": "a b.pth"}, per_gpu_batch="auto"))
    (training,) = trainings_of(study, Path("work"), 7, {LR: 1e-05}, 1, 0)
    words = command_of(study, training, 4)
    assert words[:4] == ["bash", str(ROOT / "tools/dist_train.sh"), DIGITS, "4"]
    assert words[4:8] == ["--work-dir", "work/trials/0007/seed_1", "--per-gpu-batch", "auto"]
    assert words[8:] == ["--cfg-options", "model.backbone.weights=a b.pth", f"{LR}=1e-05", "randomness.seed=1"]
    assert command_of(study, training, 2, "gpu")[:6] == [
        *["bash", str(ROOT / "tools/slurm_train.sh"), "gpu", "study_7_1", DIGITS, "2"]
    ]


@pytest.mark.parametrize(
    "value", [1e-05, 3, True, None, "gelu", "1", "None", "a,b", [0.9, 0.99], [{"type": "LinearLR", "end": 2}], {"a": 1}]
)
def test_options_are_read_back(value: Any) -> None:
    assert parse_options([option_text("a.b", value)]) == {"a.b": value}


def test_a_dry_run_lists_trials_costs_and_commands(tmp_path: Path) -> None:
    space = {LR: {"grid": [1e-3, 1e-2]}}
    study = read_study_file(
        write(tmp_path, space=space, seeds=2, config=str(ROOT / "configs/classification/convnext_tiny_in1k_300e.py"))
    )
    lines = dry_run_lines(study, Path("work"), launch_of(study, True), "gpu", None)
    assert lines[0] == "study: 2 trials x 2 seeds"
    assert lines[2] == f"trial 0: {LR}=0.001"
    assert lines[3] == "  cost: 384,350,100 images x 13.4 Gflop x 2 seeds = 1.03e+04 Pflop"
    assert (
        lines[4].startswith("  bash tools/slurm_train.sh gpu study_0_0 ") or "slurm_train.sh gpu study_0_0" in lines[4]
    )
    assert lines[-1] == "together: 2.06e+04 Pflop (multiply-adds)"
