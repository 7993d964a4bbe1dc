"""The parts of a page about a detector's errors: AP by IoU, size and class, curves, and the gains of TIDE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detection.coco_metric import AREAS, THRESHOLDS
from detection.tide import DETECTION_ERRORS
from engine.report.gallery import sortable_table
from engine.report.html import NONE, CurveLine, note, number, plot, table

IOU_THRESHOLDS = tuple(f"{iou:.2f}" for iou in THRESHOLDS)
DRAWN_IOUS = {"0.50": "trained", "0.75": "averaged", "0.90": "scratch"}  # of the precision-recall curves, with colours
MAX_CURVES = 100  # classes with a plot
FIXED_ALONE = "the third column is what it would gain if the errors of a kind were fixed and all others stayed"
AREA_NOTE = "small: up to 32² pixels, large: from 96² pixels on, as in COCO"


def parts_of_ap(precision: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """AP by IoU, by size and by class, in percent, and the mean precision at each recall; ``None`` without objects.

    Args:
        precision: Precision, (10, 101, K, 4), of :class:`detection.coco_metric.FastCocoMetric`.
        classes: Names of the classes, (K,).
    """
    by_class = {
        name: {"AP": _mean(precision[:, :, at, 0])}
        | {
            f"AP{round(100 * float(iou))}": _mean(precision[IOU_THRESHOLDS.index(iou), :, at, 0])
            for iou in ("0.50", "0.75")
        }
        | {f"AP {area}": _mean(precision[:, :, at, size]) for size, area in enumerate(AREAS) if size}
        for at, name in enumerate(classes)
    }
    return {
        "AP": _mean(precision[..., 0]),
        "by_iou": {iou: _mean(precision[at, ..., 0]) for at, iou in enumerate(IOU_THRESHOLDS)},
        "by_size": {
            area: {"AP": _mean(precision[..., size]), "AP50": _mean(precision[0, ..., size])}
            for size, area in enumerate(AREAS)
        },
        "by_class": by_class,
        "precision_by_recall": {iou: _curve(precision[at, ..., 0]) for at, iou in enumerate(IOU_THRESHOLDS)},
    }


def _mean(precision: np.ndarray) -> float | None:
    """Mean of the precisions that there are, in percent; ``None`` without objects."""
    valid = precision[precision > -1]
    return round(100 * float(valid.mean()), 2) if len(valid) else None


def _curve(precision: np.ndarray) -> list[float]:
    """Mean precision in percent over the classes with objects, (101, K) to (101,)."""
    valid = precision[:, precision[0] > -1]
    return [round(100 * float(value), 2) for value in valid.mean(axis=1)] if valid.size else []


def ap_sections(
    name: str, parts: Mapping[str, Any], scores: Mapping[str, Mapping[str, Any]], precision: np.ndarray
) -> dict[str, str]:
    """HTML of the sections about AP, by their headings.

    Args:
        name: ``box`` or ``mask``.
        parts: Result of :func:`parts_of_ap`.
        scores: Scores of each class of the metric, with the number of ``objects``.
        precision: Precision, (10, 101, K, 4).
    """
    return {
        f"{name.title()} AP by IoU and size": _ap_section(parts),
        f"{name.title()} AP by class": _class_section(parts, scores),
        f"Precision and recall, {name} AP": _curve_section(precision, list(parts["by_class"])),
    }


def _ap_section(parts: Mapping[str, Any]) -> str:
    points = [(float(iou), value) for iou, value in parts["by_iou"].items() if value is not None]
    drawn = plot("AP by IoU", "AP by IoU threshold", {"AP": CurveLine("trained", points)}, "IoU threshold")
    by_iou = table(
        ["IoU", *parts["by_iou"], "mean"], [["AP", *map(number, parts["by_iou"].values()), number(parts["AP"])]]
    )
    sizes = [[size, number(found["AP"]), number(found["AP50"])] for size, found in parts["by_size"].items()]
    return by_iou + drawn + table(["size", "AP", "AP50"], sizes) + note(f"In percent. {AREA_NOTE}.")


def _class_section(parts: Mapping[str, Any], scores: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [name, *map(number, found.values()), f"{scores[name]['objects']:,}"]
        for name, found in parts["by_class"].items()
    ]
    head = ["class", *next(iter(parts["by_class"].values())), "objects"]
    return sortable_table(head, rows) + note("A click on the head of a column sorts by it.")


def _curve_section(precision: np.ndarray, classes: Sequence[str]) -> str:
    """Plots of the mean over the classes, and of each class."""

    def lines(chosen: np.ndarray) -> dict[str, CurveLine]:
        found = {}
        for iou, colour in DRAWN_IOUS.items():
            values = _curve(chosen[IOU_THRESHOLDS.index(iou)])
            found[f"IoU {iou}"] = CurveLine(colour, list(enumerate(values)))
        return found

    overall = plot("Precision and recall", "mean over the classes", lines(precision[..., 0]), "recall")
    plots = [
        plot("Precision and recall", name, lines(precision[:, :, [at], 0]), "recall")
        for at, name in enumerate(classes[:MAX_CURVES])
    ]
    each = "".join(plots)
    details = f'<details><summary>each class</summary><div class="plots">{each}</div></details>' if each else ""
    return overall + note("Precision by recall, both in percent, interpolated as in COCO.") + details


def tide_section(tide: Mapping[str, Any]) -> str:
    """HTML of the section about error kinds.

    Args:
        tide: ``AP50``, ``errors`` with ``count`` and ``gain``, gains without false positives and negatives, and counts
            ``by_class``.
    """
    words = (
        f"AP at IoU 0.50 is {number(tide['AP50'])}; {FIXED_ALONE}. Kinds and thresholds are TIDE's (Bolya et al., ECCV "
        "2020), over all scores."
    )
    totals = "detections that have found nothing", "objects that were not found"
    shown = gain_table("AP50", tide, DETECTION_ERRORS, *totals)
    by_class = [[name, *(f"{count:,}" for count in found.values())] for name, found in tide["by_class"].items()]
    each = sortable_table(["class", *DETECTION_ERRORS], by_class)
    details = f"<details><summary>errors of each class</summary>{each}</details>"
    return shown + note(words) + details


def gain_table(
    score: str, found: Mapping[str, Any], meanings: Mapping[str, str], false_positives: str, false_negatives: str
) -> str:
    """HTML of what fixing the errors of each kind would bring.

    Args:
        score: Name of the score that gains.
        found: ``errors`` with ``count`` and ``gain`` by kind, and gains without ``false_positives`` and
            ``false_negatives``.
        meanings: Description of each kind.
        false_positives: Description of all predictions that are false.
        false_negatives: Description of all that was missed.
    """
    rows = [
        [kind, f"{one['count']:,}", number(one["gain"], signed=True), meanings[kind]]
        for kind, one in found["errors"].items()
    ]
    rows += [
        ["false positives", NONE, number(found["false_positives"], signed=True), f"all {false_positives}"],
        ["false negatives", NONE, number(found["false_negatives"], signed=True), f"all {false_negatives}"],
    ]
    return f'<div class="words">{table(["error", "number", score, "meaning"], rows)}</div>'
