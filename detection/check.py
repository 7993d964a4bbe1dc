"""What goes wrong with a COCO annotation file and its images."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from mmdet.datasets import CocoDataset

from backbones.errors import UserError
from detection.data import category_ids
from engine.config.schema import is_number
from engine.data.check import Checker, Job, checks, escapes, nearest

SLACK = 2.0  # pixels that a box may stick out of its image by rounding
MANY = 0.1  # of the objects: so many are no slips of a pen but a wrong format
FAR = 100  # times the image's size: drawing a polygon that far takes all memory, or ends the process
MOST_BITS = 60  # of one run in the text of a mask
LARGEST_ID = 2**53  # from which on JSON's readers do not agree
AREA_SLACK = 1.1  # times the box that a mask's area may have
REQUIRED: dict[str, dict[str, tuple[type, ...]]] = {
    "images": {"id": (int,), "file_name": (str,), "width": (int, float), "height": (int, float)},
    "annotations": {"id": (int,), "image_id": (int,), "category_id": (int,)},
    "categories": {"id": (int,), "name": (str,)},
}
REFERENCE = "see 'Bring your data' in README.md"
DROPPED = "the object is left out of training; mend or remove it"


@checks(CocoDataset)
class CocoChecker(Checker):
    """Checks a COCO annotation file against the classes and the images."""

    def jobs(self) -> list[Job]:
        """Check the annotation file, and list its images."""
        root = self.dataset.get("data_root") or ""
        self.file = os.path.join(root, self.dataset.ann_file)
        self.folder = os.path.join(root, self.dataset.get("data_prefix", {}).get("img") or "")
        steps = [step for step in self.dataset.get("pipeline", []) if step["type"].endswith("LoadAnnotations")]
        self.with_mask = any(step.get("with_mask", False) for step in steps)
        content = self._read()
        if content is None:
            return []
        images = self._images(content["images"])
        categories = self._categories(content)
        self._annotations(content["annotations"], images, categories)
        return [
            Job(os.path.join(self.folder, image["file_name"]), size=(image["width"], image["height"]))
            for image in images.values()
            if not escapes(self.folder, image["file_name"])
        ]

    def _at(self, what: str, item: Any) -> str:
        """Place in the annotation file."""
        return f"{self.file} {what} {item.get('id', '?') if isinstance(item, dict) else '?'}"

    def _read(self) -> dict[str, list[Any]] | None:
        """The annotation file, with the entries that have the fields every reader needs; ``None`` if it has none."""
        try:
            with open(self.file, encoding="utf-8") as file:
                content = json.load(file)
        except (OSError, ValueError, RecursionError) as error:
            self.error("annotation file", self.file, f"is no JSON: {error}", "copy it again, or write it anew")
            return None
        if not isinstance(content, dict):
            self.error("annotation file", self.file, f"holds a {type(content).__name__}, no mapping", REFERENCE)
            return None
        parts: dict[str, list[Any]] = {}
        for name, fields in REQUIRED.items():
            rows = content.get(name)
            if not isinstance(rows, list):
                self.error("annotation file", self.file, f"has no list {name!r}", REFERENCE)
                return None
            kind = {"images": "image", "annotations": "annotation", "categories": "category"}[name]
            parts[name] = [row for row in rows if self._has_fields(kind, row, fields)]
            for number, count in Counter(row["id"] for row in parts[name]).items():
                if count > 1:
                    what = f"{kind} id {number} stands {count} times"
                    self.error(f"duplicate {kind} id", self.file, what, "give each its own id")
        return parts

    def _has_fields(self, kind: str, row: Any, fields: dict[str, tuple[type, ...]]) -> bool:
        for name, types in fields.items():
            value = row.get(name) if isinstance(row, dict) else None
            if not isinstance(value, types) or isinstance(value, bool):
                stated = "has no" if value is None else f"has {value!r} for its"
                wanted = {int: "a whole number", str: "text"}[types[0]]
                self.error(f"{kind} field", self._at(kind, row), f"{stated} {name!r}", f"{wanted} is needed")
                return False
            if isinstance(value, int) and types == (int,) and abs(value) > LARGEST_ID:
                self.error(f"{kind} field", self._at(kind, row), f"has {_short(value)} for its {name!r}", "too large")
                return False
        return True

    def _images(self, rows: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
        names = Counter(row["file_name"] for row in rows)
        for name, count in names.items():
            if count > 1:
                what = f"file name {name!r} stands {count} times"
                self.warn("duplicate file name", self.file, what, "its objects are spread over copies: join them")
        images = {}
        for row in rows:
            if escapes(self.folder, row["file_name"]):
                what = f"file name {row['file_name']!r} leads out of {self.folder!r}"
                self.error("path", self._at("image", row), what, "name files inside of data_prefix.img")
            if not (row["width"] >= 1 and row["height"] >= 1):
                what = f"is {row['width']} x {row['height']} pixels large"
                self.error("image field", self._at("image", row), what, "state the true size")
            images[row["id"]] = row
        if not rows:
            self.error("no images", self.file, "lists no image", REFERENCE)
        return images

    def _categories(self, content: dict[str, list[Any]]) -> dict[int, str]:
        """Names of the categories by id, compared with the classes."""
        classes, names = self.dataset.metainfo["classes"], {row["id"]: row["name"] for row in content["categories"]}
        for name, count in Counter(row["name"] for row in content["categories"]).items():
            if count > 1:
                what = f"category {name!r} stands {count} times: the objects of all but the last are dropped"
                self.error("duplicate category", self.file, what, "join them")
        try:
            category_ids(SimpleNamespace(dataset=content), classes)
        except UserError as error:
            absent = [name for name in classes if name not in names.values()]
            near = "".join(nearest(name, list(names.values())) for name in absent[:1])
            self.error("classes", self.file, f"{error}{near}", "set classes to the categories' names, in any order")
        lost = Counter(row["category_id"] for row in content["annotations"])
        for number, name in names.items():
            if name not in classes and lost[number]:
                what = f"category {name!r} is none of the classes: its {lost[number]:,} objects are background"
                self.warn("category without a class", self.file, what, "add it to classes if it should be found")
        for number, name in names.items():
            if name in classes and not lost[number] and self.split == "train":
                self.warn("class without objects", self.file, f"class {name!r} has no object", "it cannot be learnt")
        return names

    def _annotations(
        self, rows: list[dict[str, Any]], images: dict[int, dict[str, Any]], categories: dict[int, str]
    ) -> None:
        dropped = outside = crowds = 0
        for row in rows:
            image = images.get(row["image_id"])
            if image is None:
                what = f"is of image {row['image_id']}, which the file does not list"
                self.warn("unknown image", self._at("annotation", row), what, "list the image, or take it out")
                continue
            if row["category_id"] not in categories:
                what = f"is of category {row['category_id']}, which the file does not list: it is dropped"
                self.error("unknown category", self._at("annotation", row), what, "list the category")
                continue
            state = self._box(row, image)
            dropped += state == "dropped"
            outside += state == "outside"
            crowds += self._crowd(row)
            if state in ("whole", "outside") and self.with_mask:
                for kind, what, mend in self._mask(row, image):
                    self.error(kind, self._at("annotation", row), what, mend)
        self._judge_shares(len(rows), dropped, outside, crowds, images)

    def _judge_shares(
        self, count: int, dropped: int, outside: int, crowds: int, images: dict[int, dict[str, Any]]
    ) -> None:
        if not count and images:
            self.error("no objects", self.file, "has no annotation", "bring the objects, or another file")
        elif dropped > MANY * count:
            what = f"{dropped:,} of {count:,} objects have boxes that are dropped"
            self.error("boxes", self.file, what, "boxes are x, y, width, height in pixels, not in parts of the image")
        elif outside > MANY * count:
            what = f"{outside:,} of {count:,} boxes stick out of their image"
            self.error("boxes", self.file, what, "boxes are x, y, width, height: not x1, y1, x2, y2, nor the centre")
        elif count and crowds == count:
            self.error("crowds", self.file, "all objects are crowds, which are ignored", "set iscrowd to 0")

    def _box(self, row: dict[str, Any], image: dict[str, Any]) -> str:
        """Judge a box: ``whole``, ``outside`` for one that sticks out, ``dropped`` or ``wrong``."""
        place, box = self._at("annotation", row), row.get("bbox")
        area: Any = row.get("area")
        if not isinstance(box, list) or len(box) != 4 or not all(is_number(value) for value in box):
            self.error("box field", place, f"has {_short(box)} for its bbox", "four finite numbers are needed")
            return "wrong"
        if not is_number(area):
            self.error("area field", place, f"has {_short(area)} for its area", "a finite number is needed")
            return "wrong"
        x, y, width, height = box
        shown = [min(x + width, image["width"]) - max(x, 0), min(y + height, image["height"]) - max(y, 0)]
        if width < 0 or height < 0:
            self.warn("inverted box", place, f"has the box {_short(box)}, its corners swapped", DROPPED)
        elif width < 1 or height < 1:
            self.warn("empty box", place, f"has the box {_short(box)}, less than a pixel wide or high", DROPPED)
        elif min(shown) <= 0:
            size = f"{image['width']} x {image['height']}"
            self.warn("box outside the image", place, f"has the box {_short(box)} outside its image of {size}", DROPPED)
        elif area <= 0:
            self.warn("empty object", place, f"has the area {area:g}", DROPPED)
        else:
            if area > AREA_SLACK * width * height + SLACK:
                what = f"has the area {area:g}, more than its box {_short(box)} holds"
                self.warn("area", place, what, "it decides what counts as a small object: mend it")
            if x < -SLACK or y < -SLACK or width - shown[0] > SLACK or height - shown[1] > SLACK:
                size = f"{image['width']} x {image['height']}"
                what = f"has the box {_short(box)}, which sticks out of its image of {size}"
                self.warn("box over the edge", place, what, "cut it off at the edge")
                return "outside"
            return "whole"
        return "dropped"

    def _crowd(self, row: dict[str, Any]) -> bool:
        crowd = row.get("iscrowd", 0)
        if crowd not in (0, 1):
            what = f"has {_short(crowd)} for iscrowd, which counts as {int(bool(crowd))}"
            self.warn("iscrowd", self._at("annotation", row), what, "0 or 1 is needed")
        return bool(crowd)

    def _mask(self, row: dict[str, Any], image: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
        """What is wrong with the mask of an object that is trained on."""
        mask = row.get("segmentation")
        if isinstance(mask, list) and mask:
            parts = [part for part in mask if isinstance(part, list)]
            if len(parts) < len(mask) or not all(is_number(value) for part in parts for value in part):
                yield "mask field", "has a polygon that is no list of finite numbers", "write x1, y1, x2, y2..."
                return
            far = FAR * max(image["width"], image["height"])
            if any(abs(value) > far for part in parts for value in part):
                yield "mask field", "has a polygon with a point far outside its image", "write pixels of the image"
                return
            if _outside(parts, image):
                what, mend = "has a polygon outside its image", "it is learnt as an empty mask: mend or remove it"
                self.warn("mask outside the image", self._at("annotation", row), what, mend)
                return
            bad = sum(len(part) < 6 or len(part) % 2 for part in parts)
            if bad:
                what = f"has {bad} of {len(parts)} polygons with fewer than three points or half a point"
                mend = "the object is ignored; mend it" if bad == len(parts) else "this part is left out; mend it"
                self.warn("polygon", self._at("annotation", row), what, mend)
        elif isinstance(mask, dict) and mask:
            if problem := _wrong_rle(mask, image):
                yield "mask field", problem, "write the code again from a mask of the image's size"
        else:
            stated = "no segmentation" if not mask else f"{_short(mask)} for its segmentation"
            mend = "bring the mask, or take with_mask out of the pipeline and the mask head out of the model"
            yield "mask field", f"has {stated}, which this config trains on", mend


def _wrong_rle(mask: dict[str, Any], image: dict[str, Any]) -> str | None:
    size, counts = mask.get("size"), mask.get("counts")
    if size != [image["height"], image["width"]]:
        return f"has a mask of size {_short(size)} on an image of height and width {image['height']}, {image['width']}"
    if isinstance(counts, str):
        counts = _runs(counts)
        if counts is None:
            return "has counts of its mask that are no code"
    if not isinstance(counts, list) or not all(isinstance(run, int) and run >= 0 for run in counts):
        return f"has {_short(counts)} for the counts of its mask"
    if not any(counts[1::2]):
        return "has an empty mask"
    pixels = image["height"] * image["width"]
    return f"has a mask of {sum(counts):,} pixels on {pixels:,}" if sum(counts) != pixels else None


def _runs(code: str) -> list[int] | None:
    """The runs in COCO's text of a mask: 5 bits in each character, from the third run on as differences."""
    runs: list[int] = []
    value = shift = 0
    for character in code:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > MOST_BITS:
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


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
