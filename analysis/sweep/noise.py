"""How certain scores of repeated trainings are: intervals, differences paired by seed, ranking, and seeds to add.

Two trainings with the same seed see the same images in the same order, so that a difference paired by seed leaves out
what the seeds have in common. The decisions rest on Student's t (Gosset, 1908); the bootstrap (Efron, 1979) beside it
assumes no distribution, but is too narrow for few seeds: among 3 values there are only 10 different resamples.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 4999
POWER = 0.8
MAX_SEEDS = 1000
PAIRED, INDEPENDENT = "paired by seed", "independent seeds"


class Interval(NamedTuple):
    """Limits of an interval, in the unit of the score."""

    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Whether a value lies outside."""
        return not self.low <= value <= self.high


@dataclass(frozen=True)
class MeanEstimate:
    """Mean of a score over seeds.

    Attributes:
        values: Scores, one for each seed.
        mean: Their mean.
        std: Standard deviation of the sample (divisor n - 1); ``None`` for a single value.
        t_interval: Interval of the mean by Student's t; ``None`` for a single value.
        bootstrap_interval: Percentile interval of the mean by resampling the values; ``None`` for a single value.
    """

    values: tuple[float, ...]
    mean: float
    std: float | None
    t_interval: Interval | None
    bootstrap_interval: Interval | None


@dataclass(frozen=True)
class ScoreDifference:
    """Difference of two settings, first minus second.

    Attributes:
        method: ``paired by seed``, or ``independent seeds`` (Welch, 1947) where fewer than two seeds are common.
        count: Number of pairs; of independent seeds the smaller number of the two settings.
        left_out: Number of scores that have no partner and are not used.
        mean: Mean difference.
        std: Standard deviation of the difference of two single trainings; ``None`` if it is not known.
        t_interval: Interval of the mean difference; ``None`` if the deviation is not known.
        bootstrap_interval: Interval by resampling; ``None`` if the deviation is not known.
        resolved: Whether the sign of the difference is certain at the level that was asked for.
        reason: Reason why not, in a few words; empty if it is.
    """

    method: str
    count: int
    left_out: int
    mean: float
    std: float | None
    t_interval: Interval | None
    bootstrap_interval: Interval | None
    resolved: bool
    reason: str


@dataclass(frozen=True)
class RankedSetting:
    """A setting in a ranking.

    Attributes:
        name: Name of the setting.
        estimate: Mean over its seeds.
        behind: Difference of the highest ranked setting and this one; ``None`` for the highest ranked one.
        may_be_best: Whether the scores do not exclude that this setting is the best of all.
    """

    name: str
    estimate: MeanEstimate
    behind: ScoreDifference | None
    may_be_best: bool


@dataclass(frozen=True)
class ScoreRanking:
    """Settings, the best mean first.

    Attributes:
        settings: Settings in order.
        resolved: Whether all settings but the first are excluded from being the best.
        more_seeds: Number of seeds that each of the first two needs beyond those that it has to be told apart;
            0 if they are; ``None`` if that cannot be estimated, or is more than ``MAX_SEEDS``.
    """

    settings: tuple[RankedSetting, ...]
    resolved: bool
    more_seeds: int | None


def estimate_mean(values: Sequence[float], confidence: float = CONFIDENCE) -> MeanEstimate:
    """Estimate the mean of a score over seeds.

    Args:
        values: Finite scores, at least one.
        confidence: Probability with which an interval holds the mean.

    Raises:
        ValueError: If there is no score, or one is not finite.
    """
    sample = _sample(values)
    mean = float(sample.mean())
    if len(sample) < 2:
        return MeanEstimate(tuple(sample.tolist()), mean, None, None, None)
    std = float(sample.std(ddof=1))
    half = float(stats.t.ppf((1 + confidence) / 2, len(sample) - 1)) * std / math.sqrt(len(sample))
    return MeanEstimate(
        tuple(sample.tolist()), mean, std, Interval(mean - half, mean + half), _bootstrap([sample], confidence)
    )


def score_difference(
    first: Mapping[int, float], second: Mapping[int, float], confidence: float = CONFIDENCE
) -> ScoreDifference:
    """Compare two settings over their seeds.

    Equal differences of all pairs have no deviation from which an interval could follow. Their sign alone then
    decides, by the sign test: six pairs at 95 %.

    Args:
        first: Finite scores by seed, at least one.
        second: Those of the other setting.
        confidence: Probability with which an interval holds the difference.

    Raises:
        ValueError: If a setting has no score, or one is not finite.
    """
    left, right = _sample(first.values()), _sample(second.values())
    common = sorted(first.keys() & second.keys())
    if len(common) < 2:
        return _independent_difference(left, right, confidence)
    pairs = np.array([first[seed] - second[seed] for seed in common])
    estimate = estimate_mean(pairs.tolist(), confidence)
    assert estimate.t_interval is not None
    resolved, reason = estimate.t_interval.excludes(0.0), ""
    if np.ptp(pairs) <= 1e-12 * np.abs(pairs).max():  # rounding of equal differences
        resolved = bool(pairs[0]) and 2.0 ** (1 - len(pairs)) <= 1 - confidence + 1e-12
        reason = "" if resolved else f"the same difference in all {len(pairs)} pairs shows no spread"
    elif not resolved:
        reason = "the interval of the difference holds 0"
    left_out = len(first) + len(second) - 2 * len(common)
    return ScoreDifference(
        *(PAIRED, len(common), left_out, estimate.mean, estimate.std),
        *(estimate.t_interval, estimate.bootstrap_interval, resolved, reason),
    )


