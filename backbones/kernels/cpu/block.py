"""A ConvNeXt block on CPU: the numbers of its plain steps, in the form that a CPU runs fastest.

What makes the plain steps slow, and what is done instead:

* Products are oneDNN's, in the form that is fastest for each (:mod:`backbones.kernels.cpu.linear`).
* All steps of a block run over a few images at a time (:mod:`backbones.kernels.cpu.autograd`). For the backward pass
  the outputs of the convolution and of the first product are saved, and the rest is recomputed: the plain steps save
  half as much again.
* oneDNN has no fast kernel for the weight gradient of a depthwise convolution; it was a third of a training step.
  That gradient is itself a depthwise convolution, of the input with the output's gradient as its kernel, and the
  forward kernel is fast at that. The gradient of the input is a convolution with the kernel rotated by 180 degrees.
* Images that stochastic depth drops in a block are left out of its computation.
* Inference goes through a block in one pass, where there is a C compiler (:mod:`backbones.kernels.cpu.native`).

Inference caches the weights in the layout of its products, with layer scale multiplied in, until they change.
Parameters, their names and the modules that hold them are unchanged. The plain steps are taken for layers that were
replaced, parametrised or given hooks, and in programs that are being traced, compiled or exported.

Inference measures once which form is fastest (:mod:`backbones.kernels.autotune`). Under autocast to bfloat16 the forms
with products in float32 are measured too: many CPUs have no instructions for products in bfloat16, or slow ones. The
result has the precision that autocast asks for, and is closer to the truth. Training measures no block, so that two
runs of one seed agree to the last bit: it takes the fused form wherever the CPU has AVX-512 and the block is not tiny.
With AVX2 the plain steps are as fast or faster in training, and are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from backbones.errors import MachineError
from backbones.kernels.autotune import VARIABLE, TuningKey, autotuner
from backbones.kernels.cpu import native
from backbones.kernels.cpu.autograd import Products, Steps, Weights
from backbones.kernels.cpu.dispatch import (
    MIN_MULTIPLY_ADDS,
    compute_dtype,
    cpu_name,
    is_observed,
    is_usable_parameter,
    simd_name,
)
from backbones.kernels.cpu.linear import has_few_rows, reorder_weight
from backbones.kernels.cpu.products import FLOAT32_SUFFIX, has_float32_products, product_dtype, training_suffix
from backbones.kernels.cpu.weight_cache import weight_cache
from backbones.kernels.protocol import FUSED_FORM, NATIVE_FORM, PLAIN_FORM, BlockLayers, draw_drop_path, is_unmodified
from backbones.layers import GRN
from backbones.masked import MaskedLayout, PackedLayout

BLOCK_OPERATION = "cpu_block"
NATIVE_FLOAT32, FUSED_FLOAT32 = NATIVE_FORM + FLOAT32_SUFFIX, FUSED_FORM + FLOAT32_SUFFIX
# Classes of a block's layers, in the order of :func:`_weights`.
LAYER_CLASSES = ((nn.Conv2d,), (nn.LayerNorm,), (nn.Linear,), (nn.GELU,), (GRN, nn.Identity), (nn.Linear,))


def run_cpu_block(block: BlockLayers, x: Tensor, layout: MaskedLayout | None = None) -> Tensor | None:
    """Output of a block, ``(N, C, H, W) -> (N, C, H, W)``; ``None`` where its plain steps are to be taken.

    Args:
        block: A block of ConvNeXt V1 or V2.
        x: Map; in ``layout``, if that is given.
        layout: Arrangement of the visible units in maps; packed ones have the fused form.

    Raises:
        ConfigError: If a form was forced that does not exist.
        MachineError: If a form was forced that this machine cannot run.
    """
    if x.device.type != "cpu" or x.ndim != 4 or is_observed(x) or not isinstance(layout, PackedLayout | None):
        return None
    dtype = compute_dtype(x)
    weights = None if dtype is None or autotuner.forced(BLOCK_OPERATION) == PLAIN_FORM else _weights(block, dtype)
    if dtype is None or weights is None:
        return None
    form = _select_form(block, x, dtype, weights, layout)
    if form == PLAIN_FORM:
        return None
    if not torch.is_grad_enabled() or not any(one is not None and one.requires_grad for one in (x, *weights)):
        return _inference(block, x, dtype, weights, _cached_layout(block, x, dtype, weights, form), layout)
    assert isinstance(block, nn.Module)
    weight_cache.discard(block)
    dtypes = (dtype, product_dtype(form, dtype))
    out: Tensor = _Training.apply(block, _drop_path_factors(block, x, dtype), dtypes, layout, x, *weights)
    return out


def _select_form(
    block: BlockLayers, x: Tensor, dtype: torch.dtype, weights: Weights, layout: PackedLayout | None
) -> str:
    """Name of the form for an input ``(N, C, H, W)``."""
    idle = torch.is_grad_enabled() or block.training or layout is not None
    hidden, channels = weights.first.shape
    static = (channels, hidden, weights.conv.shape[-1], int(weights.grn_gamma is not None), torch.get_num_threads())
    key = TuningKey(BLOCK_OPERATION, cpu_name(), str(dtype), static, x.numel().bit_length() - 1)
    forms = [] if idle else _native_forms(weights, dtype)
    if autotuner.forced(BLOCK_OPERATION) is not None:
        names = (NATIVE_FORM, FUSED_FORM, PLAIN_FORM, NATIVE_FLOAT32, FUSED_FLOAT32)
        return _forced_form(autotuner.predict(key, names), forms, weights, dtype)
    if x.numel() * hidden * 2 < MIN_MULTIPLY_ADDS:
        return PLAIN_FORM
    if idle or not autotuner.measures():
        suffix = training_suffix() if has_float32_products(weights.first, dtype) else ""
        return FUSED_FORM + suffix if simd_name() == "AVX512" else PLAIN_FORM
    return autotuner.select(key, _candidates(block, x, dtype, weights, forms), x)


def _native_forms(weights: Weights, dtype: torch.dtype) -> list[str]:
    """Forms of the C code that a block has in inference."""
    forms = [NATIVE_FORM] if native.supports_block(weights, dtype) else []
    if has_float32_products(weights.first, dtype) and native.supports_block(weights, torch.float32):
        forms.append(NATIVE_FLOAT32)
    return forms


def _forced_form(form: str, native_forms: Sequence[str], weights: Weights, dtype: torch.dtype) -> str:
    """The form that was forced, or the fused one where the C code does not support a block, as in training.

    Raises:
        MachineError: If the C code cannot be compiled here.
    """
    if form.startswith(NATIVE_FORM) and (why := native.reason_missing()):
        raise MachineError(f"{VARIABLE}: {BLOCK_OPERATION}={form} is not available here: {why}")
    if form.endswith(FLOAT32_SUFFIX) and not has_float32_products(weights.first, dtype):
        form = form.removesuffix(FLOAT32_SUFFIX)  # of this block they are, or cannot be, in float32 anyway
    return form.replace(NATIVE_FORM, FUSED_FORM) if form.startswith(NATIVE_FORM) and form not in native_forms else form


def _candidates(
    block: BlockLayers, x: Tensor, dtype: torch.dtype, weights: Weights, native_forms: Sequence[str]
) -> dict[str, Callable[[], object]]:
    """The forms to be measured, with weights in their layout that are made once for all calls."""
    layout_of = cache(lambda form: _lay_out(weights, dtype, form, x))

    def optimized(form: str) -> Tensor:
        return _inference(block, x, dtype, weights, layout_of(form))

    def plain() -> Tensor:
        torch.clear_autocast_cache()  # in use, a block runs but once between two changes of the precision
        return block.forward_mlp(x, block.forward_dwconv_norm(x))

    fused = (FUSED_FORM, FUSED_FLOAT32) if has_float32_products(weights.first, dtype) else (FUSED_FORM,)
    forms = sorted((*native_forms, *fused), key=(NATIVE_FORM, FUSED_FORM, NATIVE_FLOAT32, FUSED_FLOAT32).index)
    return {form: partial(optimized, form) for form in forms} | {PLAIN_FORM: plain}


def _weights(block: BlockLayers, dtype: torch.dtype) -> Weights | None:
    """Parameters of a block whose layers are those of :class:`backbones.convnext.Block`, without hooks."""
    conv, norm, first, act, grn, second = layers = (
        block.dwconv,
        block.norm,
        block.pwconv1,
        block.act,
        block.grn,
        block.pwconv2,
    )
    if not all(is_unmodified(layer, *classes) for layer, classes in zip(layers, LAYER_CLASSES, strict=True)):
        return None
    side = conv.kernel_size[0]
    same = conv.stride == (1, 1) and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    if not same or conv.padding != (side // 2, side // 2) or act.approximate != "none":
        return None
    pairs = [one for layer in (conv, norm, first, second) for one in (layer.weight, layer.bias)]
    scale = [] if block.gamma is None else [block.gamma]
    response = [grn.gamma, grn.beta] if isinstance(grn, GRN) else []
    if not all(is_usable_parameter(one, dtype) for one in (*pairs, *scale, *response)):
        return None
    return Weights._make((*pairs, block.gamma, *(response or (None, None))))


def _drop_path_factors(block: BlockLayers, x: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Factors of stochastic depth, ``(N, 1, 1, 1)``, in the precision of the branch."""
    branch = dtype if block.gamma is None else torch.promote_types(dtype, block.gamma.dtype)
    return draw_drop_path(block.drop_path, x, branch)


