"""The steps of a ConvNeXt block on CPU, forward and backward, over pieces of a map that stay in the cache.

The hidden map is four times as wide as the block: written and read whole, each step of it waits for the memory. Here
all steps of a few images follow each other, from the convolution to the residual, and those of an image that is too
large by itself, as in detection, at least from the norm on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.kernels.cpu.linear import column_sums, input_gradient, linear, weight_gradient
from backbones.layers import GRN

# Hidden values that are held at a time. On a Zen 5 with 1 MB of level-2 cache for each core and 32 MB of level 3, 8 MB
# is best of 2 to 20: with less the calls cost, with more the caches are left, and the C library gives the memory back
# to the system each time, which then clears it again page by page.
PIECE_BYTES = 8 << 20
# Side of the tiles of the output's gradient that serve as kernels; a larger kernel leaves the cache.
LARGEST_KERNEL = 64


class Weights(NamedTuple):
    """A block's parameters."""

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
    """Weights of a block's products in their precision, with layer scale multiplied into those of the second."""

    conv: Tensor
    conv_bias: Tensor
    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor

    @classmethod
    def of(cls, weights: Weights, dtype: torch.dtype) -> Products:
        """The weights for products in a precision."""
        second, bias = weights.second.detach(), weights.second_bias.detach()
        if weights.gamma is not None:
            second, bias = second * weights.gamma.detach()[:, None], bias * weights.gamma.detach()
        taken = (weights.conv, weights.conv_bias, weights.first, weights.first_bias, second, bias)
        return cls(*(one.detach().to(dtype) for one in taken))


