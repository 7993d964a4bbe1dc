"""Non-maximum suppression of lanes."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["line_nms_forward"]

_POINTS = 72  # of a lane, from the bottom of the image to its top
_HEADER = 5  # numbers before the points: two scores, start, x of the start, length


def _spans(lanes: Tensor) -> tuple[Tensor, Tensor]:
    """First and last point of each lane as computed by mmcv's kernel, int64 (N,) twice."""
    start = (lanes[:, 2] * (_POINTS - 1) + 0.5).trunc().long()
    # The length is a whole number in practice; the kernel rounds a fraction down, and 0 to an end before the start.
    length = lanes[:, 4]
    below_one = (length - 1 < 0).to(length.dtype)
    return start, start + length.trunc().long() - 1 + (0.5 - below_one).trunc().long()


def line_nms_forward(boxes: Tensor, scores: Tensor, overlap: float, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Greedy suppression of lanes that are near to a better one (Zheng et al. 2022, CLRNet, arXiv:2203.10350).

    Args:
        boxes: Lanes: two unused numbers, the start as a share of the height, one unused, the number of points, and
            72 coordinates, (N, 77).
        scores: Scores, (N,).
        overlap: Mean distance over the common points below which a lane is suppressed, in the unit of the coordinates.
        top_k: Largest number of lanes that are kept.

    Returns:
        Indices of the kept lanes by descending score, followed by zeros, (N,), int64; their number, int64; for
        each lane one more than the place of the lane that suppressed it (of itself for a kept one), 0 for the rest.
    """
    order = scores.argsort(descending=True, stable=True)
    lanes = boxes[order]
    start, end = _spans(lanes)
    points = torch.arange(_POINTS, device=boxes.device)
    keep, parents = torch.zeros_like(order), torch.zeros_like(order)
    alive = torch.ones(len(lanes), dtype=torch.bool, device=boxes.device)
    kept = 0
    while kept < top_k and alive.any():
        best = int(alive.nonzero()[0])
        first, last = start.maximum(start[best]), end.minimum(end[best]).clamp(max=_POINTS - 1)
        common = (points >= first[:, None]) & (points <= last[:, None])
        distance = ((lanes - lanes[best]).abs()[:, _HEADER : _HEADER + _POINTS] * common).sum(dim=1)
        near = (last >= first) & (first >= 0) & (distance < overlap * (last - first + 1))
        near[: best + 1] = False
        near[best] = True
        keep[kept] = order[best]
        # As in the kernel, a lane that is suppressed twice counts as the later one's.
        parents[order[near]] = kept + 1
        alive &= ~near
        kept += 1
    return keep, torch.tensor(kept, device=boxes.device), parents
