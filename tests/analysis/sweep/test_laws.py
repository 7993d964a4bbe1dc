"""Best rates, laws of the batch and noise scales: recovered from points that the laws have made, with noise."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.sweep.laws import best_rate, fit_laws, fit_noise_scale

BATCHES = np.array([32.0, 64, 128, 256, 512, 1024])
RATES = np.logspace(-5, -2, 7)


def surge(batch: np.ndarray, peak: float = 200.0, highest: float = 1e-3) -> np.ndarray:
    """The law as the paper writes it (arXiv 2405.14578, equation of the abstract)."""
    return highest / ((np.sqrt(peak / batch) + np.sqrt(batch / peak)) / 2)


def scores_around(rate: float, random: np.random.Generator, seeds: int = 3) -> dict[float, list[float]]:
    """Scores of a grid of rates that are best at one, falling by one for a factor of ten."""
    means = 80 - np.log10(RATES / rate) ** 2
    return {float(lr): list(mean + random.normal(0, 0.1, seeds)) for lr, mean in zip(RATES, means)}


def test_points_without_noise_give_the_law_back() -> None:
    comparison = fit_laws(BATCHES, surge(BATCHES))
    fit = comparison.fits["surge"]
    assert comparison.preferred == "surge"
    assert (fit.peak_batch, fit.scale) == pytest.approx((200, 1e-3), rel=1e-3)
    assert fit.rate(800) == pytest.approx(surge(np.array(800.0)), rel=1e-3)
    for name, power in (("linear", 1), ("sqrt", 0.5), ("constant", 0)):
        fit = fit_laws(BATCHES, 2e-5 * BATCHES**power).fits[name]
        assert not fit.excluded
        assert fit.rate(100) == pytest.approx(2e-5 * 100**power)


def test_the_peak_of_the_surge_law_is_in_its_interval_in_nine_of_ten_studies() -> None:
    """From scores of a grid of rates and batches: the best rate of each batch, then the law through them."""
    random = np.random.default_rng(0)
    draws, peaks, rates = 40, 0, 0
    for _ in range(draws):
        best = [best_rate(scores_around(rate, random)) for rate in surge(BATCHES)]
        comparison = fit_laws(BATCHES, [one.rate for one in best], [one.log_error or 1.0 for one in best])
        interval = comparison.fits["surge"].peak_interval
        peaks += interval is not None and not interval.excludes(200)
        first = best[0].interval
        rates += first is not None and not first.excludes(surge(BATCHES)[0])
    assert peaks >= 0.9 * draws
    assert rates >= 0.9 * draws


@pytest.mark.parametrize("law, power", [("linear", 1.0), ("sqrt", 0.5), ("constant", 0.0)])
def test_a_wrong_law_is_seldom_preferred(law: str, power: float) -> None:
    random = np.random.default_rng(1)
    found = [fit_laws(BATCHES, 1e-4 * BATCHES**power * np.exp(random.normal(0, 0.1, 6))).preferred for _ in range(20)]
    assert sum(one not in (None, law) for one in found) <= 2
    assert sum(one == law for one in found) >= 8


def test_laws_that_the_points_do_not_tell_apart_are_not_resolved() -> None:
    comparison = fit_laws([64, 128, 256], [1e-3, 1.5e-3, 1.7e-3], [0.5, 0.5, 0.5])
    assert comparison.preferred is None
    assert "not told apart by these 3 points" in comparison.reason
    assert fit_laws([64, 128], [1e-3, 1e-3]).preferred is None  # the surge law goes through any two points
    bent = fit_laws(BATCHES, surge(BATCHES, 2000), [0.3] * 6)  # sqrt is not excluded, nor is a peak at 500
    assert bent.preferred is None
    odd = fit_laws(BATCHES, [1e-3, 1e-5] * 3, [0.1] * 6)
    assert odd.fits["linear"].excluded


def test_a_peak_beyond_the_batches_is_not_bounded() -> None:
    comparison = fit_laws(BATCHES, 1e-4 * np.sqrt(BATCHES) * np.exp([0.01, -0.02, 0.015, -0.01, 0.02, -0.015]))
    assert comparison.preferred == "sqrt"
    assert "beyond a batch of 1024" in comparison.reason
    interval = comparison.fits["surge"].peak_interval
    assert interval is not None
    assert interval.high == np.inf


def test_the_best_rate_says_when_it_is_at_the_border_of_the_grid() -> None:
    random = np.random.default_rng(2)
    inner = best_rate(scores_around(3e-4, random))
    assert inner.border == ""
    assert inner.rate == pytest.approx(3e-4, rel=0.3)
    high = best_rate(scores_around(1e-1, random))
    assert high.border == "high"
    assert high.interval is not None
    assert high.interval.high == np.inf
    errors = {rate: [100 - score for score in scores] for rate, scores in scores_around(3e-4, random).items()}
    assert best_rate(errors, greater_is_better=False).rate == pytest.approx(3e-4, rel=0.3)


def test_one_seed_for_each_rate_takes_the_noise_from_the_parabola() -> None:
    random = np.random.default_rng(3)
    single = best_rate(scores_around(3e-4, random, seeds=1))
    assert single.interval is not None
    three = {rate: scores for rate, scores in scores_around(3e-4, random, 1).items() if 5e-5 < rate < 2e-3}
    assert len(three) == 3
    assert best_rate(three).interval is None  # a parabola goes through any three points


def test_the_noise_scale_is_that_of_the_relation_of_steps_and_examples() -> None:
    steps = 1000 * (1 + 200 / BATCHES)
    examples = steps * BATCHES
    exact = fit_noise_scale(steps, examples)
    assert (exact.noise_scale, exact.min_steps) == pytest.approx((200, 1000), rel=1e-3)
    # 1/S = -Bn/E + 1/Smin, as the paper has it.
    assert 1 / steps == pytest.approx(-exact.noise_scale / examples + 1 / exact.min_steps, rel=1e-2)
    random = np.random.default_rng(4)
    held = 0
    for _ in range(40):
        drawn = steps * np.exp(random.normal(0, 0.05, 6))
        interval = fit_noise_scale(drawn, drawn * BATCHES).interval
        held += interval is not None and not interval.excludes(200)
    assert held >= 36


@pytest.mark.parametrize(
    "batches, rates", [([64], [1e-3]), ([64, 64], [1e-3, 2e-3]), ([64, 128], [1e-3]), ([64, 128], [1e-3, 0.0])]
)
def test_points_that_cannot_be_fitted_are_refused(batches: list[float], rates: list[float]) -> None:
    with pytest.raises(ValueError, match="needed"):
        fit_laws(batches, rates)
    with pytest.raises(ValueError, match="needed"):
        best_rate({rate: [1.0] for rate in rates})
