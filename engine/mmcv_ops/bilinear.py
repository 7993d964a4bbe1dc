"""Bilinear samples of feature maps at given points, differentiable by the features and by the points."""

from __future__ import annotations

import torch
from torch import Tensor


def bilinear_samples(features: Tensor, maps: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Values at points that may lie up to a pixel outside, where the border is continued; further outside, zero.

    This is the rule of RoIAlign. The derivative by a coordinate is that of this function: zero where the border is
    continued. (mmcv's compiled deformable RoI pooling continues the slope of the border pixels there.)

    Args:
        features: Feature maps, (B, C, H, W).
        maps: Index of the feature map of each row of points, (N,), int64.
        y: Coordinates along y in pixels of the feature map, (N, P).
        x: Coordinates along x, (N, P).

    Returns:
        Samples, (N, C, P).
    """
    batch, channels, height, width = features.shape
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.detach().floor(), x.detach().floor()
    down, right = y - top, x - left
    rows = [top.long(), (top.long() + 1).clamp(max=height - 1)]
    columns = [left.long(), (left.long() + 1).clamp(max=width - 1)]
    pixels = features.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
    total = features.new_zeros(*y.shape, channels)
    for row, weight_y in zip(rows, (1 - down, down), strict=True):
        for column, weight_x in zip(columns, (1 - right, right), strict=True):
            index = (maps[:, None] * height + row) * width + column
            corner = pixels.index_select(0, index.flatten()).view(*y.shape, channels)
            total = total + corner * (weight_y * weight_x)[..., None]
    return torch.where(inside[..., None], total, 0).transpose(1, 2)
