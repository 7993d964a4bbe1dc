"""Data in ADE20K's format: a folder of images and a folder of label PNGs, with any classes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.registry import DATASETS, MODELS, TRANSFORMS

from backbones.channels import ChannelStatistics
from backbones.errors import ConfigError, DataError
from engine.config.schema import is_whole
from engine.data.image_files import read_stored_values
from engine.data.paths import leads_outside
from engine.data.shards.unpacked import named_files, read_data_file, stored_path
from engine.data.stored_image import StoredFile

IGNORE_INDEX = 255  # label of pixels that are not labelled


@MODELS.register_module()
class AnyChannelsSegDataPreProcessor(ChannelStatistics, SegDataPreProcessor):
    """mmseg's ``SegDataPreProcessor`` with mean and deviation of any number of channels."""


def as_suffixes(stated: str | Sequence[str]) -> tuple[str, ...]:
    """The suffixes that a data set states, one or several; the longest first."""
    return (stated,) if isinstance(stated, str) else tuple(sorted(stated, key=lambda suffix: (-len(suffix), suffix)))


def without_suffix(name: str, suffixes: str | Sequence[str]) -> str | None:
    """The name of a file without the suffix that it has of some; ``None`` if it has none of them."""
    fits = (suffix for suffix in as_suffixes(suffixes) if name.endswith(suffix))
    return next((name.removesuffix(suffix) for suffix in fits), None)


def names_by_stem(names: Iterable[str], suffixes: str | Sequence[str]) -> dict[str, list[str]]:
    """Names of files that have one of some suffixes, sorted, by the name without it."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        if (stem := without_suffix(name, suffixes)) is not None:
            found.setdefault(stem, []).append(name)
    return found


@DATASETS.register_module()
class LabelPngDataset(BaseSegDataset):
    """Images and label PNGs of the same stem; every image needs labels, and all labels an image.

    Takes the arguments of mmseg's ``BaseSegDataset``, and as ``img_suffix`` several suffixes too, such as
    ``(".jpg", ".png")``. With ``ann_file``, a file with a name per line, the other files of the folders do not count.
    Without ``seg_map_path`` in ``data_prefix`` it lists images alone.
    """

    def load_data_list(self) -> list[dict[str, Any]]:
        """List pairs of image and labels in sorted order.

        Raises:
            DataError: If a folder is missing or empty, a file has no partner or two, or ``ann_file`` names a file
                elsewhere.
        """
        self._paths: dict[str, str] = {}
        images = self._by_stem(self.data_prefix["img_path"], self.img_suffix)
        if "seg_map_path" not in self.data_prefix:  # a test set whose labels a server keeps
            names = sorted(name for found in images.values() for name in found)
            paths = (os.path.join(self.data_prefix["img_path"], name) for name in names)
            return [{"img_path": self._paths.get(path, path), "seg_fields": []} for path in paths]
        labels = self._by_stem(self.data_prefix["seg_map_path"], self.seg_map_suffix)
        if twice := sorted(stem for stem, names in images.items() if len(names) > 1):
            raise DataError(f"{self.data_prefix['img_path']!r}: {' and '.join(images[twice[0]])} have the same labels")
        self._image_names = {stem: names[0] for stem, names in images.items()}
        if not self.ann_file:
            if unpaired := sorted(images.keys() ^ labels.keys()):
                partner = "labels" if unpaired[0] in images else "image"
                raise DataError(
                    f"{len(unpaired)} files under {self.data_root!r} have no partner: {unpaired[0]!r} has no {partner}"
                )
            return [self._pair(stem) for stem in sorted(images, key=lambda stem: self._image_names[stem])]
        if not Path(self.ann_file).is_file() and not isinstance(stored_path(self.ann_file), StoredFile):
            raise DataError(f"{self.ann_file!r} is no file with a name of an image per line")
        lines = read_data_file(self.ann_file).decode("utf-8-sig").splitlines()
        pairs = [self._pair(line.strip()) for line in lines if line.strip()]
        for info in pairs:
            for key in ("img_path", "seg_map_path"):
                if leads_outside(self.data_prefix[key], os.path.abspath(info[key])):
                    raise DataError(f"{self.ann_file}: {info[key]!r} leads out of {self.data_prefix[key]!r}")
        return pairs

    def _pair(self, stem: str) -> dict[str, Any]:
        """The entry that mmseg makes of a pair; its own search reads hidden folders and follows circular links."""
        name = self._image_names.get(stem, stem + as_suffixes(self.img_suffix)[0])
        image = os.path.join(self.data_prefix["img_path"], name)
        labels = os.path.join(self.data_prefix["seg_map_path"], stem + self.seg_map_suffix)
        return {
            "img_path": self._paths.get(image, image),
            "seg_map_path": self._paths.get(labels, labels),
            "label_map": self.label_map,
            "reduce_zero_label": self.reduce_zero_label,
            "seg_fields": [],
        }

    def get_cat_ids(self, idx: int) -> list[int]:
        """Classes in the labels of an image, for mmengine's ``ClassBalancedDataset``, which asks for all at first."""
        steps = (step for step in self.pipeline.transforms if isinstance(step, LoadLabels))
        load = next(steps, None) or LoadLabels(len(self.metainfo["classes"]))
        values: list[int] = np.unique(load(self.get_data_info(idx))["gt_seg_map"]).tolist()
        return [value for value in values if value != IGNORE_INDEX]

    def _by_stem(self, folder: str, suffix: str | Sequence[str]) -> dict[str, list[str]]:
        files = named_files(folder, [])
        if files is None:
            raise DataError(f"no folder {folder!r}: put the data there, or set data_root")
        self._paths |= {path: path for path in files.values() if isinstance(path, StoredFile)}
        found = names_by_stem(files, suffix)
        if not found:
            raise DataError(f"no {' or '.join(as_suffixes(suffix))} file in {folder!r}")
        return found


