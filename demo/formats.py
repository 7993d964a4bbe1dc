"""Annotations of a scene in the formats of COCO (polygons, run lengths, panoptic ids) and ADE20K (label maps)."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from demo.drawing import SCENE_SIZE, Instance, Mask, box_of

_CONTOUR_SCALE = 4


def label_map(instances: list[Instance], size: int = SCENE_SIZE) -> npt.NDArray[np.uint8]:
    """Label map of a scene as in ADE20K, uint8, (size, size): 0 ignored, 1 background, 2..11 the digits.

    Ignored are crowds and the pixel around each digit, where ink and photograph are mixed.
    """
    labels = np.ones((size, size), np.uint8)
    digits = np.zeros((size, size), np.uint8)
    for instance in instances:
        if instance.crowd:
            labels[instance.mask] = 0
        else:
            digits[instance.mask] = 1
    labels[cv2.dilate(digits, np.ones((3, 3), np.uint8)).astype(bool)] = 0
    for instance in instances:
        if not instance.crowd:
            labels[instance.mask] = 2 + instance.label
    return labels


def panoptic_annotation(
    instances: list[Instance], image_id: int, stuff_id: int, size: int = SCENE_SIZE
) -> tuple[dict[str, Any], npt.NDArray[np.uint8]]:
    """Panoptic annotation of a scene as in COCO: each digit is a thing, the photograph around them is stuff.

    As in :func:`label_map` the pixel around each digit is no segment.

    Args:
        instances: Digits of the scene.
        image_id: Image id.
        stuff_id: Category id of the photograph.
        size: Side of the scene in pixels.

    Returns:
        Entry of "annotations", and the pixels of the PNG, RGB, (size, size, 3), whose red + 256 green is a segment.
    """
    ids = (label_map([], size) * (len(instances) + 1)).astype(np.int64)
    labels = label_map([one for one in instances if not one.crowd], size)
    ids[labels == 0] = 0
    for number, instance in enumerate(instances, 1):
        ids[instance.mask] = number
    categories = {number: (1 + one.label, int(one.crowd)) for number, one in enumerate(instances, 1)}
    categories[len(instances) + 1] = (stuff_id, 0)
    segments = [
        {
            "id": number,
            "category_id": category,
            "area": int((ids == number).sum()),
            "bbox": list(box_of(ids == number)),
            "iscrowd": crowd,
        }
        for number, (category, crowd) in categories.items()
        if (ids == number).any()
    ]
    entry = {"image_id": image_id, "file_name": f"{image_id:012d}.png", "segments_info": segments}
    return entry, np.stack([ids % 256, ids // 256, 0 * ids], -1).astype(np.uint8)


def mask_to_polygons(mask: Mask) -> list[list[float]]:
    """COCO polygons [x1, y1, x2, y2, ...] of a mask, one for each connected part.

    A polygon list is a union of areas and cannot say "hole", but a zero has one: a hole is joined to its
    outline by a bridge walked there and back, which encloses nothing.

    Args:
        mask: Pixels of the instance, bool, (height, width).

    Returns:
        One polygon of at least four points per part, in pixels, (0, 0) being the corner of the first pixel.
    """
    # Contours run through the centres of the border pixels, half a pixel inside the area: a stroke of two
    # would lose half of itself. Enlarged, the loss is an eighth, and a lone pixel is still a square.
    size = mask.shape[1] * _CONTOUR_SCALE, mask.shape[0] * _CONTOUR_SCALE
    large = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    contours, hierarchy = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    shapes = [cv2.approxPolyDP(one, 0.35 * _CONTOUR_SCALE, closed=True)[:, 0].astype(np.int32) for one in contours]
    parents = [int(entry[3]) for entry in hierarchy[0]] if contours else []  # -1 for an outline
    polygons = {index: points for index, points in enumerate(shapes) if parents[index] < 0}
    for parent, hole in zip(parents, shapes, strict=True):
        if parent >= 0:
            polygons[parent] = _bridge(polygons[parent], hole)
    return [((points + 0.5) / _CONTOUR_SCALE).ravel().tolist() for points in polygons.values()]


def _bridge(outline: npt.NDArray[np.int32], hole: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Splice a hole (M, 2) into an outline (N, 2) where they are nearest: (N + M + 2, 2)."""
    distance = np.square(outline[:, None] - hole[None]).sum(axis=-1)
    at, start = np.unravel_index(distance.argmin(), distance.shape)
    return np.concatenate([outline[: at + 1], hole[start:], hole[: start + 1], outline[at:]])


def mask_to_rle(mask: Mask) -> dict[str, Any]:
    """COCO's uncompressed run lengths of a mask (height, width): down the columns, beginning with zeros."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    turns = np.flatnonzero(flat[1:] != flat[:-1])
    return {"counts": np.diff([0, *turns, mask.size]).tolist(), "size": list(mask.shape)}


def coco_annotation(instance: Instance, image_id: int, number: int) -> dict[str, Any]:
    """One entry of "annotations"; its id is unique over both splits."""
    return {
        "id": 100 * image_id + number,
        "image_id": image_id,
        "category_id": 1 + instance.label,
        "bbox": list(box_of(instance.mask)),
        "area": int(instance.mask.sum()),
        "iscrowd": int(instance.crowd),
        "segmentation": mask_to_rle(instance.mask) if instance.crowd else mask_to_polygons(instance.mask),
    }
