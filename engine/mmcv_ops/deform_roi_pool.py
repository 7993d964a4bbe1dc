"""Deformable RoI pooling, forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.mmcv_ops.bilinear import bilinear_samples
from engine.mmcv_ops.extension import at_least_float32, write_gradients

__all__ = ["deform_roi_pool_backward", "deform_roi_pool_forward"]


class _Pooling:
    """Deformable RoI pooling of (input, offset) for given boxes.

    Args:
        rois: Batch index and corners in image pixels, (N, 5).
        size: Bins along y and x.
        spatial_scale: Feature map size over image size.
        sampling_ratio: Samples per bin along each axis; 0 for about one per feature pixel.
        gamma: Factor of the offsets.
    """

    def __init__(
        self, rois: Tensor, size: tuple[int, int], spatial_scale: float, sampling_ratio: int, gamma: float
    ) -> None:
        self.size, self.gamma = size, gamma
        self.maps = rois[:, 0].long()
        self.start = rois[:, 1:3] * spatial_scale - 0.5
        self.extent = (rois[:, 3:5] - rois[:, 1:3]) * spatial_scale
        self.bins = self.extent / self.extent.new_tensor(size[::-1])  # x, y
        self.samples = self.bins.ceil().long()
        if sampling_ratio > 0:
            self.samples = torch.full_like(self.samples, sampling_ratio)

    def __call__(self, input: Tensor, offset: Tensor) -> Tensor:
        height, width = self.size
        pooled = input.new_zeros(len(self.maps), input.shape[1], height, width)
        shift = offset.view(-1, 2, height, width) * self.gamma if offset.numel() else None
        # Boxes with equally many samples are pooled together.
        for counts in self.samples.unique(dim=0):
            rows = (self.samples == counts).all(dim=1).nonzero().flatten()
            if int(counts.min()) > 0:
                mean = self._average(input, rows, None if shift is None else shift[rows], *counts.tolist())
                pooled = pooled.index_copy(0, rows, mean)
        return pooled

    def _average(self, input: Tensor, rows: Tensor, shift: Tensor | None, along_x: int, along_y: int) -> Tensor:
        """Bins of the boxes of ``rows``, shifted by ``shift`` (N, 2, h, w) in units of their size: (N, C, h, w)."""
        height, width = self.size

        def positions(axis: int, bins: int, samples: int) -> Tensor:
            steps = torch.arange(bins * samples, device=input.device, dtype=input.dtype) + 0.5
            steps = steps.view(1, bins, samples) * self.bins[rows, axis].view(-1, 1, 1) / samples
            return self.start[rows, axis].view(-1, 1, 1) + steps

        x = positions(0, width, along_x)[:, None, None].expand(-1, height, along_y, -1, -1)
        y = positions(1, height, along_y)[..., None, None].expand(-1, -1, -1, width, along_x)
        if shift is not None:
            moved = shift * self.extent[rows].view(-1, 2, 1, 1)
            x = x + moved[:, 0, :, None, :, None]
            y = y + moved[:, 1, :, None, :, None]
        values = bilinear_samples(input, self.maps[rows], y.flatten(1), x.flatten(1))
        return values.view(len(rows), -1, height, along_y, width, along_x).mean(dim=(3, 5))


def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Deformable RoI pooling (Dai et al. 2017, arXiv:1703.06211): RoIAlign whose bins are displaced.

    Args:
        input: Feature map, (B, C, H, W).
        rois: Batch index and corners in image pixels, (N, 5).
        offset: Displacement of each bin along x and y in units of the box, (N, 2, pooled_height, pooled_width), or
            empty.
        output: Output buffer, (N, C, pooled_height, pooled_width).
        pooled_height: Bins along y.
        pooled_width: Bins along x.
        spatial_scale: Feature map size over image size.
        sampling_ratio: Samples per bin along each axis; 0 for about one per feature pixel.
        gamma: Factor of the offsets.
    """
    features = at_least_float32(input)
    size = pooled_height, pooled_width
    pooling = _Pooling(rois.to(features.dtype), size, spatial_scale, sampling_ratio, gamma)
    output.copy_(pooling(features, offset.to(features.dtype)))


def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Gradients of :func:`deform_roi_pool_forward` with respect to input and offset, written into buffers."""
    size = pooled_height, pooled_width
    pooling = _Pooling(at_least_float32(rois), size, spatial_scale, sampling_ratio, gamma)
    write_gradients(pooling, (input, offset), grad_output, (grad_input, grad_offset))
