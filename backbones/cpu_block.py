"""A ConvNeXt block on CPU: the numbers of its plain steps, in the form that a CPU runs fastest.

What the plain steps lose there, and what is done instead:

* A product of two float32 matrices goes to MKL, which reaches half of the speed of oneDNN on CPUs that are not
  Intel's. All products here are oneDNN's, and its epilogues add GELU and the residual.
* The hidden map is four times as wide as the block. Written and read whole it leaves the caches, and from 32 MB on
  the C library hands its memory back to the system each time, which costs more than the products. Here a block walks
  over pieces of the map whose hidden part stays in the cache. Training keeps none of them: the backward pass computes
  the first product again, which is a seventh of its work and spares most of the memory of a training.
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
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as module_hooks

from backbones.kernels import choice
from backbones.layers import GRN

OPERATION = "cpu_block"
FORMS = ("fused", "plain")
# Hidden values that are held at a time. On a Zen 5 with 1 MB of level-2 cache for each core and 32 MB of level 3,
# 4 MB is the fastest of 1 to 100 MB; with more the pieces leave the cache, with less the calls cost.
PIECE_BYTES = 4 << 20
# Multiply-adds below which the calls cost more than the work, and neither form is worth measuring.
SMALLEST_WORK = 1 << 24
# Side of the tiles of the output's gradient that serve as kernels; a larger kernel leaves the cache.
LARGEST_KERNEL = 64


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


class Packed(NamedTuple):
    """Weights of a block's two products, layer scale multiplied in, in the layout and precision of the products."""

    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor


class Kept(NamedTuple):
    """Packed weights, and how to tell that they are still those of the parameters."""

    origin: tuple[object, ...]
    probes: tuple[Tensor, ...]
    packed: Packed


class Weights(NamedTuple):
    """A block's parameters, in the order in which :class:`_Training` takes them."""

    conv: Tensor
    conv_bias: Tensor
    scale: Tensor
    shift: Tensor
    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor
    gamma: Tensor | None
    grn_gamma: Tensor | None
    grn_beta: Tensor | None

    @classmethod
    def of(cls, block: Parts) -> Weights:
        grn = (block.grn.gamma, block.grn.beta) if isinstance(block.grn, GRN) else (None, None)
        conv, norm, first, second = block.dwconv, block.norm, block.pwconv1, block.pwconv2
        pairs = (conv.weight, conv.bias, norm.weight, norm.bias, first.weight, first.bias, second.weight, second.bias)
        return cls(*pairs, block.gamma, *grn)  # type: ignore[arg-type]

    def scaled_second(self) -> Tensor:
        """The second product's weight with layer scale multiplied in, ``(C, hidden)``."""
        return self.second if self.gamma is None else self.second * self.gamma[:, None]

    def scaled_second_bias(self) -> Tensor:
        return self.second_bias if self.gamma is None else self.second_bias * self.gamma


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
    ways = {"fused": lambda: _inference(block, x, dtype), "plain": lambda: _plain(block, x)}
    return choice.choose(question, ways, x) == "fused"


def forward(block: Parts, x: Tensor) -> Tensor:
    """A block's result ``(N, C, H, W)``, where :func:`takes` said yes."""
    dtype = _precision(x)
    assert dtype is not None
    weights = Weights.of(block)
    if not torch.is_grad_enabled() or not any(one is not None and one.requires_grad for one in (x, *weights)):
        return _inference(block, x, dtype)
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
    weights = Weights.of(block)
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


def _pieces(shape: Sequence[int], hidden: int, size: int, whole_images: bool) -> Iterator[tuple[slice, slice]]:
    """Slices of images and of rows that divide a map ``(N, H, W, C)`` into pieces of some hidden values.

    Args:
        shape: Of the map.
        hidden: Hidden channels.
        size: Bytes of a value.
        whole_images: Whether an image must not be divided, for the sake of the response normalisation.
    """
    images, height, width = shape[:3]
    row = width * hidden * size
    if row * height > PIECE_BYTES and not whole_images:
        rows = max(PIECE_BYTES // row, 1)
        for i in range(images):
            for top in range(0, height, rows):
                yield slice(i, i + 1), slice(top, top + rows)
        return
    together = max(PIECE_BYTES // (row * height), 1)
    for i in range(0, images, together):
        yield slice(i, i + together), slice(None)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """A product by oneDNN, ``(..., K) -> (..., N)``, with a weight ``(N, K)`` of :func:`_for_products`."""
    if not weight.is_mkldnn:
        y = F.linear(x, weight, bias)
        return F.gelu(y) if gelu else y
    name, algorithm = ("gelu", "none") if gelu else ("none", "")
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], algorithm)


