"""RoIAlign by averaging, forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.mmcv_ops.extension import MAX_POOLING, at_least_float32, missing_op
from engine.mmcv_ops.roi_align_cpu import roi_align_cpu, roi_align_gradient

__all__ = ["roi_align_backward", "roi_align_forward"]

_MAX_POOLING = 0  # pool_mode of mmcv.ops.roi_align


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign (He et al. 2017, arXiv:1703.06870) by averaging.

    Args:
        input: Feature map, (B, C, H, W).
        rois: Batch index and corners in image pixels, (N, 5).
        output: Output buffer, (N, C, aligned_height, aligned_width).
        argmax_y: Unused, empty; for max pooling only.
        argmax_x: Unused, empty; for max pooling only.
        aligned_height: Bins along y.
        aligned_width: Bins along x.
        spatial_scale: Feature map size over image size.
        sampling_ratio: Samples per bin along each axis; 0 for about one per feature pixel.
        pool_mode: 0 for max, 1 for average pooling.
        aligned: Whether boxes are shifted by half a pixel, to where pixel centres are.

    Raises:
        MissingOpError: If max pooling is asked for.
    """
    if pool_mode == _MAX_POOLING:
        raise missing_op(MAX_POOLING)
    features = at_least_float32(input)
    # Maps in another layout would have to be copied first.
    is_ours = features.device.type == "cpu" and features.is_contiguous(memory_format=torch.channels_last)
    pool = roi_align_cpu if is_ours else torch.ops.torchvision.roi_align
    output.copy_(
        pool(features, rois.to(features.dtype), spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned)
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of :func:`roi_align_forward` with respect to its input, written into ``grad_input`` (B, C, H, W)."""
    grad = at_least_float32(grad_output)
    rois = rois.to(grad.dtype)
    if grad.device.type == "cpu":
        grad_input.copy_(roi_align_gradient(grad, rois, grad_input.shape, spatial_scale, sampling_ratio, aligned))
        return
    # torchvision has no public name for the backward; autograd would compute a second forward.
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad, rois, spatial_scale, aligned_height, aligned_width, *grad_input.shape, sampling_ratio, aligned
        )
    )
