"""Detections of one image in Python, and files in COCO's results format and others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config, ConfigDict
from pycocotools import mask as coco_masks
from torch import Tensor

from detection.annotations import add_categories, category_ids, read_annotations
from detection.coco_metric import ImageDetections, image_detections
from engine.data.paths import real_path
from engine.data.shards.unpacked import data_file
from engine.prediction.images import NamedImage
from engine.prediction.polygons import joined_polygon, labelme_file, labelme_shape, mask_polygons
from engine.prediction.predictor import Prediction
from engine.prediction.result_files import (
    MIN_SCORE,
    ListWriter,
    ResultRequest,
    ResultWriter,
    TableWriter,
    write_json_file,
    write_zip,
    written_list,
    written_text,
)

# Beginnings of the names of COCO's annotation files.
ANNOTATION_KINDS = ("image_info_", "instances_", "panoptic_")
IMAGE_KEYS = ("id", "file_name", "width", "height")  # of a list of images


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


class DetectionWriter(ResultWriter):
    """What the formats of a detector have in common: the choice of a lowest score, and the objects of an image.

    Args:
        request: Config, folder and choices.
    """

    options: tuple[str, ...] = (MIN_SCORE,)

    def found(self, sample: dict[str, Any]) -> ImageDetections:
        """The objects of an image that are written; the image is numbered elsewhere."""
        return confident(image_detections(sample, 0), self.request.min_score)

    def corners(self, found: ImageDetections) -> list[tuple[int, float, list[float]]]:
        """Label, score, and left, top, right and bottom in pixels of each object."""
        boxes = np.concatenate([found.boxes[:, :2], found.boxes[:, :2] + found.boxes[:, 2:]], 1)
        return list(zip(found.labels.tolist(), found.scores.tolist(), boxes.round(2).tolist(), strict=True))

    def entry(self, sample: dict[str, Any], image: NamedImage | None) -> dict[str, Any]:
        """Name and size of an image, the beginning of its entry in a list."""
        height, width = sample["ori_shape"][:2]
        return {"file_name": self.file_name(sample, image), "height": int(height), "width": int(width)}


def confident(found: ImageDetections, min_score: float) -> ImageDetections:
    """The objects of an image whose score is at least a number."""
    kept = np.flatnonzero(found.scores >= min_score)
    if len(kept) == len(found.scores):
        return found
    masks = None if found.masks is None else [found.masks[index] for index in kept.tolist()]
    rows = (found.boxes[kept], found.scores[kept], found.mask_scores[kept], found.labels[kept])
    return ImageDetections(found.image_id, *rows, masks)


class CocoResults(DetectionWriter):
    """Writes ``bbox.json`` and, with masks, ``segm.json`` in COCO's results format.

    Each is a list of ``image_id``, ``category_id``, ``score`` and ``bbox`` (left, top, width, height in pixels) or
    ``segmentation`` (run-length code), with the ids of the annotation file (https://cocodataset.org/#format-results).
    Images that it does not list get the ids that follow; without the file, classes and images are numbered from 1.

    For images that are not those of the test data, ``images.json`` lists their ids, names and sizes.

    Args:
        request: Config, folder and choices.

    Raises:
        DataError: If no class is a category of the annotation file.
    """

    def __init__(self, request: ResultRequest) -> None:
        super().__init__(request)
        dataset = request.cfg.test_dataloader.dataset
        content = read_annotations_of(dataset)
        self.categories = named_categories(content, list(self.classes))
        root = Path(dataset.get("data_root") or "", dataset.get("data_prefix", {}).get("img") or "")
        listed = () if request.test_data else content.get("images", [])
        self.known = {real_path(str(root / image["file_name"])): image["id"] for image in listed}

    def write(self, sample: dict[str, Any], image: NamedImage | None) -> Any:
        """Return the results of an image; its id is ``None`` where it is still to be numbered."""
        image_id = sample["img_id"] if image is None else self.image_id(image)
        found = self.found(sample)
        boxes, masks = _box_entries(found, list(self.categories)), None
        if found.masks is not None:
            rows = zip(boxes, found.masks, found.mask_scores.tolist(), strict=True)
            masks = [
                {"category_id": entry["category_id"], "segmentation": _text_code(code), "score": score}
                for entry, code, score in rows
            ]
        for entry in boxes:
            del entry["image_id"]
        return {"id": image_id, **self.entry(sample, image), "bbox": boxes, "segm": masks}

    def image_id(self, image: NamedImage) -> int | None:
        """Id of an image in the annotation file; ``None`` if it is not listed there."""
        return self.known.get(real_path(str(image.path)))

    def numbered(self, records: Iterable[Any]) -> Iterator[Any]:
        """Records with an ``id`` each: those without get the numbers after the annotation file's."""
        following = max(self.known.values(), default=0) + 1
        for record in records:
            if record["id"] is None:
                record["id"], following = following, following + 1
            yield record

    def listed(self, records: Iterable[Any]) -> dict[str, Any]:
        """Content of a list of images, with the categories."""
        images = [{key: record[key] for key in IMAGE_KEYS} for record in records]
        return {"images": images, "categories": [{"id": key, "name": name} for key, name in self.categories.items()]}

    def finish(self, records: Iterable[Any]) -> None:
        """Write the files, all in one pass over the records."""
        with ExitStack() as stack:
            boxes = stack.enter_context(written_list(self.folder / "bbox.json"))
            masks: Callable[[Any], None] | None = None
            images = []
            for record in self.numbered(records):
                images.append({key: record[key] for key in IMAGE_KEYS})
                number = {"image_id": record["id"]}
                for entry in record["bbox"]:
                    boxes(number | entry)
                if masks is None and record["segm"] is not None:
                    masks = stack.enter_context(written_list(self.folder / "segm.json"))
                if masks is not None:
                    for entry in record["segm"]:
                        masks(number | entry)
        if not self.request.test_data:
            write_json_file(self.folder / "images.json", self.listed(images))


class ObjectList(DetectionWriter, ListWriter):
    """Writes ``predictions.json``: for each image the objects with class, score, box and mask.

    Args:
        request: Config, folder and choices.
    """

    def write(self, sample: dict[str, Any], image: NamedImage | None) -> Any:
        """Return the entry of an image."""
        found, objects = self.found(sample), []
        for index, (label, score, corners) in enumerate(self.corners(found)):
            entry = {"class": self.classes[label], "class_id": label, "score": score, "box": corners}
            if found.masks is not None:
                entry["mask"] = _text_code(found.masks[index])
            objects.append(entry)
        return {**self.entry(sample, image), "objects": objects}


class ObjectTable(DetectionWriter, TableWriter):
    """Writes ``predictions.csv``: a row for each object with class, score and box.

    Args:
        request: Config, folder and choices.
    """

    header = ("class", "class_id", "score", "left", "top", "right", "bottom")

    def write(self, sample: dict[str, Any], image: NamedImage | None) -> Any:
        """Return the rows of an image."""
        name = self.location(sample, image)
        rows = self.corners(self.found(sample))
        return [[name, self.classes[label], label, round(score, 6), *corners] for label, score, corners in rows]


class LabelmeFiles(DetectionWriter):
    """Writes ``labelme/<name>.json`` for each image: outlines of the masks, or boxes.

    Args:
        request: Config, folder and choices.
    """

    needs_image_files = True

    def write(self, sample: dict[str, Any], image: NamedImage | None) -> Any:
        """Write the file of an image."""
        found, shapes = self.found(sample), []
        for index, (label, score, corners) in enumerate(self.corners(found)):
            parts = [] if found.masks is None else mask_polygons(_pixels(found.masks[index]))
            group = index if len(parts) > 1 else None
            kept = {"score": round(score, 4)}
            shapes += [labelme_shape(self.classes[label], part, "polygon", group, **kept) for part in parts]
            if not parts:
                points = np.array(corners).reshape(2, 2)
                shapes.append(labelme_shape(self.classes[label], points, "rectangle", group, **kept))
        path, place = Path(sample["img_path"]), self.place(f"labelme/{self.name(sample, image)}", ".json")
        write_json_file(place, labelme_file(path, place, sample["ori_shape"][:2], shapes))


class YoloFiles(DetectionWriter):
    """Writes ``labels/<name>.txt`` and ``scores/<name>.txt`` for each image, and ``data.yaml`` with the class names.

    A line has the position of the class, and the box as centre, width and height, or of a detector with masks the
    corners of the outline, as fractions (https://docs.ultralytics.com/datasets/segment/). The score is in the same line
    of the other file: ultralytics' loader refuses labels with scores, as its own predictions have them with
    ``save_conf``.

    Args:
        request: Config, folder and choices.
    """

    def write(self, sample: dict[str, Any], image: NamedImage | None) -> Any:
        """Write the file of an image; an object whose mask has no pixel has no line."""
        found, lines, scores = self.found(sample), [], []
        height, width = sample["ori_shape"][:2]
        for index, (label, score, _) in enumerate(self.corners(found)):
            x, y, w, h = found.boxes[index].tolist()
            numbers = np.array([[x + w / 2, y + h / 2], [w, h]])
            if found.masks is not None:
                if not (parts := mask_polygons(_pixels(found.masks[index]))):
                    continue
                numbers = joined_polygon(parts)
            fractions = (numbers / (width, height)).clip(0, 1).ravel()
            lines.append(" ".join([str(label), *(f"{value:.6f}" for value in fractions)]))
            scores.append(f"{score:.4f}")
        for kind, content in (("labels", lines), ("scores", scores)):
            with written_text(self.place(f"{kind}/{self.name(sample, image)}", ".txt")) as file:
                file.write("".join(f"{line}\n" for line in content))

    def finish(self, records: Iterable[Any]) -> None:
        """Write the names of the classes, once all images are done."""
        for _ in records:  # each image has its own file
            pass
        names = "".join(
            f"  {label}: {json.dumps(name, ensure_ascii=False)}\n" for label, name in enumerate(self.classes)
        )
        with written_text(self.folder / "data.yaml") as file:
            file.write(
                f"# The images are expected in images/, beside labels/.\ntrain: images\nval: images\nnames:\n{names}"
            )


def coco_categories(dataset: ConfigDict) -> dict[int, str]:
    """Names of the classes of a data set by the ids of its annotation file, in their order.

    Raises:
        DataError: If no class is a category of the annotation file.
    """
    return named_categories(read_annotations_of(dataset), list(dataset.metainfo["classes"]))


def named_categories(content: dict[str, Any], classes: list[str]) -> dict[int, str]:
    """Names of classes by their ids in an annotation file, in their order; numbered from 1 where it has no categories.

    Args:
        content: Content of the annotation file.
        classes: Class names.

    Raises:
        DataError: If no class is a category of the file.
    """
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


def _pixels(code: dict[str, Any]) -> np.ndarray:
    """Mask of a run-length code, (H, W), boolean."""
    mask: np.ndarray = coco_masks.decode(code).astype(bool)
    return mask


def _text_code(code: dict[str, Any]) -> dict[str, Any]:
    """A compressed run-length code as JSON: its counts are text."""
    counts = code["counts"]
    return {"size": code["size"], "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def read_annotations_of(dataset: ConfigDict) -> dict[str, Any]:
    """Content of the annotation file of a data set, nothing where it is absent."""
    path = Path(dataset.get("data_root") or "", dataset.get("ann_file") or "")
    if not data_file(path).is_file():
        return {}
    content: dict[str, Any] = read_annotations(path)
    return content


def server_set_name(cfg: Config) -> str:
    """Name of the test images on COCO's server: ``test-dev2017`` of ``image_info_test-dev2017.json``."""
    stem = Path(str(cfg.test_dataloader.dataset.ann_file)).stem
    return next((stem.removeprefix(kind) for kind in ANNOTATION_KINDS if stem.startswith(kind)), stem)


def pack_coco(folder: Path, method: str, cfg: Config) -> list[Path]:
    """Pack COCO's results as its server takes them, boxes and masks each in a zip.

    Args:
        folder: Folder of :class:`CocoResults`.
        method: Name of the method.
        cfg: Resolved config.

    Source: https://cocodataset.org/#upload
    """
    name = f"detections_{server_set_name(cfg)}_{method}_results"
    kinds = [kind for kind in ("bbox", "segm") if (folder / f"{kind}.json").is_file()]
    return [write_zip(folder / kind / f"{name}.zip", [(folder / f"{kind}.json", f"{name}.json")]) for kind in kinds]
