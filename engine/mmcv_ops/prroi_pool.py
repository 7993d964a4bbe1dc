"""Precise RoI pooling, forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.mmcv_ops.extension import at_least_float32, write_gradients

__all__ = ["prroi_pool_backward", "prroi_pool_coor_backward", "prroi_pool_forward"]


def _hat_integral(position: Tensor) -> Tensor:
    """Integral of ``max(0, 1 - |t|)``, one pixel's share in bilinear interpolation, from minus infinity."""
    t = position.clamp(-1, 1)
    return 0.5 + t - 0.5 * t * t.abs()


def _shares(start: Tensor, end: Tensor, bins: int, pixels: int) -> Tensor:
    """Mean of each pixel's share over each bin along one axis: (N,), (N,) -> (N, bins, pixels)."""
    steps = torch.arange(bins + 1, device=start.device, dtype=start.dtype) / bins
    edges = start[:, None] + (end - start)[:, None] * steps
    integrals = _hat_integral(edges[..., None] - torch.arange(pixels, device=start.device, dtype=start.dtype))
    width = (end - start)[:, None, None] / bins
    # A box without extent pools nothing.
    return torch.where(width > 0, integrals.diff(dim=1) / width.where(width > 0, 1), 0)


class _Pooling:
    """Precise RoI pooling of (features, rois).

    Args:
        size: Bins along y and x.
        spatial_scale: Feature map size over image size.
    """

    def __init__(self, size: tuple[int, int], spatial_scale: float) -> None:
        self.size, self.spatial_scale = size, spatial_scale

    def __call__(self, features: Tensor, rois: Tensor) -> Tensor:
        x1, y1, x2, y2 = (rois[:, 1:] * self.spatial_scale).unbind(dim=1)
        rows = _shares(y1, y2, self.size[0], features.shape[2])
        columns = _shares(x1, x2, self.size[1], features.shape[3])
        with torch.autocast(features.device.type, enabled=False):
            pooled = [
                torch.einsum("chw,yh,xw->cyx", features[int(image)], row, column)
                for image, row, column in zip(rois[:, 0].tolist(), rows, columns, strict=True)
            ]
        # The sum keeps an empty result part of the graph.
        return torch.stack(pooled) if pooled else features.sum() * rows.new_zeros(0, features.shape[1], *self.size)


def prroi_pool_forward(
    features: Tensor, rois: Tensor, output: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float
) -> None:
    """Exact mean over each bin of the bilinear surface, zero outside (Jiang et al. 2018, arXiv:1807.11590).

    Args:
        features: Feature map, (B, C, H, W).
        rois: Batch index and corners in image pixels, (N, 5).
        output: Output buffer, (N, C, pooled_height, pooled_width).
        pooled_height: Bins along y.
        pooled_width: Bins along x.
        spatial_scale: Feature map size over image size.
    """
    values = at_least_float32(features)
    output.copy_(_Pooling((pooled_height, pooled_width), spatial_scale)(values, rois.to(values.dtype)))


def prroi_pool_backward(
    grad_output: Tensor, rois: Tensor, grad_input: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float
) -> None:
    """Gradient of :func:`prroi_pool_forward` with respect to the features, written into ``grad_input``."""
    pooling = _Pooling((pooled_height, pooled_width), spatial_scale)
    # Pooling is linear in the features: their values do not matter.
    write_gradients(pooling, (grad_input, rois.to(grad_input.dtype)), grad_output, (grad_input, None))


def prroi_pool_coor_backward(
    output: Tensor,
    grad_output: Tensor,
    features: Tensor,
    rois: Tensor,
    grad_coor: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Gradient of :func:`prroi_pool_forward` with respect to the corners, written into ``grad_coor`` (N, 5)."""
    pooling = _Pooling((pooled_height, pooled_width), spatial_scale)
    write_gradients(pooling, (features, rois), grad_output, (None, grad_coor))
