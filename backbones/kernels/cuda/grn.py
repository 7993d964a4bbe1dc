"""Global response normalisation over a channels-last map, its statistics computed in one pass.

The normalisation needs the sum of squares of each channel. PyTorch's steps read and write the map (in float32) for the
norm, the product, the scale, the shift and the sum. Here a first kernel reads it once for the sums, and a second reads
it and writes the output; everything between has size ``(N, C)``. The backward pass has two kernels as well: one reads
gradient and map for the sums over the pixels, one reads them again and writes the gradient. Inside a block, the same
kernels compute bias and GELU as they read (:mod:`backbones.kernels.cuda.mlp`): the GELU is never written.

With ``G`` the norm of each channel over the map, ``M`` the mean of ``G`` over the channels and ``n = G / (M + eps)``,
the output is ``a * (1 + gamma * n) + beta``. For a gradient ``g`` and ``D = gamma * sum(g * a)`` the map's gradient is
``g * (1 + gamma * n) + a * P``, where ``P = (D / (M + eps) - mean(D * G) / (M + eps)**2) / G``, and 0 for ``G`` = 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from backbones.kernels.cuda.launch import FLOATS, ceil_div, next_power, on_device, runs_kernels, split_reduction

EPS = 1e-6
# A tile: 8 elements of each map per thread, 32 to 96 registers on sm_90.
TILE_ROWS, TILE_CHANNELS, TILE_WARPS = 8, 128, 4


class Gains(NamedTuple):
    """Statistics of a map, ``(N, C)`` each, in the symbols of this module's docstring.

    Attributes:
        norm: Norm of each channel, ``G``.
        unit: Norm relative to the mean of all channels, ``n``.
        gain: Factor of each channel, ``1 + gamma * n``.
    """

    norm: Tensor
    unit: Tensor
    gain: Tensor


def grn_reference(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Response normalisation by PyTorch in float32 or higher, the definition (Woo et al., "ConvNeXt V2", algorithm 1).

    Args:
        x: Map, ``(N, H, W, C)``.
        gamma: Scale, ``(1, 1, 1, C)``.
        beta: Shift, ``(1, 1, 1, C)``.

    Returns:
        ``(N, H, W, C)`` in the precision of ``x``.
    """
    precise = torch.promote_types(x.dtype, torch.float32)
    response = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=precise)
    response = response / (response.mean(-1, keepdim=True) + EPS)
    return (x + gamma * (x * response) + beta).to(x.dtype)


