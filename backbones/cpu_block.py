"""A ConvNeXt block on CPU: the numbers of its plain steps, in the form that a CPU runs fastest.

What the plain steps lose there, and what is done instead:

* Products are oneDNN's, in the form that is fastest for each (:mod:`backbones.cpu_products`).
* All steps of a block run over a few images at a time (:mod:`backbones.cpu_steps`). For the backward pass the output
  of the convolution and that of the first product are kept, and the rest is computed again: plain steps keep half as
  much again.
* oneDNN has no fast kernel for the weight's gradient of a depthwise convolution; it was a third of a training step.
  That gradient is itself a depthwise convolution, of the input with the output's gradient as its kernel, and the
  forward kernel is fast at that. The gradient of the input is a convolution with the kernel turned around.
* Images that stochastic depth leaves out of a block are left out of its work.

Inference keeps the weights in oneDNN's layout, with layer scale multiplied in, until they change. Parameters, their
names and the modules that hold them are untouched. The plain steps are taken where something would be passed over:
parts that were replaced, parametrised or given hooks, and programs that are being traced, compiled or exported.

Inference measures once which form is faster (:mod:`backbones.kernels.choice`). Training does not, so that two runs of
one seed agree to the last bit: it has this form wherever the CPU has AVX-512 and the block is not tiny.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as module_hooks

from backbones.cpu_products import few, packed
from backbones.cpu_steps import Products, Steps, Weights
from backbones.kernels import choice
from backbones.layers import GRN

OPERATION = "cpu_block"
# Multiply-adds below which the calls cost more than the work, and neither form is worth measuring.
SMALLEST_WORK = 1 << 24
# Values so far apart in a weight (N, K) are in all rows and columns, if K and N are not smaller and K is no multiple.
STEPS = (509, 251, 127, 61, 31, 13, 7, 3, 2)


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

    def normalised(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, H, W, C)``: convolution and norm."""

    def branch(self, y: Tensor) -> Tensor:
        """From the normalised map ``(N, H, W, C)`` what is added to the block's input, before stochastic depth."""

    def mixed(self, x: Tensor, y: Tensor) -> Tensor:
        """The block's result from its input ``(N, C, H, W)`` and the normalised map ``(N, H, W, C)``."""


class Kept(NamedTuple):
    """Weights in oneDNN's layout, and how to tell that they are still those of the parameters."""

    origin: tuple[object, ...]
    probes: Tensor
    products: Products


_kept_weights: WeakKeyDictionary[nn.Module, Kept] = WeakKeyDictionary()


def takes(block: Parts, x: Tensor) -> bool:
    """Whether a block runs fused on this input ``(N, C, H, W)``."""
    if x.device.type != "cpu" or x.ndim != 4 or _traced(x):
        return False
    forced = choice.forced(OPERATION)
    dtype = _precision(x)
    if forced == "plain" or dtype is None or not _as_made(block, dtype, x.dtype):
        return False
    if forced is not None:
        return True
    hidden, channels = block.pwconv1.weight.shape
    if x.numel() * hidden * 2 < SMALLEST_WORK:
        return False
    if torch.is_grad_enabled() or block.training or not choice.measures():
        return _has_avx512()
    static = (channels, hidden, block.dwconv.weight.shape[-1], int(isinstance(block.grn, GRN)), torch.get_num_threads())
    name = str(dtype).removeprefix("torch.")
    question = choice.Question(OPERATION, cpu_name(), name, static, x.numel().bit_length() - 1)

    def plain() -> Tensor:
        torch.clear_autocast_cache()  # in use, a block comes but once between two changes of the precision
        return _plain(block, x)

    ways = {"fused": lambda: _inference(block, x, dtype, _weights(block)), "plain": plain}
    return choice.choose(question, ways, x) == "fused"


def forward(block: Parts, x: Tensor) -> Tensor:
    """A block's result ``(N, C, H, W)``, where :func:`takes` said yes."""
    dtype = _precision(x)
    assert dtype is not None
    weights = _weights(block)
    if not torch.is_grad_enabled() or not any(one is not None and one.requires_grad for one in (x, *weights)):
        return _inference(block, x, dtype, weights)
    assert isinstance(block, nn.Module)
    _kept_weights.pop(block, None)
    result: Tensor = _Training.apply(block, _keep(block, x, dtype), dtype, x, *weights)
    return result


@cache
def cpu_name() -> str:
    """The processor's model and the instructions that PyTorch uses of it."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    model = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return f"{(model or [platform.processor() or platform.machine()])[0]} {torch.backends.cpu.get_cpu_capability()}"


@cache
def _has_avx512() -> bool:
    return "AVX512" in torch.backends.cpu.get_cpu_capability()


@cache
def _computes(dtype: torch.dtype) -> bool:
    """Whether this build and CPU have oneDNN's products in a precision."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _precision(x: Tensor) -> torch.dtype | None:
    """The precision of the products, where it is one of those that are fused."""
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
    inputs = (torch.float32, dtype) if autocast else (dtype,)
    fits = dtype in (torch.float32, torch.bfloat16) and x.dtype in inputs
    return dtype if fits and torch.backends.mkldnn.enabled and _computes(dtype) else None


