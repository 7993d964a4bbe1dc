"""Outlines of masks, for formats of annotations that have no masks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np

LABELME_VERSION = "5.5.0"  # of the layout, https://github.com/wkentaro/labelme
MIN_CORNERS = 3


def mask_polygons(mask: np.ndarray) -> list[np.ndarray]:
    """Outer outlines of the parts of a mask, along the edges of its pixels; holes are filled.

    Args:
        mask: Mask, (H, W), boolean.

    Returns:
        Corners x, y in pixels of each part, (P, 2), float64, the largest part first. A pixel is from x to x + 1.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return []
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # OpenCV's outlines go through the centres of pixels. On a grid twice as fine, where a pixel covers its corners too,
    # these are the edges.
    fine = np.zeros((2 * cut.shape[0] + 1, 2 * cut.shape[1] + 1), np.uint8)
    fine[1::2, 1::2] = cut
    outlines, _ = cv2.findContours(
        cv2.dilate(fine, np.ones((3, 3), np.uint8)), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    found = [outline[:, 0] / 2 + (columns[0], rows[0]) for outline in outlines if len(outline) >= MIN_CORNERS]
    return sorted(found, key=lambda corners: -polygon_area(corners))


def polygon_area(corners: np.ndarray) -> float:
    """Area of a polygon, (P, 2)."""
    x, y = corners.T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def joined_polygon(parts: list[np.ndarray]) -> np.ndarray:
    """One polygon of several parts, joined by lines there and back between their nearest corners.

    Args:
        parts: Corners of each part, (P, 2), of at least one.
    """
    joined = parts[0]
    for part in parts[1:]:
        distances = ((joined[:, None] - part[None]) ** 2).sum(2)
        here, there = np.unravel_index(distances.argmin(), distances.shape)
        around = np.roll(part, -there, 0)
        joined = np.concatenate([joined[: here + 1], around, around[:1], joined[here:]])
    return joined


def labelme_shape(label: str, points: np.ndarray, kind: str, group: int | None, **more: Any) -> dict[str, Any]:
    """One shape of a labelme file.

    Args:
        label: Name of the class.
        points: Corners x, y in pixels, (P, 2); of a rectangle two opposite ones.
        kind: ``polygon`` or ``rectangle``.
        group: Number that the parts of an object share; ``None`` for an object of one part.
        **more: Further keys, which labelme keeps.
    """
    shape = {"label": label, "points": np.asarray(points).round(2).tolist(), "group_id": group, "description": ""}
    return {**shape, "shape_type": kind, "flags": {}, "mask": None, **more}


def labelme_file(image: Path, place: Path, size: tuple[int, int], shapes: list[dict[str, Any]]) -> dict[str, Any]:
    """Content of a labelme file.

    Args:
        image: Image file.
        place: The labelme file, from which the path of the image is relative.
        size: Height and width of the image in pixels.
        shapes: Shapes of :func:`labelme_shape`.
    """
    path = os.path.relpath(image.absolute(), place.absolute().parent)
    described = {"imagePath": path, "imageData": None, "imageHeight": size[0], "imageWidth": size[1]}
    return {"version": LABELME_VERSION, "flags": {}, "shapes": shapes, **described}
