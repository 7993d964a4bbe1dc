"""RoI pooling by the maximum, forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.mmcv_ops.extension import at_least_float32

__all__ = ["roi_pool_backward", "roi_pool_forward"]

_MAX_ELEMENTS = 1 << 24  # of features gathered at a time


def _bins(start: Tensor, end: Tensor, bins: int, pixels: int) -> tuple[Tensor, Tensor]:
    """First pixel and the one after the last of each bin along an axis: (N,), (N,) -> int64 (N, bins) twice."""
    steps = torch.arange(bins + 1, device=start.device, dtype=start.dtype)
    edges = steps * ((end - start) / bins)[:, None] + start[:, None]
    first, last = edges[:, :-1].floor(), edges[:, 1:].ceil()
    return first.clamp(0, pixels).long(), last.clamp(0, pixels).long()


def _pixels(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels of each bin, as many as the longest has, and which of them are in it: (N, bins) -> (N, bins, K)."""
    longest = int((last - first).max()) if first.numel() else 0
    pixels = first[..., None] + torch.arange(max(longest, 1), device=first.device)
    return pixels, pixels < last[..., None]


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Maximum over the pixels that a bin touches (Girshick 2015, Fast R-CNN, arXiv:1504.08083).

    Not torchvision's ``roi_pool``, which rounds the box to whole pixels first.

    Args:
        input: Feature map, (B, C, H, W).
        rois: Batch index and corners, inclusive, in image pixels, (N, 5).
        output: Output buffer, (N, C, pooled_height, pooled_width); 0 in bins without pixels.
        argmax: Output buffer for the index of the maximum in H * W, int32, of the shape of ``output``; -1 in bins
            without pixels.
        pooled_height: Bins along y.
        pooled_width: Bins along x.
        spatial_scale: Feature map size over image size.
    """
    features = at_least_float32(input).flatten(2)
    channels, height, width = input.shape[1:]
    boxes = rois.to(features.dtype)
    x1, y1, x2, y2 = (boxes[:, 1:] + boxes.new_tensor([0, 0, 1, 1])).mul(spatial_scale).unbind(dim=1)
    empty = (x2 <= x1) | (y2 <= y1)
    rows, valid_rows = _pixels(*_bins(y1, y2, pooled_height, height))
    columns, valid_columns = _pixels(*_bins(x1, x2, pooled_width, width))
    valid_rows &= ~empty[:, None, None]
    in_bin = pooled_height * pooled_width * rows.shape[2] * columns.shape[2]
    step = max(1, _MAX_ELEMENTS // max(1, in_bin * channels))
    for part in torch.arange(len(rois), device=input.device).split(step):
        index = rows[part][:, :, None, :, None] * width + columns[part][:, None, :, None, :]
        valid = valid_rows[part][:, :, None, :, None] & valid_columns[part][:, None, :, None, :]
        index, valid = index.flatten(3).flatten(1, 2), valid.flatten(3).flatten(1, 2)  # (N, bins, pixels of a bin)
        flat = index.flatten(1).clamp(max=height * width - 1)
        values = features[boxes[part, 0].long()[:, None], :, flat].view(*index.shape, channels)
        largest, place = values.where(valid[..., None], -torch.inf).max(dim=2)
        found = valid.any(dim=2)[..., None]
        place = index.gather(2, place.view(*index.shape[:2], channels))
        shape = (len(part), pooled_height, pooled_width, channels)
        output[part] = largest.where(found, 0).view(shape).permute(0, 3, 1, 2).to(output.dtype)
        argmax[part] = place.where(found, -1).view(shape).permute(0, 3, 1, 2).to(argmax.dtype)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Gradient of :func:`roi_pool_forward` with respect to its input, written into ``grad_input`` (B, C, H, W)."""
    batch, channels, height, width = grad_input.shape
    maps = rois[:, 0].long()[:, None] * channels + torch.arange(channels, device=rois.device)
    index = maps[:, :, None] * (height * width) + argmax.flatten(2)
    found = argmax.flatten(2) >= 0
    total = at_least_float32(grad_output).new_zeros(batch * channels * height * width)
    total.index_add_(0, index[found], grad_output.flatten(2)[found].to(total.dtype))
    grad_input.copy_(total.view(grad_input.shape))
