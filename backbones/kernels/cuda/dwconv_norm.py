"""Depthwise K x K convolution, bias and layer norm over the channels, in one pass over a channels-last map.

The reasons for the layout, for one H200 (4.8 TB/s; 67 TFLOP/s in float32 outside of the matrix units, NVIDIA's data
sheet) and ConvNeXt-T's first stage at 224 pixels, batch 256: a map is 77 M elements, 154 MB in bfloat16. These figures
are computed, not measured.

* Reading and writing such a map takes 64 us, its 49 products per element 113 us: 7 x 7 is bound by arithmetic, not by
  memory, so that the number of other instructions has to be small. A program therefore computes several rows at once:
  each input row is loaded and converted once and used for all output rows that it reaches. With 7 rows, a divisor of
  56, 28, 14 and 7, the inner loop compiled for sm_90 has 392 multiply-adds in about 710 instructions.
* Layer norm needs all channels of a pixel. A program walks over the channels in chunks that divide them (96 is 3 x 32:
  a power of two would waste a quarter), merges the statistics of the chunks, and reads its tile back to normalise it,
  from the cache, since it has just been written. A second kernel would read and write the map in memory once more.
* The backward pass needs the output of the convolution. Recomputing it costs 113 us or more, saving it 64 us at most
  for writing and reading: it is saved, in the precision of the map, with mean and 1 / deviation of each pixel (8
  bytes). The normalised map is saved by the next operation. In autocast PyTorch saves the output of the convolution in
  float32.
* The backward pass has three kernels: through the norm (bound by memory; the map's gradient is written, because the
  next two read it), the convolution with the rotated kernel, and the gradient of the weight. The last one has its 49
  sums for each channel and column in registers while it walks down the image, where each row of the gradient stays in
  a window of 7 and each row of the map is loaded at 7 shifts: 8 loads for 49 products. Partial sums of the programs are
  added in a fixed order.

Tensor cores do not help: a depthwise product fills at most an eighth of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from backbones.kernels.autotune import TuningKey, autotuner
from backbones.kernels.cuda.launch import FLOATS, ceil_div, next_power, on_device, runs_kernels, split_reduction

KERNEL_SIZES = range(1, 14, 2)
MAX_CHANNELS = 8192  # whose gradient through the norm fits into one program
MAX_OFFSET = 2**31 - 1
# Programs of the weight gradient: each writes K * K partial sums, and more of them would cost more than they gain. A
# multiprocessor of sm_90 has room for three: these are just below two rounds of an H200's 132 multiprocessors.
WEIGHT_PROGRAMS = 768


class Tile(NamedTuple):
    """Rows, columns and channels that a program computes at a time, and its number of warps of 32 threads."""

    rows: int
    cols: int
    block: int
    warps: int


def dwconv_norm_reference(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6
) -> Tensor:
    """Convolution, bias and layer norm by PyTorch: the definition of the operation.

    Args:
        x: Map, ``(N, H, W, C)``.
        weight: Weight of the convolution, ``(C, 1, K, K)``, K odd; the map is padded with K // 2 zeros on each side.
        bias: Bias of the convolution, ``(C,)``.
        scale: Weight of the norm, ``(C,)``.
        shift: Bias of the norm, ``(C,)``.
        eps: Epsilon added to the variance.

    Returns:
        ``(N, H, W, C)``.
    """
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])
    return F.layer_norm(y.permute(0, 2, 3, 1), scale.shape, scale, shift, eps)


def dwconv_norm(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> Tensor:
    """Compute :func:`dwconv_norm_reference` with fused kernels on a GPU, differentiable once in all five tensors.

    Products and statistics are summed in float32, and the parameters may have a higher precision than the map. In
    autocast, the map is cast to its precision as for a convolution, and the output has that precision (PyTorch's own
    layer norm returns float32, which the linear layer after it casts back).

    Raises:
        TypeError: If a tensor is neither float32, bfloat16 nor float16 (float64 has the plain steps on CPU alone).
        ValueError: If shapes do not match, see :func:`supports_dwconv_norm`.
    """
    if torch.is_autocast_enabled(x.device.type) and x.is_floating_point():
        x = x.to(torch.get_autocast_dtype(x.device.type))
    _check(x, weight, bias, scale, shift)
    tensors = (x, weight, bias, scale, shift)
    save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return _forward(x.contiguous(), weight, bias, scale, shift, eps, save)[0]


def supports_dwconv_norm(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels support a map ``(N, H, W, C)`` and a depthwise weight of these shapes and types."""
    square = weight.ndim == 4 and weight.shape[1] == 1 and weight.shape[2] == weight.shape[3]
    return (
        x.ndim == 4
        and square
        and weight.shape[0] == x.shape[3] <= MAX_CHANNELS
        and weight.shape[2] in KERNEL_SIZES
        and x.dtype in FLOATS
        and weight.dtype in FLOATS
        and x.shape[1] * x.shape[2] * x.shape[3] <= MAX_OFFSET
    )


