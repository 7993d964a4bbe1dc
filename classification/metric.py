"""Top-1, top-5, validation loss and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from engine.report.confusion import count_confusions
from engine.report.run_dir import write_json

TOP = 5  # classes among which the true one counts for top-5


@METRICS.register_module()
class ClassificationMetric(BaseMetric):
    """Accuracy in percent, and the mean cross-entropy without label smoothing.

    Args:
        confusion_file: Output file for what :func:`engine.report.confusion.count_confusions` finds (JSON); ``None`` for
            none.

    Attributes:
        class_scores: ``top1`` in percent and number of ``images`` of each class, of the last evaluation, in the main
            process.
    """

    default_prefix = ""  # of the scores' names; without one mmengine warns

    def __init__(self, confusion_file: str | None = None) -> None:
        super().__init__(collect_device="cpu")
        self.class_scores: dict[str, dict[str, float | int | None]] = {}
        self.confusion_file = confusion_file

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the scores that an evaluation gives; top-5 says nothing of five classes or fewer."""
        classes = (self.dataset_meta or {}).get("classes")
        return ("top1", *(("top5",) if classes is None or len(classes) > TOP else ()), "val_loss")

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keep label, top-5 classes and loss of each image."""
        for sample in data_samples:
            top = sample["scores"].topk(min(TOP, len(sample["scores"]))).indices.tolist()
            self.results.append((sample["gt_label"], top, sample["loss"]))

    def compute_metrics(self, results: list[tuple[int, list[int], float]]) -> dict[str, float]:
        """Average over the data set.

        Args:
            results: Label, top-5 classes and loss of each image.

        Returns:
            ``top1`` and, of more than five classes, ``top5`` in percent, ``val_loss``.
        """
        labels = np.array([label for label, _, _ in results])
        first = np.array([top[0] for _, top, _ in results])
        classes = (self.dataset_meta or {}).get("classes", ())
        right = np.bincount(labels[first == labels], minlength=len(classes))
        images = np.bincount(labels, minlength=len(classes))
        self.class_scores = {
            name: {
                "top1": 100 * float(right[index] / images[index]) if images[index] else None,
                "images": int(images[index]),
            }
            for index, name in enumerate(classes)
        }
        if self.confusion_file:
            write_json(Path(self.confusion_file), count_confusions(classes, labels, first))
        scores = {
            "top1": 100 * float(np.mean(first == labels)),
            "top5": 100 * float(np.mean([label in top for label, top, _ in results])),
            "val_loss": float(np.mean([loss for _, _, loss in results])),
        }
        return {name: scores[name] for name in self.score_names}
