"""Mistakes of a detector in one image: objects that it misses, and detections of what is not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_masks

MISTAKE_IOU = 0.5  # of the boxes, from which on a detection is that of an object
MISTAKE_SCORE = 0.3  # from which on a detection counts; that of the detections that are drawn


def count_mistakes(
    boxes: np.ndarray,
    scores: np.ndarray,
    categories: np.ndarray,
    objects: Sequence[Mapping[str, Any]],
) -> tuple[int, int]:
    """Count the mistakes in one image, by COCO's matching at one IoU: the surest detection chooses first.

    Args:
        boxes: Left, top, width and height of each detection in pixels, (N, 4).
        scores: Scores, (N,).
        categories: Category ids, (N,).
        objects: Annotations of the image; what lies on a crowd of its category is neither an object nor a mistake.

    Returns:
        Number of missed objects, and of detections without an object.
    """
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= MISTAKE_SCORE]
    crowd = np.array([bool(one.get("iscrowd")) for one in objects], dtype=bool)
    if not len(order) or not objects:
        return int((~crowd).sum()), len(order)
    places = np.array([one["bbox"] for one in objects], dtype=np.float64)
    overlaps = coco_masks.iou(boxes[order].astype(np.float64), places, crowd.astype(np.uint8).tolist())
    same = categories[order][:, np.newaxis] == np.array([one["category_id"] for one in objects])
    fits = np.where(same & (np.asarray(overlaps) >= MISTAKE_IOU), overlaps, 0.0)
    free, false = ~crowd, 0
    for row in fits:
        if (row * free).any():
            free[np.argmax(row * free)] = False
        elif not (row * crowd).any():
            false += 1
    return int(free.sum()), false