def _check(x: Tensor, weight: Tensor, *vectors: Tensor) -> None:
    """Raise an error of one line if the tensors of a call do not match."""
    tensors = (x, weight, *vectors)
    allowed = FLOATS if x.is_cuda else (*FLOATS, torch.float64)
    for tensor in tensors:
        if tensor.dtype not in allowed:
            raise TypeError(f"dwconv_norm does not take {tensor.dtype}: float32, bfloat16 or float16 is needed")
        if tensor.device != x.device:
            raise ValueError(f"dwconv_norm: tensors on {x.device} and on {tensor.device}")
    if x.ndim != 4 or any(vector.shape != x.shape[3:] for vector in vectors):
        shapes = [tuple(vector.shape) for vector in vectors]
        raise ValueError(f"dwconv_norm: a map (N, H, W, C) and three vectors (C,), not {tuple(x.shape)} and {shapes}")
    if x.dtype in FLOATS and weight.dtype in FLOATS and not supports_dwconv_norm(x, weight):
        raise ValueError(
            f"dwconv_norm: no kernels for a map {tuple(x.shape)} and a weight {tuple(weight.shape)}: "
            f"a weight (C, 1, K, K) with K odd and at most {KERNEL_SIZES[-1]} is needed, C at most {MAX_CHANNELS}"
        )


@torch.library.custom_op("convnext::dwconv_norm", mutates_args=())
def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, eps: float, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, and for the backward pass the convolution, mean and 1 / deviation, which are empty unless ``save``."""
    with on_device(x), torch.autocast(x.device.type, enabled=False):
        if runs_kernels(x):
            return _launch_forward(x, weight, bias, scale, shift, eps, save)
        precise = torch.promote_types(x.dtype, torch.float32)
        pad = weight.shape[-1] // 2
        y = F.conv2d(x.permute(0, 3, 1, 2), weight.to(x.dtype), bias.to(x.dtype), padding=pad, groups=x.shape[3])
        conv = y.permute(0, 2, 3, 1).contiguous()
        variance, mean = torch.var_mean(conv.to(precise), -1, correction=0)
        rstd = (variance + eps).rsqrt()
        out = (conv.to(precise) - mean[..., None]) * rstd[..., None] * scale + shift
        saved = (conv, mean, rstd) if save else (x.new_empty(0), mean.new_empty(0), mean.new_empty(0))
        return out.to(x.dtype), *saved


@_forward.register_fake
def _(x: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    save = others[-1]
    conv, statistic = (x.shape, x.shape[:3]) if save else ((0,), (0,))
    precise = torch.promote_types(x.dtype, torch.float32)
    return (
        x.new_empty(x.shape),
        x.new_empty(conv),
        x.new_empty(statistic, dtype=precise),
        x.new_empty(statistic, dtype=precise),
    )


@torch.library.custom_op("convnext::dwconv_norm_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    conv: Tensor,
    mean: Tensor,
    rstd: Tensor,
    for_input: bool,
    for_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of map, weight, bias, scale and shift; the first two are empty where they are not needed."""
    with on_device(x), torch.autocast(x.device.type, enabled=False):
        grad = grad.contiguous()
        if not runs_kernels(x):
            return _plain_backward(grad, x, weight, scale, conv, mean, rstd, for_input, for_weight)
        grad_conv, partial = _launch_norm_grad(grad, conv, mean, rstd, scale)
        gain, lift, bias = (sums.sum(0) for sums in partial)
        grad_x = _launch_input_grad(grad_conv, weight) if for_input else x.new_empty(0)
        grad_weight = _launch_weight_grad(grad_conv, x, weight) if for_weight else weight.new_empty(0)
        return grad_x, grad_weight, bias, gain, lift


