"""What the values of a dimension do to speed and memory, from settings made up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.sweep.report import find_answers, render_study
from analysis.sweep.results import StudyResult, TrialResult
from analysis.sweep.speeds import setting_speeds, value_speeds
from tests.studies import made_study

COMPILE, WORKERS = "env_cfg.compile", "train_dataloader.num_workers"


@pytest.fixture
def study() -> StudyResult:
    """Compiling makes it 2 and 8 times as fast; two workers take a quarter more memory; one setting has no peer."""
    rows = [
        (False, 0, 10.0, 100),
        (True, 0, 20.0, 200),
        (False, 2, 40.0, 125),
        (True, 2, 320.0, 250),
        (True, 4, 1.0, 1),
    ]
    runs = [
        TrialResult(
            number,
            {COMPILE: compiled, WORKERS: workers},
            seed,
            "finished",
            score=1.0 + number,
            images_per_second=speed * (0.9 + 0.2 * seed),
            steps_per_second=speed / 8,
            peak_memory_bytes=memory - 10 * seed,
            utilisation=0.5,
            data_wait=0.25,
        )
        for number, (compiled, workers, speed, memory) in enumerate(rows)
        for seed in (0, 1)
    ]
    space: dict[str, Any] = {COMPILE: {"grid": [False, True]}, WORKERS: {"grid": [0, 2, 4]}}
    return replace(made_study(Path()), trials=tuple(runs), space=space, seeds=(0, 1))


def test_a_setting_has_the_means_of_its_seeds_and_their_largest_memory(study: StudyResult) -> None:
    one = setting_speeds(study)[1]
    assert (one.images_per_second, one.steps_per_second) == pytest.approx((20.0, 2.5))
    assert (one.peak_memory_bytes, one.utilisation, one.data_wait) == (200, 0.5, 0.25)


def test_values_are_compared_between_settings_that_differ_in_nothing_else(study: StudyResult) -> None:
    found = value_speeds(study, setting_speeds(study))
    off, on = found[COMPILE]
    assert (off.value, off.pairs, off.speed, off.memory) == (False, 2, 1.0, 1.0)
    assert (on.value, on.pairs) == (True, 2)  # the setting with four workers has no partner
    assert (on.speed, on.memory) == pytest.approx((4.0, 2.0))
    none, two, four = found[WORKERS]
    assert (two.pairs, two.speed, two.memory) == (2, pytest.approx(8.0), pytest.approx(1.25))
    assert (four.pairs, four.speed) == (1, pytest.approx(0.05))
    assert none.speed == 1.0


def test_the_page_has_a_table_of_each_system_axis(study: StudyResult) -> None:
    page = render_study(study, find_answers(study))
    assert '<th scope="row">True</th><td>4.00x</td><td>2.00x</td><td>2</td>' in page
    assert "waiting for data" in page
