"""Multi-scale deformable attention, forward and backward, by mmcv's own form in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.mmcv_ops.extension import at_least_float32, write_gradients

__all__ = ["ms_deform_attn_backward", "ms_deform_attn_forward"]


class _Attention:
    """mmcv's plain form as a function of values, sampling locations and attention weights.

    Args:
        shapes: Height and width of each level, (L, 2).
    """

    def __init__(self, shapes: Tensor) -> None:
        self.shapes = shapes.tolist()

    def __call__(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        # mmcv.ops imports the ops of this package; hence not at the top.
        from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

        with torch.autocast(value.device.type, enabled=False):
            return multi_scale_deformable_attn_pytorch(value, self.shapes, locations, weights)


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Multi-scale deformable attention (Zhu et al. 2021, arXiv:2010.04159, equation 3) without its projections.

    Args:
        value: Values of all levels, one after the other, (B, keys, heads, C).
        value_spatial_shapes: Height and width of each level, (L, 2).
        value_level_start_index: Unused; first key of each level.
        sampling_locations: Points x, y in 0..1, (B, queries, heads, L, points, 2).
        attention_weights: Weights of the points, (B, queries, heads, L, points).
        im2col_step: Unused; images that the compiled op takes at a time.

    Returns:
        Weighted sums, (B, queries, heads * C).
    """
    inputs = (at_least_float32(tensor) for tensor in (value, sampling_locations, attention_weights))
    return _Attention(value_spatial_shapes)(*inputs).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Gradients of :func:`ms_deform_attn_forward`, written into buffers."""
    write_gradients(
        _Attention(value_spatial_shapes),
        (value, sampling_locations, attention_weights),
        grad_output,
        (grad_value, grad_sampling_loc, grad_attn_weight),
    )
