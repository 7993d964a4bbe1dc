"""What a study has found, as numbers: the ranking, rates and batches, importances, costs, and what is not resolved."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import (
    FanovaImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)

from analysis.sweep.laws import BestRate, LawComparison, NoiseScaleFit, best_rate, fit_laws, fit_noise_scale
from analysis.sweep.noise import ScoreRanking, rank_settings
from analysis.sweep.results import StudyResult, TrialResult, mean_score
from analysis.sweep.targets import SettingTime, common_target, setting_time, time_to_target
from engine.config.schema import is_number
from engine.report.run_dir import read_curves

RATE, BATCH = "optim_wrapper.optimizer.lr", "batch.size"
MIN_TRIALS = 4  # for importances: fewer settings say nothing about several dimensions


@dataclass(frozen=True)
class RateAndBatch:
    """What a study says about learning rate and batch.

    Attributes:
        grid: Mean score of each (batch, rate); the best one where other settings vary too.
        best: Best rate of each batch that was tried with at least three rates.
        laws: Laws through the best rates that do not lie at the border of the rates tried; ``None`` with fewer than two
            of them.
        noise_scale: Noise scale from the epochs or steps to the same score; ``None`` with fewer than two batches that
            reach it.
        measured: Noise scale in images at the end of each training that measured it (``env_cfg.noise_scale``).
        notes: Limits of these figures, one sentence each.
    """

    grid: Mapping[tuple[float, float], float]
    best: Mapping[float, BestRate]
    laws: LawComparison | None
    noise_scale: NoiseScaleFit | None
    measured: tuple[float, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class StudyFindings:
    """What a study has found.

    Attributes:
        ranking: Settings whose seeds are all finished at full length, best first, named by the number of their trial;
            ``None`` if there is none yet.
        labels: Settings of each trial in words, by its number.
        rate_and_batch: Rate and batch; ``None`` if not all settings have both as positive numbers.
        importances: Importance of each dimension, 0..1, by the name of the method; empty with too few trials.
        target: Score to which times are compared; ``None`` without scores.
        times: Time of each compared trial to that score, by its number.
        pareto: Numbers of the trials that no other one beats in both score and cost, by the name of the cost:
            ``gpu_hours`` or ``parameters``.
        open_questions: Questions that are not resolved, one sentence each.
    """

    ranking: ScoreRanking | None
    labels: Mapping[int, str]
    rate_and_batch: RateAndBatch | None
    importances: Mapping[str, Mapping[str, float]]
    target: float | None
    times: Mapping[int, SettingTime]
    pareto: Mapping[str, tuple[int, ...]]
    open_questions: tuple[str, ...]


def find_answers(study: StudyResult) -> StudyFindings:
    """Evaluate a study, which may be running."""
    compared = study.compared()
    scores = {str(n): {run.seed: _score(run) for run in runs} for n, runs in compared.items()}
    ranking = rank_settings(scores, study.objective.direction == "maximize") if scores else None
    target = common_target([run for runs in compared.values() for run in runs], study.objective)
    times = {}
    for number, runs in compared.items() if target is not None else ():
        found = [time_to_target(run, study.objective, target) for run in runs]  # type: ignore[arg-type]
        times[number] = setting_time([one for one in found if one is not None])
    rate_and_batch = None
    if all(_is_positive(runs[0].settings.get(key)) for runs in compared.values() for key in (RATE, BATCH)):
        rate_and_batch = _rate_and_batch(study, compared, target) if compared else None
    importances = _importances(study, compared)
    return StudyFindings(
        ranking,
        setting_labels(study),
        rate_and_batch,
        importances,
        target,
        times,
        {cost: _pareto(study, compared, cost) for cost in ("gpu_hours", "parameters")},
        tuple(_open_questions(study, ranking, rate_and_batch, importances)),
    )


def setting_labels(study: StudyResult) -> dict[int, str]:
    """The settings of each trial in words, by its number; keys are shortened to their last part where it is unique."""
    short = short_names(list(study.space))
    return {
        number: ", ".join(f"{short.get(key, key)}={value_text(value)}" for key, value in runs[0].settings.items())
        or "as in the config"
        for number, runs in study.by_number().items()
    }


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each dotted key, or the whole key where another one ends alike."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}


def value_text(value: Any) -> str:
    """A value of a dimension in a few characters."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def plain_study(study: StudyResult) -> optuna.Study:
    """The compared trials as a study of Optuna in memory, the mean over seeds being their value; for its plots."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        made = optuna.create_study(direction=study.objective.direction)
    finally:
        optuna.logging.set_verbosity(verbosity)
    short = short_names(list(study.space))
    compared = study.compared()
    given = {
        key: [runs[0].settings[key] for runs in compared.values() if key in runs[0].settings] for key in study.space
    }
    kinds = {key: _distribution(values) for key, values in given.items() if values}
    for runs in compared.values():
        settings = {key: runs[0].settings[key] for key in study.space if key in runs[0].settings}
        params = {
            short[key]: float(value) if isinstance(kinds[key], FloatDistribution) else str(value)
            for key, value in settings.items()
        }
        distributions = {short[key]: kinds[key] for key in settings}
        made.add_trial(optuna.create_trial(params=params, distributions=distributions, value=mean_score(runs)))
    return made


def _distribution(values: Sequence[Any]) -> BaseDistribution:
    """A range where all values are numbers, logarithmic where they span a factor of ten; else categories."""
    if values and all(map(is_number, values)):
        low, high = float(min(values)), float(max(values))
        return FloatDistribution(low, high, log=low > 0 and high >= 10 * low)
    return CategoricalDistribution(sorted({str(value) for value in values}))


def _is_positive(value: Any) -> bool:
    """Whether a value is a positive number, and no label that stands for several settings."""
    return is_number(value) and value > 0


def _score(run: TrialResult) -> float:
    assert run.score is not None
    return run.score


def _importances(study: StudyResult, compared: Mapping[int, Sequence[TrialResult]]) -> dict[str, dict[str, float]]:
    if len(compared) < MIN_TRIALS or len({mean_score(runs) for runs in compared.values()}) < 2:
        return {}
    made, found = plain_study(study), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of single-valued dimensions, and of what is experimental
        evaluators: dict[str, Any] = {
            "PED-ANOVA": PedAnovaImportanceEvaluator(),
            "fANOVA": FanovaImportanceEvaluator(seed=0),
        }
        for name, evaluator in evaluators.items():
            try:
                weights = get_param_importances(made, evaluator=evaluator)
            except (RuntimeError, ValueError):  # too few trials, or none that differ
                continue
            found[name] = {key: float(value) for key, value in weights.items()}
    return found


def _pareto(study: StudyResult, compared: Mapping[int, Sequence[TrialResult]], cost: str) -> tuple[int, ...]:
    """The trials on the front of score and cost, cheapest first."""
    costs = {number: trial_cost(runs, cost) for number, runs in compared.items()}
    known = [(value, number) for number, value in costs.items() if value is not None]
    front: list[int] = []
    # Of equal costs the better one comes first.
    sign = -1 if study.objective.direction == "maximize" else 1
    for _, number in sorted(known, key=lambda one: (one[0], sign * mean_score(compared[one[1]]))):
        score = mean_score(compared[number])
        if not front or study.objective.better(score, mean_score(compared[front[-1]])):
            front.append(number)
    return tuple(front)


def trial_cost(runs: Sequence[TrialResult], cost: str) -> float | None:
    """Mean GPU hours of a seed (``gpu_hours``), or the number of parameters (``parameters``), if known."""
    values = [getattr(run, cost) for run in runs]
    return None if None in values else fmean(values)


def _rate_and_batch(
    study: StudyResult, compared: Mapping[int, Sequence[TrialResult]], target: float | None
) -> RateAndBatch:
    points: dict[float, dict[float, list[TrialResult]]] = {}
    others = set()
    for runs in compared.values():
        settings = runs[0].settings
        points.setdefault(settings[BATCH], {}).setdefault(settings[RATE], []).extend(runs)
        others.add(tuple(sorted((key, str(value)) for key, value in settings.items() if key not in (RATE, BATCH))))
    notes = ["Other settings vary too: they widen the noise."] if len(others) > 1 else []
    maximize = study.objective.direction == "maximize"
    choose = max if maximize else min
    grid = {(b, r): fmean(map(_score, runs)) for b, rates in points.items() for r, runs in rates.items()}
    best = {
        batch: best_rate({rate: [_score(run) for run in runs] for rate, runs in rates.items()}, maximize)
        for batch, rates in sorted(points.items())
        if len(rates) >= 3
    }
    inside = {batch: one for batch, one in best.items() if not one.border}
    if left_out := [f"{batch:g}" for batch in best if batch not in inside]:
        notes.append(f"The best rate is the first or last one tried at batch {', '.join(left_out)}: try further rates.")
    errors = [one.log_error for one in inside.values()]
    known = [error for error in errors if error]
    laws = None
    if len(inside) >= 2:
        rates = [one.rate for one in inside.values()]
        laws = fit_laws(list(inside), rates, known if len(known) == len(errors) else None)
    needed: list[tuple[float, float]] = []  # batch, epochs or steps to the target at the best rate
    for batch, of_rates in points.items():
        rate = choose(of_rates, key=lambda rate: grid[batch, rate])
        for run in of_rates[rate]:
            time = time_to_target(run, study.objective, target) if target is not None else None
            if time is not None and time.reached:
                # The number of images in an epoch would change Smin alone, not the noise scale.
                needed.append((batch, time.at if run.unit == "epoch" else time.at * batch))
    noise = None
    if len({batch for batch, _ in needed}) >= 2:
        noise = fit_noise_scale([examples / batch for batch, examples in needed], [examples for _, examples in needed])
    curves = [read_curves(run.work_dir).get("train/noise_scale") for runs in compared.values() for run in runs]
    measured = tuple(points[-1][1] for points in curves if points)
    return RateAndBatch(grid, best, laws, noise, measured, tuple(notes))


def _open_questions(
    study: StudyResult,
    ranking: ScoreRanking | None,
    rate_and_batch: RateAndBatch | None,
    importances: Mapping[str, Mapping[str, float]],
) -> list[str]:
    lines = []
    if ranking is None:
        return ["No setting is finished with all of its seeds."]
    labels = setting_labels(study)
    others = [one for one in ranking.settings[1:] if one.may_be_best]
    if others:
        names = "; ".join(labels[int(one.name)] for one in others[:3]) + ("; ..." if len(others) > 3 else "")
        lines.append(f"{len(others)} other settings may be the best: {names}.")
    if ranking.more_seeds:
        lines.append(f"About {ranking.more_seeds} more seeds of the first two would tell them apart.")
    if len(study.seeds) < 2 and len(ranking.settings) > 1:
        lines.append("One seed for each setting says nothing about the noise: give at least two, better five.")
    if rate_and_batch is not None:
        laws = rate_and_batch.laws
        lines += rate_and_batch.notes
        if laws is None:
            lines.append("Too few batches with a best rate inside of the rates tried for a law.")
        elif laws.preferred is None:
            lines.append(f"How the best rate follows the batch: {laws.reason}.")
    if not importances and len(study.space) > 1:
        lines.append(f"Importances need at least {MIN_TRIALS} settings with different scores.")
    return lines
