"""Global response normalisation over a channels-last map, its statistics gathered in one pass.

What the normalisation has to know of a map are its channels' sums of squares. PyTorch's steps read and write the map
(in float32) for the norm, the product, the scale, the shift and the sum. Here a first kernel reads it once for the
sums, and a second reads it and writes the output; everything between is of size ``(N, C)``. Backward is two kernels as
well: one reads gradient and map for the sums over the pixels, one reads them again and writes the gradient. Inside of a
block, the same kernels compute bias and GELU as they read (:mod:`backbones.kernels.cuda.mlp`): the GELU is never
written.

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
ROWS, BLOCK, WARPS = 8, 128, 4  # a tile: 8 elements of each map to a thread, 32 to 96 registers on sm_90


class Gains(NamedTuple):
    """What the sums over the pixels come to, ``(N, C)`` each.

    Attributes:
        norm: ``G``.
        unit: ``n``.
        gain: ``1 + gamma * n``.
    """

    norm: Tensor
    unit: Tensor
    gain: Tensor


def grn_reference(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """The definition (Woo et al., "ConvNeXt V2", algorithm 1), in float32 at least, by PyTorch.

    Args:
        x: ``(N, H, W, C)``.
        gamma: ``(1, 1, 1, C)``.
        beta: ``(1, 1, 1, C)``.

    Returns:
        ``(N, H, W, C)`` in the precision of ``x``.
    """
    precise = torch.promote_types(x.dtype, torch.float32)
    response = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=precise)
    response = response / (response.mean(-1, keepdim=True) + EPS)
    return (x + gamma * (x * response) + beta).to(x.dtype)


def grn(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Compute :func:`grn_reference` with fused kernels on a GPU, differentiable once in all three tensors.

    Autocast changes nothing: the precision is that of the map, sums are in float32.

    Raises:
        TypeError: If a tensor is neither float32, bfloat16 nor float16 (float64 has the plain steps on CPU alone).
        ValueError: If the shapes do not fit.
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
    """Output and ``G``."""
    with on_device(x):
        gains = gather(x, None, gamma)
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
        gains = gains_of(norm, gamma)
        pull, grad_gamma, grad_beta = responses(grad, x, None, gains, gamma)
        return differentiate(grad, x, None, gains, pull, beta, inplace=False)[0], grad_gamma, grad_beta


@_backward.register_fake
def _(grad: Tensor, x: Tensor, norm: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), norm.new_empty(x.shape[3]), norm.new_empty(x.shape[3])


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], output[1], *inputs[1:])


def _differentiate(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, norm, gamma, beta = ctx.saved_tensors
    grad_x, grad_gamma, grad_beta = _backward(grad, x, norm, gamma, beta)
    return grad_x, grad_gamma.to(gamma.dtype).view_as(gamma), grad_beta.to(beta.dtype).view_as(beta)


_forward.register_autograd(_differentiate, setup_context=_keep)


def gains_of(norm: Tensor, gamma: Tensor) -> Gains:
    """The gains that belong to the norms ``(N, C)``."""
    unit = norm / (norm.mean(-1, keepdim=True) + EPS)
    return Gains(norm, unit, 1 + gamma.detach().flatten().to(norm.dtype) * unit)


def gather(x: Tensor, bias: Tensor | None, gamma: Tensor) -> Gains:
    """Gains of the map ``(N, H, W, C)``, or of the GELU of ``x + bias``."""
    if not runs_kernels(x):
        return gains_of(torch.linalg.vector_norm(_activated(x, bias), dim=(1, 2)), gamma)
    from backbones.kernels.cuda.grn_triton import squares_kernel

    grid, steps, shape = walk(x, x.shape[0])
    partial = x.new_zeros((*grid[:2], x.shape[-1]), dtype=torch.float32)
    if x.numel():
        flags = dict(GELU=bias is not None, **shape)
        squares_kernel[grid](x, bias, partial, pixels_of(x, x.shape[0]), steps, **flags, num_warps=WARPS)
    return gains_of(partial.sum(1).sqrt(), gamma)


def activate(x: Tensor, bias: Tensor | None, gains: Gains | None, shift: Tensor | None) -> Tensor:
    """The map, or the GELU of ``x + bias``; with gains, normalised."""
    if not runs_kernels(x):
        a = _activated(x, bias)
        if gains is not None and shift is not None:
            a = a * gains.gain[:, None, None] + shift.flatten()
        return a.to(x.dtype)
    from backbones.kernels.cuda.grn_triton import apply_kernel

    out = torch.empty_like(x)
    images = 1 if gains is None else x.shape[0]
    grid, steps, shape = walk(x, images)
    if x.numel():
        gain = None if gains is None else gains.gain
        flags = dict(GELU=bias is not None, GRN=gains is not None, **shape)
        apply_kernel[grid](x, bias, gain, shift, out, pixels_of(x, images), steps, **flags, num_warps=WARPS)
    return out


def responses(
    grad: Tensor, x: Tensor, bias: Tensor | None, gains: Gains, gamma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``P`` as ``(N, C)``, and the gradients of gamma and beta as ``(C,)``."""
    if runs_kernels(x):
        from backbones.kernels.cuda.grn_triton import sums_kernel

        grid, steps, shape = walk(x, x.shape[0])
        partial = x.new_zeros((2, *grid[:2], x.shape[-1]), dtype=torch.float32)
        if x.numel():
            flags = dict(GELU=bias is not None, **shape)
            sums_kernel[grid](grad, x, bias, partial, pixels_of(x, x.shape[0]), steps, **flags, num_warps=WARPS)
        product, total = partial.sum(2)
    else:
        a = _activated(x, bias)
        product, total = (grad.to(a.dtype) * a).sum((1, 2)), grad.to(a.dtype).sum((1, 2))
    level = gains.norm.mean(-1, keepdim=True) + EPS
    pulled = product * gamma.detach().flatten().to(product.dtype)
    pull = pulled / level - (pulled * gains.norm).mean(-1, keepdim=True) / level**2
    pull = torch.where(gains.norm > 0, pull / gains.norm, 0.0)
    return pull, (product * gains.unit).sum(0), total.sum(0)


