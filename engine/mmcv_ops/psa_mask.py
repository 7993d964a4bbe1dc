"""The masks of PSANet: from weights relative to each pixel to weights between pixels, forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["psamask_backward", "psamask_forward"]

_COLLECT = 0  # psa_type of mmcv.ops.psa_mask; 1 is distribute


def _pairs(mask_size: tuple[int, int], feature_size: tuple[int, int], device: torch.device) -> tuple[Tensor, ...]:
    """Entries of the relative masks that fall on the feature map, each int64 (M,).

    Args:
        mask_size: Height and width of the mask around each pixel.
        feature_size: Height and width of the feature map.
        device: Device of the result.

    Returns:
        Index of the entry in its mask, of the mask's pixel, and of the pixel on which the entry falls.
    """
    rows, columns = (torch.arange(size, device=device) for size in mask_size)
    y, x = (torch.arange(size, device=device) for size in feature_size)
    other_y = y[None, :] + rows[:, None] - (mask_size[0] - 1) // 2  # (mask height, height)
    other_x = x[None, :] + columns[:, None] - (mask_size[1] - 1) // 2
    valid_y, valid_x = (other_y >= 0) & (other_y < feature_size[0]), (other_x >= 0) & (other_x < feature_size[1])
    row, column, at_y, at_x = (valid_y[:, None, :, None] & valid_x[None, :, None, :]).nonzero().unbind(dim=1)
    width = feature_size[1]
    return row * mask_size[1] + column, at_y * width + at_x, other_y[row, at_y] * width + other_x[column, at_x]


def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Point-wise spatial attention (Zhao et al. 2018, PSANet, section 3.2): what each pixel sends or receives.

    Args:
        input: Mask around each pixel, (num_, h_mask * w_mask, h_feature, w_feature).
        output: Output buffer, zero, (num_, h_feature * w_feature, h_feature, w_feature): for ``distribute`` the
            channels are the pixels whose masks these are, for ``collect`` those on which they fall.
        psa_type: 0 for ``collect``, 1 for ``distribute``.
        num_: Number of images.
        h_feature: Height of the feature map.
        w_feature: Width of the feature map.
        h_mask: Height of a mask.
        w_mask: Width of a mask.
        half_h_mask: Unused; follows from ``h_mask``.
        half_w_mask: Unused; follows from ``w_mask``.
    """
    entry, pixel, other = _pairs((h_mask, w_mask), (h_feature, w_feature), input.device)
    first, second = (other, pixel) if psa_type == _COLLECT else (pixel, other)
    output.view(num_, h_feature * w_feature, -1)[:, first, second] = input.flatten(2)[:, entry, pixel]


def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Gradient of :func:`psamask_forward` with respect to its input, written into ``grad_input``, which is zero."""
    entry, pixel, other = _pairs((h_mask, w_mask), (h_feature, w_feature), grad_output.device)
    first, second = (other, pixel) if psa_type == _COLLECT else (pixel, other)
    grad_input.view(num_, h_mask * w_mask, -1)[:, entry, pixel] = grad_output.flatten(2)[:, first, second]
