"""Errors of a classifier: accuracy by class, confused classes, calibration, mistakes, and copies of training images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.registry import DATASETS
from mmengine.structures import BaseDataElement

from backbones.errors import UserError, first_line
from classification.duplicates import Duplicate, find_duplicates
from classification.visualizer import ClassificationVisualizer
from engine.config.building import build
from engine.config.datasets import inner_datasets
from engine.prediction.error_analysis import AnalysisRequest, ErrorAnalysis, ErrorFindings, ImageErrors, ImageScore
from engine.prediction.visualize import read_picture, spread_evenly
from engine.report.calibration import calibration_bins, expected_calibration_error, reliability_plot
from engine.report.confusion import confusion_section, count_confusions
from engine.report.gallery import sortable_table
from engine.report.html import note, number
from engine.report.panels import join_panels

SURE = 0.9  # probability of a class from which on a mistake is a sure one
SURE_MISTAKE, PLAIN_MISTAKE, IN_TRAINING = "wrong and sure", "wrong", "in the training data"
MAX_TRAIN_IMAGES = 20_000  # that are compared with the tested images, unless all are asked for


class ClassificationErrors(ErrorAnalysis):
    """Keeps the decision for each image.

    Args:
        request: Config, and what is known of the test data.
    """

    score_words = "Score: probability of the label in percent. Right: no class got more."

    def __init__(self, request: AnalysisRequest) -> None:
        super().__init__(request)
        self._rows: list[
            tuple[int, int, int, float, float]
        ] = []  # index, label, predicted class, its and the label's probability
        self._paths: dict[int, str] = {}
        self._twins: dict[str, str] = {}
        self._visualizer = ClassificationVisualizer()
        self._visualizer.dataset_meta = {"classes": self.shown_classes}

    def add(self, index: int, sample: Mapping[str, Any]) -> None:
        """Keep the decision for an image, if it has a label."""
        label, scores = int(sample["gt_label"]), sample["scores"]
        if label >= 0:
            said = int(scores.argmax())
            self._rows.append((index, label, said, float(scores[said]), float(scores[label])))
            self._paths[index] = str(sample["img_path"])

    def findings(self) -> ErrorFindings:
        """Sum up over the data set, and look for its images among those of the training."""
        labels, said = (np.array([row[at] for row in self._rows], int) for at in (1, 2))
        confidence, right = np.array([row[3] for row in self._rows], float), labels == said
        bins = calibration_bins(confidence.tolist(), right.tolist())
        ece, shown_bins = expected_calibration_error(bins), [[one.count, one.confidence, one.accuracy] for one in bins]
        by_class = self._scores_by_class(labels, said, confidence)
        copies, about = self._copies()
        confusion = count_confusions(self.classes, labels, said)
        numbers = {
            "accuracy": round(100 * float(right.mean()), 2) if len(right) else None,
            "by_class": by_class,
            "confusion": confusion,
            "calibration": {"ece": ece, "bins": shown_bins},
            "in_training_data": copies,
            "in_training_data_note": about,
        }
        rows = [
            [name, number(one["accuracy"]), number(one["precision"]), number(one["confidence"]), f"{one['images']:,}"]
            for name, one in by_class.items()
        ]
        head = ["class", "accuracy", "precision", "confidence", "images"]
        words = "In percent. Precision: of the images said to be of the class. Confidence: mean over its images."
        sections = {
            "Accuracy by class": sortable_table(head, rows) + note(words),
            "Confused classes": confusion_section(confusion, "the classifier said", "Number of images"),
            "Calibration": reliability_plot(ece, shown_bins),
            "Images of the training data": _copies_section(copies, about),
        }
        return ErrorFindings(
            numbers, sections, self._images(copies), f"Sure: the class got {100 * SURE:.0f} % or more."
        )

    def _scores_by_class(
        self, labels: np.ndarray, said: np.ndarray, confidence: np.ndarray
    ) -> dict[str, dict[str, float | int | None]]:
        """Scores of each class in percent, ``None`` where there is nothing to divide by."""
        count = len(self.classes)
        images, claimed = np.bincount(labels, minlength=count), np.bincount(said, minlength=count)
        hits, sums = np.bincount(labels[labels == said], minlength=count), np.bincount(labels, confidence, count)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = {"accuracy": hits / images, "precision": hits / claimed, "confidence": sums / images}
        rounded = {key: np.round(100 * values, 2).tolist() for key, values in ratios.items()}
        return {
            name: {key: values[at] if math.isfinite(values[at]) else None for key, values in rounded.items()}
            | {"images": int(images[at])}
            for at, name in enumerate(self.classes)
        }

    def _images(self, copies: list[dict[str, Any]]) -> list[ImageErrors]:
        """Mistakes by confidence, and copies of training images."""
        copied, found = {one["index"]: one for one in copies}, []
        for index, label, said, probability, of_label in self._rows:
            kinds: dict[str, float] = {}
            words = f"{self.classes[label]}, said {self.classes[said]} ({100 * probability:.0f} %)"
            if said != label:
                kinds[SURE_MISTAKE if probability >= SURE else PLAIN_MISTAKE] = round(100 * probability, 2)
                words += f", the label got {100 * of_label:.1f} %"
            if copy := copied.get(index):
                kinds[IN_TRAINING] = round(100 * copy["correlation"], 2)
                words += f", {IN_TRAINING} as {copy['train_class']}: {Path(copy['train']).name}"
            if kinds:
                about = list(dict.fromkeys((self.classes[label], self.classes[said])))
                found.append(ImageErrors(index, kinds, words, about))
        return found

    def _copies(self) -> tuple[list[dict[str, Any]], str]:
        """Tested images that are in the training data, and a remark on how they were looked for."""
        cfg = self.request.cfg
        try:
            stated = inner_datasets(cfg.train_dataloader.dataset) if cfg.get("train_dataloader") else []
            items = [
                one
                for place, settings in enumerate(stated)
                for one in _listed(build(DATASETS, settings, f"train_dataloader.dataset.{place}"))
            ]
        except UserError as error:
            return [], f"not looked for: {first_line(error)}"
        if not items:
            return [], "not looked for: the config has no training data"
        total = len(items)
        if not self.request.full:
            items = [items[place] for place in spread_evenly(total, MAX_TRAIN_IMAGES)]
        indices = list(self._paths)
        tested, train = [self._paths[index] for index in indices], [path for path, _ in items]
        found, unread = find_duplicates(tested, train, lambda path: read_picture(cfg, path))
        part = (
            f"{len(items):,} of {total:,} training images" if len(items) < total else f"all {total:,} training images"
        )
        about = f"{len(tested):,} images compared with {part}" + (f"; {unread:,} cannot be read" if unread else "")
        self._twins = {tested[one.tested]: train[one.original] for one in found}
        return [self._copy(one, indices, items) for one in found], about

    def _copy(self, one: Duplicate, indices: list[int], items: list[tuple[str, int]]) -> dict[str, Any]:
        index, (train, label) = indices[one.tested], items[one.original]
        return {
            "index": index,
            "image": self._paths[index],
            "train": train,
            "train_class": self.classes[label] if 0 <= label < len(self.classes) else str(label),
            "exact": one.exact,
            "correlation": one.correlation,
        }

    def image_score(self, sample: Mapping[str, Any]) -> ImageScore | None:
        """The probability of the label, which is right where it is that of the chosen class."""
        label, scores = int(sample["gt_label"]), sample["scores"]
        return ImageScore(100 * float(scores[label]), int(scores.argmax()) == label) if label >= 0 else None

    def draw(self, image: np.ndarray, scale: tuple[float, float], sample: Mapping[str, Any]) -> np.ndarray:
        """Write the classes under the image, and put the training image that it is a copy of beside it."""
        if twin := self._twins.get(str(sample["img_path"])):
            theirs = cv2.resize(read_picture(self.request.cfg, twin), image.shape[1::-1], interpolation=cv2.INTER_AREA)
            image = join_panels({"tested image": image, "training image": np.asarray(theirs)}, {})
        element = BaseDataElement(scores=sample["scores"], gt_label=int(sample["gt_label"]))
        return self._visualizer.add_datasample("", image, element)


def _listed(dataset: Any) -> list[tuple[str, int]]:
    """Path and label of each image of a data set."""
    infos = (dataset.get_data_info(index) for index in range(len(dataset)))
    return [(info["img_path"], int(info.get("gt_label", -1))) for info in infos]


def _copies_section(copies: list[dict[str, Any]], about: str) -> str:
    rows = [
        [
            Path(one["image"]).name,
            Path(one["train"]).name,
            one["train_class"],
            "same file" if one["exact"] else "nearly",
        ]
        for one in copies
    ]
    words = (
        f"{about[0].upper()}{about[1:]}. Scores of images that were trained on are too high. Nearly the same: small "
        "grey copies, as they are or mirrored, correlate by 0.99; crops are not found."
    )
    head = ["tested image", "training image", "class in training", "how"]
    return (sortable_table(head, rows) if rows else "") + note(f"{len(copies):,} found. {words}")
