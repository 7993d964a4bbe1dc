"""A ConvNeXt block on CPU: the numbers of its plain steps, in the form that a CPU runs fastest.

What the plain steps lose there, and what is done instead:

* Products are oneDNN's, in the form that is fastest for each (:mod:`backbones.kernels.cpu.linear`).
* All steps of a block run over a few images at a time (:mod:`backbones.kernels.cpu.autograd`). For the backward pass
  the output of the convolution and that of the first product are kept, and the rest is computed again: plain steps keep
  half as much again.
* oneDNN has no fast kernel for the weight's gradient of a depthwise convolution; it was a third of a training step.
  That gradient is itself a depthwise convolution, of the input with the output's gradient as its kernel, and the
  forward kernel is fast at that. The gradient of the input is a convolution with the kernel turned around.
* Images that stochastic depth leaves out of a block are left out of its work.
* Inference goes through a block in one pass, where there is a C compiler (:mod:`backbones.kernels.cpu.native`).

Inference keeps the weights laid out for its products, with layer scale multiplied in, until they change. Parameters,
their names and the modules that hold them are untouched. The plain steps are taken where something would be passed
over: parts that were replaced, parametrised or given hooks, and programs that are being traced, compiled or exported.

Inference measures once which form is fastest (:mod:`backbones.kernels.autotune`). Training does not, so that two runs
of one seed agree to the last bit: it has the fused form wherever the CPU has AVX-512 and the block is not tiny.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, Protocol

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from backbones.errors import UserError
from backbones.kernels import autotune as choice
from backbones.kernels.cpu import native as cpu_native
from backbones.kernels.cpu.autograd import Products, Steps, Weights
from backbones.kernels.cpu.dispatch import SMALLEST_WORK, cpu_name, has_avx512, held_as, hooked, precision, watched
from backbones.kernels.cpu.linear import few, packed
from backbones.kernels.cpu.weight_cache import forget, laid_out
from backbones.layers import GRN

OPERATION = "cpu_block"
# The forms: C code of one pass, PyTorch's operators over pieces of a map, PyTorch's operators as they come.
NATIVE, FUSED, PLAIN = "native", "fused", "plain"
# Of a block's layers, in the order of :func:`_weights`.
KINDS = ((nn.Conv2d,), (nn.LayerNorm,), (nn.Linear,), (nn.GELU,), (GRN, nn.Identity), (nn.Linear,))


class Parts(Protocol):
    """What is needed of a block: its layers, and its plain steps."""

    training: bool
    dwconv: nn.Conv2d
    norm: nn.LayerNorm
    pwconv1: nn.Linear
    act: nn.GELU
    grn: GRN | nn.Identity
    pwconv2: nn.Linear
    gamma: nn.Parameter | None
    drop_path: DropPath

    def forward_dwconv_norm(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, H, W, C)``: convolution and norm."""

    def branch(self, y: Tensor) -> Tensor:
        """From the normalised map ``(N, H, W, C)`` what is added to the block's input, before stochastic depth."""

    def forward_mlp(self, x: Tensor, y: Tensor) -> Tensor:
        """The block's result from its input ``(N, C, H, W)`` and the normalised map ``(N, H, W, C)``."""


def run(block: Parts, x: Tensor) -> Tensor | None:
    """A block's result ``(N, C, H, W)``, or None where its plain steps are to be taken.

    Raises:
        UserError: If a form was forced that there is not, or not here.
    """
    if x.device.type != "cpu" or x.ndim != 4 or watched(x):
        return None
    dtype = precision(x)
    weights = None if dtype is None or choice.forced(OPERATION) == PLAIN else _weights(block, dtype)
    if dtype is None or weights is None:
        return None
    form = _form(block, x, dtype, weights)
    if form == PLAIN:
        return None
    if not torch.is_grad_enabled() or not any(one is not None and one.requires_grad for one in (x, *weights)):
        return _inference(block, x, dtype, weights, _laid_out(block, x, dtype, weights, form))
    assert isinstance(block, nn.Module)
    forget(block)
    result: Tensor = _Training.apply(block, _keep(block, x, dtype), dtype, x, *weights)
    return result


