"""Predictions of a segmentor: those of one image in Python, and label PNGs as the data set stores them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from PIL import Image
from torch import Tensor

from engine.prediction.predictor import Prediction
from segmentation.data import without_suffix


class LabelPrediction(Prediction):
    """What a segmentor predicts for an image.

    Attributes:
        labels: Position of the class of each pixel, (H, W), int64.
    """

    @property
    def labels(self) -> Tensor:
        labels: Tensor = self.sample.pred_sem_seg.data.squeeze(0)
        return labels

    def shares(self) -> dict[str, float]:
        """Share of the image that each class covers, of those that cover any, the largest first."""
        counts = torch.bincount(self.labels.flatten(), minlength=len(self.classes)) / self.labels.numel()
        shares = dict(zip(self.classes, counts.tolist(), strict=True))
        return {name: shares[name] for name in sorted(shares, key=lambda name: -shares[name]) if shares[name]}


class LabelPngs(BaseMetric):
    """Writes the predicted class of each pixel as a grey PNG of the image's size; gives no score.

    A class is stored as in the labels of the data set: class ``i`` as ``i + 1`` with ``reduce_zero_label``, as in
    ADE20K, or as its number in ``label_values``, else as ``i``; in 16 bits where 8 do not suffice.

    Args:
        folder: Output folder.
        dataset: Resolved config of the data set, whose folders, suffixes and ``reduce_zero_label`` hold.
        images: Names of the files without suffix, by the path of the image; ``None`` for the names of the labels in
            the data set.
        values: Stored value of each class, if the config has ``label_values``.
    """

    default_prefix = "results"

    def __init__(
        self,
        folder: Path,
        dataset: Mapping[str, Any],
        images: Mapping[Path, str] | None,
        values: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.folder, self.images = folder, images
        self.image_folder = os.path.join(dataset.get("data_root") or "", dataset["data_prefix"].get("img_path") or "")
        self.image_suffix = dataset.get("img_suffix", ".jpg")
        suffix = dataset.get("seg_map_suffix", ".png")
        self.suffix = suffix if suffix.lower().endswith(".png") else os.path.splitext(suffix)[0] + ".png"
        offset, classes = int(bool(dataset.get("reduce_zero_label", False))), len(dataset["metainfo"]["classes"])
        stored = values or range(offset, classes + offset)
        self.stored = np.array(stored, np.uint8 if max(stored) < 256 else np.uint16)

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Write the labels of a batch."""
        for sample in data_samples:
            labels = self.stored[sample["pred_sem_seg"]["data"].squeeze(0).cpu().numpy()]
            path = self.folder / f"{self._name(sample['img_path'])}{self.suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels).save(path)
            self.results.append(path.name)  # mmengine warns of an evaluation without results

    def _name(self, path: str) -> str:
        if self.images is not None:
            return self.images[Path(path)]
        name = os.path.relpath(path, self.image_folder)
        stem = without_suffix(name, self.image_suffix)
        return name if stem is None else stem

    def compute_metrics(self, results: list[str]) -> dict[str, float]:
        """Return no scores."""
        return {}


def label_pngs(cfg: Config, folder: Path, images: Mapping[Path, str] | None) -> LabelPngs:
    """Return the writer of label PNGs for a resolved config.

    Args:
        cfg: Resolved config.
        folder: Output folder, which exists.
        images: Names of the images that are predicted, by path; ``None`` for those of the test data.
    """
    return LabelPngs(folder, cfg.test_dataloader.dataset, images, cfg.get("label_values"))
