"""CARAFE: upsampling in which each output pixel is a weighted sum of a neighbourhood, with weights of its own.

Source: Wang et al. 2019, arXiv:1905.02188, equation 4. mmcv's "naive" op and the other give the same values.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from engine.mmcv_ops.extension import at_least_float32

__all__ = ["carafe_backward", "carafe_forward", "carafe_naive_backward", "carafe_naive_forward"]


def _by_group(features: Tensor, group_size: int) -> Tensor:
    """Split channels into groups: (B, C, H, W) -> (B, G, C / G, H, W)."""
    return features.unflatten(1, (group_size, -1))


def _in_blocks(outputs: Tensor, scale_factor: int) -> Tensor:
    """Split the axes of a large map into pixel of the small map and place in it: (..., sH, sW) -> (..., H, s, W, s)."""
    return outputs.unflatten(-1, (-1, scale_factor)).unflatten(-3, (-1, scale_factor))


def _taps(kernel_size: int) -> Iterator[tuple[int, int, int]]:
    """Number, row and column of each place in the neighbourhood."""
    for tap in range(kernel_size**2):
        yield tap, *divmod(tap, kernel_size)


def carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    """Weighted sums of neighbourhoods.

    Args:
        features: Small feature map, (B, C, H, W).
        masks: Weights, (B, group_size * kernel_size**2, scale_factor * H, scale_factor * W).
        output: Output buffer, (B, C, scale_factor * H, scale_factor * W).
        kernel_size: Side of the neighbourhood, odd.
        group_size: Number of groups of channels, each with weights of its own.
        scale_factor: Whole factor of the upsampling.
    """
    height, width = features.shape[2:]
    padded = _by_group(F.pad(at_least_float32(features), [kernel_size // 2] * 4), group_size)
    weights = _in_blocks(_by_group(at_least_float32(masks), group_size), scale_factor)
    total = padded.new_zeros(*padded.shape[:3], height, scale_factor, width, scale_factor)
    for tap, row, column in _taps(kernel_size):
        shifted = padded[..., row : row + height, column : column + width]
        total.addcmul_(shifted[..., :, None, :, None], weights[:, :, tap, None])
    output.copy_(total.view(output.shape))


def carafe_naive_backward(
    grad_output: Tensor,
    features: Tensor,
    masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Gradients of :func:`carafe_naive_forward` with respect to features and masks, written into buffers."""
    height, width = features.shape[2:]
    margin = kernel_size // 2
    padded = _by_group(F.pad(at_least_float32(features), [margin] * 4), group_size)
    weights = _in_blocks(_by_group(at_least_float32(masks), group_size), scale_factor)
    grad = _in_blocks(_by_group(at_least_float32(grad_output), group_size), scale_factor)
    grad_padded, grad_weights = padded.new_zeros(padded.shape), weights.new_empty(weights.shape)
    for tap, row, column in _taps(kernel_size):
        place = (..., slice(row, row + height), slice(column, column + width))
        grad_padded[place] += (grad * weights[:, :, tap, None]).sum(dim=(-3, -1))
        grad_weights[:, :, tap] = (grad * padded[place][..., :, None, :, None]).sum(dim=2)
    inner = (..., slice(margin, margin + height), slice(margin, margin + width))
    grad_input.copy_(grad_padded.flatten(1, 2)[inner])
    grad_masks.copy_(grad_weights.reshape(masks.shape))


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """:func:`carafe_naive_forward` that keeps the features in ``rfeatures`` for :func:`carafe_backward`."""
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(
    grad_output: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rgrad_output: Tensor,
    rgrad_input_hs: Tensor,
    rgrad_input: Tensor,
    rgrad_masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Gradients of :func:`carafe_forward` with respect to features and masks, written into the last two tensors."""
    carafe_naive_backward(grad_output, rfeatures, masks, grad_input, grad_masks, kernel_size, group_size, scale_factor)
