"""What a study found, read back from a storage of Optuna and from work directories as trainings leave them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest

from analysis.sweep.results import DATABASE, DECLARATION, RUN_FILE, Objective, read_study, trial_folder
from backbones.errors import ConfigError
from engine.report.run_dir import write_json

LR = "optim_wrapper.optimizer.lr"


def leave_training(folder: Path, scores: list[float], gpu_utilisation: float | None = None, **record: Any) -> None:
    """The files of a training of two steps per epoch and 2 processes, of 1800 seconds."""
    schedule = {"epochs": len(scores), "steps": 2 * len(scores), "steps_per_epoch": 2}
    rows = [{"params": 90}, {"params": 8}]
    plan = {"batch": {"global_batch": 16}, "schedule": schedule, "rows": rows, "frozen": 2}
    write_json(folder / "plan.json", plan)
    start = {"folder": "first", "seconds": 1800.0, "processes": 2, "command": "python tools/train.py", "from_step": 0}
    write_json(folder / "starts.json", {"starts": [{**start, "memory_bytes": 500, "gpu_memory_bytes": 300}]})
    write_json(folder / RUN_FILE, record)
    lines: list[dict[str, Any]] = []
    for epoch, top1 in enumerate(scores, 1):
        lines.append({"lr": 0.1, "loss": 1.0, "time": 9.0 if epoch == 1 else 0.5, "step": 2 * epoch})
        lines[-1]["data_time"] = 0.1
        lines[-1] |= {} if gpu_utilisation is None else {"gpu_utilisation": gpu_utilisation}
        lines.append({"top1": top1, "step": epoch})
    file = folder / "first/vis_data/scalars.json"
    file.parent.mkdir(parents=True)
    file.write_text("\n".join(map(json.dumps, lines)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    storage = f"sqlite:///{tmp_path / DATABASE}"
    study = optuna.create_study(storage=storage, study_name="rates", direction="maximize")
    declared = {
        **{"title": "Rates", "config": "a.py", "options": {"batch.size": 16}, "space": {LR: {"uniform": [0, 1]}}},
        **{"objective": {"metric": "top1", "direction": "maximize", "at": "best"}, "seeds": [0, 1], "rungs": [2, 3]},
    }
    study.set_user_attr(DECLARATION, declared)
    for _ in range(4):
        trial = study.ask()
        trial.suggest_float(LR, 0, 1)
        trial.suggest_categorical("batch.betas", ["[0.9, 0.99]"])
    for number in (0, 1, 2):
        trial_folder(tmp_path, number).mkdir(parents=True)
    for seed in (0, 1):
        for rung, scores in enumerate(([10.0, 30.0], [20.0, 50.0 + seed, 40.0])):
            place = trial_folder(tmp_path, 0) / f"seed_{seed}_rung_{rung}"
            leave_training(place, scores, seed=seed, rung=rung, state="finished", gpu_utilisation=0.75)
        place = trial_folder(tmp_path, 1) / f"seed_{seed}_rung_0"
        leave_training(place, [5.0, 7.0], seed=seed, rung=0, state="finished")
    study.tell(0, 50.5)
    study.tell(1, state=optuna.trial.TrialState.PRUNED)
    place = trial_folder(tmp_path, 2) / "seed_0_rung_0"
    leave_training(place, [4.0], seed=0, rung=0, state="failed", reason="loss is nan at step 4")
    return tmp_path


def test_every_training_is_read(folder: Path) -> None:
    result = read_study(folder)
    assert (result.name, result.title, result.seeds, result.rungs) == ("rates", "Rates", (0, 1), (2, 3))
    assert result.objective == Objective("top1", "maximize", "best")
    found = [(one.number, one.seed, one.state, one.score, one.rung) for one in result.trials]
    assert found == [
        *[(0, 0, "finished", 50.0, 1), (0, 1, "finished", 51.0, 1)],
        *[(1, 0, "pruned", 7.0, 0), (1, 1, "pruned", 7.0, 0)],
        *[(2, 0, "failed", None, 0), (2, 1, "waiting", None, 0)],  # the fourth trial was given up: nothing was started
    ]
    assert list(result.by_number()) == [0, 1, 2]
    assert list(result.compared()) == [0]


def test_a_training_in_figures(folder: Path) -> None:
    one, failed = (read_study(folder).trials[index] for index in (1, 4))
    assert one.settings.keys() == {LR, "batch.betas"}
    assert one.settings["batch.betas"] == [0.9, 0.99]
    assert one.curve == ((1.0, 20.0), (2.0, 51.0), (3.0, 40.0))
    assert (one.unit, one.hours, one.gpu_hours) == ("epoch", 1.0, 2.0)  # of both rungs
    assert (one.steps_per_second, one.images_per_second) == (2.0, 32.0)  # the slow first line does not count
    assert (one.peak_memory_bytes, one.utilisation, one.parameters) == (300, 0.75, 100)
    assert one.data_wait == pytest.approx(0.2)
    assert one.work_dir == trial_folder(folder, 0) / "seed_1_rung_1"
    assert failed.reason == "loss is nan at step 4"
    assert failed.utilisation is None


def test_a_branch_counts_and_not_the_trunk_that_it_is_from(folder: Path) -> None:
    trunk = trial_folder(folder, 0) / "seed_0_trunk"
    leave_training(trunk, [90.0, 91.0], seed=0, rung=1, trunk=True, state="finished")
    one = read_study(folder).trials[0]
    assert (one.score, one.work_dir.name, one.hours) == (50.0, "seed_0_rung_1", 1.5)


def test_the_last_value_counts_or_the_best_one() -> None:
    points = [(1, 3.0), (2, 1.0), (3, 2.0)]
    assert Objective("top1", "maximize").score(points) == 2.0
    assert Objective("top1", "maximize", "best").score(points) == 3.0
    assert Objective("val_loss", "minimize", "best").score(points) == 1.0
    assert Objective("top1", "maximize").score([]) is None
    assert Objective("val_loss", "minimize").better(1.0, 2.0)


def test_a_folder_without_a_study(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no study"):
        read_study(tmp_path)
    url = f"sqlite:///{tmp_path / DATABASE}"
    optuna.create_study(storage=url, study_name="foreign")
    with pytest.raises(ConfigError, match=r"'foreign' was not made by tools/sweep\.py"):
        read_study(tmp_path)
    with pytest.raises(ConfigError, match="no study 'other'"):
        read_study(tmp_path, name="other")
    optuna.create_study(storage=url, study_name="second")
    with pytest.raises(ConfigError, match=r"2 studies .*\(foreign, second\)"):
        read_study(tmp_path)
