"""The two halves of mmcv's masked convolution, which computes chosen pixels alone; it has no backward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["masked_col2im_forward", "masked_im2col_forward"]


def masked_im2col_forward(
    features: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    data_col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Neighbourhoods of chosen pixels as columns, of a convolution with stride 1.

    Args:
        features: Feature map of one image, (1, C, H, W).
        mask_h_idx: Rows of the chosen pixels of the output, (M,), int64.
        mask_w_idx: Their columns, (M,), int64.
        data_col: Output buffer, (C * kernel_h * kernel_w, M).
        kernel_h: Height of the kernel.
        kernel_w: Width of the kernel.
        pad_h: Zeros before and after each column of the feature map.
        pad_w: Zeros before and after each row.
    """
    padded = F.pad(features[0], [pad_w, pad_w, pad_h, pad_h])
    rows = mask_h_idx + torch.arange(kernel_h, device=features.device)[:, None, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=features.device)[:, None]
    data_col.copy_(padded[:, rows, columns].reshape(data_col.shape))


def masked_col2im_forward(
    data_col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, output: Tensor, height: int, width: int, channels: int
) -> None:
    """Columns (C, M) as pixels of ``output`` (1, C, height, width), at the places of :func:`masked_im2col_forward`."""
    output[0, :, mask_h_idx, mask_w_idx] = data_col