@_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _, _, mean, _, for_input, for_weight = others
    bias, gain, lift = (mean.new_empty(x.shape[3]) for _ in range(3))
    return (
        x.new_empty(x.shape if for_input else (0,)),
        mean.new_empty(weight.shape if for_weight else (0,)),
        bias,
        gain,
        lift,
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, scale, shift, _, save = inputs
    ctx.dtypes = (bias.dtype, scale.dtype, shift.dtype)
    ctx.mark_non_differentiable(*output[1:])
    if save:
        ctx.save_for_backward(x, weight, scale, *output[1:])


def _autograd_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, weight, scale, conv, mean, rstd = ctx.saved_tensors
    for_input, for_weight = ctx.needs_input_grad[:2]
    grads = _backward(grad, x, weight, scale, conv, mean, rstd, for_input, for_weight)
    vectors = (vector.to(dtype) for vector, dtype in zip(grads[2:], ctx.dtypes, strict=True))
    return grads[0] if for_input else None, grads[1].to(weight.dtype) if for_weight else None, *vectors, None, None


_forward.register_autograd(_autograd_backward, setup_context=_setup_context)


def _plain_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    conv: Tensor,
    mean: Tensor,
    rstd: Tensor,
    for_input: bool,
    for_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The backward kernels' steps by PyTorch."""
    g = grad.to(mean.dtype)
    unit = (conv.to(mean.dtype) - mean[..., None]) * rstd[..., None]
    scaled = g * scale
    level, slope = scaled.mean(-1, keepdim=True), (scaled * unit).mean(-1, keepdim=True)
    through = (scaled - level - unit * slope) * rstd[..., None]
    down, x = through.to(x.dtype).permute(0, 3, 1, 2), x.permute(0, 3, 1, 2)
    size = weight.shape[-1]
    settings = dict(padding=size // 2, groups=x.shape[1])
    grad_x, grad_weight = x.new_empty(0), weight.new_empty(0, dtype=mean.dtype)
    if for_input:
        turned = conv2d_input(x.shape, weight.to(x.dtype), down, **settings)
        grad_x = turned.permute(0, 2, 3, 1).contiguous()
    if for_weight:
        grad_weight = conv2d_weight(x, weight.shape, down, **settings).to(mean.dtype).flatten().view(weight.shape)
    return grad_x, grad_weight, through.sum((0, 1, 2)), (g * unit).sum((0, 1, 2)), g.sum((0, 1, 2))


def candidate_tiles(channels: int, kernel: int) -> dict[str, Tile]:
    """Candidate tiles of the convolution by name, the expected best first.

    Channels are divided into chunks of the largest power of two that divides them, from 32 to 128; up to 128 channels
    may also be one padded chunk, which needs no second reading. A thread has 8 or 16 elements of each row. Compiled for
    sm_90 and K = 7, 7 rows take 177 to 243 registers, 4 rows 104 to 188, 2 rows 70 to 146; 4 rows of several chunks of
    128 spill 24 bytes to the stack, the others nothing.
    """
    power = channels & -channels  # the largest power of two that divides them
    block = min(power if power >= 32 else max(next_power(channels), 16), 128)
    warps = max(block // 32, 1)
    low = {"low": Tile(4, 8, block, warps), "small": Tile(2, 8, block, warps)}
    if kernel > 7:  # the taps of a column would fill the registers of more rows
        return low
    whole = {"whole": Tile(7, 8, 128, 4)} if block < channels < 128 else {}
    return {"tall": Tile(7, 8, block, warps), "wide": Tile(4, 16, block, warps)} | low | whole


def channels_last_taps(weight: Tensor) -> Tensor:
    """The depthwise weight as ``(K * K, C)`` in float32, its channels contiguous in memory."""
    return weight.detach().flatten(1).t().to(torch.float32).contiguous()


def _launch_forward(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, eps: float, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from backbones.kernels.cuda.dwconv_norm_triton import conv_norm_kernel

    images, height, width, channels = x.shape
    out = torch.empty_like(x)
    conv = torch.empty_like(x) if save else out
    mean, rstd = (x.new_empty(x.shape[:3] if save else (0,), dtype=torch.float32) for _ in range(2))
    taps, kernel = channels_last_taps(weight), weight.shape[-1]

    def launch(tile: Tile) -> None:
        grid = (images * ceil_div(height, tile.rows) * ceil_div(width, tile.cols),)
        shape = dict(C=channels, K=kernel, ROWS=tile.rows, COLS=tile.cols, BLOCK=tile.block, SAVE=save)
        conv_norm_kernel[grid](
            x, taps, bias, scale, shift, conv, out, mean, rstd, height, width, eps, **shape, num_warps=tile.warps
        )

    if out.numel():
        launch_fastest(launch, "dwconv_norm.forward", x, (channels, kernel), candidate_tiles(channels, kernel))
    return out, conv if save else x.new_empty(0), mean, rstd


def _launch_input_grad(grad: Tensor, weight: Tensor) -> Tensor:
    from backbones.kernels.cuda.dwconv_norm_triton import input_grad_kernel

    images, height, width, channels = grad.shape
    out = torch.empty_like(grad)
    taps, kernel = channels_last_taps(weight), weight.shape[-1]

    def launch(tile: Tile) -> None:
        spots = images * ceil_div(height, tile.rows) * ceil_div(width, tile.cols)
        shape = dict(C=channels, K=kernel, ROWS=tile.rows, COLS=tile.cols, BLOCK=tile.block)
        grid = (spots, ceil_div(channels, tile.block))
        input_grad_kernel[grid](grad, taps, out, height, width, **shape, num_warps=tile.warps)

    if out.numel():
        launch_fastest(launch, "dwconv_norm.input_grad", grad, (channels, kernel), candidate_tiles(channels, kernel))
    return out


def launch_fastest(
    launch: Callable[[Tile], None], operation: str, x: Tensor, static: tuple[int, ...], candidates: Mapping[str, Tile]
) -> None:
    """Launch with the tile that is fastest on this device, measured if possible.

    Args:
        launch: Function that launches a kernel with a tile.
        operation: Name under which the selection is remembered.
        x: A map that the kernel reads.
        static: Numbers that are fixed in a network and on which the selection depends.
        candidates: Tiles by name, the expected best first.
    """
    key = TuningKey.of_tensor(operation, x, static)
    calls = {name: partial(launch, tile) for name, tile in candidates.items()}
    launch(candidates[autotuner.select(key, calls, x) if x.is_cuda else autotuner.predict(key, calls)])


def _launch_weight_grad(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    from backbones.kernels.cuda.dwconv_norm_triton import weight_grad_kernel

    images, height, width, channels = x.shape
    kernel = weight.shape[-1]
    if not x.numel():
        return weight.new_zeros(weight.shape, dtype=torch.float32)
    block = min(64 if channels % 64 == 0 else 32, max(next_power(channels), 16))
    cols = 256 // block  # two elements of each sum per thread: 151 registers for 49 sums
    rows_of_taps = min(kernel, max(49 // kernel, 1))
    band = ceil_div(height, ceil_div(height, 16))
    units = images * ceil_div(height, band) * ceil_div(width, cols)
    blocks, groups = ceil_div(channels, block), ceil_div(kernel, rows_of_taps)
    shares, _ = split_reduction(units, 1, blocks * groups, WEIGHT_PROGRAMS)
    partial = x.new_empty((shares, kernel * kernel, channels), dtype=torch.float32)
    shape = dict(C=channels, K=kernel, TAPS=rows_of_taps, COLS=cols, BLOCK=block)
    grid = (shares, blocks, groups)
    weight_grad_kernel[grid](x, grad, partial, height, width, units, band, **shape, num_warps=4)
    return partial.sum(0).t().flatten().view(weight.shape)


def _launch_norm_grad(grad: Tensor, conv: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the convolution's output; partial sums ``(3, programs, C)`` of those of scale, shift and bias."""
    from backbones.kernels.cuda.dwconv_norm_triton import norm_grad_kernel

    channels = conv.shape[3]
    pixels = conv.numel() // channels
    if not pixels:
        return torch.empty_like(conv), mean.new_zeros((3, 1, channels))
    out = torch.empty_like(conv)
    block = next_power(channels)
    rows = max(2048 // block, 1)
    shares, steps = split_reduction(pixels, rows, 2)
    partial = mean.new_empty((3, shares, channels))
    shape = dict(C=channels, ROWS=rows, BLOCK=block)
    warps = 4 if block <= 2048 else 8
    norm_grad_kernel[(shares,)](grad, conv, mean, rstd, scale, out, partial, pixels, steps, **shape, num_warps=warps)
    return out, partial
