"""Errors of panoptic segmentation: quality by class, error kinds after TIDE, confused classes, and the worst images.

The kinds are those of Bolya et al., "TIDE" (ECCV 2020), for segments that do not overlap: what matches is decided by
PQ's rule, an IoU above 0.5, so that there are no duplicates, and PQ takes the place of AP.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config

from backbones.errors import ConfigError
from detection.ap_sections import FIXED_ALONE, gain_table
from detection.errors import BACKGROUND, CORRECT, KIND_COLOURS
from detection.panoptic import read_segments
from detection.panoptic_metric import (
    KINDS,
    MATCH_IOU,
    SegmentPairs,
    class_means,
    pair_segments,
    panoptic_quality,
    quality,
    segment_counts,
)
from detection.tide import BACKGROUND_IOU, MISSED
from detection.visualizer import draw_segments, instance_colours
from engine.config.datasets import mappings
from engine.prediction.error_analysis import AnalysisRequest, ErrorAnalysis, ErrorFindings, ImageErrors, ImageScore
from engine.prediction.panel_visualizer import PREDICTION, TRUTH
from engine.report.confusion import confusion_section
from engine.report.gallery import sortable_table
from engine.report.html import note, number, table
from engine.report.panels import join_panels

SEGMENT_ERRORS = {
    "classification": "the place of a true segment, with the wrong class",
    "localisation": "the right class, with an IoU from 0.1 to 0.5",
    "both": "the wrong class and an IoU from 0.1 to 0.5",
    BACKGROUND: "no true segment, or one with an IoU below 0.1",
    MISSED: "a true segment that is neither found nor the place of an error of classification or localisation",
}
_MATCHES, _FALSE, _MISSED = range(1, 4)  # columns of the counts, after the sum of IoUs
NO_SEGMENT = "no segment"
COUNTED = ("matches", "false", "missed")
_STATES, _COLOURS = list(KIND_COLOURS), list(KIND_COLOURS.values())


@dataclass(frozen=True)
class JudgedSegments:
    """What became of the segments of an image.

    Attributes:
        predicted: ``correct`` or the error kind of each predicted segment, by its id; those that are excused are left
            out.
        true: The same of each true segment: that of the predicted segment that lies on it best.
        partners: True segment that each predicted one with an error of class or place lies on best, by the id of that.
    """

    predicted: dict[int, str]
    true: dict[int, str]
    partners: dict[int, int]


def judge_segments(pairs: SegmentPairs) -> JudgedSegments:
    """Find the error kind of each segment of an image."""
    matches = pairs.matches
    predicted, true = dict.fromkeys(matches.values(), CORRECT), dict.fromkeys(matches, CORRECT)
    partners: dict[int, int] = {}
    best: dict[int, tuple[float, int]] = {}
    for (own, other), iou in pairs.ious.items():
        best[other] = max(best.get(other, (0.0, 0)), (iou, own))
    wrong = pairs.predicted.keys() - predicted - pairs.excused
    for one in sorted(wrong, key=lambda other: best.get(other, (0.0, 0)), reverse=True):
        iou, place = best.get(one, (0.0, 0))
        if iou <= BACKGROUND_IOU:
            predicted[one] = BACKGROUND
            continue
        same = pairs.classes[place] == pairs.predicted[one]
        predicted[one] = "localisation" if same else "classification" if iou > MATCH_IOU else "both"
        partners[one] = place
        if predicted[one] != "both":
            true.setdefault(place, predicted[one])
    for place in pairs.classes:
        true.setdefault(place, MISSED)
    return JudgedSegments(predicted, true, partners)


class PanopticErrors(ErrorAnalysis):
    """Judges the segments of each image as PQ does, and counts what is wrong.

    Args:
        request: Config, and what is known of the test data.

    Raises:
        ConfigError: If no metric of the test is ``PanopticQuality``.
    """

    score_words = "Score: PQ of the image. Right: each segment has a match."

    def __init__(self, request: AnalysisRequest) -> None:
        super().__init__(request)
        count = len(self.classes)
        self.things = count - len(_stuff(request.cfg))
        self._counts, self._confusion = np.zeros((count, 4)), np.zeros((count + 1,) * 2, int)
        self._errors: Counter[str] = Counter()
        self._fixes = {kind: np.zeros((count, 4)) for kind in SEGMENT_ERRORS}
        self._images: list[ImageErrors] = []

    def add(self, index: int, sample: Mapping[str, Any]) -> None:
        """Judge the segments of an image."""
        pairs = self._pairs(sample)
        judged, counts = judge_segments(pairs), segment_counts(pairs, len(self.classes))
        self._counts += counts
        self._add_confusion(pairs, judged)
        self._add_fixes(pairs, judged)
        kinds = Counter([*judged.predicted.values(), *(kind for kind in judged.true.values() if kind == MISSED)])
        found = {kind: kinds[kind] for kind in SEGMENT_ERRORS if kinds[kind]}
        self._errors.update(found)
        if found:
            wrong = {pairs.predicted[one] for one, kind in judged.predicted.items() if kind != CORRECT}
            wrong |= {pairs.classes[one] for one, kind in judged.true.items() if kind != CORRECT}
            caption = ", ".join(f"{count} {kind}" for kind, count in found.items())
            caption = f"PQ {number(panoptic_quality(counts))}, {caption}"
            self._images.append(ImageErrors(index, found, caption, [self.classes[label] for label in sorted(wrong)]))

    def image_score(self, sample: Mapping[str, Any]) -> ImageScore | None:
        """PQ of the image, over the classes that it has or is said to have."""
        counts = segment_counts(self._pairs(sample), len(self.classes))
        if not counts.any():
            return None
        return ImageScore(panoptic_quality(counts), not counts[:, [_FALSE, _MISSED]].any())

    def findings(self) -> ErrorFindings:
        """Sum up over the data set."""
        values = quality(self._counts)
        parts = {"all": values, "things": values[: self.things], "stuff": values[self.things :]}
        means = {name: _rounded(class_means(part)) for name, part in parts.items() if len(part)}
        by_class = {
            name: {**_rounded(row), **dict(zip(COUNTED, counts[_MATCHES:].astype(int).tolist(), strict=True))}
            for name, row, counts in zip(self.classes, values, self._counts, strict=True)
        }
        gains = {kind: self._gain(self._counts + fix) for kind, fix in self._fixes.items()}
        errors = {kind: {"count": self._errors[kind], "gain": gains[kind]} for kind in SEGMENT_ERRORS}
        false, missed = ([1, 1, 0, 1], [1, 1, 1, 0])
        everything = {
            "false_positives": self._gain(self._counts * false),
            "false_negatives": self._gain(self._counts * missed),
        }
        confusion = {"classes": [*self.classes, NO_SEGMENT], "matrix": self._confusion.tolist()}
        totals = "segments without a match", "true segments without one"
        fixing = gain_table("PQ", {"errors": errors, **everything}, SEGMENT_ERRORS, *totals)
        words = (
            f"PQ is {number(means['all']['PQ'])}; {FIXED_ALONE}: the right class at the same place, the right outline, "
            "or no such segment."
        )
        sections = {
            "Panoptic quality": table(["", *KINDS], [[name, *map(number, row.values())] for name, row in means.items()])
            + note("In percent. PQ is SQ, how well segments match, times RQ, how many are found."),
            "Quality by class": _class_section(by_class),
            "What fixing errors would bring, PQ": fixing + note(words),
            "Confused classes": confusion_section(
                confusion, "the model said", f"Segments, matched by an IoU above {MATCH_IOU} whatever their class"
            ),
        }
        numbers = {"quality": means, "by_class": by_class, "errors": errors, **everything, "confusion": confusion}
        words = "The truth is on the left, the prediction on the right."
        return ErrorFindings(numbers, sections, self._images, words)

    def draw(self, image: np.ndarray, scale: tuple[float, float], sample: Mapping[str, Any]) -> np.ndarray:
        """Draw true and predicted segments in the colours of what became of them."""
        truth = read_segments(sample["seg_map_path"])
        pairs = self._pairs(sample, truth)
        judged, panels = judge_segments(pairs), {}
        for title, ids, kinds, labels in (
            (TRUTH, truth, judged.true, pairs.classes),
            (PREDICTION, _prediction(sample), judged.predicted, pairs.predicted),
        ):
            values, places = np.unique(ids, return_inverse=True)
            numbers = places.reshape(ids.shape).astype(np.int16)
            small = np.asarray(cv2.resize(numbers, image.shape[1::-1], interpolation=cv2.INTER_NEAREST))
            shown = {at: one for at, one in enumerate(values.tolist()) if one in kinds}
            states = [_STATES.index(kinds[one]) for one in shown.values()]
            names = [self.shown_classes[labels[one]] for one in shown.values()]
            panels[title] = draw_segments(image, small, list(shown), names, instance_colours(states, _COLOURS))
        present = {*judged.true.values(), *judged.predicted.values()}
        return join_panels(panels, {kind: colour for kind, colour in KIND_COLOURS.items() if kind in present})

    def _pairs(self, sample: Mapping[str, Any], truth: np.ndarray | None = None) -> SegmentPairs:
        """The pairs of an image, with the ids of its true segments where they have been read."""
        truth = read_segments(sample["seg_map_path"]) if truth is None else truth
        return pair_segments(truth, sample["segments_info"], _prediction(sample), len(self.classes), self.things)

    def _gain(self, counts: np.ndarray) -> float:
        """PQ that other counts would bring, less that of the counts."""
        return round(panoptic_quality(counts) - panoptic_quality(self._counts), 2)

    def _add_confusion(self, pairs: SegmentPairs, judged: JudgedSegments) -> None:
        """Count matches, confused classes, and what is only on one side."""
        background, named = len(self.classes), set()
        for true in pairs.matches:
            self._confusion[(pairs.classes[true],) * 2] += 1
        for one, kind in judged.predicted.items():
            if kind == "classification":
                named.add(judged.partners[one])
                self._confusion[pairs.classes[judged.partners[one]], pairs.predicted[one]] += 1
            elif kind != CORRECT:
                self._confusion[background, pairs.predicted[one]] += 1
        for true in pairs.classes.keys() - pairs.matches - named:
            self._confusion[pairs.classes[true], background] += 1

    def _add_fixes(self, pairs: SegmentPairs, judged: JudgedSegments) -> None:
        """Add what the counts would change by if the errors of a kind were fixed.

        A segment of another class takes the right one, one in a wrong place the right outline; where a surer one has
        found the true segment, or class and place are wrong, there would be no such segment.
        """
        taken = set(pairs.matches)
        for one, kind in judged.predicted.items():
            if kind == CORRECT:
                continue
            fix = self._fixes[kind]
            fix[pairs.predicted[one], _FALSE] -= 1
            place = judged.partners.get(one)
            if place is None or kind == "both" or place in taken:
                continue
            taken.add(place)
            iou = pairs.ious[place, one] if kind == "classification" else 1.0
            fix[pairs.classes[place]] += np.array([iou, 1, 0, -1])
        for true, kind in judged.true.items():
            if kind == MISSED:
                self._fixes[MISSED][pairs.classes[true], _MISSED] -= 1


def _stuff(cfg: Config) -> tuple[str, ...]:
    """Classes of stuff, as the metric of the test has them."""
    for one in mappings([cfg.get("test_evaluator")]):
        if one.get("type") == "PanopticQuality":
            return tuple(one.get("stuff_classes", ()))
    raise ConfigError("test_evaluator: no metric is PanopticQuality, by whose truth segments are judged")


def _prediction(sample: Mapping[str, Any]) -> np.ndarray:
    """Ids of the predicted segments, (H, W)."""
    return np.asarray(sample["pred_panoptic_seg"]["sem_seg"][0])


def _rounded(values: np.ndarray) -> dict[str, float | None]:
    return {kind: None if np.isnan(one) else round(float(one), 2) for kind, one in zip(KINDS, values, strict=True)}


def _class_section(by_class: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [name, *(number(found[kind]) for kind in KINDS), *(f"{found[kind]:,}" for kind in COUNTED)]
        for name, found in by_class.items()
    ]
    return sortable_table(["class", *KINDS, *COUNTED], rows) + note("Quality in percent, then numbers of segments.")