def _form(block: Parts, x: Tensor, dtype: torch.dtype, weights: Weights) -> str:
    """The form in which a block runs on this input ``(N, C, H, W)``."""
    native = not (torch.is_grad_enabled() or block.training) and cpu_native.takes(weights, dtype)
    hidden, channels = weights.first.shape
    static = (channels, hidden, weights.conv.shape[-1], int(weights.grn_gamma is not None), torch.get_num_threads())
    question = choice.TuningKey(OPERATION, cpu_name(), str(dtype), static, x.numel().bit_length() - 1)
    if choice.forced(OPERATION) is not None:
        return _forced(choice.expected(question, (NATIVE, FUSED, PLAIN)), native)
    if x.numel() * hidden * 2 < SMALLEST_WORK:
        return PLAIN
    if torch.is_grad_enabled() or block.training or not choice.measures():
        return FUSED if has_avx512() else PLAIN
    return choice.choose(question, _forms(block, x, dtype, weights, native), x)


def _forced(form: str, native: bool) -> str:
    """The form that was forced, or the fused one where the C code does not take a block, as in training.

    Raises:
        UserError: If there is no C code here.
    """
    if form == NATIVE and (why := cpu_native.missing()):
        raise UserError(f"{choice.VARIABLE}: {OPERATION}={NATIVE} is not to be had here: {why}")
    return form if form == FUSED or native else FUSED


def _forms(
    block: Parts, x: Tensor, dtype: torch.dtype, weights: Weights, native: bool
) -> dict[str, Callable[[], object]]:
    """The forms as candidates, with weights that are laid out once for the time of measuring."""
    laid_out_for = cache(lambda form: _lay_out(weights, dtype, form, x))

    def ours(form: str) -> Tensor:
        return _inference(block, x, dtype, weights, laid_out_for(form))

    def plain() -> Tensor:
        torch.clear_autocast_cache()  # in use, a block comes but once between two changes of the precision
        return block.forward_mlp(x, block.forward_dwconv_norm(x))

    return {form: partial(ours, form) for form in (NATIVE, FUSED) if native or form == FUSED} | {PLAIN: plain}


