"""Metrics and transforms for the suites of robustness: subsets of classes, several labels, conflicting cues."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.registry import DATASETS, METRICS, TRANSFORMS
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, functional

from backbones.errors import DataError
from classification.data import CenterCrop, ClassificationTransform, FolderDataset, list_images
from classification.decode import read_rgb
from classification.metric import TOP

WORST = 6  # images that are kept of each set
_REAL_FILE, _REAL_IMAGES = "imagenet_real_labels.json", 50_000
_REAL_NAME = "ILSVRC2012_val_{:08d}.JPEG"


@dataclass(frozen=True)
class Decision:
    """What a classifier decided for an image.

    Attributes:
        path: Image file.
        label: Label of the image.
        top: Up to five classes, the most probable one first.
        confidence: Probability of the first among the classes that are considered.
        right: Whether the first class is right; ``None`` where the image has no label.
        right5: Whether one of the five is.
    """

    path: str
    label: int
    top: list[int]
    confidence: float
    right: bool | None
    right5: bool


@METRICS.register_module()
class RobustnessMetric(BaseMetric):
    """Top-1 and top-5 among a subset of the classes, with calibration and the images that are most wrong.

    Args:
        classes: Positions of the classes among which is decided, as in ImageNet-A and -R; ``None`` for all.
        groups: Classes that are right for each label, as in ObjectNet; ``None`` where labels are classes.
        real: Whether the labels are those of ReaL, several or none for an image of ImageNet's validation set.
        total: Number of images of the whole suite, to which an accuracy ``top1_of_all`` refers; ``None`` for none.
        keep_confidences: Whether the confidence of each image is kept, for calibration.

    Attributes:
        details: The ``worst`` images, the most confident mistakes, and ``confidences`` and ``right`` of each image, of
            the last evaluation.
    """

    default_prefix = ""  # of the scores' names; without one mmengine warns

    def __init__(
        self,
        classes: Sequence[int] | None = None,
        groups: Sequence[Sequence[int]] | None = None,
        real: bool = False,
        total: int | None = None,
        keep_confidences: bool = False,
    ) -> None:
        super().__init__(collect_device="cpu")
        self.keep_confidences = keep_confidences
        self.classes = None if classes is None else np.array(classes)
        self.groups, self.real, self.total = groups, real, total
        self.details: dict[str, Any] = {}

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keep the decision of each image."""
        for sample in data_samples:
            path, label, scores = sample["img_path"], int(sample["gt_label"]), sample["scores"].double().numpy()
            # The softmax keeps the order of the logits, so that the subset's argmax is that of its logits.
            kept = np.arange(len(scores)) if self.classes is None else self.classes
            order = np.argsort(-scores[kept], kind="stable")[:TOP]
            top, allowed = kept[order].tolist(), self._right_classes(path, label)
            self.results.append(
                Decision(
                    path=path,
                    label=label,
                    top=top,
                    confidence=float(scores[top[0]] / scores[kept].sum()),
                    right=top[0] in allowed if allowed else None,
                    right5=any(one in allowed for one in top),
                )
            )

    def _right_classes(self, path: str, label: int) -> Sequence[int]:
        if self.real:
            return real_labels(os.path.basename(path))
        return [label] if self.groups is None else self.groups[label]

    def compute_metrics(self, results: list[Decision]) -> dict[str, float]:
        """Average over the images that have a label.

        Args:
            results: Decision of each image.

        Returns:
            ``top1`` and, of more than five classes, ``top5`` in percent, and the number of ``images``.

        Raises:
            DataError: If no image has a label.
        """
        labelled = [one for one in results if one.right is not None]
        if not labelled:
            raise DataError("no image of the set has a label: the accuracy of none is no number")
        worst = sorted((one for one in labelled if not one.right), key=lambda one: -one.confidence)[:WORST]
        self.details = {
            "worst": [
                {
                    "image": one.path,
                    "right": list(self._right_classes(one.path, one.label)),
                    "predicted": one.top[0],
                    "confidence": one.confidence,
                }
                for one in worst
            ],
            "worst_by": "mistakes of the greatest confidence",
        }
        if self.keep_confidences:
            self.details["confidences"] = [round(one.confidence, 6) for one in labelled]
            self.details["right"] = [bool(one.right) for one in labelled]
        right = sum(bool(one.right) for one in labelled)
        scores: dict[str, float] = {"top1": 100 * right / len(labelled)}
        if len((self.dataset_meta or {}).get("classes", range(TOP + 1))) > TOP:
            scores["top5"] = 100 * sum(one.right5 for one in labelled) / len(labelled)
        scores["images"] = len(labelled)
        return scores if self.total is None else {**scores, "top1_of_all": 100 * right / self.total}


