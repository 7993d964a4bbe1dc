"""Overlaps of rotated boxes and of convex quadrilaterals, and non-maximum suppression by them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["box_iou_quadri", "box_iou_rotated", "nms_quadri", "nms_rotated"]

_INTERSECTION_OVER_FIRST = 1  # mode_flag of mmcv.ops.box_iou_rotated; 0 is over the union
_MIN_AREA = 1e-14  # below which a box overlaps with nothing, as in mmcv
_TOUCHING = 1e-9  # distance of two edges that count as one, as a share of the boxes' size
_PAIRS = 1 << 16  # whose overlap is computed at a time


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _corners(boxes: Tensor) -> Tensor:
    """Corners of boxes with centre, width, height and angle: (..., 5) -> (..., 4, 2)."""
    centre, size, angle = boxes[..., None, :2], boxes[..., 2:4], boxes[..., 4:5]
    signs = boxes.new_tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
    x, y = (signs * size[..., None, :]).unbind(dim=-1)
    cos, sin = angle.cos(), angle.sin()
    return centre + torch.stack([x * cos - y * sin, x * sin + y * cos], dim=-1)


def _area(polygons: Tensor) -> Tensor:
    """Signed area of polygons (..., 4, 2), positive where the corners turn from x to y."""
    return _cross(polygons, polygons.roll(-1, dims=-2)).sum(dim=-1) / 2


def _boundary_inside(first: Tensor, second: Tensor, own: bool) -> Tensor:
    """Twice the part of the area of an intersection that the edges of the first polygon enclose with the origin.

    Args:
        first: Convex polygons with positive area, (P, 4, 2).
        second: Convex polygons with positive area, (P, 4, 2).
        own: Whether an edge that both polygons share counts here: it may do so for one of them alone.

    Returns:
        The sum over edges of the cross product of the ends of what lies inside of the second polygon, (P,).
    """
    start, edge = first[:, :, None], (first.roll(-1, dims=1) - first)[:, :, None]
    origin, side = second[:, None], (second.roll(-1, dims=1) - second)[:, None]
    length = side.norm(dim=-1).clamp(min=torch.finfo(first.dtype).tiny)
    # Distance from each side of the second polygon, positive inside, at the start of an edge and along it: (P, 4, 4).
    distance, slope = _cross(side, start - origin) / length, _cross(side, edge) / length
    tolerance = _TOUCHING * (edge.norm(dim=-1) + length)
    crossing = -distance / slope.where(slope != 0, 1)
    low = crossing.where(slope > tolerance, 0).amax(dim=-1).clamp(min=0)
    high = crossing.where(slope < -tolerance, 1).amin(dim=-1).clamp(max=1)
    parallel = slope.abs() <= tolerance
    shared = parallel & (distance.abs() <= tolerance)
    allowed = shared & ((edge * side).sum(dim=-1) > 0) if own else torch.zeros_like(shared)
    outside = (parallel & ((distance < 0) | shared) & ~allowed).any(dim=-1)
    ends = [start[:, :, 0] + share[..., None] * edge[:, :, 0] for share in (low, high)]
    return _cross(*ends).where((high > low) & ~outside, 0).sum(dim=-1)


def _overlaps(first: Tensor, second: Tensor, mode: int) -> Tensor:
    """Overlap of pairs of convex quadrilaterals, (P, 4, 2) and (P, 4, 2) -> (P,), in float64."""
    parts = []
    for a, b in zip(first.split(_PAIRS), second.split(_PAIRS), strict=True):
        # Near the origin, and all turning the same way.
        middle = (a.mean(dim=1, keepdim=True) + b.mean(dim=1, keepdim=True)) / 2
        a, b = (polygon - middle for polygon in (a, b))
        a, b = (torch.where(_area(polygon)[:, None, None] < 0, polygon.flip(1), polygon) for polygon in (a, b))
        area_a, area_b = _area(a), _area(b)
        common = ((_boundary_inside(a, b, own=True) + _boundary_inside(b, a, own=False)) / 2).clamp(min=0)
        base = area_a if mode == _INTERSECTION_OVER_FIRST else area_a + area_b - common
        empty = (area_a < _MIN_AREA) | (area_b < _MIN_AREA)
        parts.append(torch.where(empty, 0, common / base.where(~empty, 1)))
    return torch.cat(parts) if parts else first.new_zeros(0)


def _write_overlaps(first: Tensor, second: Tensor, ious: Tensor, mode: int, aligned: bool) -> None:
    if not aligned:
        rows, columns = len(first), len(second)
        first, second = first.repeat_interleave(columns, dim=0), second.repeat(rows, 1, 1)
    ious.copy_(_overlaps(first, second, mode))


def box_iou_rotated(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool) -> None:
    """Overlaps of rotated boxes, written into ``ious``.

    Args:
        bboxes1: Centre x, y, width, height and angle from x to y in radians, (M, 5).
        bboxes2: The same, (N, 5), or (M, 5) if ``aligned``.
        ious: Output buffer, (M * N,), or (M,) if ``aligned``.
        mode_flag: 0 for intersection over union, 1 for intersection over the area of ``bboxes1``.
        aligned: Whether row i is compared with row i only.
    """
    _write_overlaps(_corners(bboxes1.double()), _corners(bboxes2.double()), ious, mode_flag, aligned)


def box_iou_quadri(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool) -> None:
    """Overlaps of convex quadrilaterals, (M, 8) and (N, 8), four corners in order; else as :func:`box_iou_rotated`."""
    first, second = (boxes.double().view(-1, 4, 2) for boxes in (bboxes1, bboxes2))
    _write_overlaps(first, second, ious, mode_flag, aligned)


def _suppress(polygons: Tensor, order: Tensor, iou_threshold: float) -> Tensor:
    """Greedy suppression of quadrilaterals (N, 4, 2), taken in ``order``: indices of the kept ones, int64 (K,)."""
    kept = []
    waiting = order
    while len(waiting):
        best, waiting = waiting[:1], waiting[1:]
        kept.append(best)
        overlap = _overlaps(polygons[best].expand(len(waiting), -1, -1), polygons[waiting], mode=0)
        waiting = waiting[overlap < iou_threshold]
    return torch.cat([order[:0], *kept])


def nms_rotated(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: bool,
) -> Tensor:
    """Greedy non-maximum suppression of rotated boxes, whatever their labels, as mmcv's compiled op.

    Args:
        dets: Centre x, y, width, height, angle, and a label where there are labels, (N, 5) or (N, 6).
        scores: Unused; ``order`` is by them.
        order: Indices by descending score, (N,), int64.
        dets_sorted: Unused; ``dets`` in that order.
        labels: Unused.
        iou_threshold: IoU from which a box is suppressed.
        multi_label: Unused.

    Returns:
        Indices of the kept boxes by descending score, (K,), int64.
    """
    return _suppress(_corners(dets[:, :5].double()), order, iou_threshold)


def nms_quadri(
    dets: Tensor, scores: Tensor, order: Tensor, dets_sorted: Tensor, iou_threshold: float, multi_label: bool
) -> Tensor:
    """:func:`nms_rotated` of convex quadrilaterals, four corners in order, (N, 8) or (N, 9) with a label."""
    return _suppress(dets[:, :8].double().reshape(-1, 4, 2), order, iou_threshold)