def _inference(
    block: BlockLayers,
    x: Tensor,
    dtype: torch.dtype,
    weights: Weights,
    laid_out: Products | native.PackedBlock,
    layout: PackedLayout | None = None,
) -> Tensor:
    """The block without a backward pass."""
    rows = _channels_last(x)
    if isinstance(laid_out, native.PackedBlock):
        result = rows.dtype if block.gamma is None else torch.float32
        taken = torch.float32 if laid_out.first.dtype == torch.float32 else result
        out = native.run_native_block(rows.to(taken), laid_out, block.norm.eps, _grn(block))
        return out.to(result).permute(0, 3, 1, 2)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        factors = _drop_path_factors(block, x, dtype)
        out = _steps(block, weights, laid_out, layout).forward(rows, factors)
        return out.to(_result_dtype(block, x, dtype)).permute(0, 3, 1, 2)


def _result_dtype(block: BlockLayers, x: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Precision of the plain steps' output under autocast to ``dtype``."""
    branch = dtype if block.gamma is None else torch.promote_types(dtype, block.gamma.dtype)
    return torch.promote_types(x.dtype, branch)


def _steps(block: BlockLayers, weights: Weights, products: Products, layout: PackedLayout | None) -> Steps:
    return Steps(weights, products, block.norm.eps, _grn(block), layout)


def _grn(block: BlockLayers) -> GRN | None:
    return block.grn if isinstance(block.grn, GRN) else None


def _channels_last(x: Tensor) -> Tensor:
    """``(N, C, H, W) -> (N, H, W, C)``, contiguous."""
    return x.permute(0, 2, 3, 1).contiguous()


def _cached_layout(
    block: BlockLayers, x: Tensor, dtype: torch.dtype, weights: Weights, form: str
) -> Products | native.PackedBlock:
    """The weights in the layout of a form's products, cached until they change."""
    assert isinstance(block, nn.Module)
    sources = [one for one in weights if one is not None]
    purpose = (form, dtype, form.startswith(FUSED_FORM) and not _has_few_rows(x, weights))
    return weight_cache.get(block, sources, purpose, lambda: _lay_out(weights, dtype, form, x))


def _lay_out(weights: Weights, dtype: torch.dtype, form: str, x: Tensor) -> Products | native.PackedBlock:
    """The weights in the layout of a form's products with maps of the size of ``x``, ``(N, C, H, W)``."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        dtype = product_dtype(form, dtype)
        if form.startswith(NATIVE_FORM):
            return native.pack_block(weights, dtype)
        products = Products.of(weights, dtype)
        if weights.first.dtype != torch.float32:
            return products
        shape, by_convolution = x.permute(0, 2, 3, 1).shape, not _has_few_rows(x, weights)
        first, second = (reorder_weight(one, shape, by_convolution) for one in (products.first, products.second))
        return products._replace(first=first, second=second)


def _has_few_rows(x: Tensor, weights: Weights) -> bool:
    """Whether a map ``(N, C, H, W)`` has too few rows for products by convolution."""
    return has_few_rows(x.permute(0, 2, 3, 1), weights.first)


class _Training(torch.autograd.Function):
    """The block with its backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        block: BlockLayers,
        factors: Tensor | None,
        dtypes: tuple[torch.dtype, torch.dtype],
        layout: PackedLayout | None,
        x: Tensor,
        *parameters: Tensor | None,
    ) -> Tensor:
        dtype, dtype_of_products = dtypes
        ctx.block, ctx.dtype, ctx.layout, ctx.autocast = block, dtype, layout, torch.is_autocast_enabled("cpu")
        weights, saved = Weights(*parameters), list[Tensor]()  # type: ignore[arg-type]
        with torch.autocast("cpu", enabled=False):
            products, rows = Products.of(weights, dtype_of_products), _channels_last(x)
            kept, scale = _kept_images(factors)
            steps = _steps(block, weights, products, _layout_of(layout, kept))
            out = steps.forward(rows if kept is None else rows[kept], scale, saved).to(_result_dtype(block, x, dtype))
            if kept is not None:
                out = _scatter(out, kept, rows)
        ctx.save_for_backward(x, factors, *parameters, *products, *saved)
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
        x, factors, *rest = ctx.saved_tensors
        first, last = len(Weights._fields), len(Weights._fields) + len(Products._fields)
        weights, products, saved = Weights(*rest[:first]), Products(*rest[first:last]), rest[last:]
        needed = ctx.needs_input_grad[4:]
        if torch.is_grad_enabled():
            return None, None, None, None, *_differentiable_grads(ctx, grad_out, factors, (x, *weights), needed)
        with torch.autocast("cpu", enabled=False):
            kept, scale = _kept_images(factors)
            rows, grad_rows = _channels_last(x), _channels_last(grad_out)
            parts = (rows, grad_rows) if kept is None else (rows[kept], grad_rows[kept])
            steps = _steps(ctx.block, weights, products, _layout_of(ctx.layout, kept))
            grad_x, grads = steps.backward(parts[0], saved, parts[1], scale, needed)
            if grad_x is None:
                return None, None, None, None, None, *grads
            if kept is not None:
                grad_x = _scatter(grad_x, kept, grad_rows)
        return None, None, None, None, grad_x.to(x.dtype).permute(0, 3, 1, 2), *grads