@TRANSFORMS.register_module()
class LoadLabels(LoadAnnotations):
    """mmseg's ``LoadAnnotations`` that checks every label value against the classes.

    With ``reduce_zero_label`` value 0 means "not labelled" and class ``i`` is stored as ``i + 1``, as in ADE20K.

    Args:
        num_classes: Number of classes, set from the config's ``classes``.
        reduce_zero_label: Whether 0 is ignored and the other values are lowered by 1; ``None`` for what the data set
            says.
        unlabelled: Stored value that means "not labelled", like 255; ``None`` for no other value.
        label_values: Stored value of each class where they are not 0, 1, 2..., such as (0, 255) for masks.

    Raises:
        ConfigError: If the label values are not one for each class.
    """

    def __init__(
        self,
        num_classes: int,
        reduce_zero_label: bool | None = None,
        unlabelled: int | None = None,
        label_values: Sequence[int] | None = None,
    ) -> None:
        super().__init__(reduce_zero_label=reduce_zero_label, imdecode_backend="pillow")
        self.num_classes, self.unlabelled, self.stated_reduce = num_classes, unlabelled, reduce_zero_label
        self.label_values = label_values
        if label_values is not None:
            whole = all(is_whole(value, 0, IGNORE_INDEX) for value in label_values)
            if not whole or not num_classes == len(set(label_values)) == len(label_values) or reduce_zero_label:
                raise ConfigError(
                    f"label_values={tuple(label_values)}: needs {num_classes} different numbers from 0 to 255, one for "
                    "each class, and no reduce_zero_label"
                )
            if unlabelled in label_values:
                raise ConfigError(f"unlabelled={unlabelled} is a class in label_values={tuple(label_values)}")

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Load ``seg_map_path`` as ``gt_seg_map``, (H, W), uint8.

        Raises:
            DamagedImageError: If the file cannot be decoded.
            DataError: If a value stands for no class, or the labels are coloured or not of the image's size.
        """
        results = super().transform(results)
        labels, path = results["gt_seg_map"], results["seg_map_path"]
        if "ori_shape" in results and labels.shape != tuple(results["ori_shape"]):
            sizes = [f"{width} x {height}" for height, width in (labels.shape, results["ori_shape"])]
            raise DataError(f"{path}: the labels are {sizes[0]}, their image is {sizes[1]} pixels large")
        if self.unlabelled is not None and self.label_values is None:
            labels[labels == self.unlabelled - int(bool(self.reduce_zero_label))] = IGNORE_INDEX
        wrong = np.unique(labels[(labels >= self.num_classes) & (labels != IGNORE_INDEX)])
        if len(wrong):
            raise self._wrong_value(path, int(wrong[0]) + int(bool(self.reduce_zero_label)))
        return results

    # mmseg has no public method that only reads the labels.
    def _load_seg_map(self, results: dict[str, Any]) -> None:
        """Read the labels; mmseg's own reading truncates 16-bit values to 8 bits silently."""
        path = results["seg_map_path"]
        labels = read_labels(path, self.backend_args)
        if self.stated_reduce is None:
            self.reduce_zero_label = bool(results["reduce_zero_label"])
        if self.reduce_zero_label != results["reduce_zero_label"]:
            raise ConfigError(
                f"reduce_zero_label is {results['reduce_zero_label']} of the data set and {self.reduce_zero_label} of "
                "LoadLabels: set both to the same value"
            )
        for value in (labels.max(initial=0), labels.min(initial=0)):
            if not 0 <= value <= IGNORE_INDEX:
                raise self._wrong_value(path, int(value))
        labels = labels.astype(np.uint8)
        if self.label_values is not None:
            labels = self._classes_of(labels, path)
        if self.reduce_zero_label:
            labels = np.where((labels == 0) | (labels == IGNORE_INDEX), IGNORE_INDEX, labels - 1).astype(np.uint8)
        if results.get("label_map") is not None:
            table = np.arange(IGNORE_INDEX + 1, dtype=np.uint8)
            table[list(results["label_map"])] = list(results["label_map"].values())
            labels = table[labels]
        results["gt_seg_map"] = labels
        results["seg_fields"].append("gt_seg_map")

    def _classes_of(self, labels: np.ndarray, path: str) -> np.ndarray:
        values = list(self.label_values or ())
        known = {*values, IGNORE_INDEX, self.unlabelled}
        if wrong := [int(value) for value in np.unique(labels) if int(value) not in known]:
            raise DataError(f"{path}: label value {wrong[0]} stands for no class (label_values={tuple(values)})")
        table = np.full(IGNORE_INDEX + 1, IGNORE_INDEX, np.uint8)
        table[values] = range(len(values))
        return table[labels]

    def _wrong_value(self, path: str, stored: int) -> DataError:
        return DataError(
            f"{path}: label value {stored} stands for no class ({self.num_classes} classes, "
            f"reduce_zero_label={self.reduce_zero_label}); check classes, or set unlabelled"
        )


def read_labels(path: str, backend_args: dict[str, Any] | None = None) -> np.ndarray:
    """Read the values of a label image, (H, W), as stored: a TIFF alone is turned by its EXIF orientation.

    Args:
        path: Label image.
        backend_args: Arguments of mmengine's file backend.

    Raises:
        DamagedImageError: If the file cannot be decoded.
        DataError: If the image has several channels.
    """
    labels = read_stored_values(path, backend_args)
    if labels.ndim > 2:
        raise DataError(f"{path}: a label image has one channel (grey or palette), not {labels.shape[-1]}")
    if labels.dtype.kind == "f":
        raise DataError(f"{path}: the labels are 32-bit floating-point numbers: save the class numbers with 8 bits")
    return labels
