"""Time to the same metric: what trainings need until their validations reach a score, and which never did."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from analysis.sweep.results import Objective, TrialResult


@dataclass(frozen=True)
class TargetTime:
    """What a training needed to reach a score.

    Attributes:
        reached: Whether a validation reached it; otherwise the numbers are those of the whole training, which the real
            ones exceed (censored).
        at: Epochs or steps of the first validation with the score.
        hours: Hours up to it: the duration of the training in proportion to its length.
        gpu_hours: The same times the number of processes.
    """

    reached: bool
    at: float
    hours: float
    gpu_hours: float


@dataclass(frozen=True)
class SettingTime:
    """What a setting needed to reach a score, over its seeds.

    A median, since a mean of censored values does not exist. It is known if more than half of the seeds reached the
    score, as one that did not would have taken longer than all that count.

    Attributes:
        reached: Number of seeds that reached the score.
        seeds: Number of seeds.
        at: Median of the epochs or steps; ``None`` if it is not known.
        hours: Median of the hours; ``None`` if it is not known.
        gpu_hours: Median of the GPU hours; ``None`` if it is not known.
    """

    reached: int
    seeds: int
    at: float | None
    hours: float | None
    gpu_hours: float | None


def time_to_target(trial: TrialResult, objective: Objective, target: float) -> TargetTime | None:
    """Find when a training reached a score.

    Args:
        trial: Training with its curve; only its longest schedule is looked at.
        objective: Objective of the study, with the direction in which scores are better.
        target: Score, in the unit of the log.

    Returns:
        The time; ``None`` if there was no validation yet.
    """
    if not trial.curve:
        return None
    last = trial.curve[-1][0]
    enough = (at for at, score in trial.curve if score == target or objective.better(score, target))
    at = next(enough, None)
    share = 1.0 if at is None or not last else at / last
    return TargetTime(at is not None, last if at is None else at, share * trial.hours, share * trial.gpu_hours)


def setting_time(times: Sequence[TargetTime]) -> SettingTime:
    """Summarize the seeds of a setting; times of seeds that did not reach the score count as longer than all others."""
    reached = sum(one.reached for one in times)
    known = 2 * reached > len(times)

    def middle(name: str) -> float | None:
        return median(getattr(one, name) if one.reached else math.inf for one in times) if known else None

    return SettingTime(reached, len(times), middle("at"), middle("hours"), middle("gpu_hours"))


def common_target(trials: Sequence[TrialResult], objective: Objective) -> float | None:
    """The score that half of the trainings reach at their end: the median of their scores; ``None`` without scores."""
    scores = sorted(trial.score for trial in trials if trial.score is not None)
    if not scores:
        return None
    return scores[len(scores) // 2] if objective.direction == "minimize" else scores[(len(scores) - 1) // 2]