@METRICS.register_module()
class CueConflictMetric(BaseMetric):
    """Decisions for shape and for texture on images whose cues conflict, named ``<shape><n>-<texture><n>.png``.

    The probability of a category is the mean over its classes of ImageNet (Geirhos et al., ICLR 2019, appendix A.2).

    Args:
        categories: Positions of the classes of each category, by its name.
    """

    default_prefix = ""  # of the scores' names; without one mmengine warns

    def __init__(self, categories: Mapping[str, Sequence[int]]) -> None:
        super().__init__(collect_device="cpu")
        self.categories = {name: list(classes) for name, classes in categories.items()}

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keep shape, texture and decision of each image."""
        for sample in data_samples:
            cues = [part.rstrip("0123456789") for part in Path(sample["img_path"]).stem.split("-")]
            if len(cues) != 2 or not set(cues) <= set(self.categories):
                raise DataError(f"{sample['img_path']!r}: the name is not <shape><n>-<texture><n> of the categories")
            scores = {name: float(sample["scores"][classes].mean()) for name, classes in self.categories.items()}
            self.results.append((*cues, max(scores, key=lambda name: scores[name])))

    def compute_metrics(self, results: list[tuple[str, str, str]]) -> dict[str, float]:
        """Count the decisions on images whose cues differ.

        Args:
            results: Shape, texture and decision of each image.

        Returns:
            Numbers of ``shape`` and ``texture`` decisions and of ``images``, and the ``shape_bias`` in percent of the
            former two.
        """
        conflicts = [one for one in results if one[0] != one[1]]
        shape = sum(decided == form for form, _, decided in conflicts)
        texture = sum(decided == surface for _, surface, decided in conflicts)
        bias = 100 * shape / (shape + texture) if shape + texture else float("nan")
        return {"shape_bias": bias, "shape": shape, "texture": texture, "images": len(conflicts)}


@cache
def _real_label_lists() -> list[list[int]]:
    lists: list[list[int]] = json.loads(timm_info(_REAL_FILE))
    if len(lists) != _REAL_IMAGES:
        raise DataError(f"{_REAL_FILE} of timm has labels of {len(lists):,} images, not {_REAL_IMAGES:,}: install timm")
    return lists


def real_labels(name: str) -> list[int]:
    """Labels of ReaL of an image of ImageNet's validation set; empty for the images that it leaves out.

    Beyer et al., "Are we done with ImageNet?" (arXiv:2006.07159); the labels come with timm.

    Args:
        name: File name, ``ILSVRC2012_val_00000001.JPEG``.

    Raises:
        DataError: If it is no such name, or timm's list is incomplete.
    """
    lists, number = _real_label_lists(), name[len("ILSVRC2012_val_") :].split(".")[0]
    if not (number.isdigit() and 0 < int(number) <= len(lists) and name == _REAL_NAME.format(int(number))):
        raise DataError(f"{name!r}: ReaL's labels are found by the names ILSVRC2012_val_00000001.JPEG to ..._00050000")
    return lists[int(number) - 1]


def timm_info(name: str) -> str:
    """Content of a file of ``timm/data/_info``.

    Args:
        name: Name of the file.
    """
    return (resources.files("timm.data") / "_info" / name).read_text(encoding="utf-8")


class BorderlessCrop(CenterCrop):
    """Loads the centre crop of an image file after a border has been cut off.

    Args:
        size: Side of the output in pixels.
        crop_ratio: Fraction of the resized image that is kept.
        border: Width of the border in pixels.
    """

    def __init__(self, size: int, crop_ratio: float, border: int) -> None:
        super().__init__(size, crop_ratio)
        self.border = border

    def __call__(self, path: str) -> Tensor:
        """Load an image file as ``(3, size, size)``, uint8."""
        image, border = read_rgb(path), self.border
        pixels: Tensor = self.transform(image.crop((border, border, image.width - border, image.height - border)))
        return pixels


@TRANSFORMS.register_module()
class BorderlessTransform(ClassificationTransform):
    """A :class:`~classification.data.ClassificationTransform` for images with a border, such as ObjectNet's.

    Args:
        size: Side of the network's input in pixels.
        crop_ratio: Fraction of the resized image that the crop keeps.
        border: Width in pixels of the border.
    """

    def __init__(self, size: int, crop_ratio: float, border: int) -> None:
        super().__init__(size, crop_ratio=crop_ratio)
        self.load = BorderlessCrop(size, crop_ratio, border)


@TRANSFORMS.register_module()
class WarpInputs:
    """Resize ``inputs``, uint8 ``(3, h, w)``, to a square with Pillow's bicubic resampling.

    Args:
        size: Side of the square in pixels.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Replace the inputs of a sample."""
        image = Image.fromarray(sample["inputs"].permute(1, 2, 0).numpy())
        warped = functional.resize(image, [self.size, self.size], InterpolationMode.BICUBIC)
        return {**sample, "inputs": functional.pil_to_tensor(warped)}


@DATASETS.register_module()
class SomeFolders(FolderDataset):
    """Images of those class folders alone that are listed; other folders are not read.

    Args:
        folders: Names of the class folders; a label is a position in this list.
        data_root: Folder of the data set.
        split: Sub-folder of the class folders.
        **settings: Further arguments of :class:`~classification.data.FolderDataset`.
    """

    def __init__(self, folders: Sequence[str], data_root: str, split: str, **settings: Any) -> None:
        self.folders = tuple(folders)
        super().__init__(data_root=data_root, split=split, **settings)

    def load_data_list(self) -> list[dict[str, Any]]:
        """List the images in sorted order, with their labels.

        Raises:
            DataError: If there is none.
        """
        root = Path(str(self.data_root), self.split)
        found = [(label, root / name) for label, name in enumerate(self.folders) if (root / name).is_dir()]
        samples = [
            {"img_path": image, "gt_label": label}
            for label, folder in found
            for image in sorted(list_images(folder, suffixes=self.suffixes))[:: self.every]
        ]
        if not samples:
            raise DataError(f"{str(root)!r} holds no image of {len(self.folders)} class folders")
        return samples
