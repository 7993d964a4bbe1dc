"""Data check of COCO annotation files and their images."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np
from mmcv.transforms import LoadAnnotations
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks

from backbones.errors import nearest
from detection.annotation_file import MAX_ID, ODD, AnnotationFile, Entries
from detection.annotations import absent_classes, category_names, lacking_classes
from detection.data import OrderedCOCO
from detection.left_out import CROWD, NO_AREA, LeftOut, count_left_out
from engine.config.building import registered_class
from engine.config.datasets import inner_datasets
from engine.config.schema import is_number
from engine.data.checker import DATA_CHECKERS, DataFile, DatasetChecker, repeated
from engine.data.orientation import Size
from engine.data.paths import leads_outside
from engine.data.shards.unpacked import ArchivePlace, find_archive

BOX_TOLERANCE_PIXELS = 2.0  # by which a box may stick out of its image through rounding
MAX_BAD_BOX_FRACTION = 0.1  # of the objects; more bad boxes mean a wrong box format
MAX_LEFT_OUT_FRACTION = 0.05  # of objects or images; more than one and more than this are worth a warning
MAX_COORDINATE_RATIO = 100  # over the image's size; drawing a polygon further out takes all memory or crashes
MAX_ASTRAY_FRACTION = 0.5  # of the objects; more masks outside their images mean other coordinates
MAX_NAMED_CLASSES = 6
MAX_RUN_BITS = 60  # of one run in a compressed mask
MAX_AREA_RATIO = 1.1  # of an object's stated area to that of its box
REQUIRED: dict[str, dict[str, tuple[type, ...]]] = {
    "images": {"id": (int,), "file_name": (str,), "width": (int, float), "height": (int, float)},
    "annotations": {"id": (int,), "image_id": (int,), "category_id": (int,)},
    "categories": {"id": (int,), "name": (str, int)},
}
COCO_FORMAT_HINT = "see 'Bring your data' in README.md"
DROPPED_FIX = "the object is left out of training; fix or remove it"


@DATA_CHECKERS.register(CocoDataset)
class CocoChecker(DatasetChecker):
    """Checks a COCO annotation file against the classes and the images."""

    def list_files(self) -> list[DataFile]:
        """Check the annotation file, and list its images."""
        root = self.dataset.get("data_root") or ""
        self.file = os.path.join(root, self.dataset.ann_file)
        self.folder = os.path.join(root, self.dataset.get("data_prefix", {}).get("img") or "")
        self.with_mask = any(step.get("with_mask", False) for step in self.pipeline_steps(LoadAnnotations))
        content = self._read()
        if content is None:
            return []
        images = self.check_images(content["images"])
        self._check_annotations(images, self._check_categories(content["categories"]))
        return [
            DataFile(self._image_path(image["file_name"]), stated_size=(image["width"], image["height"]))
            for image in images.values()
            if not leads_outside(self.folder, image["file_name"])
        ]

    def _image_path(self, name: str) -> str:
        """Path of an image, in an archive where there is no such folder."""
        stored = self._archive.file(name) if self._archive is not None else None
        return stored or os.path.join(self.folder, name)

    @cached_property
    def _archive(self) -> ArchivePlace | None:
        return find_archive(self.folder)

    @property
    def filters(self) -> Mapping[str, Any]:
        """Settings by which the data set leaves images out of training."""
        return {} if self.dataset.get("test_mode") else self.dataset.get("filter_cfg") or {}

    def is_used(self, size: Size) -> bool:
        """Whether the filter of small images keeps those of a width and height."""
        least: float = self.filters.get("min_size", 0)
        return min(size) >= least

    def blank_annotations(self, size: Size) -> dict[str, Any]:
        """One object of class 0 that covers the image."""
        width, height = size
        return {
            "gt_bboxes": HorizontalBoxes([[0.0, 0.0, width, height]]),
            "gt_bboxes_labels": np.zeros(1, np.int64),
            "gt_ignore_flags": np.zeros(1, bool),
            "gt_masks": BitmapMasks(np.ones((1, height, width), np.uint8), height, width),
        }

    def _place(self, kind: str, item: Any) -> str:
        """Place of an entry in the annotation file."""
        return f"{self.file} {kind} {item.get('id', '?') if isinstance(item, dict) else '?'}"

    def _read(self) -> dict[str, list[Any]] | None:
        """Images and categories with all required fields; ``None`` if the file is not in the format.

        Annotations are read one by one: all of COCO's at once would take gigabytes.
        """
        try:
            self._content = AnnotationFile(self.file)
        except (OSError, ValueError, RecursionError) as error:
            self.error("annotation file", self.file, f"is no JSON: {error}", "copy it again, or write a new one")
            return None
        if self._content.content_type != "dict":
            problem = f"holds a {self._content.content_type}, no mapping"
            self.error("annotation file", self.file, problem, COCO_FORMAT_HINT)
            return None
        annotations = self._content.annotations
        lists = {"images": self._content.images, "annotations": annotations, "categories": self._content.categories}
        parts: dict[str, list[Any]] = {}
        for name, fields in REQUIRED.items():
            rows = lists[name]
            if not isinstance(rows, Entries | list):
                self.error("annotation file", self.file, f"has no list {name!r}", COCO_FORMAT_HINT)
                return None
            kind = {"images": "image", "annotations": "annotation", "categories": "category"}[name]
            if annotations is not None and rows is annotations:
                for index in np.flatnonzero(annotations.rows["flags"] & ODD):
                    self.has_fields(kind, annotations[index], fields)
                problems = [f"{kind} id {one!r} occurs {count} times" for one, count in self._content.repeated_ids]
            else:
                parts[name] = [row for row in rows if self.has_fields(kind, row, fields)]
                problems = repeated(f"{kind} id", (row["id"] for row in parts[name]))
            for problem in problems:
                self.error(f"duplicate {kind} id", self.file, problem, "give each its own id")
        return parts

    def has_fields(self, kind: str, row: Any, fields: Mapping[str, tuple[type, ...]]) -> bool:
        """Check that an entry has fields of their types.

        Args:
            kind: ``image``, ``annotation`` or ``category``.
            row: Entry of the annotation file.
            fields: Types by the name of the field.
        """
        for name, types in fields.items():
            value = row.get(name) if isinstance(row, dict) else None
            if not isinstance(value, types) or isinstance(value, bool):
                problem = f"has no {name!r}" if value is None else f"has {value!r} for its {name!r}"
                fix = "a whole number is needed" if types[0] is int else "text is needed"
            elif isinstance(value, int) and types == (int,) and abs(value) > MAX_ID:
                problem, fix = f"has {_short(value)} for its {name!r}", "too large"
            else:
                continue
            self.error(f"{kind} field", self._place(kind, row), problem, fix)
            return False
        return True

    def check_images(self, rows: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """Check the list of the images; returns its entries by id."""
        for problem in repeated("file name", (row["file_name"] for row in rows)):
            self.warn("duplicate file name", self.file, problem, "merge the copies, which share its objects")
        for row in rows:
            if leads_outside(self.folder, row["file_name"]):
                problem = f"file name {row['file_name']!r} leads out of {self.folder!r}"
                self.error("path", self._place("image", row), problem, "name files inside of data_prefix.img")
            if not (row["width"] >= 1 and row["height"] >= 1):
                problem = f"is {row['width']} x {row['height']} pixels large"
                self.error("image field", self._place("image", row), problem, "state the true size")
        if not rows:
            self.error("no images", self.file, "lists no image", COCO_FORMAT_HINT)
        return {row["id"]: row for row in rows}

    def _check_categories(self, categories: list[dict[str, Any]]) -> dict[int, str]:
        """Check the categories against the classes; returns their names by id."""
        classes, names = list(self.dataset.metainfo["classes"]), category_names(categories)
        for problem in repeated("category", (str(row["name"]) for row in categories)):
            problem += ": the objects of all but the last are dropped"
            self.error("duplicate category", self.file, problem, "merge them")
        absent = absent_classes(categories, classes)
        if absent:
            self._report_absent(absent, classes, categories)
        objects = self._content.count_objects()
        for number, name in names.items():
            if name not in classes and objects[number]:
                problem = f"category {name!r} is none of the classes: its {objects[number]:,} objects are background"
                self.warn("category without a class", self.file, problem, "add it to classes if it should be found")
        if self.split != "train":  # crowds are not scored
            objects = self._content.count_objects(crowds=False)
        idle = [name for number, name in names.items() if name in classes and not objects[number]]
        if self.split == "train":
            for name in (name for name in idle if not self._objects_of_other_parts[name]):
                self.warn("class without objects", self.file, f"class {name!r} has no object", "it cannot be learnt")
        elif idle and self._content.annotations:
            problem = f"has no {self.split} object of {_some(idle)}, of which no AP is counted"
            self.warn("class without objects", self.file, problem, "bring some if their scores matter")
        return names

    def _report_absent(self, absent: list[str], classes: list[str], categories: list[dict[str, Any]]) -> None:
        """Report classes that are no category: an error where nothing else has them to train on."""
        near = nearest(absent[0], category_names(categories).values(), 1, quoted=True)
        lost = [name for name in absent if name not in self._objects_of_other_parts] if self.split == "train" else []
        if lost or len(absent) == len(classes):
            problem = f"{lacking_classes(categories, classes)}{near}"
            self.error("classes", self.file, problem, "set classes to the categories' names, in any order")
            return
        use = "another data set has them" if self.split == "train" else "no AP of them is counted"
        problem = f"has no category {_some(absent)}, of {len(classes)} classes: {use}{near}"
        self.warn("class without a category", self.file, problem, "rename the category if it has another name here")

    @cached_property
    def _objects_of_other_parts(self) -> Counter[str]:
        """Number of objects by category, with 0 for one without, in the other annotation files of this split."""
        counts: Counter[str] = Counter()
        for part in inner_datasets(self.cfg[f"{self.split}_dataloader"].dataset):
            path = os.path.join(part.get("data_root") or "", part.get("ann_file") or "")
            if path == self.file or not path.endswith(".json"):
                continue
            with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):  # reported by its own check
                content = AnnotationFile(path)
                names = category_names(content.categories)
                counts.update(dict.fromkeys(names.values(), 0))
                counts.update({names[number]: count for number, count in content.count_objects().items()})
        return counts

    def _check_annotations(self, images: dict[int, dict[str, Any]], categories: dict[int, str]) -> None:
        states: Counter[str] = Counter()
        self._astray: list[str] = []  # places of objects with all polygons outside of their image
        self._unstated: list[str] = []  # places of objects without an area
        class_ids = {number for number, name in categories.items() if name in self.dataset.metainfo["classes"]}
        counted = self._counted(images, categories, states)
        counts = count_left_out(counted, images, class_ids, self.filters, self.with_mask and self.split == "train")
        self._report_astray(states["whole"] + states["outside"])
        self._check_areas(states.total() - states["wrong"])
        self._report_left_out(counts)
        count = sum(self._content.count_objects().values())
        most = MAX_BAD_BOX_FRACTION * count
        if not count and images:
            self.error("no objects", self.file, "has no annotation", "bring the objects, or another file")
        elif states["dropped"] > most:
            problem = f"{states['dropped']:,} of {count:,} objects have boxes that are dropped"
            self.error("boxes", self.file, problem, "bbox is x, y, width, height in pixels, not in parts of the image")
        elif states["outside"] > most:
            problem = f"{states['outside']:,} of {count:,} boxes stick out of their image"
            self.error("boxes", self.file, problem, "bbox is x, y, width, height: not x1, y1, x2, y2, nor the centre")
        elif counts.total_objects == counts.objects.total() and self.split == "train" and not self._has_error():
            problem = f"none of its {count:,} annotations is trained on: they are of other classes, or left out"
            self.error("no objects", self.file, problem, "check classes, ignore, and the filters of the data set")

    def _counted(
        self, images: dict[int, dict[str, Any]], categories: dict[int, str], states: Counter[str]
    ) -> Iterator[dict[str, Any]]:
        """Check each annotation, count how its box is, and yield those with a box."""
        annotations = self._content.annotations
        assert annotations is not None
        for index in np.flatnonzero((annotations.rows["flags"] & ODD) == 0).tolist():
            row = annotations[index]
            image = images.get(row["image_id"])
            if image is None:
                problem = f"is of image {row['image_id']}, which the file does not list"
                self.warn("unknown image", self._place("annotation", row), problem, "list the image, or remove this")
                continue
            if row["category_id"] not in categories:
                problem = f"is of category {row['category_id']}, which the file does not list: it is dropped"
                self.error("unknown category", self._place("annotation", row), problem, "list the category")
                continue
            state = self._check_box(row, image)
            states[state] += 1
            self._check_crowd(row)
            if state in ("whole", "outside") and self.with_mask:
                self._check_mask(row, image)
            if state != "wrong":
                if row.get("area") is None:
                    self._unstated.append(self._place("annotation", row))
                yield row

    def _has_error(self) -> bool:
        return any(finding.level == "error" for finding in self.findings)

    def _check_areas(self, objects: int) -> None:
        """Note areas that are not stated: they are computed, see :func:`detection.annotations.fill_areas`."""
        if not self._unstated:
            return
        kind = registered_class(DATASETS, self.dataset.type)
        if kind is not None and issubclass(kind.COCOAPI, OrderedCOCO):
            which = f"{len(self._unstated):,} of {objects:,} objects of the {self.split} data"
            self.notes.append(f"{which} state no area: it is computed from the mask, without a mask from the box")
            return
        for place in self._unstated:
            fix = "state it, or use CocoInstances, which computes it"
            self.error("area field", place, "has no area", fix)

    def _report_left_out(self, counts: LeftOut) -> None:
        """Report objects and images that are not trained on: a warning where they are many, a note in any case."""
        total = counts.total_objects
        crowds, without_area = counts.objects[CROWD], counts.objects[NO_AREA]
        if total and crowds == total:
            self.error("crowds", self.file, "all objects are crowds, which are ignored", "set iscrowd to 0")
        elif crowds > max(1, MAX_LEFT_OUT_FRACTION * total):
            problem = f"{crowds:,} of {total:,} objects are crowds, which are ignored"
            fix = "set iscrowd to 0 where it is one object: some tools write 1 for every mask in run-length code"
            self.warn("crowds", self.file, problem, fix)
        if without_area > MAX_BAD_BOX_FRACTION * total:
            problem = f"{without_area:,} of {total:,} objects have an area of 0 and are ignored"
            self.error("areas", self.file, problem, "remove the field area, which is then computed, or state it")
        for count, kind, problem, fix in (
            (counts.small_images, "small images", "are smaller than filter_cfg.min_size", "lower it, or enlarge them"),
            (counts.empty_images, "images without objects", "have no object", "filter_empty_gt=False keeps them"),
        ):
            if count > max(1, MAX_LEFT_OUT_FRACTION * counts.total_images):
                which = f"{count:,} of {counts.total_images:,} images {problem} and are left out"
                self.warn(kind, self.file, which, fix)
        self.notes += counts.lines(self.split, self.filters.get("min_size", 0))

    def _check_box(self, row: dict[str, Any], image: dict[str, Any]) -> str:
        """Check a box: it is ``whole``, ``outside`` (it sticks out), ``dropped``, ``no area`` or ``wrong``."""
        place, box = self._place("annotation", row), row.get("bbox")
        area: Any = row.get("area")
        if not isinstance(box, list) or len(box) != 4 or not all(is_number(value) for value in box):
            self.error("box field", place, f"has {_short(box)} for its bbox", "four finite numbers are needed")
            return "wrong"
        if area is not None and not is_number(area):
            self.error("area field", place, f"has {_short(area)} for its area", "a finite number is needed")
            return "wrong"
        x, y, width, height = box
        text, image_size = f"has the box {_short(box)}", f"{image['width']} x {image['height']}"
        shown = [min(x + width, image["width"]) - max(x, 0), min(y + height, image["height"]) - max(y, 0)]
        for dropped, kind, problem in (
            (min(width, height) < 0, "inverted box", f"{text}, its corners swapped"),
            (min(width, height) < 1, "empty box", f"{text}, less than a pixel wide or high"),
            (min(shown) <= 0, "box outside the image", f"{text} outside its image of {image_size}"),
        ):
            if dropped:
                self.warn(kind, place, problem, DROPPED_FIX)
                return "dropped"
        if area is not None and area <= 0:
            self.warn("empty object", place, f"has the area {area:g}", DROPPED_FIX)
            return "no area"
        if area is not None and area > MAX_AREA_RATIO * width * height + BOX_TOLERANCE_PIXELS:
            problem = f"has the area {area:g}, more than its box {_short(box)} holds"
            self.warn("area", place, problem, "fix it: it decides what counts as a small object")
        if max(-x, -y, width - shown[0], height - shown[1]) > BOX_TOLERANCE_PIXELS:
            problem = f"{text}, which sticks out of its image of {image_size}"
            self.warn("box over the edge", place, problem, "clip it at the edge")
            return "outside"
        return "whole"

    def _check_crowd(self, row: dict[str, Any]) -> None:
        crowd = row.get("iscrowd", 0)
        if crowd not in (0, 1):
            problem = f"has {_short(crowd)} for iscrowd, which counts as {int(bool(crowd))}"
            self.warn("iscrowd", self._place("annotation", row), problem, "0 or 1 is needed")

    def _check_mask(self, row: dict[str, Any], image: dict[str, Any]) -> None:
        """Check the mask of an object that is trained on."""
        place, mask = self._place("annotation", row), row.get("segmentation")
        if isinstance(mask, list) and mask:
            self._check_polygons(place, mask, image)
        elif isinstance(mask, dict) and mask:
            if problem := _wrong_rle(mask, image):
                self.error("mask field", place, problem, "encode it again from a mask of the image's size")
        else:
            stated = "no segmentation" if not mask else f"{_short(mask)} for its segmentation"
            fix = "bring the mask, or remove with_mask from the pipeline and the mask head from the model"
            self.error("mask field", place, f"has {stated}, which this config trains on", fix)

    def _report_astray(self, objects: int) -> None:
        """Report masks outside of their images, of so many objects: one error if they are most."""
        if len(self._astray) > max(1, MAX_ASTRAY_FRACTION * objects):
            problem = f"the polygons of {len(self._astray):,} of {objects:,} objects lie outside their images"
            fix = "write x1, y1, x2, y2... in pixels from the image's upper left corner"
            self.error("masks outside the image", self.file, problem, fix)
            return
        for place in self._astray:
            fix = "it is learnt as an empty mask: fix or remove it"
            self.warn("mask outside the image", place, "has a polygon outside its image", fix)

    def _check_polygons(self, place: str, mask: list[Any], image: dict[str, Any]) -> None:
        polygons = [polygon for polygon in mask if isinstance(polygon, list)]
        values = [value for polygon in polygons for value in polygon]
        if len(polygons) < len(mask) or not all(map(is_number, values)):
            problem = "has a polygon that is no list of finite numbers"
            self.error("mask field", place, problem, "write x1, y1, x2, y2...")
        elif max(map(abs, values), default=0) > MAX_COORDINATE_RATIO * max(image["width"], image["height"]):
            problem = "has a polygon with a point far outside its image"
            self.error("mask field", place, problem, "write pixels of the image")
        elif _outside(polygons, image):
            self._astray.append(place)
        elif bad := sum(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
            problem = f"has {bad} of {len(polygons)} polygons with fewer than three points or half a point"
            fix = "the object is ignored; fix it" if bad == len(polygons) else "this part is left out; fix it"
            self.warn("polygon", place, problem, fix)


def _wrong_rle(mask: dict[str, Any], image: dict[str, Any]) -> str | None:
    size, counts = mask.get("size"), mask.get("counts")
    if size != [image["height"], image["width"]]:
        return f"has a mask of size {_short(size)} on an image of height and width {image['height']}, {image['width']}"
    if isinstance(counts, str) and (counts := _decode_runs(counts)) is None:
        return "has counts of its mask that are no run-length code"
    if not isinstance(counts, list) or not all(isinstance(run, int) and run >= 0 for run in counts):
        return f"has {_short(counts)} for the counts of its mask"
    if not any(counts[1::2]):
        return "has an empty mask"
    pixels = image["height"] * image["width"]
    return f"has a mask of {sum(counts):,} pixels on {pixels:,}" if sum(counts) != pixels else None


def _decode_runs(code: str) -> list[int] | None:
    """Run lengths from COCO's compressed text, ``None`` if it is invalid.

    Each character holds 5 bits of a number; from the third run on the numbers are differences.
    """
    runs: list[int] = []
    value = shift = 0
    for character in code:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > MAX_RUN_BITS:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    return runs if not shift else None


def _outside(parts: list[list[float]], image: dict[str, Any]) -> bool:
    """Whether no polygon reaches into the image."""
    width, height = image["width"], image["height"]
    return all(
        max(part[::2], default=0) <= 0
        or max(part[1::2], default=0) <= 0
        or min(part[::2], default=0) >= width
        or min(part[1::2], default=0) >= height
        for part in parts
        if part
    ) and any(parts)


def _some(names: list[str]) -> str:
    """A few names in quotes, and the number of the others."""
    others = f" and {len(names) - MAX_NAMED_CLASSES} more" if len(names) > MAX_NAMED_CLASSES else ""
    return ", ".join(map(repr, names[:MAX_NAMED_CLASSES])) + others


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