def _weights(block: Parts, dtype: torch.dtype) -> Weights | None:
    """The parameters of a block whose layers are those of :class:`backbones.convnext.Block`, with nothing hung on them.

    It is asked for each block of each pass, hence the plain look into the layers' dictionaries.
    """
    conv, norm, first, act, grn, second = layers = (
        block.dwconv,
        block.norm,
        block.pwconv1,
        block.act,
        block.grn,
        block.pwconv2,
    )
    if any(type(layer) not in kinds or hooked(layer) for layer, kinds in zip(layers, KINDS, strict=True)):
        return None
    side = conv.kernel_size[0]
    same = conv.stride == (1, 1) and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    if not same or conv.padding != (side // 2, side // 2) or act.approximate != "none":
        return None
    pairs = [layer._parameters.get(name) for layer in (conv, norm, first, second) for name in ("weight", "bias")]
    normalisation = [grn._parameters.get(name) for name in ("gamma", "beta")]
    needed = pairs if type(grn) is nn.Identity else [*pairs, *normalisation]
    held = needed if block.gamma is None else [*needed, block.gamma]
    if not all(held_as(one, dtype) for one in held):
        return None
    return Weights._make((*pairs, block.gamma, *normalisation))


def _keep(block: Parts, x: Tensor, dtype: torch.dtype) -> Tensor | None:
    """What stochastic depth multiplies each image's branch by, ``(N, 1, 1, 1)``; the numbers the plain steps draw."""
    if not block.training or not getattr(block.drop_path, "drop_prob", True):
        return None
    branch = dtype if block.gamma is None else torch.promote_types(dtype, block.gamma.dtype)
    return block.drop_path(x.new_ones((x.shape[0], 1, 1, 1), dtype=branch))


def _inference(
    block: Parts, x: Tensor, dtype: torch.dtype, weights: Weights, taken: Products | cpu_native.Packed
) -> Tensor:
    """The block without a backward pass."""
    rows = _rows(x)
    if isinstance(taken, cpu_native.Packed):
        result = rows.dtype if block.gamma is None else torch.float32
        return cpu_native.forward(rows.to(result), taken, block.norm.eps, _grn(block)).permute(0, 3, 1, 2)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        return _steps(block, weights, taken).forward(rows, _keep(block, x, dtype)).permute(0, 3, 1, 2)


def _steps(block: Parts, weights: Weights, products: Products) -> Steps:
    return Steps(weights, products, block.norm.eps, _grn(block))


def _grn(block: Parts) -> GRN | None:
    return block.grn if isinstance(block.grn, GRN) else None


def _rows(x: Tensor) -> Tensor:
    """``(N, C, H, W) -> (N, H, W, C)``, contiguous."""
    return x.permute(0, 2, 3, 1).contiguous()


def _laid_out(block: Parts, x: Tensor, dtype: torch.dtype, weights: Weights, form: str) -> Products | cpu_native.Packed:
    """The weights as the products of a form take them, kept until they change."""
    assert isinstance(block, nn.Module)
    sources = [one for one in weights if one is not None]
    purpose = (form, dtype, form == FUSED and _many(x, weights))
    return laid_out(block, sources, purpose, lambda: _lay_out(weights, dtype, form, x))


def _lay_out(weights: Weights, dtype: torch.dtype, form: str, x: Tensor) -> Products | cpu_native.Packed:
    """The weights for one form's products on maps such as ``(N, C, H, W)``."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        if form == NATIVE:
            return cpu_native.pack(weights, dtype)
        fresh = Products.of(weights, dtype)
        if weights.first.dtype != torch.float32:
            return fresh
        shape, many = x.permute(0, 2, 3, 1).shape, _many(x, weights)
        first, second = (packed(one, shape, many) for one in (fresh.first, fresh.second))
        return fresh._replace(first=first, second=second)


def _many(x: Tensor, weights: Weights) -> bool:
    """Whether a map ``(N, C, H, W)`` has rows enough for products by convolution."""
    return not few(x.permute(0, 2, 3, 1), weights.first)


class _Training(torch.autograd.Function):
    """The block with its backward pass."""

    @staticmethod
    def forward(
        ctx: Any, block: Parts, keep: Tensor | None, dtype: torch.dtype, x: Tensor, *parameters: Tensor | None
    ) -> Tensor:
        ctx.block, ctx.dtype, ctx.autocast = block, dtype, torch.is_autocast_enabled("cpu")
        weights, saved = Weights(*parameters), list[Tensor]()  # type: ignore[arg-type]
        with torch.autocast("cpu", enabled=False):
            products, rows = Products.of(weights, dtype), _rows(x)
            kept, factor = _kept(keep)
            out = _steps(block, weights, products).forward(rows if kept is None else rows[kept], factor, saved)
            if kept is not None:
                part, out = out, rows.to(out.dtype, copy=True)
                out[kept] = part
        ctx.save_for_backward(x, keep, *parameters, *products, *saved)
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        x, keep, *rest = ctx.saved_tensors
        first, last = len(Weights._fields), len(Weights._fields) + len(Products._fields)
        weights, products, saved = Weights(*rest[:first]), Products(*rest[first:last]), rest[last:]
        needed = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():
            return None, None, None, *_differentiable(ctx, gradient, keep, (x, *weights), needed)
        with torch.autocast("cpu", enabled=False):
            kept, factor = _kept(keep)
            rows, above = _rows(x), _rows(gradient)
            parts = (rows, above) if kept is None else (rows[kept], above[kept])
            below, grads = _steps(ctx.block, weights, products).backward(parts[0], saved, parts[1], factor, needed)
            if below is None:
                return None, None, None, None, *grads
            if kept is not None:
                part, below = below, above.to(below.dtype, copy=True)
                below[kept] = part
        return None, None, None, below.to(x.dtype).permute(0, 3, 1, 2), *grads


def _kept(keep: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Numbers of the images that stochastic depth leaves in, if it leaves any out, and their factors if not all 1."""
    if keep is None:
        return None, None
    kept = keep.flatten().nonzero().flatten()
    return (None, keep) if len(kept) == len(keep) else (kept, keep[kept])


def _differentiable(
    ctx: Any, gradient: Tensor, keep: Tensor | None, inputs: tuple[Tensor | None, ...], needed: Sequence[bool]
) -> Iterator[Tensor | None]:
    """The gradients by the plain steps, for who wants to differentiate them again."""
    x = inputs[0]
    assert x is not None
    with torch.enable_grad(), torch.autocast("cpu", ctx.dtype, enabled=ctx.autocast):
        branch = ctx.block.branch(ctx.block.forward_dwconv_norm(x))
        out = x + (branch if keep is None else branch * keep)
    wanted = [one for one, need in zip(inputs, needed, strict=True) if need and one is not None]
    found = iter(torch.autograd.grad(out, wanted, gradient, create_graph=True))
    return (next(found) if need else None for need in needed)
