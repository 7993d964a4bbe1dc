"""Scores of each class: as the metrics keep them, as a table in the log and in the report.

A metric that has them sets ``class_scores`` in ``compute_metrics``: a mapping from class names to that class's scores
by name, ``None`` where there is nothing to score. Where a name is that of the mean over the classes, such as
``bbox_mAP``, its label and its scale in reports are those of the task's :class:`engine.task.Score`. The name tells the
scale: ``bbox_mAP`` is a fraction, as mmdet logs it, ``box AP`` in percent, as papers print it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.evaluator import Evaluator

from engine.report.html import NONE, number
from engine.report.run_dir import finite
from engine.task import VALIDATION_LOSS, VALIDATION_LOSS_LABEL, Score, TaskSpec

ClassScores = Mapping[str, Mapping[str, float | int | None]]
CLASS_SCORES = "class_scores.json"  # of the last validation
MAX_TABLE_CLASSES = 30  # more are too many to read: the best and the worst are listed
MAX_EXTREMES = 10  # best and worst classes that are listed of many


def collect_class_scores(evaluator: Evaluator) -> dict[str, dict[str, float | int | None]]:
    """The class scores of an evaluation's metrics, merged; empty in other processes than the main one."""
    merged: dict[str, dict[str, float | int | None]] = {}
    for metric in evaluator.metrics:
        for name, scores in getattr(metric, "class_scores", {}).items():
            merged.setdefault(name, {}).update(scores)
    return merged


def score_of(name: str, tasks: Sequence[TaskSpec]) -> Score:
    """The score of a metric; a variant such as ``bbox_mAP_50`` has label and scale of that which its name begins with.

    What is logged on another scale than it is shown on, has another name where it is shown, ``box AP50``. Other metrics
    have the label that the task gives them (``metric_labels``).
    """
    labels = {VALIDATION_LOSS: VALIDATION_LOSS_LABEL}
    for task in tasks:
        labels |= task.metric_labels
    if name in labels:
        return Score(labels[name], name)
    known = [score for task in tasks for score in task.scores if name.startswith(score.metric)]
    nearest = max(known, key=lambda score: len(score.metric), default=Score(name, name))
    if nearest.metric == name:
        return nearest
    variant = name.removeprefix(nearest.metric).replace("_", "")
    return Score(name if nearest.factor == 1 else nearest.label + variant, name, nearest.factor)


def score_text(score: Score, value: Any, logged: bool = False) -> str:
    """A score as text.

    Args:
        score: Score.
        value: Logged value.
        logged: Whether to keep the scale of the log, such as [0, 1] of an AP, instead of 0 to 100.

    Returns:
        The score, a count as it is, or a dash where there is none.
    """
    value = finite(value)
    if value is None or (score.factor > 1 and value < 0):  # COCO's -1: there is nothing of that size
        return NONE
    if isinstance(value, int):
        return f"{value:,}"
    if logged and score.factor > 1:
        return f"{value:.3f}"
    return f"{value:.4g}" if score.metric.endswith("loss") else number(value * score.factor)


def class_table(
    columns: Mapping[str, ClassScores], tasks: Sequence[TaskSpec], logged: bool = False
) -> tuple[list[str], list[list[str]], str]:
    """Lay out the scores of the classes: all of few classes, the best and the worst of many.

    Args:
        columns: Class scores by what they are of, such as ``test``; the first ones decide which class is best. The
            name may be empty.
        tasks: Tasks whose scores give labels and scales.
        logged: Whether names and values are those of the log, and not those of reports and papers.

    Returns:
        Head and rows, with the class in the first column, and a remark on the classes that are left out.
    """
    first = next(iter(columns.values()), {})
    names = list(dict.fromkeys(name for scores in columns.values() for name in scores))
    remark = ""
    if len(names) > MAX_TABLE_CLASSES:
        names, remark = _extremes(names, first)
    cells = [
        (column, field)
        for column, by_class in columns.items()
        for field in dict.fromkeys(field for scores in by_class.values() for field in scores)
    ]
    known = {field: score_of(field, tasks) for _, field in cells}
    labels = {field: field if logged else known[field].label for field in known}
    head = ["class", *(", ".join(filter(None, (labels[field], column))) for column, field in cells)]
    values = {name: [columns[column].get(name, {}).get(field) for column, field in cells] for name in names}
    kinds = [known[field] for _, field in cells]
    rows = [[name, *(score_text(*cell, logged) for cell in zip(kinds, values[name], strict=True))] for name in names]
    return head, rows, remark


def _extremes(names: list[str], scores: ClassScores) -> tuple[list[str], str]:
    """The best and the worst of many classes by their first score, and a remark that says so."""
    values = {name: finite(next(iter(scores.get(name, {}).values()), None)) for name in names}
    scored = sorted((name for name in names if values[name] is not None), key=lambda name: -(values[name] or 0.0))
    if len(scored) <= 2 * MAX_EXTREMES:
        return scored, f"{len(scored)} classes of {len(names)}: there was nothing to score of the others"
    listed = f"the {MAX_EXTREMES} best and the {MAX_EXTREMES} worst of {len(scored)} classes"
    missing = f"; nothing to score of {len(names) - len(scored)}" if len(scored) < len(names) else ""
    return [*scored[:MAX_EXTREMES], *scored[-MAX_EXTREMES:]], listed + missing


def class_lines(heading: str, scores: ClassScores, tasks: Sequence[TaskSpec]) -> str:
    """The table of class scores for logs, with the names and values of the log's other lines; empty without scores."""
    if not scores:
        return ""
    head, rows, remark = class_table({"": scores}, tasks, logged=True)
    widths = [max(map(_width, column)) for column in zip(head, *rows, strict=True)]
    lines = [f"{heading}{f' ({remark})' if remark else ''}:"]
    for first, *others in [head, *rows]:
        cells = [first + " " * (widths[0] - _width(first))]
        cells += [" " * (width - _width(cell)) + cell for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  " + "  ".join(cells))
    return "\n".join(lines)


def _width(text: str) -> int:
    """Columns of a terminal that a text takes: East Asian signs take two, combining marks none."""
    return sum(
        0 if unicodedata.combining(sign) else 2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text
    )
