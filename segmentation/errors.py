"""Errors of a segmentor: IoU, accuracy and boundary IoU by class, confused classes, and the worst images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from engine.prediction.error_analysis import AnalysisRequest, ErrorAnalysis, ErrorFindings, ImageErrors, ImageScore
from engine.prediction.panel_visualizer import PREDICTION, TRUTH
from engine.report.confusion import confusion_section
from engine.report.gallery import sortable_table
from engine.report.html import note, number
from engine.report.lettering import Colour
from engine.report.overlay import tint
from engine.report.panels import join_panels
from segmentation.boundary import boundary_areas, boundary_distance, near_edges
from segmentation.data import IGNORE_INDEX
from segmentation.visualizer import draw_labels

DIFFERENCE = "difference"
WRONG_NEAR_EDGES, WRONG_INSIDE, NO_LABEL = "wrong near an edge", "wrong away from edges", "not labelled"
DIFFERENCE_COLOURS: dict[str, Colour] = {
    WRONG_NEAR_EDGES: (235, 190, 20),
    WRONG_INSIDE: (215, 50, 50),
    NO_LABEL: (0, 0, 0),
}
DIFFERENCE_SHARE = 0.8  # of the colour of a wrong pixel
RIGHT_IOU = 75  # percent, mean of an image, from which on its prediction counts as right when trainings are compared
MIN_CLASS_SHARE = 0.01  # of an image's pixels that are wrong about a class, from which on the image is about it


class SegmentationErrors(ErrorAnalysis):
    """Counts the pixels of each pair of true and predicted class.

    Args:
        request: Config, and what is known of the test data.
    """

    score_words = f"Score: mean IoU of the classes in the image. Right: from {RIGHT_IOU} on."

    def __init__(self, request: AnalysisRequest) -> None:
        super().__init__(request)
        count = len(self.classes)
        self._confusion, self._edges = np.zeros((count, count), np.int64), np.zeros((2, count), np.int64)
        self._images: list[ImageErrors] = []

    def add(self, index: int, sample: Mapping[str, Any]) -> None:
        """Count the pixels of an image."""
        truth, predicted = label_maps(sample)
        labelled, count = truth != IGNORE_INDEX, len(self.classes)
        pairs = self._pairs(truth, predicted)
        self._confusion += pairs
        self._edges += boundary_areas(truth, predicted, count, IGNORE_INDEX)
        total, wrong = int(labelled.sum()), labelled & (truth != predicted)
        if not wrong.any():
            return
        near = near_edges(truth, boundary_distance(*truth.shape))
        shares = {WRONG_NEAR_EDGES: (wrong & near).sum(), WRONG_INSIDE: (wrong & ~near).sum()}
        kinds = {kind: round(100 * int(pixels) / total, 3) for kind, pixels in shares.items() if pixels}
        mistaken = pairs * ~np.eye(count, dtype=bool)
        about = np.flatnonzero(mistaken.sum(axis=0) + mistaken.sum(axis=1) >= MIN_CLASS_SHARE * total)
        ious = _ratios(pairs)["IoU"]
        caption = f"IoU {number(float(np.nanmean(ious)))}, " + ", ".join(
            f"{number(share)} % {kind}" for kind, share in kinds.items()
        )
        self._images.append(ImageErrors(index, kinds, caption, [self.classes[label] for label in about]))

    def _pairs(self, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """Labelled pixels of each pair of true and predicted class, (K, K)."""
        labelled, count = truth != IGNORE_INDEX, len(self.classes)
        pairs = np.bincount(truth[labelled] * count + predicted[labelled], minlength=count**2)
        return pairs.reshape(count, count)

    def image_score(self, sample: Mapping[str, Any]) -> ImageScore | None:
        """The mean IoU of the classes that the image has or is said to have."""
        pairs = self._pairs(*label_maps(sample))
        if not pairs.any():
            return None
        iou = float(np.nanmean(_ratios(pairs)["IoU"]))
        return ImageScore(iou, iou >= RIGHT_IOU)

    def findings(self) -> ErrorFindings:
        """Sum up over the data set."""
        with np.errstate(invalid="ignore"):
            ratios = {**_ratios(self._confusion), "boundary IoU": 100 * self._edges[0] / self._edges[1]}
        shares = 100 * self._confusion.sum(axis=1) / max(1, self._confusion.sum())
        by_class = {
            name: {key: _rounded(values[label]) for key, values in ratios.items()} | {"share": _rounded(shares[label])}
            for label, name in enumerate(self.classes)
        }
        means = {
            key: _rounded(np.nanmean(values)) if np.isfinite(values).any() else None for key, values in ratios.items()
        }
        confusion = {"classes": self.classes, "matrix": self._confusion.tolist()}
        rows = [[name, *map(number, found.values())] for name, found in by_class.items()]
        words = (
            "In percent. Acc: right pixels among those of the class. Boundary IoU is that of Cheng et al. (CVPR 2021): "
            "of pixels within 2 % of the image's diagonal of the contour. Share: of all labelled pixels."
        )
        head = ["class", *ratios, "share"]
        sections = {
            "IoU and accuracy by class": sortable_table(head, rows, ["mean", *map(number, means.values()), ""])
            + note(words),
            "Confused classes": confusion_section(
                confusion, "the segmentor said", "Percent of the pixels", percent=True
            ),
        }
        numbers = {"mean": means, "by_class": by_class, "confusion": confusion}
        return ErrorFindings(numbers, sections, self._images, "Kinds: percent of the labelled pixels of the image.")

    def draw(self, image: np.ndarray, scale: tuple[float, float], sample: Mapping[str, Any]) -> np.ndarray:
        """Draw truth, prediction, and where they differ."""
        size = (image.shape[1], image.shape[0])
        truth, predicted = label_maps(sample)
        wrong = (truth != predicted) & (truth != IGNORE_INDEX)
        near = near_edges(truth, boundary_distance(*truth.shape))
        states = np.zeros(truth.shape, np.uint8)
        for number_of_state, where in enumerate((wrong & near, wrong & ~near, truth == IGNORE_INDEX), start=1):
            states[where] = number_of_state
        maps = [
            cv2.resize(one.astype(np.int16), size, interpolation=cv2.INTER_NEAREST)
            for one in (truth, predicted, states)
        ]
        names, colours = self.shown_classes, self.colours
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        for state, colour in enumerate(DIFFERENCE_COLOURS.values(), start=1):
            tint(grey, np.asarray(maps[2]) == state, colour, DIFFERENCE_SHARE)
        panels = {
            TRUTH: draw_labels(image, np.asarray(maps[0]), names, colours),
            PREDICTION: draw_labels(image, np.asarray(maps[1]), names, colours),
            DIFFERENCE: grey,
        }
        shown = [label for label in np.union1d(maps[0], maps[1]).tolist() if 0 <= label < len(names)]
        legend = {names[label]: colours[label] for label in shown}
        present = {
            kind: colour
            for state, (kind, colour) in enumerate(DIFFERENCE_COLOURS.items(), 1)
            if (maps[2] == state).any()
        }
        return join_panels(panels, {**legend, **present})


def label_maps(sample: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """True and predicted label of each pixel of a sample, int64, (H, W)."""
    truth, predicted = (np.asarray(sample[name]["data"]).squeeze(0) for name in ("gt_sem_seg", "pred_sem_seg"))
    return truth.astype(np.int64), predicted.astype(np.int64)


def _ratios(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """IoU and accuracy of each class in percent, NaN without a pixel."""
    right, true, said = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return {"IoU": 100 * right / (true + said - right), "Acc": 100 * right / true}


def _rounded(value: float) -> float | None:
    return round(float(value), 2) if np.isfinite(value) else None
