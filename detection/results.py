"""Detections of one image in Python, and files in COCO's results format, for its evaluation server and the COCO API."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.evaluator import BaseMetric
from torch import Tensor

from detection.annotations import add_categories, category_ids, read_annotations
from detection.coco_metric import ImageDetections, image_detections
from engine.data.paths import real_path
from engine.data.shards.unpacked import data_file
from engine.prediction.predictor import Prediction


class Detections(Prediction):
    """What a detector finds in an image, in the order of the scores; ``test_cfg`` says how many it keeps.

    Attributes:
        boxes: Left, top, right and bottom in pixels, (N, 4), float32.
        scores: Score of each object, (N,), float32.
        labels: Position of the class of each object, (N,), int64.
        masks: Pixels of each object, (N, H, W), bool; ``None`` of a detector without masks.
    """

    @property
    def boxes(self) -> Tensor:
        boxes: Tensor = self.sample.pred_instances.bboxes
        return boxes

    @property
    def scores(self) -> Tensor:
        scores: Tensor = self.sample.pred_instances.scores
        return scores

    @property
    def labels(self) -> Tensor:
        labels: Tensor = self.sample.pred_instances.labels
        return labels

    @property
    def masks(self) -> Tensor | None:
        masks: Tensor | None = self.sample.pred_instances.get("masks")
        return masks

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """The objects in COCO's results format.

        Args:
            image_id: Id of the image in the annotation file.

        Returns:
            A dict for each object with ``image_id``, ``category_id``, ``score``, ``bbox`` (left, top, width, height
                in pixels) and, with masks, ``segmentation`` (run-length code). Category ids are those of the test
                data's annotation file; where it is absent, the classes are numbered from 1.
        """
        ids = list(coco_categories(self.config.test_dataloader.dataset))
        found = image_detections(self.sample.to_dict(), image_id)
        return [
            box | ({} if found.masks is None else {"segmentation": _text_code(found.masks[index])})
            for index, box in enumerate(_box_entries(found, ids))
        ]


class CocoResults(BaseMetric):
    """Writes ``bbox.json`` and, with masks, ``segm.json`` in COCO's results format; gives no score.

    Each is a list of ``image_id``, ``category_id``, ``score`` and ``bbox`` (left, top, width, height in pixels) or
    ``segmentation`` (run-length code), with the ids of the annotation file (https://cocodataset.org/#format-results).

    For images that are not those of the test data, ``images.json`` lists their ids, names and sizes.

    Args:
        folder: Output folder.
        categories: Names of the categories by id, in the order of the classes.
        image_ids: Image ids by real path, for images that are not read by the data set; ``None`` for the data set's.
    """

    default_prefix = "results"

    def __init__(self, folder: Path, categories: Mapping[int, str], image_ids: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self.folder, self.categories, self.image_ids = folder, categories, image_ids
        self.images: list[dict[str, Any]] = []

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keep the detections of a batch."""
        for sample in data_samples:
            image_id = sample["img_id"]
            if self.image_ids is not None:
                path, (height, width) = sample["img_path"], sample["ori_shape"]
                image_id = self.image_ids[real_path(path)]
                self.images.append({"id": image_id, "file_name": Path(path).name, "width": width, "height": height})
            self.results.append(image_detections(sample, image_id))

    def compute_metrics(self, results: list[ImageDetections]) -> dict[str, float]:
        """Write the files; returns no scores."""
        ids = list(self.categories)
        boxes, masks = [], []
        for image in results:
            boxes += (entries := _box_entries(image, ids))
            for entry, code, score in zip(entries, image.masks or (), image.mask_scores.tolist(), strict=False):
                kept = {name: entry[name] for name in ("image_id", "category_id")}
                masks.append({**kept, "segmentation": _text_code(code), "score": score})
        content: dict[str, Any] = {"bbox": boxes}
        if any(image.masks is not None for image in results):
            content["segm"] = masks
        if self.image_ids is not None:
            named = [{"id": number, "name": name} for number, name in self.categories.items()]
            content["images"] = {"images": self.images, "categories": named}
        for name, entries in content.items():
            (self.folder / f"{name}.json").write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
        return {}


def coco_results(cfg: Config, folder: Path, images: Mapping[Path, str] | None) -> CocoResults:
    """Return the writer of COCO's results for a resolved config.

    Ids are those of the test data's annotation file. Images that it does not list get the ids that follow; without the
    file, classes and images are numbered from 1.

    Args:
        cfg: Resolved config.
        folder: Output folder, which exists.
        images: Names of the images that are predicted, by path; ``None`` for those of the test data.

    Raises:
        DataError: If no class is a category of the annotation file.
    """
    dataset = cfg.test_dataloader.dataset
    content = _annotations(dataset)
    named = _categories(content, list(dataset.metainfo["classes"]))
    if images is None:
        return CocoResults(folder, named)
    root = Path(dataset.get("data_root") or "", dataset.get("data_prefix", {}).get("img") or "")
    known = {real_path(str(root / image["file_name"])): image["id"] for image in content.get("images", [])}
    following = max(known.values(), default=0) + 1
    image_ids: dict[str, int] = {}
    for path in (real_path(str(image)) for image in images):
        image_ids[path] = known.get(path, following)
        following += path not in known
    return CocoResults(folder, named, image_ids)


def coco_categories(dataset: ConfigDict) -> dict[int, str]:
    """Names of the classes of a data set by the ids of its annotation file, in their order.

    Raises:
        DataError: If no class is a category of the annotation file.
    """
    return _categories(_annotations(dataset), list(dataset.metainfo["classes"]))


def _categories(content: dict[str, Any], classes: list[str]) -> dict[int, str]:
    if content.get("categories"):
        add_categories(content, classes)
    categories = content.get("categories") or [{"id": i, "name": name} for i, name in enumerate(classes, 1)]
    return dict(zip(category_ids(categories, classes), classes, strict=True))


def _box_entries(image: ImageDetections, ids: Sequence[int]) -> list[dict[str, Any]]:
    """The boxes of an image in COCO's results format."""
    return [
        {"image_id": image.image_id, "category_id": ids[label], "bbox": box, "score": score}
        for label, box, score in zip(image.labels.tolist(), image.boxes.tolist(), image.scores.tolist(), strict=True)
    ]


def _text_code(code: dict[str, Any]) -> dict[str, Any]:
    """A compressed run-length code as JSON: its counts are text."""
    counts = code["counts"]
    return {"size": code["size"], "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def _annotations(dataset: ConfigDict) -> dict[str, Any]:
    """Content of the annotation file of a data set, nothing where it is absent."""
    path = Path(dataset.get("data_root") or "", dataset.get("ann_file") or "")
    if not data_file(path).is_file():
        return {}
    content: dict[str, Any] = read_annotations(path)
    return content