def _kept_images(factors: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Indices of the images that stochastic depth keeps, ``None`` for all, and their factors."""
    if factors is None:
        return None, None
    kept = factors.flatten().nonzero().flatten()
    return (None, factors) if len(kept) == len(factors) else (kept, factors[kept])


def _layout_of(layout: PackedLayout | None, kept: Tensor | None) -> PackedLayout | None:
    """The layout of the images that are kept."""
    return layout if layout is None or kept is None else layout.of_images(kept)


def _scatter(part: Tensor, kept: Tensor, rows: Tensor) -> Tensor:
    """A copy of ``rows`` with the kept images replaced by ``part``, in the precision of ``part``."""
    out = rows.to(part.dtype, copy=True)
    out[kept] = part
    return out


def _differentiable_grads(
    ctx: Any, grad_out: Tensor, factors: Tensor | None, inputs: tuple[Tensor | None, ...], needed: Sequence[bool]
) -> Iterator[Tensor | None]:
    """The gradients by the plain steps, which can be differentiated again."""
    x = inputs[0]
    assert x is not None
    with torch.enable_grad(), torch.autocast("cpu", ctx.dtype, enabled=ctx.autocast):
        branch = ctx.block.forward_branch(ctx.block.forward_dwconv_norm(x, ctx.layout), ctx.layout)
        out = x + (branch if factors is None else branch * factors)
    wanted = [one for one, need in zip(inputs, needed, strict=True) if need and one is not None]
    found = iter(torch.autograd.grad(out, wanted, grad_out, create_graph=True))
    return (next(found) if need else None for need in needed)
