"""Depthwise K x K convolution of the visible units of images alone, for masked autoencoders.

The plain steps write the packed map into a map of zeros, convolve all of it and gather the visible units: at a mask
ratio of 0.6, two and a half times the products, and two whole maps in memory. Here each visible position reads its
neighbours in the packed map, through a table that gives the place of each unit of an image among its visible ones
(:attr:`backbones.masked.PackedLayout.slots`); a hidden unit is read as zero and never computed. No whole map exists, in
the forward or in the backward pass, which saves the packed input alone.

A program computes a few rows of one unit of 8 x 8, or of several small units side by side, since those of the last
stage are single pixels. The table is read once for each input row and shift, for all channels of a program. The
gradient of the input is the same convolution with the rotated kernel, since hidden positions have no gradient. Sums for
the weight are partial sums of the programs, added in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from backbones.kernels.cuda.dwconv_norm import (
    KERNEL_SIZES,
    MAX_OFFSET,
    WEIGHT_PROGRAMS,
    Tile,
    channels_last_taps,
    launch_fastest,
)
from backbones.kernels.cuda.launch import FLOATS, ceil_div, next_power, on_device, runs_kernels, split_reduction
from backbones.masked import PackedLayout

MAX_SIDE = 32  # of a unit; the columns of a tile are at least as many


def packed_dwconv_reference(x: Tensor, weight: Tensor, bias: Tensor, layout: PackedLayout) -> Tensor:
    """Convolution and bias by PyTorch on the whole map: the definition of the operation.

    Args:
        x: Visible units, ``(N, visible * side, side, C)``.
        weight: Weight of the convolution, ``(C, 1, K, K)``, K odd; the map is padded with K // 2 zeros on each side.
        bias: Bias of the convolution, ``(C,)``.
        layout: Places of the units.

    Returns:
        ``(N, visible * side, side, C)``.
    """
    whole = layout.unpack(x.permute(0, 3, 1, 2))
    y = F.conv2d(whole, weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])
    return layout.pack(y).permute(0, 2, 3, 1)


def packed_dwconv(x: Tensor, weight: Tensor, bias: Tensor, layout: PackedLayout) -> Tensor:
    """Compute :func:`packed_dwconv_reference` with kernels on a GPU, differentiable once in all three tensors.

    Products are summed in float32, and the parameters may have a higher precision than the map. In autocast, the map is
    cast to its precision as for a convolution.

    Raises:
        TypeError: If a tensor is neither float32, bfloat16 nor float16 (float64 has the plain steps on CPU alone).
        ValueError: If shapes do not match, see :func:`supports_packed_dwconv`.
    """
    if torch.is_autocast_enabled(x.device.type) and x.is_floating_point():
        x = x.to(torch.get_autocast_dtype(x.device.type))
    _check(x, weight, bias, layout)
    columns = layout.size[1] // layout.side
    out: Tensor = _forward(x.contiguous(), weight, bias, layout.units.contiguous(), layout.slots.contiguous(), columns)
    return out


def supports_packed_dwconv(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels support visible units ``(N, visible * side, side, C)`` and a depthwise weight."""
    square = weight.ndim == 4 and weight.shape[1] == 1 and weight.shape[2] == weight.shape[3]
    return (
        x.ndim == 4
        and square
        and weight.shape[0] == x.shape[3]
        and weight.shape[2] in KERNEL_SIZES
        and x.dtype in FLOATS
        and weight.dtype in FLOATS
        and x.shape[2] <= MAX_SIDE
        and x.shape[1] * x.shape[2] * x.shape[3] <= MAX_OFFSET
    )