@dataclass(frozen=True)
class Steps:
    """A block's steps with given weights.

    Attributes:
        weights: The parameters.
        products: What the convolution and the two products take for them; of the forward pass also in the backward one.
        eps: Of the norm.
        grn: The response normalisation, if the block has one.
    """

    weights: Weights
    products: Products
    eps: float
    grn: GRN | None

    def forward(self, x: Tensor, keep: Tensor | None, saved: list[Tensor] | None = None) -> Tensor:
        """The block's result.

        Args:
            x: Input, ``(N, H, W, C)``.
            keep: Factors of stochastic depth, ``(N, 1, 1, 1)``.
            saved: Gets what :meth:`backward` is to have.

        Returns:
            ``(N, H, W, C)`` in the precision of the plain steps' result.
        """
        products, weights = self.products, self.weights
        dtype = products.conv.dtype
        wide = dtype if weights.gamma is None else torch.promote_types(dtype, weights.gamma.dtype)
        out = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, wide))
        for images in self._groups(x):
            y = _depthwise(x[images].to(dtype), products.conv, products.conv_bias)
            if saved is not None:
                saved.append(y)
            for rows in self._rows(x):
                z = F.layer_norm(y[:, rows], weights.scale.shape, weights.scale, weights.shift, self.eps)
                z = self._active(z, saved)
                z = linear(z if self.grn is None else self.grn(z), products.second, products.second_bias)
                if keep is not None:
                    z = z * keep[images]
                # Two maps of bfloat16 would be added in it, whatever the precision of the result.
                torch.add(x[images, rows].to(out.dtype), z, out=out[images, rows])
        return out

    def backward(
        self, x: Tensor, saved: Sequence[Tensor], gradient: Tensor, keep: Tensor | None, needed: Sequence[bool]
    ) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:
        """Gradients of the block.

        Args:
            x: Input, ``(N, H, W, C)``.
            saved: From :meth:`forward`.
            gradient: Of the result, ``(N, H, W, C)``.
            keep: Factors of stochastic depth, ``(N, 1, 1, 1)``.
            needed: Which gradients are, that of the input first.

        Returns:
            The gradient of the input, ``(N, H, W, C)``, and those of the parameters in their order.
        """
        sums, left = _Sums(), iter(saved)
        dtype = self.products.conv.dtype
        turned = self.products.conv.flip(2, 3)
        result = torch.empty(x.shape, dtype=torch.promote_types(gradient.dtype, dtype)) if needed[0] else None
        for images in self._groups(x):
            y = next(left)
            lower = torch.empty_like(y)
            for rows in self._rows(x):
                above = gradient[images, rows] if keep is None else gradient[images, rows] * keep[images]
                self._through_mlp(y[:, rows], next(left), above, sums, lower[:, rows])
            maps = lower.permute(0, 3, 1, 2)
            if needed[1]:
                narrow = x[images].to(dtype).permute(0, 3, 1, 2)
                sums.add(conv=depthwise_weight_gradient(narrow, maps, turned.shape[-1]))
            if needed[2]:
                sums.add(conv_bias=column_sums(lower))
            if result is not None:
                torch.add(gradient[images], _depthwise(lower, turned), out=result[images])
        return result, sums.gradients(self.weights, needed[1:])

    def _groups(self, x: Tensor) -> Iterator[slice]:
        """Slices of the images of a map: as many as have their hidden values held at a time, but one at least."""
        return evenly(len(x), PIECE_BYTES // (x.shape[1] * self._row_bytes(x)))

    def _rows(self, x: Tensor) -> Iterator[slice]:
        """Slices of the rows of the images of a group, which are all rows unless the group is one large image.

        The response normalisation looks at whole images.
        """
        height, row = x.shape[1], self._row_bytes(x)
        return evenly(height, height if self.grn is not None else PIECE_BYTES // row)

    def _row_bytes(self, x: Tensor) -> int:
        hidden = self.weights.first.shape[0]
        return x.shape[2] * hidden * self.products.conv.element_size()

    def _active(self, normal: Tensor, saved: list[Tensor] | None) -> Tensor:
        """First product and GELU; in one call, where nobody needs what is in between."""
        first, bias = self.products.first, self.products.first_bias
        if saved is None:
            return linear(normal, first, bias, gelu=True)
        saved.append(linear(normal, first, bias))
        return F.gelu(saved[-1])

    def _through_mlp(self, y: Tensor, hidden: Tensor, above: Tensor, sums: _Sums, lower: Tensor) -> None:
        """Write the gradient of a piece ``y`` of the convolution's output to ``lower``, and add up the parameters'.

        ``above`` is the gradient of the branch; all three are ``(n, h, w, C)``. ``hidden`` is the first product's
        output, ``(n, h, w, hidden)``.
        """
        weights, products, channels = self.weights, self.products, self.weights.scale.shape
        normal, mean, deviation = torch.native_layer_norm(y, channels, weights.scale, weights.shift, self.eps)
        sums.add(second_bias=column_sums(above))
        above = above.to(y.dtype)
        used, inner = F.gelu(hidden), input_gradient(above, products.second)
        if self.grn is not None:
            used, inner, gamma, beta = _through_grn(self.grn, used, inner)
            sums.add(grn_gamma=gamma, grn_beta=beta)
        sums.add(second=weight_gradient(above, used))
        inner = torch.ops.aten.gelu_backward(inner, hidden)
        sums.add(first=weight_gradient(inner, normal), first_bias=column_sums(inner))
        scale, shift = torch.empty_like(weights.scale), torch.empty_like(weights.shift)
        found, wanted = input_gradient(inner, products.first), [True, True, True]
        torch.ops.aten.native_layer_norm_backward.out(
            found,
            y,
            channels,
            mean,
            deviation,
            weights.scale,
            weights.shift,
            wanted,
            out0=lower,
            out1=scale,
            out2=shift,
        )
        sums.add(scale=scale, shift=shift)


def evenly(count: int, most: int) -> Iterator[slice]:
    """Slices of so many things, of at most so many each (but of one at least), none much smaller than the others."""
    parts = -(-count // max(most, 1))
    bounds = [part * count // parts for part in range(parts + 1)] if count else []
    yield from map(slice, bounds, bounds[1:])


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A depthwise convolution, ``(n, h, w, C) -> (n, h, w, C)``."""
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])
    return y.permute(0, 2, 3, 1).contiguous()


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


def _through_grn(grn: nn.Module, active: Tensor, above: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output of the response normalisation, and gradients of its input, scale and shift."""
    with torch.enable_grad():
        active = active.detach().requires_grad_()
        normalised = grn(active)
    inputs = (active, grn.gamma, grn.beta)
    found = torch.autograd.grad(normalised, inputs, above)  # type: ignore[arg-type]
    return normalised.detach(), *found


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
            found["second"], found["second_bias"] = product.mul_(weights.gamma[:, None]), bias * weights.gamma
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
