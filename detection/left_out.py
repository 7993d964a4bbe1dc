"""Objects and images of an annotation file that mmdet leaves out, and why: it says nothing about them itself.

The rules are those of ``CocoDataset.parse_data_info`` and ``CocoDataset.filter_data`` in mmdet/datasets/coco.py of
mmdet 3, and of its ``LoadAnnotations`` for masks that cannot be drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from detection.annotations import MIN_POLYGON_VALUES

CROWD = "crowds (iscrowd 1)"
NO_AREA = "with an area of 0"
MARKED = "marked with ignore"
NO_BOX = "with a box of less than a pixel in the image"
NO_MASK = "without a polygon of three points"
IN_DROPPED_IMAGE = "in images that are left out"


@dataclass
class LeftOut:
    """Counts of what is left out of a split.

    Attributes:
        total_objects: Number of objects of the classes.
        total_images: Number of images.
        objects: Number of objects that are left out, by reason.
        small_images: Number of images smaller than ``filter_cfg.min_size``.
        empty_images: Number of images without an object of the classes that ``filter_cfg.filter_empty_gt`` drops.
        background_images: Number of images that are kept with no object left: all of their pixels are background.
    """

    total_objects: int = 0
    total_images: int = 0
    objects: Counter[str] = field(default_factory=Counter)
    small_images: int = 0
    empty_images: int = 0
    background_images: int = 0

    def lines(self, split: str, min_size: int) -> list[str]:
        """A line about objects and one about images, as far as any are left out.

        Args:
            split: Name of the split.
            min_size: Side in pixels below which images are left out.
        """
        lines = []
        if left_out := self.objects.total():
            use = "trained on" if split == "train" else "scored"
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.objects.most_common())
            kept = f"{self.total_objects - left_out:,} of {self.total_objects:,}"
            lines.append(f"objects of the {split} data that are {use}: {kept}; not these: {reasons}")
        parts = [f"{self.small_images:,} are smaller than {min_size} pixels"] if self.small_images else []
        parts += [f"{self.empty_images:,} have no object of the classes"] if self.empty_images else []
        if parts:
            kept = f"{self.total_images - self.small_images - self.empty_images:,} of {self.total_images:,}"
            lines.append(f"images of the {split} data that are trained on: {kept}; not these: {', '.join(parts)}")
        if self.background_images and split == "train":
            lines.append(f"{self.background_images:,} images of the train data are learnt as background alone")
        return lines


def count_left_out(
    objects: Iterable[Mapping[str, Any]],
    images: Mapping[int, Mapping[str, Any]],
    class_ids: Collection[int],
    filters: Mapping[str, Any],
    with_mask: bool = False,
) -> LeftOut:
    """Count the objects and images that mmdet leaves out.

    Args:
        objects: Annotations with valid ``bbox`` and, where stated, ``area``, of known images.
        images: Images by id.
        class_ids: Category ids of the classes.
        filters: ``filter_cfg`` of the data set; empty where images are not filtered, as in a validation.
        with_mask: Whether masks are trained on.
    """
    small = {key for key, image in images.items() if min(image["width"], image["height"]) < filters.get("min_size", 0)}
    counts, with_object, kept = LeftOut(total_images=len(images), small_images=len(small)), set(), set()
    for one in objects:
        if one["category_id"] not in class_ids:
            continue
        counts.total_objects += 1
        with_object.add(one["image_id"])
        reason = IN_DROPPED_IMAGE if one["image_id"] in small else _reason(one, images[one["image_id"]], with_mask)
        if reason:
            counts.objects[reason] += 1
        else:
            kept.add(one["image_id"])
    empty = images.keys() - with_object if filters.get("filter_empty_gt", False) else set()
    counts.empty_images = len(empty - small)
    counts.background_images = len(images.keys() - small - empty - kept)
    return counts


def _reason(one: Mapping[str, Any], image: Mapping[str, Any], with_mask: bool) -> str | None:
    """Why an object is left out, ``None`` for one that is trained on."""
    x, y, width, height = one["bbox"]
    inside = [min(x + width, image["width"]) - max(x, 0), min(y + height, image["height"]) - max(y, 0)]
    area = one.get("area")
    if one.get("ignore"):
        return MARKED
    if min(inside) <= 0 or width < 1 or height < 1:
        return NO_BOX
    if area is not None and area <= 0:
        return NO_AREA
    if one.get("iscrowd"):
        return CROWD
    return NO_MASK if with_mask and _undrawable(one.get("segmentation")) else None


def _undrawable(mask: Any) -> bool:
    """Whether a mask is a list of polygons of which none has three whole points."""
    if not isinstance(mask, list) or not mask:
        return False
    lengths = [len(polygon) for polygon in mask if isinstance(polygon, list)]
    return not any(length >= MIN_POLYGON_VALUES and length % 2 == 0 for length in lengths)
