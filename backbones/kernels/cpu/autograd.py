"""The steps of a ConvNeXt block on CPU, forward and backward, over pieces of a map that stay in the cache.

The hidden map is four times as wide as the block: written and read whole, each step of it waits for the memory. Here
all steps run on a few images at a time, from the convolution to the residual; an image that is too large by itself, as
in detection, is divided into pieces from the norm on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.kernels.cpu.linear import column_sums, input_gradient, linear, weight_gradient
from backbones.layers import GRN
from backbones.masked import PackedLayout

# Hidden values of one piece of a map. On a Zen 5 with 1 MB of level-2 cache for each core and 32 MB of level 3, 8 MB is
# best of 2 to 20: with less the overhead of calls dominates, with more the caches overflow, and the C library returns
# the memory to the system each time, which then clears it again page by page.
MAX_PIECE_BYTES = 8 << 20
# Side in pixels of the tiles of the output's gradient that serve as kernels; a larger kernel leaves the cache.
MAX_KERNEL_SIDE = 64
# Pixels of a map up to which the weight gradient of a depthwise convolution is computed for all images at once: of
# small maps, calls image by image cost more than what they compute. Up to the first, one sum for each weight.
MAX_SUMMED_PIXELS, MAX_STACKED_PIXELS = 12, 200


class Weights(NamedTuple):
    """A block's parameters; ``None`` where it has no layer scale or no response normalisation.

    Attributes:
        conv: Weight of the depthwise convolution, ``(C, 1, K, K)``.
        conv_bias: ``(C,)``.
        scale: Weight of the norm, ``(C,)``.
        shift: Bias of the norm, ``(C,)``.
        first: Weight of the first linear layer, ``(hidden, C)``.
        first_bias: ``(hidden,)``.
        second: Weight of the second linear layer, ``(C, hidden)``.
        second_bias: ``(C,)``.
        gamma: Layer scale, ``(C,)``.
        grn_gamma: Scale of the response normalisation, ``(1, 1, 1, hidden)``.
        grn_beta: Shift of the response normalisation, ``(1, 1, 1, hidden)``.
    """

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


class Products(NamedTuple):
    """Weights of a block's products in the precision of the products, with layer scale multiplied into the second."""

    conv: Tensor
    conv_bias: Tensor
    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor

    @classmethod
    def of(cls, weights: Weights, dtype: torch.dtype) -> Products:
        """The weights for products in the precision ``dtype``."""
        second, bias = weights.second.detach(), weights.second_bias.detach()
        if weights.gamma is not None:
            second, bias = second * weights.gamma.detach()[:, None], bias * weights.gamma.detach()
        taken = (weights.conv, weights.conv_bias, weights.first, weights.first_bias, second, bias)
        return cls(*(one.detach().to(dtype) for one in taken))


