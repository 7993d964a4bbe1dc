"""Multi-scale deformable attention, forward and backward.

Its definition is mmcv's own form in plain PyTorch. On a GPU with Triton the fused kernels of
:mod:`engine.mmcv_ops.ms_deform_attn_triton` compute the same in one pass each, where they are faster: that is measured
once for each kind of attention (:mod:`backbones.kernels.autotune`), forward and backward apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from backbones.kernels.autotune import TuningKey, autotuner
from backbones.kernels.cuda.launch import FLOATS, ceil_div, is_capable, next_power, on_device, runs_kernels
from backbones.kernels.protocol import FUSED_FORM, PLAIN_FORM
from engine.mmcv_ops.extension import at_least_float32, write_gradients

__all__ = ["ms_deform_attn_backward", "ms_deform_attn_forward"]

FORWARD, BACKWARD = "ms_deform_attn", "ms_deform_attn_backward"  # operations, as CONVNEXT_CHOICE names them
# A tile: 4 elements of a pixel for each of the threads of four warps.
ATTENTION_ELEMENTS, ATTENTION_CHANNELS, ATTENTION_WARPS = 512, 128, 4


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
    inputs = (value, value_spatial_shapes, sampling_locations, attention_weights)
    if not (value.numel() and sampling_locations.numel()):
        return value.new_zeros((*sampling_locations.shape[:2], value.shape[2] * value.shape[3]))
    return _call(FORWARD, {FUSED_FORM: _fused_forward, PLAIN_FORM: _plain_forward}, inputs)


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
    buffers = (grad_value, grad_sampling_loc, grad_attn_weight)
    inputs = (value, value_spatial_shapes, sampling_locations, attention_weights)
    if not (value.numel() and sampling_locations.numel()):
        for buffer in buffers:
            buffer.zero_()
        return
    if torch.are_deterministic_algorithms_enabled():  # torch says of its own what it cannot do; atomics would be silent
        _plain_backward(*inputs, grad_output, buffers)
        return
    _call(BACKWARD, {FUSED_FORM: _fused_backward, PLAIN_FORM: _plain_backward}, (*inputs, grad_output, buffers))


def _call(operation: str, forms: Mapping[str, Callable[..., Any]], inputs: tuple[Any, ...]) -> Any:
    """Compute an operation in the form that is faster here."""
    value, _, locations, weights = inputs[:4]
    supported = runs_kernels(value) and {value.dtype, locations.dtype, weights.dtype} <= set(FLOATS)
    if not supported or (autotuner.forced(operation) is None and not is_capable(value.device)):
        return forms[PLAIN_FORM](*inputs)
    static = (*value.shape[2:], *locations.shape[3:5], value.shape[1].bit_length())
    calls = {name: partial(form, *inputs) for name, form in forms.items()}
    return calls[autotuner.select(TuningKey.of_tensor(operation, locations, static, value.dtype), calls, value)]()


def _plain_forward(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    inputs = (at_least_float32(tensor) for tensor in (value, locations, weights))
    return _Attention(shapes)(*inputs).to(value.dtype)


def _plain_backward(
    value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor, grad: Tensor, buffers: tuple[Tensor, ...]
) -> None:
    write_gradients(_Attention(shapes), (value, locations, weights), grad, buffers)


def _fused_forward(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    from engine.mmcv_ops.ms_deform_attn_triton import attention_kernel

    batch, queries, heads = locations.shape[:3]
    out = value.new_empty((batch, queries, heads * value.shape[3]))
    tensors = (value.contiguous(), shapes.to(value.device), locations.contiguous(), weights.contiguous(), out)
    counts, constants = _launch(value, locations)
    grid = (ceil_div(counts[0], constants["ROWS"]), ceil_div(value.shape[3], constants["BLOCK"]))
    with on_device(value):
        attention_kernel[grid](*tensors, *counts, **constants, num_warps=ATTENTION_WARPS)
    return out


def _fused_backward(
    value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor, grad: Tensor, buffers: tuple[Tensor, ...]
) -> None:
    from engine.mmcv_ops.ms_deform_attn_triton import attention_grad_kernel

    inputs = (value.contiguous(), shapes.to(value.device), locations.contiguous(), weights.contiguous())
    sums = torch.zeros(value.shape, dtype=torch.float32, device=value.device)  # half precision would lose small terms
    others = [torch.empty(tensor.shape, dtype=tensor.dtype, device=value.device) for tensor in buffers[1:]]
    counts, constants = _launch(value, locations)
    with on_device(value):
        attention_grad_kernel[(ceil_div(counts[0], constants["ROWS"]),)](
            *inputs, grad.contiguous(), sums, *others, *counts, **constants, num_warps=ATTENTION_WARPS
        )
    for buffer, gradient in zip(buffers, (sums, *others), strict=True):
        buffer.copy_(gradient)


def _launch(value: Tensor, locations: Tensor) -> tuple[tuple[int, ...], dict[str, int]]:
    """Counts of rows, of rows of an image, of keys, levels and points; constants of a kernel."""
    batch, queries, heads, levels, points = locations.shape[:5]
    block = min(next_power(value.shape[3]), ATTENTION_CHANNELS)
    constants = dict(HEADS=heads, C=value.shape[3], ROWS=max(ATTENTION_ELEMENTS // block, 1), BLOCK=block)
    return (batch * queries * heads, queries * heads, value.shape[1], levels, points), constants
