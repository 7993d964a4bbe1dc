"""Errors of a detector: AP in parts, error kinds as TIDE defines them, confused classes, and the worst images."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_masks

from backbones.errors import ConfigError
from detection.annotations import category_ids
from detection.ap_sections import ap_sections, parts_of_ap, tide_section
from detection.coco_metric import IOU_TYPES, FastCocoMetric, ImageDetections, image_detections
from detection.labels import Box
from detection.mistakes import MISTAKE_IOU, MISTAKE_SCORE
from detection.tide import DETECTION_ERRORS, MISSED, CrowdOverlaps, ImageMatches, Tide, match_image
from detection.visualizer import draw_boxes
from engine.prediction.error_analysis import AnalysisRequest, ErrorAnalysis, ErrorFindings, ImageErrors, ImageScore
from engine.prediction.panel_visualizer import PREDICTION, TRUTH
from engine.report.confusion import confusion_section
from engine.report.lettering import Colour
from engine.report.panels import font_size, join_panels

BACKGROUND, CORRECT = "background", "correct"
KIND_COLOURS: dict[str, Colour] = {
    CORRECT: (70, 170, 90),
    "classification": (230, 120, 30),
    "localisation": (60, 120, 220),
    "both": (150, 80, 200),
    "duplicate": (20, 170, 180),
    "background": (215, 50, 50),
    MISSED: (235, 190, 20),
}


@dataclass(frozen=True)
class ImageObjects:
    """Annotations of an image.

    Attributes:
        boxes: Left, top, width and height of the objects in pixels, (M, 4).
        labels: Their classes, (M,).
        masks: Run-length codes of the objects; empty where masks are not compared.
        crowd_boxes: Boxes of the crowds, (C, 4).
        crowd_labels: Their classes, (C,).
        crowd_masks: Run-length codes of the crowds.
    """

    boxes: np.ndarray
    labels: np.ndarray
    masks: list[Any]
    crowd_boxes: np.ndarray
    crowd_labels: np.ndarray
    crowd_masks: list[Any]


class DetectionErrors(ErrorAnalysis):
    """Collects detections, and compares them with the annotation file that the test's metric reads.

    Args:
        request: Config, and what is known of the test data.

    Raises:
        ConfigError: If no metric of the test has an annotation file.
    """

    score_words = (
        f"Score: F1 of the detections with a score from {MISTAKE_SCORE} on, at a box IoU of {MISTAKE_IOU}. "
        "Right: all objects are found, and nothing else."
    )

    def __init__(self, request: AnalysisRequest) -> None:
        super().__init__(request)
        stated = request.cfg.test_evaluator
        settings = next(
            (one for one in (stated if isinstance(stated, list) else [stated]) if one.get("ann_file")), None
        )
        if settings is None:
            raise ConfigError(
                "test_evaluator: no metric states an ann_file, whose objects the detections are compared to"
            )
        kinds = settings.get("metric", IOU_TYPES)
        self.metric = FastCocoMetric(settings["ann_file"], [kinds] if isinstance(kinds, str) else kinds)
        self.metric.dataset_meta = dict(request.meta)
        self._images: list[ImageDetections] = []
        self._indices: list[int] = []

    def add(self, index: int, sample: Mapping[str, Any]) -> None:
        """Keep the detections in an image."""
        self._images.append(image_detections(dict(sample), sample["img_id"]))
        self._indices.append(index)

    def findings(self) -> ErrorFindings:
        """Evaluate, and judge each detection."""
        self.metric.compute_metrics(self._images)
        numbers: dict[str, Any] = {}
        sections: dict[str, str] = {}
        for kind in self.metric.metrics:
            name = "box" if kind == "bbox" else "mask"
            if kind not in self.metric.precisions:
                continue
            parts = parts_of_ap(self.metric.precisions[kind], self.classes)
            numbers[kind] = {**parts, "tide": self._tide(kind)}
            sections |= ap_sections(name, parts, self.metric.class_scores, self.metric.precisions[kind])
            sections[f"What fixing errors would bring, {name} AP"] = tide_section(numbers[kind]["tide"])
        images, confusion = self._errors_of_images()
        numbers["confusion"] = {"classes": [*self.classes, BACKGROUND], "matrix": confusion.tolist()}
        counted = f"Objects and detections with a score from {MISTAKE_SCORE} on, matched by a box IoU of {MISTAKE_IOU}"
        sections["Confused classes"] = confusion_section(numbers["confusion"], "the detector said", counted)
        sure = f"Detections with a score from {MISTAKE_SCORE} on, and objects that none of them has found. "
        return ErrorFindings(numbers, sections, images, f"{sure}The truth is on the left, the prediction on the right.")

    def _objects(self, image_id: int, masks: bool) -> ImageObjects:
        """Annotations of an image; with their masks, if they are compared."""
        truth = self.metric.read_ground_truth()
        ids = category_ids(truth.dataset["categories"], self.classes)
        label_of = {number: label for label, number in enumerate(ids)}
        known = [one for one in truth.imgToAnns.get(image_id, []) if one["category_id"] in label_of]
        parts: list[Any] = []
        for crowd in (False, True):
            chosen = [one for one in known if bool(one.get("iscrowd")) == crowd]
            boxes = np.array([one["bbox"] for one in chosen], float).reshape(-1, 4)
            labels = np.array([label_of[one["category_id"]] for one in chosen], int)
            parts += [boxes, labels, [truth.annToRLE(one) for one in chosen] if masks else []]
        return ImageObjects(*parts)

    def _tide(self, kind: str) -> dict[str, Any]:
        """Counts and gains of the error kinds over the whole data set."""
        tide, masks = Tide(len(self.classes)), kind == "segm"
        for image in self._images:
            objects = self._objects(image.image_id, masks)
            scores = image.mask_scores if masks else image.scores
            tide.add(scores, image.labels, objects.labels, _matches(image, objects, scores, masks))
        summary = tide.summary()
        return {
            "AP50": summary.ap,
            "errors": {name: {"count": tide.counts[name], "gain": summary.fixed[name]} for name in DETECTION_ERRORS},
            "false_positives": summary.false_positives,
            "false_negatives": summary.false_negatives,
            "by_class": {
                name: {error: tide.class_counts.get(label, Counter())[error] for error in DETECTION_ERRORS}
                for label, name in enumerate(self.classes)
            },
        }

    def _errors_of_images(self) -> tuple[list[ImageErrors], np.ndarray]:
        """Errors of the sure detections in each image, and the confusion matrix, (K + 1, K + 1), rows true."""
        confusion = np.zeros((len(self.classes) + 1,) * 2, int)
        found = []
        for index, image in zip(self._indices, self._images, strict=True):
            sure, objects = surest(image), self._objects(image.image_id, masks=False)
            matches = _matches(sure, objects, sure.scores, masks=False)
            _add_confusion(confusion, sure, objects, matches)
            kinds = Counter(kind for kind in matches.kinds if kind)
            kinds[MISSED] = int(matches.missed.sum())
            wrong = [int(label) for label, kind in zip(sure.labels, matches.kinds, strict=True) if kind]
            wrong += objects.labels[matches.missed].tolist()
            kinds = Counter({kind: kinds[kind] for kind in DETECTION_ERRORS if kinds[kind]})
            if kinds:
                caption = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
                found.append(ImageErrors(index, kinds, caption, [self.classes[label] for label in sorted(set(wrong))]))
        return found, confusion

    def image_score(self, sample: Mapping[str, Any]) -> ImageScore:
        """F1 of the sure detections in an image."""
        sure = surest(image_detections(dict(sample), sample["img_id"]))
        matches = _matches(sure, self._objects(sure.image_id, masks=False), sure.scores, masks=False)
        mistakes = int((~matches.correct & ~matches.ignored).sum() + matches.unfound.sum())
        found = 2 * int(matches.correct.sum())
        return ImageScore(100 * found / (found + mistakes) if mistakes else 100.0, not mistakes)

    def draw(self, image: np.ndarray, scale: tuple[float, float], sample: Mapping[str, Any]) -> np.ndarray:
        """Draw objects, the missed ones highlighted, beside detections in the colours of their error kinds."""
        sure = surest(image_detections(dict(sample), sample["img_id"]))
        objects = self._objects(sure.image_id, masks=False)
        matches = _matches(sure, objects, sure.scores, masks=False)
        names, size = self.shown_classes, font_size(*image.shape[:2])
        states = [kind or CORRECT for kind in matches.object_kinds]
        truth = draw_boxes(
            image,
            _scaled(objects.boxes, scale),
            [names[label] for label in objects.labels.tolist()],
            [KIND_COLOURS[state] for state in states],
            size,
        )
        judged = [(at, kind or CORRECT) for at, kind in enumerate(matches.kinds) if not matches.ignored[at]]
        shown = [at for at, _ in judged]
        prediction = draw_boxes(
            image,
            _scaled(sure.boxes[shown], scale),
            [f"{names[sure.labels[at]]} {100 * sure.scores[at]:.0f}" for at in shown],
            [KIND_COLOURS[kind] for _, kind in judged],
            size,
        )
        present = {*states, *(kind for _, kind in judged)}
        legend = {kind: colour for kind, colour in KIND_COLOURS.items() if kind in present}
        return join_panels({TRUTH: truth, PREDICTION: prediction}, legend)


def surest(image: ImageDetections) -> ImageDetections:
    """The detections that count as such, by their score."""
    kept = image.scores >= MISTAKE_SCORE
    masks = None if image.masks is None else list(itertools.compress(image.masks, kept))
    return ImageDetections(
        image.image_id, image.boxes[kept], image.scores[kept], image.mask_scores[kept], image.labels[kept], masks
    )


def _scaled(boxes: np.ndarray, scale: tuple[float, float]) -> list[Box]:
    """Boxes of left, top, width and height, (N, 4), as corners in an image of another size."""
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1) * [*scale, *scale]
    return [Box(*row) for row in corners.tolist()]


def _matches(image: ImageDetections, objects: ImageObjects, scores: np.ndarray, masks: bool) -> ImageMatches:
    """What became of the detections in an image, compared by boxes or by masks."""
    places = (image.masks or []) if masks else image.boxes
    overlaps = _overlaps(places, objects.masks if masks else objects.boxes, crowd=False)
    on_crowds = _overlaps(places, objects.crowd_masks if masks else objects.crowd_boxes, crowd=True)
    return match_image(scores, image.labels, overlaps, objects.labels, CrowdOverlaps(on_crowds, objects.crowd_labels))


def _overlaps(places: Any, objects: Any, crowd: bool) -> np.ndarray:
    """IoU of boxes or masks, (N, M); with crowds the share of each that lies on them."""
    if not len(places) or not len(objects):
        return np.zeros((len(places), len(objects)))
    return np.asarray(coco_masks.iou(places, objects, [int(crowd)] * len(objects)), float)


def _add_confusion(confusion: np.ndarray, image: ImageDetections, objects: ImageObjects, matches: ImageMatches) -> None:
    """Add an image: first what is right, then the surest detection takes the free object that it lies on best."""
    classes = len(confusion) - 1
    np.add.at(confusion, (image.labels[matches.correct],) * 2, 1)
    free = matches.unfound.copy()
    overlaps = _overlaps(image.boxes, objects.boxes, crowd=False)
    for one in np.argsort(-image.scores, kind="stable"):
        if matches.correct[one] or matches.ignored[one]:
            continue
        fits = overlaps[one] * free
        if len(fits) and fits.max() >= MISTAKE_IOU:
            free[fits.argmax()] = False
            confusion[objects.labels[fits.argmax()], image.labels[one]] += 1
        else:
            confusion[classes, image.labels[one]] += 1
    np.add.at(confusion, (objects.labels[free], classes), 1)
