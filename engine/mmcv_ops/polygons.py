"""Points in polygons and in boxes, and the smallest rectangle around points."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "min_area_polygons",
    "points_in_boxes_all_forward",
    "points_in_boxes_cpu_forward",
    "points_in_boxes_part_forward",
    "points_in_polygons_forward",
]


def min_area_polygons(pointsets: Tensor, polygons: Tensor) -> None:
    """Rectangles of the smallest area around sets of nine points.

    One side of it lies on a side of the convex hull (Freeman and Shapira 1975), hence on a line through two points.

    Args:
        pointsets: Coordinates x, y of nine points, (N, 18).
        polygons: Output buffer for four corners, (N, 8).
    """
    points = pointsets.double().view(-1, 9, 2)
    first, second = torch.triu_indices(9, 9, offset=1, device=points.device)
    lines = points[:, second] - points[:, first]
    angles = torch.atan2(lines[..., 1], lines[..., 0]).remainder(math.pi / 2)  # (N, 36)
    cos, sin = angles.cos()[:, :, None], angles.sin()[:, :, None]
    x, y = points[:, None, :, 0], points[:, None, :, 1]
    along, across = x * cos + y * sin, y * cos - x * sin
    low = torch.stack([along.amin(dim=2), across.amin(dim=2)], dim=2)
    high = torch.stack([along.amax(dim=2), across.amax(dim=2)], dim=2)
    best = (high - low).prod(dim=2).argmin(dim=1)
    rows = torch.arange(len(points), device=points.device)
    (left, top), (right, bottom) = low[rows, best].T, high[rows, best].T
    u, v = torch.stack([right, left, left, right], dim=1), torch.stack([top, top, bottom, bottom], dim=1)
    cos, sin = cos[rows, best], sin[rows, best]
    polygons.copy_(torch.stack([u * cos - v * sin, u * sin + v * cos], dim=2).flatten(1))


def points_in_polygons_forward(points: Tensor, polygons: Tensor, output: Tensor) -> None:
    """Whether points are in quadrilaterals: whether a ray to the right crosses an odd number of sides.

    Args:
        points: Coordinates x, y, (N, 2).
        polygons: Four corners in order, (M, 8).
        output: Output buffer, 1 or 0, float, (N, M).
    """
    corners = polygons.view(1, -1, 4, 2)
    (x1, y1), (x2, y2) = corners.unbind(dim=-1), corners.roll(1, dims=2).unbind(dim=-1)
    x, y = points[:, None, None, 0], points[:, None, None, 1]
    crosses = (y1 < y) != (y2 < y)
    place = x1 + (y - y1) * (x2 - x1) / (y2 - y1).where(crosses, 1)
    output.copy_((crosses & (place > x)).sum(dim=2) % 2)


def _inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether points (..., P, 3) are in upright boxes (..., N, 7) on their bottom centre: bool (..., P, N)."""
    size, angle = boxes[..., None, :, 3:6], boxes[..., None, :, 6]
    offset = points[..., :, None, :] - boxes[..., None, :, :3]
    cos, sin = angle.cos(), angle.sin()
    x, y = offset[..., 0] * cos + offset[..., 1] * sin, offset[..., 1] * cos - offset[..., 0] * sin
    up = (offset[..., 2] - size[..., 2] / 2).abs() <= size[..., 2] / 2
    return up & (x.abs() < size[..., 0] / 2) & (y.abs() < size[..., 1] / 2)


def points_in_boxes_all_forward(boxes: Tensor, points: Tensor, box_idxs_of_pts: Tensor) -> None:
    """Whether each point is in each box.

    Args:
        boxes: Bottom centre x, y, z, sizes along x, y, z, and rotation about z in radians, (B, N, 7).
        points: Coordinates x, y, z, (B, P, 3).
        box_idxs_of_pts: Output buffer, 1 or 0, int32, (B, P, N).
    """
    box_idxs_of_pts.copy_(_inside(points, boxes))


def points_in_boxes_part_forward(boxes: Tensor, points: Tensor, box_idxs_of_pts: Tensor) -> None:
    """Index of the first box in which a point is, -1 for none, written into ``box_idxs_of_pts`` (B, P), int32."""
    inside = _inside(points, boxes)
    if boxes.shape[1]:
        box_idxs_of_pts.copy_(torch.where(inside.any(dim=2), inside.int().argmax(dim=2), -1))


def points_in_boxes_cpu_forward(boxes: Tensor, points: Tensor, pts_indices: Tensor) -> None:
    """Whether each point (P, 3) is in each box (N, 7), written into ``pts_indices`` (N, P), int32, 1 or 0."""
    pts_indices.copy_(_inside(points, boxes).T)