def _for_products(weight: Tensor) -> Tensor:
    """A weight ``(N, K)`` as products of one step take it: oneDNN's layout for float32, which MKL would get otherwise.

    In bfloat16 PyTorch's products are oneDNN's, and reordering a weight for a few of them does not pay.
    """
    if weight.dtype != torch.float32:
        return weight
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A depthwise convolution, ``(N, C, H, W) -> (N, H, W, C)``."""
    y = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])
    return y.permute(0, 2, 3, 1).contiguous()


def _inference(block: Parts, x: Tensor, dtype: torch.dtype) -> Tensor:
    """The block without a backward pass."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        weights = Weights.of(block)
        keep = _keep(block, x, dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        y = _depthwise(x.to(dtype), weights.conv.to(dtype), weights.conv_bias.to(dtype))
        return _rest(block, x, y, weights, _pack(block, weights, dtype), keep).permute(0, 3, 1, 2)


def _rest(block: Parts, x: Tensor, y: Tensor, weights: Weights, packed: Packed, keep: Tensor | None) -> Tensor:
    """The block after its convolution: norm, MLP and residual, piece by piece.

    Args:
        block: The block.
        x: Its input, ``(N, C, H, W)``.
        y: Output of the convolution, ``(N, H, W, C)``.
        weights: The parameters.
        packed: The products' weights in the precision of ``y``.
        keep: Factors of stochastic depth, ``(N, 1, 1, 1)``.

    Returns:
        ``(N, H, W, C)`` in the precision of the plain steps' result.
    """
    shortcut = x.permute(0, 2, 3, 1)
    wide = y.dtype if weights.gamma is None else torch.promote_types(y.dtype, weights.gamma.dtype)
    out = torch.empty(shortcut.shape, dtype=torch.promote_types(x.dtype, wide))
    with_grn = weights.grn_gamma is not None
    for piece in _pieces(y.shape, weights.first.shape[0], y.element_size(), with_grn):
        z = F.layer_norm(y[piece], weights.scale.shape, weights.scale, weights.shift, block.norm.eps)
        z = _linear(z, packed.first, packed.first_bias, gelu=True)
        z = _linear(block.grn(z) if with_grn else z, packed.second, packed.second_bias)
        if keep is not None:
            z = z * keep[piece[0]]
        torch.add(shortcut[piece], z, out=out[piece])
    return out


def _pack(block: Parts, weights: Weights, dtype: torch.dtype) -> Packed:
    """The weights of the products in oneDNN's layout: those kept from the last time, if they are still true.

    Versions of the parameters tell of every change that PyTorch notices. A change through ``.data`` is not one, so that
    a product of each weight with a fixed vector is compared as well: that costs a hundredth of the block.
    """
    assert isinstance(block, nn.Module)
    sources = [weights.first, weights.first_bias, weights.second, weights.second_bias, weights.gamma]
    held = [one.detach() for one in sources if one is not None]
    origin = (dtype, *((one.data_ptr(), 0 if one.is_inference() else one._version) for one in held))
    if held[0].dtype != torch.float32:  # too coarse to tell a change by
        return _fresh(weights, dtype)
    probes = tuple(one @ _direction(one.shape[1]) if one.ndim == 2 else one for one in held)
    known = _kept_weights.get(block)
    if known is not None and known.origin == origin and all(map(torch.equal, known.probes, probes)):
        return known.packed
    fresh = _fresh(weights, dtype, torch.ops.mkldnn._reorder_linear_weight)
    _kept_weights[block] = Kept(origin, tuple(probe.clone() for probe in probes), fresh)
    return fresh


def _fresh(weights: Weights, dtype: torch.dtype, layout: Callable[[Tensor], Tensor] | None = None) -> Packed:
    """The weights of the products; without a layout, in that for a single step."""
    layout = layout or _for_products
    first, second = weights.first.detach().to(dtype), weights.scaled_second().detach().to(dtype)
    biases = weights.first_bias.detach().to(dtype), weights.scaled_second_bias().detach().to(dtype)
    return Packed(layout(first), biases[0], layout(second), biases[1])


@cache
def _direction(size: int) -> Tensor:
    """A fixed vector that no two changes of a weight are likely to be blind to."""
    return torch.randn(size, generator=torch.Generator().manual_seed(size))


def depthwise_weight_gradient(x: Tensor, gradient: Tensor, side: int) -> Tensor:
    """Gradient of the weight of a depthwise convolution: the input convolved with the output's gradient.

    Args:
        x: Input, ``(N, C, H, W)``.
        gradient: Of the output, ``(N, C, H, W)``.
        side: Odd side of the kernel; the input was padded with ``side // 2`` zeros.

    Returns:
        ``(C, 1, side, side)`` in float32, summed over images.
    """
    channels, height, width = x.shape[1:]
    pad = side // 2
    total = torch.zeros(channels, 1, side, side)
    for top, left in product(range(0, height, LARGEST_KERNEL), range(0, width, LARGEST_KERNEL)):
        bottom, right = min(top + LARGEST_KERNEL, height), min(left + LARGEST_KERNEL, width)
        around = x[:, :, max(top - pad, 0) : bottom + pad, max(left - pad, 0) : right + pad]
        edges = (max(pad - left, 0), max(right + pad - width, 0), max(pad - top, 0), max(bottom + pad - height, 0))
        uneven = len(set(edges)) > 1
        around = F.pad(around, edges) if uneven else around
        for image, kernel in zip(around.split(1), gradient[:, :, top:bottom, left:right].unbind()):
            found = F.conv2d(image, kernel.unsqueeze(1), padding=0 if uneven else edges[0], groups=channels)
            total += found.view_as(total)
    return total


def _weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of weight ``(N, K)`` and bias ``(N,)`` of a linear layer, in float32."""
    gradient, x = gradient.flatten(0, -2), x.flatten(0, -2)
    if x.dtype == torch.float32:
        found = torch.ops.aten.mkldnn_linear_backward_weights(gradient.to_mkldnn(), x.to_mkldnn(), weight, True)
        return found[0].to_dense(), found[1].to_dense()
    return (gradient.t() @ x).float(), _column_sums(gradient)


def _column_sums(rows: Tensor) -> Tensor:
    """``(M, N) -> (N,)`` in float32."""
    return rows.sum(0, dtype=torch.float32)


class _Training(torch.autograd.Function):
    """The block with its backward pass. It keeps its input and the output of the convolution, and nothing else."""

    @staticmethod
    def forward(
        ctx: Any, block: Parts, keep: Tensor | None, dtype: torch.dtype, x: Tensor, *parameters: Tensor | None
    ) -> Tensor:
        ctx.block, ctx.dtype, ctx.autocast = block, dtype, torch.is_autocast_enabled("cpu")
        weights = Weights(*parameters)  # type: ignore[arg-type]
        with torch.autocast("cpu", enabled=False):
            x = x.contiguous(memory_format=torch.channels_last)
            kept, factor = _kept(keep)
            source = _take(x, kept)
            y = _depthwise(source.to(dtype), weights.conv.to(dtype), weights.conv_bias.to(dtype))
            out = _rest(block, source, y, weights, _fresh(weights, dtype), factor)
            if kept is not None:
                part, out = out, x.permute(0, 2, 3, 1).to(out.dtype, copy=True)
                out[kept] = part
        ctx.save_for_backward(x, keep, y, *parameters)
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        x, keep, y, *parameters = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():
            return None, None, None, *_differentiable(ctx, gradient, keep, (x, *parameters), needed)
        with torch.autocast("cpu", enabled=False):
            kept, factor = _kept(keep)
            whole = gradient.permute(0, 2, 3, 1).contiguous()
            part = whole if kept is None else whole[kept]
            source = _take(x, kept)
            below, grads = _backward(ctx.block, Weights(*parameters), source.to(ctx.dtype), y, part, factor, needed)
            if not needed[0]:
                return None, None, None, None, *grads
            if kept is None:
                whole = whole + below
            else:
                whole = whole.clone()
                whole[kept] += below
        return None, None, None, whole.to(x.dtype).permute(0, 3, 1, 2), *grads


def _kept(keep: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Numbers of the images that stochastic depth leaves in, if it leaves any out, and their factors if not all 1."""
    if keep is None:
        return None, None
    kept = keep.flatten().nonzero().flatten()
    return (None, keep) if len(kept) == len(keep) else (kept, keep[kept])


def _take(x: Tensor, kept: Tensor | None) -> Tensor:
    """Some images of a map ``(N, C, H, W)`` in channels_last."""
    return x if kept is None else x.permute(0, 2, 3, 1)[kept].permute(0, 3, 1, 2)


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


def _backward(
    block: Parts,
    weights: Weights,
    x: Tensor,
    y: Tensor,
    gradient: Tensor,
    keep: Tensor | None,
    needed: Sequence[bool],
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Gradients of the branch.

    Args:
        block: The block.
        weights: The parameters.
        x: The branch's input, ``(N, C, H, W)``, in the precision of the products.
        y: Output of its convolution, ``(N, H, W, C)``.
        gradient: Of the block's output, ``(N, H, W, C)``.
        keep: Factors of stochastic depth, ``(N, 1, 1, 1)``.
        needed: Which gradients are, that of the input first.

    Returns:
        The gradient of the branch's input, ``(N, H, W, C)``, and those of the parameters in their order.
    """
    sums = _Sums()
    lower = torch.empty_like(y)
    turned = _Turned.of(weights, y.dtype)
    for piece in _pieces(y.shape, weights.first.shape[0], y.element_size(), weights.grn_gamma is not None):
        above = gradient[piece] if keep is None else gradient[piece] * keep[piece[0]]
        lower[piece] = _through_mlp(block, weights, turned, y[piece], above.to(y.dtype), sums)
    maps = lower.permute(0, 3, 1, 2)
    if needed[1]:
        sums.add(conv=depthwise_weight_gradient(x, maps, weights.conv.shape[-1]))
    if needed[2]:
        sums.add(conv_bias=_column_sums(lower.flatten(0, -2)))
    below = _depthwise(maps, weights.conv.flip(2, 3).to(y.dtype)) if needed[0] else lower
    return below, sums.gradients(weights, needed[1:])


class _Turned(NamedTuple):
    """The products' weights for the backward pass: the first once more as it was, and both transposed."""

    first: Tensor
    first_bias: Tensor
    first_back: Tensor
    second_back: Tensor

    @classmethod
    def of(cls, weights: Weights, dtype: torch.dtype) -> _Turned:
        first, second = weights.first.to(dtype), weights.scaled_second().to(dtype)
        bias = weights.first_bias.to(dtype)
        return cls(_for_products(first), bias, _for_products(first.t()), _for_products(second.t()))


class _Sums:
    """Gradients of the parameters, added up in float32 over the pieces of a map."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def add(self, **gradients: Tensor) -> None:
        """Add gradients of the parameters of these names; they belong to the sum from then on."""
        for name, gradient in gradients.items():
            self.found[name] = self.found[name].add_(gradient) if name in self.found else gradient

    def gradients(self, weights: Weights, needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
        """The gradients in the order and the precision of the parameters.

        Layer scale needs no output of the second product: what is summed for that product is the gradient ``P`` of
        the weight before layer scale. The weight's own gradient is then ``gamma * P``, and layer scale's the sum of
        ``P * weight`` over the hidden channels; likewise for the bias.
        """
        found: dict[str, Tensor | None] = {**self.found}
        if weights.gamma is not None and "second" in self.found:
            product, bias = self.found["second"], self.found["second_bias"]
            found["gamma"] = (product * weights.second).sum(1) + bias * weights.second_bias
            found["second"], found["second_bias"] = product * weights.gamma[:, None], bias * weights.gamma
        grads: list[Tensor | None] = []
        for name, weight, need in zip(Weights._fields, weights, needed, strict=True):
            gradient = found.get(name)
            if weight is None or not need:
                grads.append(None)
            elif gradient is None:  # stochastic depth left every image out
                grads.append(torch.zeros_like(weight))
            else:
                grads.append(gradient.to(weight.dtype).view_as(weight))
        return tuple(grads)


def _through_mlp(block: Parts, weights: Weights, turned: _Turned, y: Tensor, above: Tensor, sums: _Sums) -> Tensor:
    """Gradient of a piece of the convolution's output from that of the branch, ``(n, h, w, C)`` both."""
    channels = weights.scale.shape
    normal, mean, deviation = torch.native_layer_norm(y, channels, weights.scale, weights.shift, block.norm.eps)
    hidden = _linear(normal, turned.first, turned.first_bias)
    active = F.gelu(hidden)
    inner = _linear(above, turned.second_back)
    if weights.grn_gamma is None:
        used = active
    else:
        used, inner, gamma, beta = _through_grn(block.grn, active, inner)
        sums.add(grn_gamma=gamma, grn_beta=beta)
    second, second_bias = _weight_gradient(above, used, weights.second)
    inner = torch.ops.aten.gelu_backward(inner, hidden)
    first, first_bias = _weight_gradient(inner, normal, weights.first)
    lower, scale, shift = torch.ops.aten.native_layer_norm_backward(
        _linear(inner, turned.first_back), y, channels, mean, deviation, weights.scale, weights.shift, [True] * 3
    )
    sums.add(second=second, second_bias=second_bias, first=first, first_bias=first_bias, scale=scale, shift=shift)
    return lower


def _through_grn(grn: nn.Module, active: Tensor, above: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output of the response normalisation, and gradients of its input, scale and shift."""
    with torch.enable_grad():
        active = active.detach().requires_grad_()
        normalised = grn(active)
    inputs = (active, grn.gamma, grn.beta)
    found = torch.autograd.grad(normalised, inputs, above)  # type: ignore[arg-type]
    return normalised.detach(), *found
