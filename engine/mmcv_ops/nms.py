"""Non-maximum suppression: greedy, soft, and as groups of boxes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms as torchvision_nms

from engine.mmcv_ops.extension import at_least_float32

__all__ = ["nms", "nms_match", "softnms"]

_LINEAR, _GAUSSIAN = 1, 2  # methods of mmcv.ops.soft_nms; 0 is naive


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Greedy non-maximum suppression.

    Args:
        boxes: Corners x1, y1, x2, y2, (N, 4).
        scores: Scores, (N,).
        iou_threshold: IoU with a kept box above which a box is dropped.
        offset: Added to widths and heights; 1 for corners that are pixel indices.

    Returns:
        Indices of the kept boxes by descending score, (K,), int64.
    """
    boxes = at_least_float32(boxes)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # mmcv compares in float32, torchvision takes a double: 0.1 as float32 is above 0.1 as a double.
    threshold = torch.tensor(iou_threshold, dtype=boxes.dtype).item()
    return torchvision_nms(boxes, scores.to(boxes.dtype), threshold)


def _iou_with_first(boxes: np.ndarray, offset: int) -> np.ndarray:
    """IoU of the first box with each of the others: (N, 4) -> (N - 1,)."""
    first, others = boxes[0], boxes[1:]
    areas = (boxes[:, 2] - boxes[:, 0] + offset) * (boxes[:, 3] - boxes[:, 1] + offset)
    sides = np.minimum(first[2:], others[:, 2:]) - np.maximum(first[:2], others[:, :2]) + offset
    overlap = np.maximum(sides, 0).prod(axis=1)
    union = areas[0] + areas[1:] - overlap
    # Two boxes without area give 0 / 0: defined as no overlap.
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def _decay(iou: np.ndarray, method: int, iou_threshold: float, sigma: float) -> np.ndarray:
    """Factors by which soft-NMS multiplies scores, from the IoU with the best box: (N,) -> (N,)."""
    if method == _GAUSSIAN:
        return np.exp(-(iou * iou) / sigma)
    lowered = 1 - iou if method == _LINEAR else np.zeros_like(iou)
    return np.where(iou >= iou.dtype.type(iou_threshold), lowered, iou.dtype.type(1))


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (Bodla et al. 2017, arXiv:1704.04503): the scores of overlapping boxes decay until they are dropped.

    Args:
        boxes: Corners x1, y1, x2, y2, (N, 4), on the CPU.
        scores: Scores, (N,), on the CPU.
        dets: Output buffer, (N, 5); the first K rows receive the kept boxes and their decayed scores.
        iou_threshold: IoU from which ``naive`` and ``linear`` decay a score.
        sigma: Width of the Gaussian decay.
        min_score: Score below which a box is dropped.
        method: 0 for naive, 1 for linear, 2 for Gaussian decay.
        offset: Added to widths and heights.

    Returns:
        Indices of the kept boxes in the order of ``dets``, (K,), int64.
    """
    rows = torch.cat([at_least_float32(boxes), scores[:, None]], dim=1).detach().numpy()
    indices: np.ndarray = np.arange(len(rows))
    kept = 0
    while kept < len(rows):
        best = kept + int(rows[kept:, 4].argmax())
        rows[[kept, best]], indices[[kept, best]] = rows[[best, kept]], indices[[best, kept]]
        iou = _iou_with_first(rows[kept:, :4], offset)
        kept += 1
        rows[kept:, 4] *= _decay(iou, method, iou_threshold, sigma)
        # mmcv moves the last box to the place of a dropped one; the same here, so that ties are broken the same way.
        alive = np.concatenate([np.ones(kept, dtype=bool), ~(rows[kept:, 4] < rows.dtype.type(min_score))])
        size = int(alive.sum())
        gaps, fillers = np.flatnonzero(~alive[:size]), size + np.flatnonzero(alive[size:])[::-1]
        rows[gaps], indices[gaps] = rows[fillers], indices[fillers]
        rows, indices = rows[:size], indices[:size]
    dets[: len(rows)] = torch.from_numpy(rows)
    return torch.from_numpy(indices)


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Group each box that NMS keeps with the boxes that it suppresses.

    Args:
        dets: Corners and score, (N, 5), on the CPU.
        iou_threshold: IoU from which a box is suppressed.

    Returns:
        Indices of each group by descending score; groups by descending score of their first box.
    """
    rows = at_least_float32(dets).detach().numpy()
    waiting = np.argsort(-rows[:, 4], kind="stable")
    groups = []
    while len(waiting):
        iou = _iou_with_first(rows[waiting, :4], offset=0)
        suppressed = np.concatenate([[True], iou >= iou.dtype.type(iou_threshold)])
        groups.append(waiting[suppressed].tolist())
        waiting = waiting[~suppressed]
    return groups
