"""Scores of several seeds: which setting is best, how far others are behind, and what is not ranked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.compare.runs import ComparedSetting, group_by_setting, read_runs
from analysis.compare.scores import behind, compare_scores, main_score, score_data
from engine.task import Score, TaskSpec
from tests.compared_runs import CLASSIFIER, write_run

TASK = TaskSpec("of a test", scores=(Score("top-1", "top1", 100),))


def settings(
    folder: Path, scores: dict[float, list[float]], metric: str = "top1", **start: Any
) -> list[ComparedSetting]:
    """Settings with a rate each, and the last scores of their seeds."""
    runs = [
        write_run(
            folder / f"{rate}_{seed}",
            {**CLASSIFIER, "optim_wrapper": {"optimizer": {"lr": rate}}},
            seed,
            (0.9, score),
            metric,
            **start,
        )
        for rate, of_rate in scores.items()
        for seed, score in enumerate(of_rate)
    ]
    return group_by_setting(read_runs(runs))


def test_a_difference_paired_by_seed_is_resolved(tmp_path: Path) -> None:
    (score,) = compare_scores(settings(tmp_path, {0.1: [0.5, 0.6, 0.7], 0.2: [0.4, 0.51, 0.6]}), TASK, ranked=True)
    assert score.values["last validation"]["A"] == {0: 50.0, 1: 60.0, 2: 70.0}  # on the scale of reports
    assert score.values["best validation"]["B"] == {0: 90.0, 1: 90.0, 2: 90.0}
    assert set(score.rankings) == {"last validation"}
    first, second = score.rankings["last validation"].settings
    assert (first.name, second.name, second.may_be_best) == ("A", "B", False)
    distance = behind(second, score.higher_is_better)
    assert distance is not None
    assert distance[0] == pytest.approx(29 / 3)
    data = score_data(score)["places"]["last validation"]
    assert data["A"]["mean"] == pytest.approx(60)
    assert data["B"]["resolved"] is True
    assert data["B"]["by_seed"] == {"0": 40.0, "1": 51.0, "2": 60.0}


def test_of_a_loss_the_lower_one_is_best(tmp_path: Path) -> None:
    (score,) = compare_scores(settings(tmp_path, {0.1: [0.5], 0.2: [0.4]}, "val_loss"), TASK, ranked=True)
    first, second = score.rankings["last validation"].settings
    assert first.name == "B"
    distance = behind(second, score.higher_is_better)
    assert distance is not None
    assert distance[0] == pytest.approx(0.1)
    assert distance[1] is None
    assert second.behind is not None
    assert second.behind.reason == "at least two seeds of each are needed"


def test_unfinished_trainings_and_other_problems_are_not_ranked(tmp_path: Path) -> None:
    running = settings(tmp_path / "a", {0.1: [0.5], 0.2: [0.4]}, outcome="running")
    (score,) = compare_scores(running, TASK, ranked=True)
    assert score.rankings == {}
    assert score.values["last validation"] == {"A": {0: 50.0}, "B": {0: 40.0}}
    assert score_data(score)["places"]["last validation"]["A"] == {
        "by_seed": {"0": 50.0},
        "mean": 50.0,
        "std": None,
        "interval": None,
    }
    (score,) = compare_scores(settings(tmp_path / "b", {0.1: [0.5], 0.2: [0.4]}), TASK, ranked=False)
    assert main_score([score]) is None