@dataclass(frozen=True)
class Steps:
    """A block's steps with given weights.

    Attributes:
        weights: Parameters of the block.
        products: Weights of the convolution and the two products; the backward pass uses those of the forward pass.
        eps: Epsilon of the norm.
        grn: Response normalisation, if the block has one.
        layout: Layout of the maps, if they hold the visible units of images alone.
    """

    weights: Weights
    products: Products
    eps: float
    grn: GRN | None
    layout: PackedLayout | None = None

    def forward(self, x: Tensor, factors: Tensor | None, saved: list[Tensor] | None = None) -> Tensor:
        """Output of the block.

        Args:
            x: Input, ``(N, H, W, C)``.
            factors: Factors of stochastic depth, ``(N, 1, 1, 1)``.
            saved: List to which the tensors that :meth:`backward` needs are appended.

        Returns:
            ``(N, H, W, C)`` in the precision of the plain steps' output.
        """
        products, weights = self.products, self.weights
        dtype = products.conv.dtype
        wide = dtype if weights.gamma is None else torch.promote_types(dtype, weights.gamma.dtype)
        out = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, wide))
        for images in self._groups(x):
            whole = self._unpack(x[images].to(dtype), images)
            y = self._pack(_depthwise(whole, products.conv, products.conv_bias), images)
            if saved is not None:
                saved.append(y)
            for rows in self._rows(x):
                z = F.layer_norm(y[:, rows], weights.scale.shape, weights.scale, weights.shift, self.eps)
                z = self._activate(z, saved)
                z = linear(z if self.grn is None else self.grn(z), products.second, products.second_bias)
                if factors is not None:
                    z = z * factors[images]
                # Two maps in bfloat16 would be added in bfloat16, also for an output in float32.
                torch.add(x[images, rows].to(out.dtype), z, out=out[images, rows])
        return out

    def backward(
        self, x: Tensor, saved: Sequence[Tensor], grad_out: Tensor, factors: Tensor | None, needed: Sequence[bool]
    ) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:
        """Gradients of the block.

        Args:
            x: Input, ``(N, H, W, C)``.
            saved: Tensors from :meth:`forward`.
            grad_out: Gradient of the output, ``(N, H, W, C)``.
            factors: Factors of stochastic depth, ``(N, 1, 1, 1)``.
            needed: Whether each gradient is needed, that of the input first, then in the order of :class:`Weights`.

        Returns:
            The gradient of the input, ``(N, H, W, C)``, and those of the parameters in the order of :class:`Weights`.
        """
        sums, remaining = _GradientSums(), iter(saved)
        dtype = self.products.conv.dtype
        rotated = self.products.conv.flip(2, 3)
        grad_x = torch.empty(x.shape, dtype=torch.promote_types(grad_out.dtype, dtype)) if needed[0] else None
        for images in self._groups(x):
            y = next(remaining)
            grad_dwconv = torch.empty_like(y)
            for rows in self._rows(x):
                grad_branch = grad_out[images, rows]
                if factors is not None:
                    grad_branch = grad_branch * factors[images]
                self._backward_mlp(y[:, rows], next(remaining), grad_branch, sums, grad_dwconv[:, rows])
            whole = self._unpack(grad_dwconv, images)
            if needed[1]:
                inputs = self._unpack(x[images].to(dtype), images).permute(0, 3, 1, 2)
                maps = whole.permute(0, 3, 1, 2)
                sums.add(conv=depthwise_weight_gradient(inputs, maps, rotated.shape[-1]))
            if needed[2]:
                sums.add(conv_bias=column_sums(grad_dwconv))
            if grad_x is not None:
                torch.add(grad_out[images], self._pack(_depthwise(whole, rotated), images), out=grad_x[images])
        return grad_x, sums.gradients(self.weights, needed[1:])

    def _unpack(self, x: Tensor, images: slice) -> Tensor:
        """Whole maps ``(n, H, W, C)`` of some images."""
        return x if self.layout is None else self.layout.of_images(images).unpack_rows(x)

    def _pack(self, x: Tensor, images: slice) -> Tensor:
        """Maps ``(n, H', W', C)`` of some images in their layout."""
        return x if self.layout is None else self.layout.of_images(images).pack_rows(x)

    def _groups(self, x: Tensor) -> Iterator[slice]:
        """Slices of the images of a map: as many as fit into a piece, but at least one."""
        return even_slices(len(x), MAX_PIECE_BYTES // (x.shape[1] * self._row_bytes(x)))

    def _rows(self, x: Tensor) -> Iterator[slice]:
        """Slices of the rows of the images of a group: all rows unless the group is one large image.

        The response normalisation needs whole images.
        """
        height, row = x.shape[1], self._row_bytes(x)
        return even_slices(height, height if self.grn is not None else MAX_PIECE_BYTES // row)

    def _row_bytes(self, x: Tensor) -> int:
        hidden = self.weights.first.shape[0]
        return x.shape[2] * hidden * self.products.conv.element_size()

    def _activate(self, normalized: Tensor, saved: list[Tensor] | None) -> Tensor:
        """First product and GELU; in one call, where the value in between is not saved."""
        first, bias = self.products.first, self.products.first_bias
        if saved is None:
            return linear(normalized, first, bias, gelu=True)
        saved.append(linear(normalized, first, bias))
        return F.gelu(saved[-1])

    def _backward_mlp(
        self, y: Tensor, hidden: Tensor, grad_branch: Tensor, sums: _GradientSums, grad_dwconv: Tensor
    ) -> None:
        """Backward pass of a piece from the branch's output to the convolution's, and sums for the parameters.

        Args:
            y: Output of the convolution, ``(n, h, w, C)``.
            hidden: Output of the first product, ``(n, h, w, hidden)``.
            grad_branch: Gradient of the branch, ``(n, h, w, C)``.
            sums: Gradients of the parameters, to which those of this piece are added.
            grad_dwconv: Tensor to which the gradient of ``y`` is written.
        """
        weights, products, channels = self.weights, self.products, self.weights.scale.shape
        normalized, mean, rstd = torch.native_layer_norm(y, channels, weights.scale, weights.shift, self.eps)
        sums.add(second_bias=column_sums(grad_branch))
        grad_branch = grad_branch.to(y.dtype)
        active, grad_hidden = F.gelu(hidden), input_gradient(grad_branch, products.second)
        if self.grn is not None:
            active, grad_hidden, grad_gamma, grad_beta = _backward_grn(self.grn, active, grad_hidden)
            sums.add(grn_gamma=grad_gamma, grn_beta=grad_beta)
        sums.add(second=weight_gradient(grad_branch, active))
        grad_hidden = torch.ops.aten.gelu_backward(grad_hidden, hidden)
        sums.add(first=weight_gradient(grad_hidden, normalized), first_bias=column_sums(grad_hidden))
        grad_scale, grad_shift = torch.empty_like(weights.scale), torch.empty_like(weights.shift)
        torch.ops.aten.native_layer_norm_backward.out(
            input_gradient(grad_hidden, products.first),
            y,
            channels,
            mean,
            rstd,
            weights.scale,
            weights.shift,
            [True, True, True],
            out0=grad_dwconv,
            out1=grad_scale,
            out2=grad_shift,
        )
        sums.add(scale=grad_scale, shift=grad_shift)


def even_slices(count: int, max_size: int) -> Iterator[slice]:
    """Slices of ``count`` items, of nearly equal size, each of at most ``max_size`` items but at least one."""
    parts = -(-count // max(max_size, 1))
    bounds = [part * count // parts for part in range(parts + 1)] if count else []
    yield from map(slice, bounds, bounds[1:])


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A depthwise convolution, ``(n, h, w, C) -> (n, h, w, C)``."""
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])
    return y.permute(0, 2, 3, 1).contiguous()


def depthwise_weight_gradient(x: Tensor, grad_out: Tensor, side: int) -> Tensor:
    """Gradient of the weight of a depthwise convolution: the input convolved with the output's gradient.

    Args:
        x: Input, ``(N, C, H, W)``.
        grad_out: Gradient of the output, ``(N, C, H, W)``.
        side: Odd side of the kernel; the input was padded with ``side // 2`` zeros.

    Returns:
        ``(C, 1, side, side)`` in float32, summed over images.
    """
    images, channels, height, width = x.shape
    pad = side // 2
    if height * width <= MAX_SUMMED_PIXELS:
        return _summed_weight_gradient(x.float(), grad_out.float(), side)
    if height * width <= MAX_STACKED_PIXELS:
        stacked = x.reshape(1, images * channels, height, width)
        kernels = grad_out.reshape(images * channels, 1, height, width)
        found = F.conv2d(stacked, kernels, padding=pad, groups=images * channels)
        return found.view(images, channels, 1, side, side).sum(0, dtype=torch.float32)
    total = torch.zeros(channels, 1, side, side)
    for top, left in product(range(0, height, MAX_KERNEL_SIDE), range(0, width, MAX_KERNEL_SIDE)):
        bottom, right = min(top + MAX_KERNEL_SIDE, height), min(left + MAX_KERNEL_SIDE, width)
        around = x[:, :, max(top - pad, 0) : bottom + pad, max(left - pad, 0) : right + pad]
        edges = (max(pad - left, 0), max(right + pad - width, 0), max(pad - top, 0), max(bottom + pad - height, 0))
        uneven = len(set(edges)) > 1
        around = F.pad(around, edges) if uneven else around
        for image, kernel in zip(around.split(1), grad_out[:, :, top:bottom, left:right].unbind()):
            found = F.conv2d(image, kernel.unsqueeze(1), padding=0 if uneven else edges[0], groups=channels)
            total += found.view_as(total)
    return total


def _summed_weight_gradient(x: Tensor, grad_out: Tensor, side: int) -> Tensor:
    """:func:`depthwise_weight_gradient` by a sum for each weight that meets any pixel."""
    height, width = x.shape[2:]
    pad = side // 2
    around = F.pad(x, (pad, pad, pad, pad))
    total = torch.zeros(x.shape[1], 1, side, side)
    rows, columns = (range(max(0, pad - size + 1), min(side, pad + size)) for size in (height, width))
    for row, column in product(rows, columns):
        total[:, 0, row, column] = (around[:, :, row : row + height, column : column + width] * grad_out).sum((0, 2, 3))
    return total


def _backward_grn(grn: GRN, active: Tensor, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output of the response normalisation, and gradients of its input, scale and shift."""
    with torch.enable_grad():
        active = active.detach().requires_grad_()
        out = grn(active)
    grad_active, grad_gamma, grad_beta = torch.autograd.grad(out, (active, grn.gamma, grn.beta), grad_out)
    return out.detach(), grad_active, grad_gamma, grad_beta


class _GradientSums:
    """Gradients of the parameters, summed in float32 over the pieces of a map."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, **gradients: Tensor) -> None:
        """Add gradients by names of :class:`Weights`; the tensors may be modified in place from then on."""
        for name, gradient in gradients.items():
            self.sums[name] = self.sums[name].add_(gradient) if name in self.sums else gradient

    def gradients(self, weights: Weights, needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
        """The gradients in the order and the precision of the parameters; ``None`` where not needed.

        Layer scale needs no output of the second product: the sum for that product is the gradient ``P`` of the weight
        before layer scale. The gradient of the weight itself is ``gamma * P``, that of layer scale the sum of
        ``P * weight`` over the hidden channels; likewise for the bias.
        """
        found: dict[str, Tensor | None] = {**self.sums}
        if weights.gamma is not None and "second" in self.sums:
            product, bias = self.sums["second"], self.sums["second_bias"]
            found["gamma"] = (product * weights.second).sum(1) + bias * weights.second_bias
            found["second"], found["second_bias"] = product.mul_(weights.gamma[:, None]), bias * weights.gamma
        grads: list[Tensor | None] = []
        for name, weight, need in zip(Weights._fields, weights, needed, strict=True):
            gradient = found.get(name)
            if weight is None or not need:
                grads.append(None)
            elif gradient is None:  # stochastic depth dropped every image
                grads.append(torch.zeros_like(weight))
            else:
                grads.append(gradient.to(weight.dtype).view_as(weight))
        return tuple(grads)