def _check(x: Tensor, weight: Tensor, bias: Tensor, layout: PackedLayout) -> None:
    """Raise an error of one line if the tensors of a call do not match."""
    allowed = FLOATS if x.is_cuda else (*FLOATS, torch.float64)
    for tensor in (x, weight, bias):
        if tensor.dtype not in allowed:
            raise TypeError(f"packed_dwconv does not take {tensor.dtype}: float32, bfloat16 or float16 is needed")
    for tensor in (weight, bias, layout.units):
        if tensor.device != x.device:
            raise ValueError(f"packed_dwconv: tensors on {x.device} and on {tensor.device}")
    images, visible = layout.units.shape
    if x.ndim != 4 or x.shape[:3] != (images, visible * layout.side, layout.side) or bias.shape != x.shape[3:]:
        raise ValueError(
            f"packed_dwconv: a map ({images}, {visible * layout.side}, {layout.side}, C) and a bias (C,), "
            f"not {tuple(x.shape)} and {tuple(bias.shape)}"
        )
    if x.dtype in FLOATS and weight.dtype in FLOATS and not supports_packed_dwconv(x, weight):
        raise ValueError(
            f"packed_dwconv: no kernels for a map {tuple(x.shape)} and a weight {tuple(weight.shape)}: a weight "
            f"(C, 1, K, K) with K odd and at most {KERNEL_SIZES[-1]} and units of at most {MAX_SIDE} are needed"
        )


@torch.library.custom_op("convnext::packed_dwconv", mutates_args=())
def _forward(x: Tensor, weight: Tensor, bias: Tensor, units: Tensor, slots: Tensor, columns: int) -> Tensor:
    with on_device(x), torch.autocast(x.device.type, enabled=False):
        if runs_kernels(x):
            return _launch_conv(x, weight, bias, units, slots, columns)
        layout = _layout(x, units, slots, columns)
        pad = weight.shape[-1] // 2
        whole = layout.unpack_rows(x).permute(0, 3, 1, 2)
        y = F.conv2d(whole, weight.to(x.dtype), bias.to(x.dtype), padding=pad, groups=x.shape[3])
        return layout.pack_rows(y.permute(0, 2, 3, 1))


