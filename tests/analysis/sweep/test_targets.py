"""Time to the same score: interpolation, trainings that never reach it, and medians of censored times."""

from __future__ import annotations

import pytest

from analysis.sweep.results import Objective, TrialResult
from analysis.sweep.targets import common_target, setting_time, time_to_target

UP, DOWN = Objective("top1", "maximize"), Objective("loss", "minimize")


def trial(*scores: float) -> TrialResult:
    curve = tuple((float(epoch), score) for epoch, score in enumerate(scores, 1))
    return TrialResult(0, {}, 0, "finished", score=scores[-1] if scores else None, curve=curve, hours=2, gpu_hours=16)


def test_a_score_is_reached_at_the_first_validation_that_has_it() -> None:
    time = time_to_target(trial(10, 50, 40, 60), UP, 50)
    assert time is not None
    assert (time.reached, time.at, time.hours, time.gpu_hours) == (True, 2, 1, 8)
    falling = time_to_target(trial(3, 2, 1, 0.5), DOWN, 1.5)
    assert falling is not None
    assert falling.at == 3


def test_a_score_that_is_not_reached_is_censored_at_the_end() -> None:
    time = time_to_target(trial(10, 20), UP, 50)
    assert time is not None
    assert (time.reached, time.at, time.hours) == (False, 2, 2)
    assert time_to_target(trial(), UP, 50) is None


@pytest.mark.parametrize(
    "reached, known",
    [((True, True, True), True), ((True, True, False), True), ((True, False, False), False), ((True, False), False)],
)
def test_a_median_is_known_if_most_seeds_reached_it(reached: tuple[bool, ...], known: bool) -> None:
    times = [time_to_target(trial(10, 60 if one else 20, 61 if one else 30), UP, 60) for one in reached]
    found = setting_time([one for one in times if one is not None])
    assert (found.reached, found.seeds) == (sum(reached), len(reached))
    assert (found.at is not None) == known
    if known:
        assert found.at == 2
    assert setting_time([]).at is None


def test_a_seed_that_did_not_reach_it_counts_as_slower_than_all_others() -> None:
    times = [time_to_target(one, UP, 60) for one in (trial(1, 2, 60), trial(1, 2, 3, 60), trial(1, 2))]
    assert setting_time([one for one in times if one is not None]).at == 4


def test_half_of_the_trainings_reach_the_common_target() -> None:
    trials = [trial(score) for score in (1.0, 2.0, 3.0, 4.0)] + [trial()]
    assert common_target(trials, UP) == 2
    assert common_target(trials, DOWN) == 3
    assert common_target([], UP) is None
