"""Detections as files: COCO's results format, which its evaluation server and the COCO API read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.evaluator import BaseMetric

from detection.annotations import add_categories, category_ids, read_annotations
from detection.coco_metric import ImageDetections, image_detections
from engine.data.paths import real_path
from engine.data.shards.unpacked import data_file


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
            for index, label in enumerate(image.labels.tolist()):
                entry = {"image_id": image.image_id, "category_id": ids[label]}
                boxes.append({**entry, "bbox": image.boxes[index].tolist(), "score": image.scores[index].item()})
                if image.masks is not None:
                    score = image.mask_scores[index].item()
                    masks.append({**entry, "segmentation": _text_code(image.masks[index]), "score": score})
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
    classes = list(dataset.metainfo["classes"])
    content = _annotations(dataset)
    if content.get("categories"):
        add_categories(content, classes)
    categories = content.get("categories") or [{"id": i, "name": name} for i, name in enumerate(classes, 1)]
    named = dict(zip(category_ids(categories, classes), classes, strict=True))
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
