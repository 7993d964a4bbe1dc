"""The loss of a validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS


@METRICS.register_module()
class ReconstructionLoss(BaseMetric):
    """Mean squared error over the hidden units, averaged over the images; each image keeps its mask."""

    default_prefix = ""  # of the scores' names; without one mmengine warns
    score_names = ("reconstruction_loss",)

    def __init__(self) -> None:
        super().__init__(collect_device="cpu")

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keep the loss of each image."""
        self.results += [sample["loss"] for sample in data_samples]

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        """Average over the data set."""
        return {"reconstruction_loss": float(np.mean(results))}
