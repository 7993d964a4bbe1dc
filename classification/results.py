"""Predictions of a classifier: those of one image in Python, and the class of each image in a table."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from torch import Tensor

from backbones.files import atomic_write
from engine.prediction.predictor import Prediction


class ClassPrediction(Prediction):
    """What a classifier predicts for an image.

    Attributes:
        probabilities: Probability of each class, (K,), float32.
        label: Position of the most probable class.
        name: Name of the most probable class.
    """

    @property
    def probabilities(self) -> Tensor:
        scores: Tensor = self.sample.scores
        return scores

    @property
    def label(self) -> int:
        return int(self.sample.pred_label)

    @property
    def name(self) -> str:
        return self.classes[self.label]

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The most probable classes and their probabilities, the first one first."""
        values, labels = self.probabilities.topk(min(count, len(self.classes)))
        return [(self.classes[label], value) for value, label in zip(values.tolist(), labels.tolist(), strict=True)]


_HEADER = ("image", "class", "probability")


class PredictionTable(BaseMetric):
    """Writes the most probable class of each image to ``predictions.csv``; gives no score.

    Args:
        folder: Output folder.
        classes: Class names in the order of the labels.
    """

    default_prefix = "results"

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        super().__init__(collect_device="cpu")
        self.folder, self.classes = folder, classes

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keep path, class and its probability of each image."""
        for sample in data_samples:
            label = int(sample["pred_label"])
            self.results.append((sample["img_path"], self.classes[label], f"{float(sample['scores'][label]):.4f}"))

    def compute_metrics(self, results: list[tuple[str, str, str]]) -> dict[str, float]:
        """Write the table; return no scores."""
        with (
            atomic_write(self.folder / "predictions.csv") as part,
            part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            csv.writer(file).writerows([_HEADER, *results])
        return {}


def prediction_table(cfg: Config, folder: Path, images: Mapping[Path, str] | None) -> PredictionTable:
    """Return the writer of the table for a resolved config.

    Args:
        cfg: Resolved config.
        folder: Output folder, which exists.
        images: Ignored: the table has the paths of the images.
    """
    return PredictionTable(folder, cfg.test_dataloader.dataset.metainfo["classes"])