def rank_settings(
    scores: Mapping[str, Mapping[int, float]], greater_is_better: bool = True, confidence: float = CONFIDENCE
) -> ScoreRanking:
    """Rank settings by their mean, and say which ones may be the best.

    That is subset selection (Gupta, "On some multiple decision rules", Technometrics 1965) with the bound of
    Bonferroni: each setting is compared with the one that looks best at the level 1 - (1 - confidence) / (k - 1), where
    k settings have two seeds or more. So the settings that are not excluded hold the best one with at least the
    probability ``confidence``, although the one to compare with was chosen by its scores.

    Args:
        scores: Finite scores by seed of each setting, at least one setting.
        greater_is_better: Whether a greater score is better.
        confidence: Probability with which the settings that are not excluded hold the best one.

    Raises:
        ValueError: If there is no setting, a setting has no score, or a score is not finite.
    """
    if not scores:
        raise ValueError("there is no setting to rank")
    sign = -1.0 if greater_is_better else 1.0
    estimates = {name: estimate_mean(list(of_seed.values()), confidence) for name, of_seed in scores.items()}
    order = sorted(estimates, key=lambda name: sign * estimates[name].mean)
    repeated = sum(len(of_seed) > 1 for of_seed in scores.values())
    level = 1 - (1 - confidence) / max(1, repeated - 1)
    best = order[0]
    ranked = [RankedSetting(best, estimates[best], None, True)]
    for name in order[1:]:
        behind = score_difference(scores[best], scores[name], level)
        ranked.append(RankedSetting(name, estimates[name], behind, not behind.resolved))
    resolved = not any(one.may_be_best for one in ranked[1:])
    more = additional_seeds(ranked[1].behind, level) if len(ranked) > 1 and ranked[1].behind else 0
    return ScoreRanking(tuple(ranked), resolved, more)


def additional_seeds(difference: ScoreDifference, confidence: float = CONFIDENCE) -> int | None:
    """Suggest how many more seeds would resolve a difference.

    The number with which a t-test finds the present mean difference with probability 0.8, if that and the present
    deviation are the true ones (noncentral t). Both come from the few seeds there are, so it is a rough guide.

    Args:
        difference: Difference that is to be resolved.
        confidence: Level of the test, two-sided.

    Returns:
        Number of seeds for each of the two settings, beyond those they have; 0 if the difference is resolved; ``None``
        if the means are equal, the deviation is not known, or more than ``MAX_SEEDS`` would be needed.
    """
    if difference.resolved:
        return 0
    if not difference.std or not difference.mean:
        return None
    effect = abs(difference.mean) / difference.std
    groups = 1 if difference.method == PAIRED else 2

    def power(count: int) -> float:
        freedom = groups * (count - 1)
        limit = stats.t.ppf((1 + confidence) / 2, freedom)
        return float(stats.nct.sf(limit, freedom, effect * math.sqrt(count)))

    counts = range(max(2, difference.count + 1), MAX_SEEDS + 1)
    place = bisect_left(counts, POWER, key=power)
    return counts[place] - difference.count if place < len(counts) else None


def _independent_difference(left: np.ndarray, right: np.ndarray, confidence: float) -> ScoreDifference:
    """The difference of two settings whose scores are not paired; all of them are used."""
    count, mean = min(len(left), len(right)), float(left.mean() - right.mean())
    if count < 2:
        reason = "at least two seeds of each are needed"
        return ScoreDifference(INDEPENDENT, count, 0, mean, None, None, None, False, reason)
    std = math.sqrt(left.var(ddof=1) + right.var(ddof=1))
    if not std:
        reason = "equal scores of all seeds show no spread"
        return ScoreDifference(INDEPENDENT, count, 0, mean, std, Interval(mean, mean), None, False, reason)
    limits = stats.ttest_ind(left, right, equal_var=False).confidence_interval(confidence)
    interval = Interval(float(limits.low), float(limits.high))
    resolved = interval.excludes(0.0)
    reason = "" if resolved else "the interval of the difference holds 0"
    bootstrap = _bootstrap([left, right], confidence)
    return ScoreDifference(INDEPENDENT, count, 0, mean, std, interval, bootstrap, resolved, reason)


def _sample(values: Iterable[float]) -> np.ndarray:
    sample = np.array(list(values), dtype=float)
    if not len(sample) or not np.isfinite(sample).all():
        raise ValueError(f"finite scores are needed, at least one: {sample.tolist()}")
    return sample


def _bootstrap(samples: Sequence[np.ndarray], confidence: float) -> Interval:
    """Percentile interval of a mean, or of the difference of two means."""
    random = np.random.default_rng(0)  # the same interval whenever a report is made
    means = [sample[random.integers(len(sample), size=(RESAMPLES, len(sample)))].mean(1) for sample in samples]
    drawn = means[0] - means[1] if len(means) > 1 else means[0]
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))