@_forward.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("convnext::packed_dwconv_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    units: Tensor,
    slots: Tensor,
    columns: int,
    for_input: bool,
    for_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of map, weight and bias; those that are not needed are empty."""
    with on_device(x), torch.autocast(x.device.type, enabled=False):
        grad = grad.contiguous()
        precise = torch.promote_types(x.dtype, torch.float32)
        grads = [x.new_empty(0), x.new_empty(0, dtype=precise), x.new_empty(0, dtype=precise)]
        if runs_kernels(x):
            if for_input:
                grads[0] = _launch_conv(grad, weight, None, units, slots, columns)
            if for_parameters:
                grads[1:] = _launch_weight_grad(grad, x, weight, units, slots, columns)
            return grads[0], grads[1], grads[2]
        layout = _layout(x, units, slots, columns)
        whole, down = (layout.unpack_rows(one).permute(0, 3, 1, 2) for one in (x, grad))
        settings = dict(padding=weight.shape[-1] // 2, groups=x.shape[3])
        if for_input:
            turned = conv2d_input(whole.shape, weight.to(x.dtype), down, **settings)
            grads[0] = layout.pack_rows(turned.permute(0, 2, 3, 1))
        if for_parameters:
            found = conv2d_weight(whole, weight.shape, down, **settings)
            grads[1:] = found.to(precise).flatten().view(weight.shape), grad.to(precise).sum((0, 1, 2))
        return grads[0], grads[1], grads[2]


@_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    for_input, for_parameters = others[-2:]
    precise = torch.promote_types(x.dtype, torch.float32)
    return (
        x.new_empty(x.shape if for_input else (0,)),
        x.new_empty(weight.shape if for_parameters else (0,), dtype=precise),
        x.new_empty(weight.shape[:1] if for_parameters else (0,), dtype=precise),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, units, slots, ctx.columns = inputs
    ctx.bias_dtype = bias.dtype
    ctx.save_for_backward(x, weight, units, slots)


def _autograd_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, units, slots = ctx.saved_tensors
    for_input, for_weight, for_bias, *_ = ctx.needs_input_grad
    grads = _backward(grad, x, weight, units, slots, ctx.columns, for_input, for_weight or for_bias)
    return (
        grads[0] if for_input else None,
        grads[1].to(weight.dtype) if for_weight else None,
        grads[2].to(ctx.bias_dtype) if for_bias else None,
        None,
        None,
        None,
    )


_forward.register_autograd(_autograd_backward, setup_context=_setup_context)


def _layout(x: Tensor, units: Tensor, slots: Tensor, columns: int) -> PackedLayout:
    """The layout of visible units ``(N, visible * side, side, C)``."""
    return PackedLayout.of(units, (slots.shape[1] // columns, columns), x.shape[2])


def packed_candidate_tiles(channels: int, side: int) -> dict[str, Tile]:
    """Candidate tiles of the convolution by name, the expected best first.

    Four rows where a unit has as many, 8 columns or one unit, and chunks of channels as for whole maps; 16 columns, or
    two rows, as alternatives.

    Args:
        channels: Channels of the map.
        side: Positions along a unit.
    """
    power = channels & -channels  # the largest power of two that divides them
    block = min(power if power >= 32 else max(next_power(channels), 16), 64)
    rows = min(next_power(side), 4)

    def tile(rows: int, cols: int) -> Tile:
        cols = max(cols, next_power(side))
        return Tile(rows, cols, block, min(max(cols * block // 256, 1), 8))

    wide = {"wide": tile(rows, 16)} if side < 16 else {}
    low = {"low": tile(2, 8)} if rows > 2 else {}
    return {"first": tile(rows, 8)} | wide | low


def _launch_conv(x: Tensor, weight: Tensor, bias: Tensor | None, units: Tensor, slots: Tensor, columns: int) -> Tensor:
    """The convolution, or without a bias the gradient of its input."""
    from backbones.kernels.cuda.packed_dwconv_triton import packed_conv_kernel

    side, channels, kernel, visible = x.shape[2], x.shape[3], weight.shape[-1], units.shape[1]
    out = torch.empty_like(x)
    taps, rows = channels_last_taps(weight), slots.shape[1] // columns

    def launch(tile: Tile) -> None:
        together = tile.cols // side
        tiles = len(x) * ceil_div(visible, together) * ceil_div(side, tile.rows)
        shape = dict(C=channels, K=kernel, SIDE=side, UNITS=together, ROWS=tile.rows, COLS=tile.cols, BLOCK=tile.block)
        grid = (tiles, ceil_div(channels, tile.block))
        packed_conv_kernel[grid](
            x, taps, bias, units, slots, out, visible, rows, columns, **shape, GRAD=bias is None, num_warps=tile.warps
        )

    if out.numel():
        operation = "packed_dwconv.input_grad" if bias is None else "packed_dwconv.forward"
        launch_fastest(launch, operation, x, (channels, kernel, side), packed_candidate_tiles(channels, side))
    return out


def _launch_weight_grad(
    grad: Tensor, x: Tensor, weight: Tensor, units: Tensor, slots: Tensor, columns: int
) -> tuple[Tensor, Tensor]:
    """Gradients of weight and bias in float32."""
    from backbones.kernels.cuda.packed_dwconv_triton import packed_weight_grad_kernel

    side, channels, kernel, visible = x.shape[2], x.shape[3], weight.shape[-1], units.shape[1]
    if not x.numel():
        return x.new_zeros(weight.shape, dtype=torch.float32), x.new_zeros(channels, dtype=torch.float32)
    cols = max(8, next_power(side))
    block = max(256 // cols, 16)  # two elements of each sum per thread
    tap_rows = min(kernel, max(49 // kernel, 1))
    tile = dict(UNITS=cols // side, ROWS=min(next_power(side), 4), COLS=cols, BLOCK=block)
    tiles = len(x) * ceil_div(visible, tile["UNITS"]) * ceil_div(side, tile["ROWS"])
    blocks, groups = ceil_div(channels, block), ceil_div(kernel, tap_rows)
    shares, _ = split_reduction(tiles, 1, blocks * groups, WEIGHT_PROGRAMS)
    partial = x.new_empty((shares, kernel * kernel + 1, channels), dtype=torch.float32)
    packed_weight_grad_kernel[(shares, blocks, groups)](
        x,
        grad,
        units,
        slots,
        partial,
        visible,
        slots.shape[1] // columns,
        columns,
        tiles,
        **dict(C=channels, K=kernel, TAPS=tap_rows, SIDE=side, **tile),
        num_warps=max(cols * block // 64, 4),
    )
    sums = partial.sum(0)
    return sums[:-1].t().flatten().view(weight.shape), sums[-1].clone()
