"""Error kinds of detections as TIDE defines them, and the AP that fixing each of them would bring.

Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors" (ECCV 2020), section 2.2, with its
thresholds: 0.5 for the foreground, 0.1 for the background. The rules and their order are those of the authors' program,
tidecv 1.0.1, but for one: a class without objects has no AP here, as in COCO, where tidecv counts it with AP 0.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from detection.coco_metric import RECALLS

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1
MAX_JUDGED = 100  # of an image, the surest ones
DETECTION_ERRORS = {
    "classification": "the box of an object, with the wrong class",
    "localisation": "the right class, with an IoU from 0.1 to 0.5",
    "both": "the wrong class and an IoU from 0.1 to 0.5",
    "duplicate": "an object that a surer detection has found already",
    "background": "no object, or one with an IoU below 0.1",
    "missed": "an object without a detection, not even one with the wrong class or place",
}
MISSED = "missed"


@dataclass(frozen=True)
class ImageMatches:
    """What became of the detections and the objects of an image; detections in their order.

    Attributes:
        correct: Whether each detection has found an object, (N,), bool.
        ignored: Whether each counts for nothing, as it lies on a crowd of its class, (N,), bool.
        kinds: Error kind of each detection; ``None`` of a correct one and of those beyond the first 100.
        fixed: Class of the object that the detection would find if its error was fixed, (N,); -1 where fixing means
            that there is no such detection.
        unfound: Whether no detection has found each object, (M,), bool.
        object_kinds: Error kind of the surest detection that would find each object if it was fixed, ``missed``
            without one; ``None`` of an object that has been found.
    """

    correct: np.ndarray
    ignored: np.ndarray
    kinds: list[str | None]
    fixed: np.ndarray
    unfound: np.ndarray
    object_kinds: list[str | None]

    @property
    def missed(self) -> np.ndarray:
        """Whether no detection has found each object or would if it was fixed, (M,), bool."""
        return np.array([kind == MISSED for kind in self.object_kinds], bool)


@dataclass(frozen=True)
class CrowdOverlaps:
    """Crowds of an image, on which detections count for nothing.

    Attributes:
        overlaps: Share of each detection that lies on each crowd, (N, C).
        labels: Classes, (C,).
    """

    overlaps: np.ndarray
    labels: np.ndarray


def match_image(
    scores: np.ndarray, labels: np.ndarray, overlaps: np.ndarray, true_labels: np.ndarray, crowds: CrowdOverlaps
) -> ImageMatches:
    """Judge the detections of an image, the surest one first.

    Args:
        scores: Scores, (N,).
        labels: Classes, (N,).
        overlaps: IoU of each detection and object, (N, M).
        true_labels: Classes of the objects, (M,).
        crowds: Crowds.
    """
    count, objects = len(scores), len(true_labels)
    correct, ignored, fixed = np.zeros(count, bool), np.zeros(count, bool), np.full(count, -1)
    kinds: list[str | None] = [None] * count
    finder = np.full(objects, -1)
    order = np.argsort(-scores, kind="stable")[:MAX_JUDGED]
    same = labels[:, np.newaxis] == true_labels
    free = overlaps * same
    for one in order if objects else ():
        best = int(np.argmax(free[one]))
        if free[one, best] >= FOREGROUND_IOU:
            correct[one], finder[best] = True, one
            free[:, best] = 0
    if len(crowds.labels):
        on_crowd = (crowds.overlaps > FOREGROUND_IOU) & (labels[:, np.newaxis] == crowds.labels)
        ignored = on_crowd.any(axis=1) & ~correct
    object_kinds: list[str | None] = [None if found else MISSED for found in finder >= 0]
    for one in (one for one in order if not correct[one]):
        kinds[one], target = _judge(overlaps[one], same[one], finder >= 0)
        if target is not None and object_kinds[target] == MISSED:  # the surest of several is the one that would find it
            object_kinds[target], fixed[one] = kinds[one], true_labels[target]
    return ImageMatches(correct, ignored, kinds, fixed, finder < 0, object_kinds)


def _judge(overlaps: np.ndarray, same: np.ndarray, found: np.ndarray) -> tuple[str, int | None]:
    """Error kind of a detection that has found nothing, and the object that it is about, if any.

    Args:
        overlaps: IoU with each object, (M,).
        same: Whether each object is of its class, (M,), bool.
        found: Whether each object has been found, (M,), bool.
    """
    if not len(overlaps):
        return "background", None
    own, other = overlaps * same, overlaps * ~same
    if BACKGROUND_IOU <= own.max() <= FOREGROUND_IOU:
        return "localisation", int(own.argmax())
    if other.max() >= FOREGROUND_IOU:
        return "classification", int(other.argmax())
    if (own * found).max() >= FOREGROUND_IOU:
        return "duplicate", None
    return ("background" if overlaps.max() <= BACKGROUND_IOU else "both"), None


@dataclass(frozen=True)
class TideGains:
    """AP, and what would be added to it, in percent.

    Attributes:
        ap: AP at the foreground's IoU.
        fixed: Gain of fixing all errors of a kind, by the kind, not below 0.
        false_positives: Gain of having no false positives.
        false_negatives: Gain of having no false negatives.
    """

    ap: float
    fixed: dict[str, float]
    false_positives: float
    false_negatives: float


@dataclass
class Tide:
    """Errors of a data set, image by image.

    Attributes:
        num_classes: Number of classes.
        counts: Number of errors by kind.
        class_counts: Number of errors by the class of the detection or the missed object, and kind.
    """

    num_classes: int
    counts: Counter[str] = field(default_factory=Counter)
    class_counts: dict[int, Counter[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rows: list[tuple[int, float, bool, bool, str, int]] = []
        self._objects, self._missed, self._unfound = (np.zeros(self.num_classes, int) for _ in range(3))

    def add(self, scores: np.ndarray, labels: np.ndarray, true_labels: np.ndarray, matches: ImageMatches) -> None:
        """Add an image.

        Args:
            scores: Scores of the detections, (N,).
            labels: Their classes, (N,).
            true_labels: Classes of the objects, (M,).
            matches: Result of :func:`match_image`.
        """
        for one in np.argsort(-scores, kind="stable")[:MAX_JUDGED].tolist():
            kind, label = matches.kinds[one] or "", int(labels[one])
            correct, ignored = bool(matches.correct[one]), bool(matches.ignored[one])
            self._rows.append((label, float(scores[one]), correct, ignored, kind, int(matches.fixed[one])))
            if kind:
                self._count(kind, label)
        for label in true_labels[matches.missed].tolist():
            self._count(MISSED, label)
        for total, chosen in (
            (self._objects, slice(None)),
            (self._missed, matches.missed),
            (self._unfound, matches.unfound),
        ):
            np.add.at(total, true_labels[chosen], 1)

    def _count(self, kind: str, label: int) -> None:
        self.counts[kind] += 1
        self.class_counts.setdefault(label, Counter())[kind] += 1

    def summary(self) -> TideGains:
        """What fixing the errors of all images would bring."""
        # tidecv lists the errors first and the correct ones behind them, which decides between equal scores.
        rows = sorted(self._rows, key=lambda row: row[2])
        base = self._mean_ap(*self._columns(self._rows), self._objects)
        labels, scores, correct, kept = self._columns(rows)
        kinds, fixed = np.array([row[4] for row in rows], object), np.array([row[5] for row in rows], int)
        gains = {}
        for kind in DETECTION_ERRORS:
            turned = (kinds == kind) & (fixed >= 0)
            objects = self._objects - self._missed if kind == MISSED else self._objects
            left = np.where(kinds == kind, turned, kept)
            mean = self._mean_ap(np.where(turned, fixed, labels), scores, correct | turned, left, objects)
            gains[kind] = max(mean - base, 0.0)
        perfect = self._mean_ap(labels, correct.astype(float), correct, kept, self._objects)
        found = self._mean_ap(labels, scores, correct, kept, self._objects - self._unfound)
        return TideGains(base, gains, perfect - base, found - base)

    @staticmethod
    def _columns(
        rows: list[tuple[int, float, bool, bool, str, int]],
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Labels, scores, whether they are correct, and whether they count."""
        labels, scores = np.array([row[0] for row in rows], int), np.array([row[1] for row in rows], float)
        return labels, scores, np.array([row[2] for row in rows], bool), np.array([not row[3] for row in rows], bool)

    def _mean_ap(
        self, labels: np.ndarray, scores: np.ndarray, correct: np.ndarray, kept: np.ndarray, objects: np.ndarray
    ) -> float:
        """Mean AP in percent over the classes with objects of which anything is left."""
        values = []
        for label in np.flatnonzero(self._objects):
            rows = kept & (labels == label)
            if rows.any() or objects[label]:
                values.append(average_precision(scores[rows], correct[rows], int(objects[label])))
        return float(np.mean(values)) if values else 0.0


def average_precision(scores: np.ndarray, correct: np.ndarray, objects: int) -> float:
    """AP in percent by COCO's 101 recalls.

    Args:
        scores: Scores of the detections of a class, (N,).
        correct: Whether each has found an object, (N,), bool.
        objects: Number of objects.
    """
    if not objects or not len(scores):
        return 0.0
    hits = correct[np.argsort(-scores, kind="stable")].cumsum()
    precision = hits / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(hits / objects, RECALLS, side="left")
    return 100 * float(np.where(places < len(hits), precision[np.minimum(places, len(hits) - 1)], 0.0).mean())
