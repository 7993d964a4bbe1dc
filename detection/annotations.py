"""What the annotation file of COCO may leave out or write in several ways: areas of objects, names that are numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_masks

from backbones.errors import DataError
from detection.annotation_file import AnnotationFile
from engine.data.shards.unpacked import data_file, read_data_file

MIN_POLYGON_VALUES = 6  # coordinates of a triangle


def category_names(categories: Sequence[dict[str, Any]]) -> dict[int, str]:
    """Names of the categories of an annotation file by their ids; a name that is a number is taken as text."""
    return {category["id"]: str(category["name"]) for category in categories}


def category_ids(categories: Sequence[dict[str, Any]], names: Sequence[str]) -> list[int]:
    """Category ids of an annotation file in the order of ``names``.

    The COCO API's look-up returns ids in the file's order and skips unknown names: labels would be permuted or shifted
    silently.

    Args:
        categories: Entries of the annotation file's ``categories``.
        names: Class names.

    Raises:
        DataError: If the file lacks a name.
    """
    if problem := lacking_classes(categories, names):
        raise DataError(problem)
    ids = {name: number for number, name in category_names(categories).items()}
    return [ids[name] for name in names]


def read_annotations(path: str | Path) -> Any:
    """Content of an annotation file, JSON in UTF-8, with or without a byte order mark; it may lie in an archive.

    Raises:
        OSError: If the file cannot be read.
        DataError: If the archive is damaged.
        ValueError: If it is no JSON.
    """
    return json.loads(read_data_file(path).decode("utf-8-sig"))


def absent_classes(categories: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
    """The classes that are no category of an annotation file, in their order.

    Args:
        categories: Entries of the annotation file's ``categories``.
        names: Class names.
    """
    known = set(category_names(categories).values())
    return [name for name in names if name not in known]


def lacking_classes(categories: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """Description of the classes that are no category of an annotation file; empty if all are.

    Args:
        categories: Entries of the annotation file's ``categories``.
        names: Class names.
    """
    absent = absent_classes(categories, names)
    if not absent:
        return ""
    known = list(dict.fromkeys(category_names(categories).values()))
    return (
        f"classes: {len(absent)} of {len(names)} are no category of the annotation file ({absent[0]!r}...); "
        f"it has {len(known)}: {', '.join(known[:5])}..."
    )


def add_categories(content: dict[str, Any], names: Sequence[str]) -> None:
    """Add a category to an annotation file, in place, for each class that it lacks: a class without objects.

    A file that has none of the classes is another one and stays as it is.

    Args:
        content: Content of the annotation file.
        names: Class names.
    """
    absent = absent_classes(content["categories"], names)
    if len(absent) == len(names):
        return
    first = max(category_names(content["categories"])) + 1
    content["categories"] += [{"id": number, "name": name} for number, name in enumerate(absent, first)]


def names_in_file(dataset: Mapping[str, Any]) -> list[str]:
    """Class names of a data set: the categories of its annotation file, in the order of their ids.

    Args:
        dataset: Settings of the data set, with ``data_root`` and ``ann_file``.

    Raises:
        DataError: If the file is absent, no JSON, or has no categories with id and name.
    """
    path = Path(dataset.get("data_root") or "", dataset.get("ann_file") or "")
    if not data_file(path).is_file():
        raise DataError(
            f"classes: no file {str(path)!r} to take their names from: set data_root and ann_file, or classes"
        )
    try:
        names = category_names(AnnotationFile(path).categories)
        return [names[number] for number in sorted(names)]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"classes: {str(path)!r} has no list of categories with id and name: state classes") from error


def fill_areas(content: dict[str, Any]) -> int:
    """Compute the area of each object that states none, in place.

    Args:
        content: Content of an annotation file.

    Returns:
        Number of objects that had no area.
    """
    objects = [one for one in content.get("annotations", []) if one.get("area") is None]
    if objects:
        images = {image["id"]: image for image in content["images"]}
        for one in objects:
            one["area"] = object_area(one, images.get(one["image_id"], {}))
    return len(objects)


def object_area(annotation: dict[str, Any], image: dict[str, Any]) -> float:
    """Area of an object in pixels: of its mask, without a mask that covers a pixel the area of its box.

    Args:
        annotation: Entry of the annotation file.
        image: Entry of its image, with ``height`` and ``width`` in pixels.
    """
    width, height = annotation["bbox"][2:]
    return _mask_area(annotation.get("segmentation"), image) or float(width * height)


def _mask_area(mask: Any, image: dict[str, Any]) -> float:
    """Number of pixels of polygons or of a run-length code; 0 for no mask and for one that cannot be drawn."""
    if not mask or not image:
        return 0.0
    size = int(image["height"]), int(image["width"])
    if isinstance(mask, dict):
        codes = mask if isinstance(mask.get("counts"), str | bytes) else coco_masks.frPyObjects(mask, *size)
        return float(coco_masks.area(codes))
    polygons = [polygon for polygon in mask if len(polygon) >= MIN_POLYGON_VALUES and len(polygon) % 2 == 0]
    return float(coco_masks.area(coco_masks.merge(coco_masks.frPyObjects(polygons, *size)))) if polygons else 0.0
