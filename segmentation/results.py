"""Predictions of a segmentor: those of one image in Python, and files, such as label PNGs of its data set's kind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from pycocotools import mask as coco_masks
from torch import Tensor

from backbones.files import atomic_write
from engine.config.classes import class_colours
from engine.prediction.images import NamedImage
from engine.prediction.polygons import labelme_file, labelme_shape, mask_polygons, polygon_area
from engine.prediction.predictor import Prediction
from engine.prediction.result_files import (
    PROBABILITIES,
    ListWriter,
    ResultRequest,
    ResultWriter,
    TableWriter,
    write_json_file,
    write_png,
    write_zip,
)
from segmentation.data import without_suffix

COLOURED = "_coloured"  # end of the name of the folder of coloured labels, beside that of the labels


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


def _probabilities(sample: dict[str, Any]) -> np.ndarray:
    """Probability of each class at each pixel, (K, H, W), float16; of one output those of the second of two classes."""
    logits = sample["seg_logits"]["data"].float()
    values = logits.sigmoid() if len(logits) == 1 else logits.softmax(0)
    return values.half().cpu().numpy()


class SegmentationWriter(ResultWriter):
    """What the formats of a segmentor have in common: names, and the probabilities of each image in a file by choice.

    Args:
        request: Config, folder and choices.
    """

    options = (PROBABILITIES,)

    def __init__(self, request: ResultRequest) -> None:
        super().__init__(request)
        dataset = request.cfg.test_dataloader.dataset
        self.image_folder = os.path.join(dataset.get("data_root") or "", dataset["data_prefix"].get("img_path") or "")
        self.image_suffix = dataset.get("img_suffix", ".jpg")
        offset, values = int(bool(dataset.get("reduce_zero_label", False))), request.cfg.get("label_values")
        self.stored = list(values or range(offset, len(self.classes) + offset))

    def name(self, sample: dict[str, Any], image: NamedImage | None) -> str:
        """Name without suffix of what is written for one image; of the test data that of its labels."""
        if image is not None:
            return image.name
        name = os.path.relpath(sample["img_path"], self.image_folder)
        stem = without_suffix(name, self.image_suffix)
        return name if stem is None else stem

    def write(self, sample: dict[str, Any], image: NamedImage | None) -> Any:
        """Write the files of one image; returns what the files of all need."""
        labels = sample["pred_sem_seg"]["data"].squeeze(0).cpu().numpy()
        name = self.name(sample, image)
        if self.request.probabilities:
            with (
                atomic_write(self.place(f"probabilities/{name}", ".npz"), durable=False) as part,
                part.open("wb") as file,
            ):
                np.savez_compressed(file, probabilities=_probabilities(sample))
        return self.write_labels(labels, name, sample, image)

    def write_labels(self, labels: np.ndarray, name: str, sample: dict[str, Any], image: NamedImage | None) -> Any:
        """Write the classes of the pixels of one image.

        Args:
            labels: Position of the class of each pixel, (H, W).
            name: Name without suffix of what is written.
            sample: Prediction.
            image: Name of the image; ``None`` for one of the test data.
        """
        raise NotImplementedError

    def regions(self, labels: np.ndarray) -> list[tuple[dict[str, Any], np.ndarray]]:
        """The classes of an image, the largest first, with the mask of each, (H, W), boolean."""
        counts = np.bincount(labels.ravel(), minlength=len(self.classes))[: len(self.classes)]
        return [
            (
                {
                    "class": self.classes[label],
                    "class_id": label,
                    "value": int(self.stored[label]),
                    "pixels": int(counts[label]),
                    "share": round(float(counts[label] / labels.size), 6),
                },
                labels == label,
            )
            for label in np.argsort(-counts, kind="stable").tolist()
            if counts[label]
        ]


class LabelPngs(SegmentationWriter):
    """Writes the predicted class of each pixel as a grey PNG of the image's size, and a coloured one beside them.

    A class is stored as in the labels of the data set: class ``i`` as ``i + 1`` with ``reduce_zero_label``, as in
    ADE20K, or as its number in ``label_values``, else as ``i``; in 16 bits where 8 do not suffice. The colours are the
    data set's palette.

    Args:
        request: Config, folder and choices.
    """

    def __init__(self, request: ResultRequest) -> None:
        super().__init__(request)
        dataset = request.cfg.test_dataloader.dataset
        suffix = dataset.get("seg_map_suffix", ".png")
        self.suffix = suffix if suffix.lower().endswith(".png") else os.path.splitext(suffix)[0] + ".png"
        self.values = np.array(self.stored, np.uint8 if max(self.stored) < 256 else np.uint16)
        self.colours = np.array(class_colours(dataset["metainfo"]), np.uint8)
        self.coloured = self.folder.with_name(self.folder.name + COLOURED)

    def write_labels(self, labels: np.ndarray, name: str, sample: dict[str, Any], image: NamedImage | None) -> Any:
        """Write both pictures."""
        write_png(self.place(name, self.suffix), self.values[labels])
        if not self.request.submission:
            write_png(self.place(name, ".png", self.coloured), self.colours[labels])


class RegionList(SegmentationWriter, ListWriter):
    """Writes ``predictions.json``: the classes of each image with their share and their mask as a run-length code.

    Args:
        request: Config, folder and choices.
    """

    def write_labels(self, labels: np.ndarray, name: str, sample: dict[str, Any], image: NamedImage | None) -> Any:
        """Return the entry of an image."""
        segments = []
        for entry, mask in self.regions(labels):
            code = coco_masks.encode(np.asfortranarray(mask, np.uint8))
            segments.append({**entry, "mask": {"size": list(mask.shape), "counts": code["counts"].decode("ascii")}})
        height, width = labels.shape
        return {"file_name": self.file_name(sample, image), "height": height, "width": width, "segments": segments}


class RegionTable(SegmentationWriter, TableWriter):
    """Writes ``predictions.csv``: pixels and share of each class in each image.

    Args:
        request: Config, folder and choices.
    """

    header = ("class", "class_id", "value", "pixels", "share")

    def write_labels(self, labels: np.ndarray, name: str, sample: dict[str, Any], image: NamedImage | None) -> Any:
        """Return the rows of an image."""
        return [[self.location(sample, image), *entry.values()] for entry, _ in self.regions(labels)]


class RegionPolygons(SegmentationWriter):
    """Writes ``labelme/<name>.json`` for each image: outlines of the regions of each class.

    Args:
        request: Config, folder and choices.
    """

    needs_image_files = True

    def write_labels(self, labels: np.ndarray, name: str, sample: dict[str, Any], image: NamedImage | None) -> Any:
        """Write the file of an image; what lies inside of another region comes later, and so above it."""
        outlines = [(entry, part) for entry, mask in self.regions(labels) for part in mask_polygons(mask)]
        outlines.sort(key=lambda one: -polygon_area(one[1]))
        shapes = [labelme_shape(entry["class"], part, "polygon", None) for entry, part in outlines]
        path, place = Path(sample["img_path"]), self.place(f"labelme/{name}", ".json")
        height, width = labels.shape
        write_json_file(place, labelme_file(path, place, (height, width), shapes))


def pack_labels(folder: Path, method: str, cfg: Config) -> list[Path]:
    """Pack label PNGs as ADE20K's server takes them: with the names of the images, without folders, in one zip.

    Args:
        folder: Folder of :class:`LabelPngs`.
        method: Name of the method.
        cfg: Resolved config.

    Source: http://sceneparsing.csail.mit.edu/eval/, the scene parsing challenge.
    """
    pngs = sorted(path for path in folder.rglob("*.png"))
    return [write_zip(folder / f"{method}.zip", [(path, path.name) for path in pngs])]


def list_label_images(dataset: Any) -> None:
    """Have the settings of a data set list images alone, in place."""
    dataset.data_prefix.pop("seg_map_path", None)
