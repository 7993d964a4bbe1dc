"""BorderAlign, forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.mmcv_ops.bilinear import bilinear_samples
from engine.mmcv_ops.extension import at_least_float32, write_gradients

__all__ = ["border_align_backward", "border_align_forward"]


def _border_points(boxes: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Points on the borders of boxes, counted from the top left or the bottom right corner.

    Args:
        boxes: Corners x1, y1, x2, y2, (B, K, 4).
        steps: Way along each border (top, left, bottom, right) as a share of it, (B or 1, 4, K or 1, P).

    Returns:
        Coordinates y and x, (B, 4, K, P).
    """
    x1, y1, x2, y2 = (side[:, :, None] for side in boxes.unbind(dim=2))
    top, left, bottom, right = steps.unbind(dim=1)
    way_x, way_y = x2 - x1, y2 - y1
    x = torch.stack([x1 + top * way_x, x1 + 0 * left, x2 - bottom * way_x, x2 + 0 * right], dim=1)
    y = torch.stack([y1 + 0 * top, y1 + left * way_y, y2 + 0 * bottom, y2 - right * way_y], dim=1)
    return y, x


def border_align_forward(input: Tensor, boxes: Tensor, output: Tensor, argmax_idx: Tensor, pool_size: int) -> None:
    """Maximum over points on each border of a box (Qiu et al. 2020, BorderDet, arXiv:2007.11056).

    Args:
        input: Feature map with a quarter of its channels for each border, top, left, bottom, right, (B, 4C, H, W).
        boxes: Corners x1, y1, x2, y2 in pixels of the feature map, (B, K, 4).
        output: Output buffer, (B, C, K, 4).
        argmax_idx: Output buffer for the number of the point of each maximum, int32, (B, C, K, 4).
        pool_size: Number of points on a border less one.
    """
    features = at_least_float32(input).reshape(-1, input.shape[1] // 4, *input.shape[2:])
    steps = torch.arange(pool_size + 1, device=input.device, dtype=features.dtype) / pool_size
    y, x = _border_points(boxes.to(features.dtype), steps.expand(1, 4, 1, -1))
    maps = torch.arange(len(features), device=input.device)
    values = bilinear_samples(features, maps, y.flatten(0, 1).flatten(1), x.flatten(0, 1).flatten(1))
    values = values.view(len(boxes), 4, -1, boxes.shape[1], pool_size + 1)
    largest, place = values.max(dim=-1)
    output.copy_(largest.permute(0, 2, 3, 1))
    argmax_idx.copy_(place.permute(0, 2, 3, 1))


def border_align_backward(
    grad_output: Tensor, boxes: Tensor, argmax_idx: Tensor, grad_input: Tensor, pool_size: int
) -> None:
    """Gradient of :func:`border_align_forward` with respect to its input, written into ``grad_input``."""
    batch, channels, count, _ = grad_output.shape
    grad = at_least_float32(grad_output)
    # Each channel has its own point; as a sample of one point from a map of one channel.
    steps = argmax_idx.to(grad.dtype).permute(0, 3, 2, 1) / pool_size  # (B, 4, K, C)
    y, x = (way.transpose(2, 3).reshape(-1, count) for way in _border_points(boxes.to(grad.dtype), steps))
    maps = torch.arange(batch * 4 * channels, device=grad.device)

    def samples(features: Tensor) -> Tensor:
        return bilinear_samples(features.reshape(-1, 1, *features.shape[2:]), maps, y, x)

    values = grad.permute(0, 3, 1, 2).reshape(-1, 1, count)
    write_gradients(samples, (grad_input,), values, (grad_input,))