def differentiate(
    grad: Tensor,
    x: Tensor,
    bias: Tensor | None,
    gains: Gains | None,
    pull: Tensor | None,
    shift: Tensor | None,
    inplace: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of ``x``, and with a bias also what :func:`activate` gave, and the bias's gradient ``(C,)``.

    Args:
        grad: Gradient of the output, contiguous, in the precision of ``x``.
        x: Input of :func:`activate`.
        bias: The same as there.
        gains: The same as there.
        pull: ``P``, with gains.
        shift: The same as there.
        inplace: Write the gradient over ``grad``, to save a map.
    """
    if not runs_kernels(x):
        return _plain_differentiate(grad, x, bias, gains, pull, shift)
    from backbones.kernels.cuda.grn_triton import grad_kernel

    images = 1 if gains is None else x.shape[0]
    grid, steps, shape = walk(x, images)
    out = grad if inplace else torch.empty_like(x)
    again = x.new_empty(0) if bias is None else torch.empty_like(x)
    partial = x.new_zeros((*grid[:2], 0 if bias is None else x.shape[-1]), dtype=torch.float32)
    if x.numel():
        gain = None if gains is None else gains.gain
        flags = dict(GELU=bias is not None, GRN=gains is not None, **shape)
        tensors = (grad, x, bias, gain, pull, shift, out, again, partial)
        grad_kernel[grid](*tensors, pixels_of(x, images), steps, **flags, num_warps=WARPS)
    return out, again, partial.sum((0, 1))


def _activated(x: Tensor, bias: Tensor | None) -> Tensor:
    """What is normalised, in float32 at least."""
    a = x.to(torch.promote_types(x.dtype, torch.float32))
    return a if bias is None else torch.nn.functional.gelu(a + bias)


def _plain_differentiate(
    grad: Tensor, x: Tensor, bias: Tensor | None, gains: Gains | None, pull: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The steps of the last kernel by PyTorch."""
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


def pixels_of(x: Tensor, images: int) -> int:
    """Pixels of each image of a map that is taken as so many."""
    return x.numel() // max(images * x.shape[-1], 1)


def walk(x: Tensor, images: int) -> tuple[tuple[int, int, int], int, dict[str, int]]:
    """Grid, tiles to a program, and sizes for :mod:`backbones.kernels.cuda.maps_triton`.

    Args:
        x: Map whose last axis are the channels.
        images: 1 where an image's pixels need not be kept apart from another's.
    """
    block = min(BLOCK, max(next_power(x.shape[-1]), 16))
    blocks = ceil_div(x.shape[-1], block)
    shares, steps = split_reduction(pixels_of(x, images), ROWS, images * blocks)
    return (images, shares, blocks), steps, dict(C=x.shape[-1], ROWS=ROWS, BLOCK=block)
