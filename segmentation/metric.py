"""Intersection over union, of the mean and of each class."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS

LOWEST_IOU = "lowest mean IoU over the classes that the truth or the prediction of the image has"


@METRICS.register_module()
class ClassIoUMetric(IoUMetric):
    """mmseg's ``IoUMetric`` that keeps the scores of each class, in place of printing them as a table.

    Takes the arguments of ``IoUMetric``, in whose place it is used where a config names that.

    Attributes:
        class_scores: ``IoU`` and ``Acc`` of each class in percent, ``None`` for a class without pixels; of the last
            evaluation, in the main process.
        worst_kept: Number of images with the lowest IoU that ``details`` lists; it is 0 unless it is set.
        details: ``worst`` images by their index in the data set, and ``worst_by``, what is measured, of the last
            evaluation with ``worst_kept``.
    """

    default_prefix = ""  # of the scores' names; without one mmengine warns

    def __init__(self, *args: object, **settings: object) -> None:
        super().__init__(*args, **settings)
        self.class_scores: dict[str, dict[str, float | None]] = {}
        self.worst_kept = 0
        self.details: dict[str, Any] = {}

    @property
    def score_names(self) -> tuple[str, ...] | None:
        """Names of the scores that an evaluation gives; ``None`` for other metrics than IoU."""
        return ("aAcc", "mIoU", "mAcc") if self.metrics == ["mIoU"] and not self.format_only else None

    def compute_metrics(self, results: list[tuple[torch.Tensor, ...]]) -> dict[str, float]:
        """Sum up over the data set.

        Args:
            results: Pixels of intersection, union, prediction and truth of each class, (K,) each, of each image.

        Returns:
            ``aAcc``, ``mIoU`` and ``mAcc`` in percent, rounded to two digits as in mmseg.
        """
        if self.format_only:
            return dict(super().compute_metrics(results))
        if self.worst_kept:
            self.details = {"worst": _worst(results, self.worst_kept), "worst_by": LOWEST_IOU}
        areas = [sum(parts) for parts in zip(*results, strict=True)]
        values = self.total_area_to_metrics(*areas, self.metrics, self.nan_to_num, self.beta)
        percents = {name: np.round(100 * value, 2) for name, value in values.items() if name != "aAcc"}
        self.class_scores = {
            name: {key: None if np.isnan(value[index]) else float(value[index]) for key, value in percents.items()}
            for index, name in enumerate(self.dataset_meta["classes"])
        }
        means = {name: np.round(100 * np.nanmean(value), 2) for name, value in values.items()}
        return {name if name == "aAcc" else f"m{name}": mean for name, mean in means.items()}


def _worst(results: list[tuple[torch.Tensor, ...]], count: int) -> list[dict[str, Any]]:
    """The images with the lowest mean IoU, by their index, the worst one first; none without a labelled pixel."""
    values = []
    for intersection, union, *_ in results:
        there = union > 0
        values.append(float((intersection[there] / union[there]).double().mean()) if there.any() else 1.0)
    worst = np.argsort(values, kind="stable")[:count].tolist()
    return [{"index": index, "caption": f"IoU {100 * values[index]:.1f}"} for index in worst if values[index] < 1]
