"""Pairwise overlaps of boxes."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["bbox_overlaps"]

_INTERSECTION_OVER_FOREGROUND = 1  # mode of mmcv.ops.bbox_overlaps


def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Overlaps of two sets of boxes, written into ``ious``.

    Args:
        bboxes1: Corners x1, y1, x2, y2, (M, 4).
        bboxes2: Corners, (N, 4), or (M, 4) if ``aligned``.
        ious: Output buffer, (M, N), or (M,) if ``aligned``.
        mode: 0 for intersection over union, 1 for intersection over the area of ``bboxes1``.
        aligned: Whether row i is compared with row i only.
        offset: Added to widths and heights.
    """
    first = bboxes1 if aligned else bboxes1[:, None]
    size1, size2 = (boxes[..., 2:] - boxes[..., :2] + offset for boxes in (first, bboxes2))
    sides = torch.minimum(first[..., 2:], bboxes2[..., 2:]) - torch.maximum(first[..., :2], bboxes2[..., :2])
    overlap = (sides + offset).clamp(min=0).prod(dim=-1)
    area = size1.prod(dim=-1)
    if mode != _INTERSECTION_OVER_FOREGROUND:
        area = area + size2.prod(dim=-1) - overlap
    ious.copy_(overlap / area)
