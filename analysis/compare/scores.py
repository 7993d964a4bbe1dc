"""Scores of the compared settings with the spread of their seeds, and which differences are certain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.compare.runs import ComparedSetting, TrainingRun
from analysis.sweep.noise import Interval, RankedSetting, ScoreRanking, estimate_mean, rank_settings
from engine.report.class_scores import score_of
from engine.report.run_dir import best_point, greater_is_better
from engine.task import Score, TaskSpec

AVERAGED_PREFIX, VALIDATION = "ema/", "val/"
LAST_VALIDATION, BEST_VALIDATION = "last validation", "best validation"


@dataclass(frozen=True)
class ComparedScore:
    """A score of all settings.

    Attributes:
        metric: Name in the log, such as ``ema/top1``.
        score: Label and scale.
        values: Scores by seed of each setting, by its letter, at each place (last validation, best validation, each
            test), on the scale of reports.
        rankings: Ranking of the settings at each place but the best validation, which is chosen by its score; of those
            that are finished, if they are two or more.
    """

    metric: str
    score: Score
    values: Mapping[str, Mapping[str, Mapping[int, float]]]
    rankings: Mapping[str, ScoreRanking]

    @property
    def higher_is_better(self) -> bool:
        """Whether more is better."""
        return greater_is_better(self.metric)

    def ranked(self, place: str, letter: str) -> RankedSetting | None:
        """A setting in the ranking at a place; ``None`` where it is not ranked."""
        ranking = self.rankings.get(place)
        return next((one for one in ranking.settings if one.name == letter), None) if ranking else None


def compare_scores(settings: Sequence[ComparedSetting], task: TaskSpec, ranked: bool) -> list[ComparedScore]:
    """Compare all metrics that were logged, those of the task first.

    Args:
        settings: Compared settings.
        task: Their task.
        ranked: Whether the scores are of one problem, so that settings can be ranked.
    """
    runs = [run for one in settings for run in one.runs]
    names = [name.removeprefix(VALIDATION) for run in runs for name in run.curves if name.startswith(VALIDATION)]
    names += [name for run in runs for metrics in run.tests.values() for name in metrics]
    first = [score.metric for score in task.scores]
    if task.main_metric:
        first.insert(0, task.main_metric)

    def place(name: str) -> tuple[int, str, bool]:
        plain = name.removeprefix(AVERAGED_PREFIX)
        return (first.index(plain) if plain in first else len(first), plain, name != plain)

    return [_compare(name, settings, task, ranked) for name in sorted(dict.fromkeys(names), key=place)]


def _compare(metric: str, settings: Sequence[ComparedSetting], task: TaskSpec, ranked: bool) -> ComparedScore:
    plain = metric.removeprefix(AVERAGED_PREFIX)
    score = score_of(plain, (task,))
    if plain != metric:
        score = Score(f"{score.label} (EMA)", metric, score.factor)
    values: dict[str, dict[str, dict[int, float]]] = {}
    for one in settings:
        for index, run in enumerate(one.runs):
            seed = run.seed if run.seed is not None else index
            for place, value in _places(run, metric).items():
                values.setdefault(place, {}).setdefault(one.letter, {})[seed] = value * score.factor
    finished = {one.letter for one in settings if one.is_finished}
    rankings = {}
    for place, of_settings in values.items():
        usable = {letter: scores for letter, scores in of_settings.items() if letter in finished}
        if ranked and place != BEST_VALIDATION and len(usable) > 1:
            rankings[place] = rank_settings(usable, greater_is_better(metric))
    return ComparedScore(metric, score, values, rankings)


def _places(run: TrainingRun, metric: str) -> dict[str, float]:
    """The values of a metric of a training by where they are from."""
    found: dict[str, float] = {}
    if points := run.curves.get(VALIDATION + metric):
        found |= {LAST_VALIDATION: points[-1][1], BEST_VALIDATION: best_point(metric, points)[1]}
    return found | {label: metrics[metric] for label, metrics in run.tests.items() if metric in metrics}


def behind(one: RankedSetting, higher_is_better: bool) -> tuple[float, Interval | None] | None:
    """How far a setting is behind the first one, and the interval of that; positive where it is worse."""
    if one.behind is None:
        return None
    limits = one.behind.t_interval
    if higher_is_better:
        return one.behind.mean, limits
    return -one.behind.mean, None if limits is None else Interval(-limits.high, -limits.low)


def main_score(scores: Sequence[ComparedScore]) -> tuple[ComparedScore, str] | None:
    """The first score with a ranking, and the place that counts: the last validation, else a test."""
    return next(((one, place) for one in scores for place in one.rankings), None)


def score_data(one: ComparedScore) -> dict[str, Any]:
    """A score as JSON takes it."""
    places = {
        place: {
            letter: {
                "by_seed": {str(seed): value for seed, value in scores.items()},
                **_estimate_data(list(scores.values())),
                **_ranked_data(one, place, letter),
            }
            for letter, scores in of_settings.items()
        }
        for place, of_settings in one.values.items()
    }
    return {"label": one.score.label, "factor": one.score.factor, "places": places}


def _estimate_data(values: Sequence[float]) -> dict[str, Any]:
    estimate = estimate_mean(values)
    return {"mean": estimate.mean, "std": estimate.std, "interval": estimate.t_interval}


def _ranked_data(one: ComparedScore, place: str, letter: str) -> dict[str, Any]:
    """What a ranking says of a setting; nothing of one that is not ranked."""
    ranked = one.ranked(place, letter)
    if ranked is None:
        return {}
    found: dict[str, Any] = {"may_be_best": ranked.may_be_best}
    if ranked.behind is not None and (distance := behind(ranked, one.higher_is_better)):
        found |= {
            "behind": distance[0],
            "behind_interval": distance[1],
            "method": ranked.behind.method,
            "resolved": ranked.behind.resolved,
            "reason": ranked.behind.reason,
        }
    return found
