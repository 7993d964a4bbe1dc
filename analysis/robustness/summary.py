"""Scores of the suites from the results on their sets, and the table beside published numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.robustness.evaluation import SetResult
from analysis.robustness.expected import PublishedRow
from analysis.robustness.planning import CLEAN, PlannedSuite
from analysis.robustness.scores import (
    ALEXNET_ERRORS,
    SEVERITIES,
    mean_corruption_error,
    mean_error,
    performance_under_corruption,
)
from engine.report.calibration import calibration_bins, expected_calibration_error
from engine.report.run_dir import scaled
from engine.task import TaskSpec

ABSENT = "-"
MIN_DIGITS_WIDTH = 8


def corrupted_values(
    suite: PlannedSuite, results: Mapping[str, SetResult], metric: str, factor: float = 1.0
) -> dict[str, list[float]]:
    """Values of a metric by corruption, in the order of the severities.

    Args:
        suite: Suite of corruptions.
        results: Results by the names of the sets.
        metric: Name of the metric.
        factor: Factor on the values.
    """
    values: dict[str, list[float]] = {}
    for one in suite.sets:
        corruption = one.name.split("/")[1]
        values.setdefault(corruption, []).append(factor * results[one.name].metrics[metric])
    return values


def summarize_suites(
    suites: Sequence[PlannedSuite], results: Mapping[str, SetResult], task: TaskSpec, same_classes: bool
) -> dict[str, dict[str, Any]]:
    """Scores of each suite.

    Args:
        suites: Evaluated suites, the clean images among them where test data was corrupted.
        results: Results by the names of the sets.
        task: The task.
        same_classes: Whether the classes are those of ImageNet-1K, to which AlexNet's errors belong.

    Returns:
        By the name of the suite: title, kind, protocol, preprocessing, problems, and ``scores``.
    """
    summaries: dict[str, dict[str, Any]] = {}
    for suite in suites:
        if suite.corrupted and task.robustness.error_of:
            scores = _errors(suite, results, task.robustness.error_of, same_classes)
        elif suite.corrupted:
            scores = _performance(suite, results, results[CLEAN], task)
        elif len(suite.sets) == 1:
            scores = _plain(results[suite.sets[0].name])
        else:
            scores = {one.name.split("/")[-1]: results[one.name].metrics[suite.score or ""] for one in suite.sets}
        summaries[suite.name] = {
            "title": suite.title,
            "kind": suite.kind,
            "protocol": suite.protocol,
            "preprocessing": suite.preprocessing,
            "problems": list(suite.problems),
            "images": sum(results[one.name].images for one in suite.sets),
            "scores": scores,
        }
    return summaries


def _errors(
    suite: PlannedSuite, results: Mapping[str, SetResult], accuracy: str, same_classes: bool
) -> dict[str, float | dict[str, list[float]]]:
    """Mean errors in percent, and all errors as fractions."""
    accuracies = corrupted_values(suite, results, accuracy)
    errors = {name: [1 - value / 100 for value in five] for name, five in accuracies.items()}
    scores: dict[str, Any] = {"mean_error": mean_error(errors, tuple(errors))}
    # AlexNet's errors are those of the 1,000 classes, and of the 15 corruptions.
    if same_classes and set(errors) == set(ALEXNET_ERRORS):
        scores["mce"] = mean_corruption_error(errors)
    return {**scores, "errors": errors}


def _performance(
    suite: PlannedSuite, results: Mapping[str, SetResult], clean: SetResult, task: TaskSpec
) -> dict[str, Any]:
    """Mean and relative performance under corruption of each score of the task that the evaluation gives."""
    scores: dict[str, Any] = {}
    for score in task.scores:
        if score.metric not in clean.metrics:
            continue
        values = corrupted_values(suite, results, score.metric, score.factor)
        found = performance_under_corruption(values, scaled(clean.metrics, score) or 0.0)
        scores[score.label] = {
            "clean": scaled(clean.metrics, score),
            "mpc": found.mean,
            "rpc": found.relative,
            "values": values,
        }
    return scores


def _plain(result: SetResult) -> dict[str, Any]:
    """Metrics of one set, and the calibration error where the confidences are kept; no number for what is none."""
    scores: dict[str, Any] = {name: value if math.isfinite(value) else None for name, value in result.metrics.items()}
    if result.details.get("confidences"):
        bins = calibration_bins(result.details["confidences"], result.details["right"])
        scores["ece"] = expected_calibration_error(bins)
        scores["calibration"] = [[one.count, one.confidence, one.accuracy] for one in bins]
    return scores


def table_value(suite: PlannedSuite, scores: Mapping[str, Any]) -> float | None:
    """The number of a suite in the table: an error in percent for corruptions, else the suite's score.

    Args:
        suite: The suite.
        scores: Scores of it.
    """
    if suite.corrupted:
        return scores.get("mce", scores.get("mean_error"))
    return scores.get(suite.score or "")


def score_rows(
    suites: Sequence[PlannedSuite],
    summaries: Mapping[str, Mapping[str, Any]],
    published: Sequence[PublishedRow],
    label: str,
) -> list[list[str]]:
    """Rows of the table beside published numbers; the first one is the heading.

    Args:
        suites: Evaluated suites with one number.
        summaries: Result of :func:`summarize_suites`.
        published: Published rows.
        label: Name of the row of this evaluation.
    """
    shown = [suite for suite in suites if suite.corrupted or len(suite.sets) == 1]
    heads, cells = [], []
    for suite in shown:
        scores = summaries[suite.name]["scores"]
        error = ("mCE" if "mce" in scores else "error") if suite.corrupted else ""
        heads.append(" ".join(filter(None, (suite.name, error))) + (" *" if suite.kind == "regenerated" else ""))
        cells.append(_number(table_value(suite, scores)))
    rows = [["", *heads], [label, *cells]]
    for row in published:
        values = [None if suite.kind == "regenerated" else row.values.get(suite.name) for suite in shown]
        rows.append([row.label, *map(_number, values)])
    return rows


def is_performance(summary: Mapping[str, Any]) -> bool:
    """Whether a summary is that of corruptions for a dense task: mPC and rPC of each score.

    Args:
        summary: Summary of a suite.
    """
    scores = list(summary["scores"].values())
    return bool(scores) and all(isinstance(one, dict) and "mpc" in one for one in scores)


def performance_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Rows of clean score, mPC and rPC of a suite of corruptions of a dense task; the first one is the heading.

    Args:
        summary: Summary of the suite.
    """
    rows = [["", "clean", "mPC", "rPC %"]]
    for label, found in summary["scores"].items():
        rows.append([label, _number(found["clean"]), _number(found["mpc"]), _number(found["rpc"])])
    return rows


def severity_rows(values: Mapping[str, Sequence[float]], factor: float = 1.0) -> list[list[str]]:
    """Rows of the values at each severity and their mean; the first one is the heading.

    Args:
        values: Values by corruption.
        factor: Factor on the values.
    """
    rows = [["", *map(str, SEVERITIES), "mean"]]
    for name, found in values.items():
        cells = [_number(factor * value) for value in found]
        cells += [ABSENT] * (len(SEVERITIES) - len(found))
        rows.append([name, *cells, _number(factor * sum(found) / len(found))])
    return rows


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """A table as text, the first column aligned to the left."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    widths = [widths[0], *(max(width, MIN_DIGITS_WIDTH) for width in widths[1:])]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _number(value: float | None) -> str:
    return ABSENT if value is None or not math.isfinite(value) else f"{value:.1f}"