def grn(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Compute :func:`grn_reference` with fused kernels on a GPU, differentiable once in all three tensors.

    Autocast has no effect: the precision is that of the map, sums are in float32.

    Raises:
        TypeError: If a tensor is neither float32, bfloat16 nor float16 (float64 has the plain steps on CPU alone).
        ValueError: If the shapes do not match.
    """
    allowed = FLOATS if x.is_cuda else (*FLOATS, torch.float64)
    for tensor in (x, gamma, beta):
        if tensor.dtype not in allowed:
            raise TypeError(f"grn does not take {tensor.dtype}: float32, bfloat16 or float16 is needed")
    if x.ndim != 4 or gamma.numel() != x.shape[3] or beta.numel() != x.shape[3]:
        shapes = f"{tuple(x.shape)}, {tuple(gamma.shape)} and {tuple(beta.shape)}"
        raise ValueError(f"grn: a map (N, H, W, C) and twice C values are needed, not {shapes}")
    return _forward(x.contiguous(), gamma, beta)[0]


@torch.library.custom_op("convnext::grn", mutates_args=())
def _forward(x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and the norms ``G``, ``(N, C)``."""
    with on_device(x):
        gains = compute_gains(x, None, gamma)
        return activate(x, None, gains, beta), gains.norm


@_forward.register_fake
def _(x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    precise = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(x.shape), x.new_empty((x.shape[0], x.shape[3]), dtype=precise)


@torch.library.custom_op("convnext::grn_backward", mutates_args=())
def _backward(grad: Tensor, x: Tensor, norm: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of map, gamma and beta, the last two ``(C,)``."""
    with on_device(x):
        grad = grad.contiguous()
        gains = gains_from_norms(norm, gamma)
        pull, grad_gamma, grad_beta = sum_gradients(grad, x, None, gains, gamma)
        return backward_activation(grad, x, None, gains, pull, beta, inplace=False)[0], grad_gamma, grad_beta


@_backward.register_fake
def _(grad: Tensor, x: Tensor, norm: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), norm.new_empty(x.shape[3]), norm.new_empty(x.shape[3])


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], output[1], *inputs[1:])


def _autograd_backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, norm, gamma, beta = ctx.saved_tensors
    grad_x, grad_gamma, grad_beta = _backward(grad, x, norm, gamma, beta)
    return grad_x, grad_gamma.to(gamma.dtype).view_as(gamma), grad_beta.to(beta.dtype).view_as(beta)


_forward.register_autograd(_autograd_backward, setup_context=_setup_context)


def gains_from_norms(norm: Tensor, gamma: Tensor) -> Gains:
    """The gains of the norms ``(N, C)``."""
    unit = norm / (norm.mean(-1, keepdim=True) + EPS)
    return Gains(norm, unit, 1 + gamma.detach().flatten().to(norm.dtype) * unit)


def compute_gains(x: Tensor, bias: Tensor | None, gamma: Tensor) -> Gains:
    """Gains of the map ``(N, H, W, C)``, or with a bias of the GELU of ``x + bias``."""
    if not runs_kernels(x):
        return gains_from_norms(torch.linalg.vector_norm(_activated(x, bias), dim=(1, 2)), gamma)
    from backbones.kernels.cuda.grn_triton import squares_kernel

    grid, steps, shape = launch_grid(x, x.shape[0])
    partial = x.new_zeros((*grid[:2], x.shape[-1]), dtype=torch.float32)
    if x.numel():
        flags = dict(GELU=bias is not None, **shape)
        squares_kernel[grid](x, bias, partial, pixels_per_image(x, x.shape[0]), steps, **flags, num_warps=TILE_WARPS)
    return gains_from_norms(partial.sum(1).sqrt(), gamma)


def activate(x: Tensor, bias: Tensor | None, gains: Gains | None, shift: Tensor | None) -> Tensor:
    """The map, or with a bias the GELU of ``x + bias``; normalised if there are gains."""
    if not runs_kernels(x):
        a = _activated(x, bias)
        if gains is not None and shift is not None:
            a = a * gains.gain[:, None, None] + shift.flatten()
        return a.to(x.dtype)
    from backbones.kernels.cuda.grn_triton import apply_kernel

    out = torch.empty_like(x)
    images = 1 if gains is None else x.shape[0]
    grid, steps, shape = launch_grid(x, images)
    if x.numel():
        gain = None if gains is None else gains.gain
        flags = dict(GELU=bias is not None, GRN=gains is not None, **shape)
        apply_kernel[grid](x, bias, gain, shift, out, pixels_per_image(x, images), steps, **flags, num_warps=TILE_WARPS)
    return out


def sum_gradients(
    grad: Tensor, x: Tensor, bias: Tensor | None, gains: Gains, gamma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``P``, ``(N, C)``, and the gradients of gamma and beta, ``(C,)``."""
    if runs_kernels(x):
        from backbones.kernels.cuda.grn_triton import sums_kernel

        grid, steps, shape = launch_grid(x, x.shape[0])
        partial = x.new_zeros((2, *grid[:2], x.shape[-1]), dtype=torch.float32)
        if x.numel():
            flags = dict(GELU=bias is not None, **shape)
            sums_kernel[grid](
                grad, x, bias, partial, pixels_per_image(x, x.shape[0]), steps, **flags, num_warps=TILE_WARPS
            )
        product, total = partial.sum(2)
    else:
        a = _activated(x, bias)
        product, total = (grad.to(a.dtype) * a).sum((1, 2)), grad.to(a.dtype).sum((1, 2))
    level = gains.norm.mean(-1, keepdim=True) + EPS
    pulled = product * gamma.detach().flatten().to(product.dtype)
    pull = pulled / level - (pulled * gains.norm).mean(-1, keepdim=True) / level**2
    pull = torch.where(gains.norm > 0, pull / gains.norm, 0.0)
    return pull, (product * gains.unit).sum(0), total.sum(0)


def backward_activation(
    grad: Tensor,
    x: Tensor,
    bias: Tensor | None,
    gains: Gains | None,
    pull: Tensor | None,
    shift: Tensor | None,
    inplace: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of ``x``; with a bias also the output of :func:`activate` and the gradient of the bias, ``(C,)``.

    Args:
        grad: Gradient of the output, contiguous, in the precision of ``x``.
        x: Input of :func:`activate`.
        bias: Bias given to :func:`activate`.
        gains: Gains given to :func:`activate`.
        pull: ``P``, ``(N, C)``, if there are gains.
        shift: Shift given to :func:`activate`.
        inplace: Write the gradient over ``grad``, to save the memory of a map.
    """
    if not runs_kernels(x):
        return _plain_backward_activation(grad, x, bias, gains, pull, shift)
    from backbones.kernels.cuda.grn_triton import grad_kernel

    images = 1 if gains is None else x.shape[0]
    grid, steps, shape = launch_grid(x, images)
    out = grad if inplace else torch.empty_like(x)
    again = x.new_empty(0) if bias is None else torch.empty_like(x)
    partial = x.new_zeros((*grid[:2], 0 if bias is None else x.shape[-1]), dtype=torch.float32)
    if x.numel():
        gain = None if gains is None else gains.gain
        flags = dict(GELU=bias is not None, GRN=gains is not None, **shape)
        tensors = (grad, x, bias, gain, pull, shift, out, again, partial)
        grad_kernel[grid](*tensors, pixels_per_image(x, images), steps, **flags, num_warps=TILE_WARPS)
    return out, again, partial.sum((0, 1))


def _activated(x: Tensor, bias: Tensor | None) -> Tensor:
    """The map to be normalised, in float32 or higher."""
    a = x.to(torch.promote_types(x.dtype, torch.float32))
    return a if bias is None else torch.nn.functional.gelu(a + bias)


def _plain_backward_activation(
    grad: Tensor, x: Tensor, bias: Tensor | None, gains: Gains | None, pull: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The steps of :func:`backward_activation` by PyTorch."""
    a = _activated(x, bias)
    g = grad.to(a.dtype)
    if gains is not None and pull is not None:
        g = g * gains.gain[:, None, None] + a * pull[:, None, None]
    if bias is None:
        return g.to(x.dtype), x.new_empty(0), g.new_empty(0)
    v = x.to(a.dtype) + bias
    bell = torch.exp(-0.5 * v * v) * 0.3989422804014327
    g = g * (torch.special.ndtr(v) + v * bell)
    return g.to(x.dtype), activate(x, bias, gains, shift), g.sum((0, 1, 2))


def pixels_per_image(x: Tensor, images: int) -> int:
    """Pixels per image of a map that is treated as ``images`` images."""
    return x.numel() // max(images * x.shape[-1], 1)


def launch_grid(x: Tensor, images: int) -> tuple[tuple[int, int, int], int, dict[str, int]]:
    """Grid, tiles per program, and constants of a kernel that uses :mod:`backbones.kernels.cuda.maps_triton`.

    Args:
        x: Map, ``(..., C)``.
        images: Number of images whose pixels are kept apart; 1 to treat the map as a single image.
    """
    block = min(TILE_CHANNELS, max(next_power(x.shape[-1]), 16))
    blocks = ceil_div(x.shape[-1], block)
    shares, steps = split_reduction(pixels_per_image(x, images), TILE_ROWS, images * blocks)
    return (images, shares, blocks), steps, dict(C=x.shape[-1], ROWS=TILE_ROWS, BLOCK=block)
