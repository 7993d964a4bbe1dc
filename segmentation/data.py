"""ADE20K-format data: an image folder and a folder of label PNGs, with any classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import DATASETS, TRANSFORMS

from backbones.errors import UserError

IGNORE = 255


@DATASETS.register_module()
class LabelPngDataset(BaseSegDataset):
    """Images and label PNGs of the same stem; every image needs its labels, and the other way round.

    Takes the arguments of mmseg's ``BaseSegDataset``.
    """

    def load_data_list(self) -> list[dict[str, Any]]:
        """List pairs of image and labels in sorted order.

        Raises:
            UserError: If a folder is absent or empty, or a file has no partner.
        """
        images = self._stems(self.data_prefix["img_path"], self.img_suffix)
        labels = self._stems(self.data_prefix["seg_map_path"], self.seg_map_suffix)
        lonely = sorted(images ^ labels)
        if lonely:
            what = "labels" if lonely[0] in images else "image"
            raise UserError(
                f"{len(lonely)} files under {self.data_root!r} have no partner: {lonely[0]!r} has no {what}"
            )
        return super().load_data_list()

    @staticmethod
    def _stems(folder: str, suffix: str) -> set[str]:
        if not Path(folder).is_dir():
            raise UserError(f"no folder {folder!r}: put the data there, or set data_root")
        stems = {str(path.relative_to(folder)).removesuffix(suffix) for path in Path(folder).rglob(f"*{suffix}")}
        if not stems:
            raise UserError(f"no {suffix} file in {folder!r}")
        return stems


@TRANSFORMS.register_module()
class LoadLabels(LoadAnnotations):
    """mmseg's loading of a label PNG, with every value checked against the classes.

    With ``reduce_zero_label`` value 0 means "not labelled" and class ``i`` is stored as ``i + 1``, as in ADE20K.

    Args:
        num_classes: Number of classes, set from the config's ``classes``.
        reduce_zero_label: Whether 0 is to be ignored and the rest shifted down.
        unlabelled: A stored value, beside 255, that means "not labelled"; ``None`` for no other.
    """

    def __init__(self, num_classes: int, reduce_zero_label: bool, unlabelled: int | None = None) -> None:
        super().__init__(reduce_zero_label=reduce_zero_label, imdecode_backend="pillow")
        self.num_classes, self.unlabelled = num_classes, unlabelled

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Load and check.

        Raises:
            UserError: If a value stands for no class, or the image is coloured.
        """
        results = super().transform(results)
        labels = results["gt_seg_map"]
        if labels.ndim > 2:
            raise UserError(
                f"{results['seg_map_path']}: a label image has one channel (grey or palette), not {labels.shape[-1]}"
            )
        if self.unlabelled is not None:
            labels[labels == self.unlabelled - int(bool(self.reduce_zero_label))] = IGNORE
        wrong = np.unique(labels[(labels >= self.num_classes) & (labels != IGNORE)])
        if len(wrong):
            stored = int(wrong[0]) + int(bool(self.reduce_zero_label))
            raise UserError(
                f"{results['seg_map_path']}: label value {stored} stands for no class ({self.num_classes} classes, "
                f"reduce_zero_label={self.reduce_zero_label}); check classes, or set unlabelled"
            )
        return results
