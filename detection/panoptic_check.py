"""Data check of COCO's panoptic files: the list of segments, and the PNGs in which their ids are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from mmdet.datasets import CocoPanopticDataset

from backbones.errors import DataError
from detection.annotations import category_names, lacking_classes, read_annotations
from detection.check import COCO_FORMAT_HINT, REQUIRED, CocoChecker
from detection.panoptic import read_segments
from detection.task import STUFF_CLASSES
from engine.config.classes import class_names
from engine.config.schema import is_number
from engine.data.checker import DATA_CHECKERS, DataFile, repeated
from engine.data.image_files import ImageInfo
from engine.data.paths import leads_outside

PANOPTIC_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "image": REQUIRED["images"],
    "annotation": {"image_id": (int,), "file_name": (str,), "segments_info": (list,)},
    "category": {**REQUIRED["categories"], "isthing": (int,)},
}
PANOPTIC_LISTS = {"image": "images", "annotation": "annotations", "category": "categories"}
SEGMENT_FIELDS: dict[str, tuple[type, ...]] = {"id": (int,), "category_id": (int,)}


@DATA_CHECKERS.register(CocoPanopticDataset)
class PanopticChecker(CocoChecker):
    """Checks a panoptic annotation file against the classes, the images and the PNGs."""

    def list_files(self) -> list[DataFile]:
        """Check the annotation file, and list the images and the PNGs."""
        prefix = self.dataset.get("data_prefix", {})
        root = self.dataset.get("data_root") or ""
        self.file = os.path.join(root, self.dataset.ann_file)
        self.folder, self._png_folder = (os.path.join(root, prefix.get(key) or "") for key in ("img", "seg"))
        self._segments: dict[str, dict[int, Any]] = {}  # of each image, by its id as text
        content = self._read_lists()
        if content is None:
            return []
        images = self.check_images(content["image"])
        entries = self._check_entries(content["annotation"], images)
        names = category_names(content["category"])
        self._check_classes(content["category"])
        for row in entries:
            self._check_segments(row, names)
        if images and not any(self._segments.values()):
            self.error("no objects", self.file, "lists no segment", "bring the segments, or another file")
        inside = [one for one in images.values() if not leads_outside(self.folder, one["file_name"])]
        files = [DataFile(os.path.join(self.folder, one["file_name"]), stated_size=_size(one)) for one in inside]
        return files + [
            DataFile(
                os.path.join(self._png_folder, row["file_name"]),
                "labels",
                stated_size=_size(images[row["image_id"]]),
                key=str(row["image_id"]),
            )
            for row in entries
        ]

    def _read_lists(self) -> dict[str, list[dict[str, Any]]] | None:
        """Entries with all required fields, by their kind; ``None`` if the file is not in the format."""
        try:
            content = read_annotations(self.file)
        except (OSError, ValueError, RecursionError) as error:
            self.error("annotation file", self.file, f"is no JSON: {error}", "copy it again, or write a new one")
            return None
        lists = content if isinstance(content, dict) else {}
        for name in PANOPTIC_LISTS.values():
            if not isinstance(lists.get(name), list):
                self.error("annotation file", self.file, f"has no list {name!r}", COCO_FORMAT_HINT)
                return None
        parts = {
            kind: [row for row in lists[PANOPTIC_LISTS[kind]] if self.has_fields(kind, row, fields)]
            for kind, fields in PANOPTIC_FIELDS.items()
        }
        for kind, rows in parts.items():
            key = "image_id" if kind == "annotation" else "id"
            for problem in repeated(f"{kind} {key}", (row[key] for row in rows)):
                self.error(f"duplicate {kind} id", self.file, problem, "give each its own id")
        return parts

    def _place(self, kind: str, item: Any) -> str:
        """Place of an entry in the annotation file; that of an annotation is its image's."""
        number = (item.get("id", item.get("image_id", "?"))) if isinstance(item, dict) else "?"
        return f"{self.file} {kind} {number}" if kind != "annotation" else f"{self.file} annotation of image {number}"

    def _check_entries(self, rows: list[dict[str, Any]], images: Mapping[int, dict[str, Any]]) -> list[dict[str, Any]]:
        """Check the list of the annotations; returns those of known images with a PNG in its folder."""
        kept = []
        for row in rows:
            place = self._place("annotation", row)
            if row["image_id"] not in images:
                problem = f"is of image {row['image_id']}, which the file does not list"
                self.error("unknown image", place, problem, "list the image, or remove this")
            elif leads_outside(self._png_folder, row["file_name"]):
                problem = f"file name {row['file_name']!r} leads out of {self._png_folder!r}"
                self.error("path", place, problem, "name files inside of data_prefix.seg")
            else:
                kept.append(row)
        known = {row["image_id"] for row in kept}
        for number in images.keys() - known:
            problem = "has no annotation, and so no PNG of its segments"
            self.error(
                "image without segments", self._place("image", images[number]), problem, "bring it, or remove it"
            )
        return kept

    def _check_classes(self, categories: list[dict[str, Any]]) -> None:
        """Check the categories against the classes, and that config and file agree about things and stuff."""
        classes = list(self.dataset.metainfo["classes"])
        if problem := lacking_classes(categories, classes):
            self.error("classes", self.file, problem, "set classes to the categories' names, things first")
        for problem in repeated("category", (str(row["name"]) for row in categories)):
            self.error("duplicate category", self.file, problem, "merge them")
        stated = self.cfg.get(STUFF_CLASSES)
        stuff = class_names(stated) if stated else ()
        for row in categories:
            name = str(row["name"])
            if name in classes and bool(row["isthing"]) == (name in stuff):
                here, there = ("stuff", "a thing") if name in stuff else ("a thing", "stuff")
                problem = f"category {name!r} is {there} here and {here} in the config"
                fix = f"{'take it out of' if name in stuff else 'add it to'} {STUFF_CLASSES}, or fix isthing"
                self.error("things and stuff", self.file, problem, fix)

    def _check_segments(self, row: dict[str, Any], names: Mapping[int, str]) -> None:
        """Check the segments of an image; those without an error in their fields are compared with the PNG."""
        place, known = self._place("annotation", row), {}
        for one in row["segments_info"]:
            if not self.has_fields("annotation", one, SEGMENT_FIELDS):
                continue
            what, box = f"segment {one['id']}", one.get("bbox")
            if not 0 < one["id"] < 2**24:
                self.error("segment id", place, f"{what} cannot be a colour", "ids are from 1 to 16,777,215; 0 is none")
            elif one["category_id"] not in names:
                problem = f"{what} is of category {one['category_id']}, which the file does not list"
                self.error("unknown category", place, problem, "list the category")
            elif not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
                self.error("box field", place, f"{what} has {box!r} for its bbox", "four finite numbers are needed")
            elif not is_number(one.get("area")):
                self.error("area field", place, f"{what} has {one.get('area')!r} for its area", "a number is needed")
            else:
                known[one["id"]] = one
        for problem in repeated("segment id", (one.get("id") for one in row["segments_info"] if isinstance(one, dict))):
            self.error("duplicate segment id", place, problem, "pixels cannot tell them apart: give each its own id")
        self._segments[str(row["image_id"])] = known

    def check_file(self, file: DataFile, info: ImageInfo) -> None:
        """Check an image, or a PNG against the segments that the annotation file lists."""
        super().check_file(file, info)
        if file.role == "image" or info.problem is not None:
            return
        if info.size != file.stated_size:
            stated = "{} x {}".format(*(file.stated_size or ()))
            problem = f"is {info.size[0]} x {info.size[1]}, the annotations say {stated}"
            self.error("size of labels", file.path, problem, "make the PNG as large as its image")
            return
        if info.format != "PNG":
            problem = f"is a {info.format}, in which colours are not kept exactly"
            self.error("JPEG labels", file.path, problem, "write the segments as PNG")
            return
        try:
            ids, pixels = np.unique(read_segments(file.path), return_counts=True)
        except DataError as error:
            problem = str(error).removeprefix(f"{file.path}: ")
            self.error("coloured labels", file.path, problem, COCO_FORMAT_HINT)
            return
        found = {number: count for number, count in zip(ids.tolist(), pixels.tolist(), strict=True) if number}
        listed = self._segments.get(file.key, {})
        for number in sorted(found.keys() - listed.keys()):
            problem = f"has {found[number]:,} pixels of segment {number}, which {self.file} does not list"
            self.error("unlisted segment", file.path, problem, "list it in segments_info, or paint it black")
        for number in sorted(listed.keys() - found.keys()):
            problem = f"has no pixel of segment {number}, which {self.file} lists"
            self.error("segment without pixels", file.path, problem, "remove it from segments_info, or paint it")


def _size(image: Mapping[str, Any]) -> tuple[int, int]:
    return image["width"], image["height"]