def _traced(x: Tensor) -> bool:
    """Whether something looks at the operators, which has to see the plain ones."""
    return (
        type(x) not in (Tensor, nn.Parameter)
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or bool(module_hooks._global_forward_hooks or module_hooks._global_forward_pre_hooks)
    )


def _as_made(block: Parts, dtype: torch.dtype, residual: torch.dtype) -> bool:
    """Whether a block's layers are those of :class:`backbones.convnext.Block`, with nothing hung on them."""
    conv, norm = block.dwconv, block.norm
    kinds = (nn.Conv2d, nn.LayerNorm, nn.Linear, nn.GELU, nn.Linear)
    layers = (conv, norm, block.pwconv1, block.act, block.pwconv2)
    if any(type(layer) is not kind for layer, kind in zip(layers, kinds, strict=True)):
        return False
    grn: tuple[nn.Module, ...] = (block.grn, *((block.grn,) if type(block.grn) is GRN else ()))
    if type(block.grn) not in (GRN, nn.Identity) or any(_hooked(layer) for layer in (*layers, *grn)):
        return False
    side = conv.weight.shape[-1]
    same = conv.stride == (1, 1) and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    if not same or conv.padding != (side // 2, side // 2) or block.act.approximate != "none":
        return False
    weights = _weights(block)
    if any(one is None for one in weights[:8]):
        return False
    held = [one for one in weights if one is not None]
    kind = torch.float32 if torch.is_autocast_enabled("cpu") else dtype
    return all(type(one) in (nn.Parameter, Tensor) and one.dtype == kind and one.device.type == "cpu" for one in held)


def _hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


def _plain(block: Parts, x: Tensor) -> Tensor:
    return block.mixed(x, block.normalised(x))


def _keep(block: Parts, x: Tensor, dtype: torch.dtype) -> Tensor | None:
    """What stochastic depth multiplies each image's branch by, ``(N, 1, 1, 1)``; the numbers the plain steps draw."""
    if not block.training or not getattr(block.drop_path, "drop_prob", True):
        return None
    branch = dtype if block.gamma is None else torch.promote_types(dtype, block.gamma.dtype)
    return block.drop_path(x.new_ones((x.shape[0], 1, 1, 1), dtype=branch))


def _inference(block: Parts, x: Tensor, dtype: torch.dtype, weights: Weights) -> Tensor:
    """The block without a backward pass."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        rows = _rows(x)
        steps = _steps(block, weights, _pack(block, rows, dtype, weights))
        return steps.forward(rows, _keep(block, x, dtype)).permute(0, 3, 1, 2)


def _weights(block: Parts) -> Weights:
    grn = (block.grn.gamma, block.grn.beta) if isinstance(block.grn, GRN) else (None, None)
    conv, norm, first, second = block.dwconv, block.norm, block.pwconv1, block.pwconv2
    pairs = (conv.weight, conv.bias, norm.weight, norm.bias, first.weight, first.bias, second.weight, second.bias)
    return Weights(*pairs, block.gamma, *grn)  # type: ignore[arg-type]


def _steps(block: Parts, weights: Weights, products: Products) -> Steps:
    return Steps(weights, products, block.norm.eps, block.grn if isinstance(block.grn, GRN) else None)


def _rows(x: Tensor) -> Tensor:
    """``(N, C, H, W) -> (N, H, W, C)``, contiguous."""
    return x.permute(0, 2, 3, 1).contiguous()


def _pack(block: Parts, x: Tensor, dtype: torch.dtype, weights: Weights) -> Products:
    """The weights of the products in oneDNN's layout for ``(N, H, W, C)``: those of the last time, if still true.

    Versions of the parameters tell of every change that PyTorch notices. A change through ``.data`` is not one: some
    values are compared as well, so that no row and no column can change as a whole without being noticed. All values
    would cost a tenth of the time of ConvNeXt-T with 8 images.
    """
    assert isinstance(block, nn.Module)
    sources = [one for one in weights[:9] if one is not None]
    if sources[0].dtype != torch.float32:  # too coarse to tell a change by
        return Products.of(weights, dtype)
    many = not few(x, weights.first)
    origin = (dtype, many, *((one.data_ptr(), 0 if one.is_inference() else one._version) for one in sources))
    probes = torch.cat([_probe(one) for one in sources])
    known = _kept_weights.get(block)
    if known is not None and known.origin == origin and torch.equal(known.probes, probes):
        return known.products
    fresh = Products.of(weights, dtype)
    first, second = (packed(one, x.shape, many) for one in (fresh.first, fresh.second))
    fresh = fresh._replace(first=first, second=second)
    _kept_weights[block] = Kept(origin, probes, fresh)
    return fresh


def _probe(weight: Tensor) -> Tensor:
    """Some values of a parameter, of each row and of each column of the weight of a product."""
    if weight.ndim != 2:
        return weight.flatten()
    step = next((prime for prime in STEPS if prime <= min(weight.shape) and weight.shape[1] % prime), 1)
    return weight.flatten()[::step]


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
        branch = ctx.block.branch(ctx.block.normalised(x))
        out = x + (branch if keep is None else branch * keep)
    wanted = [one for one, need in zip(inputs, needed, strict=True) if need and one is not None]
    found = iter(torch.autograd.grad(out, wanted, gradient, create_graph=True))
    return (next(found) if need else None for need in needed)
