"""Intervals, paired differences, ranking and suggested seeds: figures of tables, and how often claims are false."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.sweep.noise import (
    INDEPENDENT,
    PAIRED,
    additional_seeds,
    estimate_mean,
    rank_settings,
    score_difference,
)


def test_the_t_interval_has_the_half_width_of_the_tables() -> None:
    three = estimate_mean([81.0, 82.0, 83.0])  # standard deviation 1
    assert three.t_interval is not None
    assert three.mean == 82
    assert three.t_interval.high - 82 == pytest.approx(2.484, abs=1e-3)
    five = estimate_mean([80.0, 81.0, 82.0, 83.0, 84.0])
    assert five.t_interval is not None
    assert five.std is not None
    assert (five.t_interval.high - 82) / five.std == pytest.approx(1.242, abs=1e-3)


def test_the_bootstrap_resamples_the_values() -> None:
    estimate = estimate_mean([1.0, 2.0, 3.0, 4.0, 5.0])
    assert estimate.bootstrap_interval is not None
    assert estimate.t_interval is not None
    # 2.5 % of the means of five values drawn from 1..5 are at most 1.8, 2.5 % at least 4.2.
    assert tuple(estimate.bootstrap_interval) == pytest.approx((1.8, 4.2), abs=0.21)
    assert estimate_mean([1.0, 2.0, 3.0, 4.0, 5.0]) == estimate


def test_one_value_has_no_interval_and_no_value_is_an_error() -> None:
    single = estimate_mean([3.0])
    assert (single.mean, single.std, single.t_interval, single.bootstrap_interval) == (3.0, None, None, None)
    for values in ([], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="finite scores"):
            estimate_mean(values)


def test_pairing_by_seed_removes_what_the_seeds_have_in_common() -> None:
    first = {0: 80.0, 1: 82.0, 2: 84.0, 3: 86.0}
    second = {seed: score - gain for (seed, score), gain in zip(first.items(), (0.4, 0.5, 0.6, 0.5))}
    paired = score_difference(first, second)
    assert (paired.method, paired.count, paired.left_out, paired.resolved) == (PAIRED, 4, 0, True)
    assert paired.mean == pytest.approx(0.5)
    apart = score_difference(first, {seed + 10: score for seed, score in second.items()})
    assert (apart.method, apart.resolved) == (INDEPENDENT, False)
    assert apart.mean == pytest.approx(0.5)
    assert "holds 0" in apart.reason


def test_seeds_without_a_partner_are_counted() -> None:
    difference = score_difference({0: 1.0, 1: 2.0, 2: 3.0}, {1: 1.0, 2: 1.5, 7: 9.0})
    assert (difference.method, difference.count, difference.left_out) == (PAIRED, 2, 2)
    assert difference.mean == pytest.approx(1.25)


def test_one_seed_resolves_nothing() -> None:
    difference = score_difference({0: 99.0}, {0: 1.0})
    assert not difference.resolved
    assert "two seeds" in difference.reason
    assert additional_seeds(difference) is None


@pytest.mark.parametrize("gap", [0.5, 0.1, 1 / 3])
def test_equal_differences_are_judged_by_their_number(gap: float) -> None:
    def compare(count: int) -> bool:
        return score_difference({n: n + gap for n in range(count)}, {n: float(n) for n in range(count)}).resolved

    assert not compare(3)
    assert not compare(5)
    assert compare(6)
    equal = dict.fromkeys(range(9), 1.0)
    assert not score_difference(equal, equal).resolved


def test_ranking_says_which_settings_may_be_the_best() -> None:
    noise = (-0.2, 0.1, 0.1, 0.0, 0.05)
    scores = {
        "a": {seed: 80.00 + off for seed, off in enumerate(noise)},
        "b": {seed: 79.97 - off for seed, off in enumerate(noise)},
        "c": {seed: 70.00 + off * 0.5 for seed, off in enumerate(noise)},
    }
    ranking = rank_settings(scores)
    assert [(one.name, one.may_be_best) for one in ranking.settings] == [("a", True), ("b", True), ("c", False)]
    assert not ranking.resolved
    assert ranking.more_seeds is not None
    assert ranking.more_seeds > 5
    reverse = rank_settings(scores, greater_is_better=False)
    assert [one.name for one in reverse.settings] == ["c", "b", "a"]
    assert reverse.resolved
    assert reverse.more_seeds == 0
    assert rank_settings({"a": {0: 1.0}}).resolved


def test_a_suggested_number_of_seeds_resolves_the_difference_in_four_of_five_studies() -> None:
    random = np.random.default_rng(1)
    found = score_difference({0: 1.0, 1: 0.0, 2: 2.0}, {0: 0.5, 1: 0.2, 2: 0.8})
    assert found.std is not None
    more = additional_seeds(found)
    assert more is not None
    count = found.count + more
    draws = random.normal(found.mean, found.std, (300, count))
    resolved = [score_difference(dict(enumerate(draw)), dict.fromkeys(range(count), 0.0)).resolved for draw in draws]
    assert 0.73 < np.mean(resolved) < 0.87  # three standard errors of 300 draws


def test_the_settings_that_may_be_best_hold_the_best_one() -> None:
    """With eight equal settings, the one that is the best by a hair is excluded in at most 5 % of the studies."""
    random = np.random.default_rng(2)
    kept, claims = 0, 0
    for _ in range(100):
        seeds = random.normal(0, 1, 4)
        scores = {str(k): dict(enumerate(seeds + random.normal(0, 1, 4))) for k in range(8)}
        ranking = rank_settings(scores)
        kept += next(one.may_be_best for one in ranking.settings if one.name == "0")
        claims += ranking.resolved
    assert kept >= 0.95 * 100
    assert claims == 0
