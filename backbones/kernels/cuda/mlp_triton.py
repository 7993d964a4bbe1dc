"""Triton kernels of :mod:`backbones.kernels.cuda.mlp`: bias, layer scale, stochastic depth and residual in one pass.

See :mod:`backbones.kernels.cuda.maps_triton` for grid and precision.
"""

# mypy: ignore-errors
# Triton reads this as its own language: tuples grow, integers are tensors.

from __future__ import annotations

import triton
import triton.language as tl

from backbones.kernels.cuda.maps_triton import channels, read, store_sum, tile, vector


@triton.jit(do_not_specialize=["pixels", "steps"])
def residual_kernel(
    shortcut,
    z,
    bias,
    gamma,
    keep,
    out,
    pixels,
    steps,
    C: tl.constexpr,
    GAMMA: tl.constexpr,
    KEEP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``shortcut + keep * gamma * (z + bias)``."""
    chans = channels(BLOCK)
    offset = vector(bias, chans, C)
    scale = vector(gamma, chans, C) if GAMMA else 1.0
    if KEEP:
        scale *= tl.load(keep + tl.program_id(0))
    for step in range(steps):
        place, inside = tile(step, steps, pixels, chans, C, ROWS)
        y = read(z, place, inside) + offset
        tl.store(out + place, read(shortcut, place, inside) + y * scale, mask=inside)


@triton.jit(do_not_specialize=["pixels", "steps"])
def residual_grad_kernel(
    grad,
    z,
    bias,
    gamma,
    keep,
    out,
    partial,
    pixels,
    steps,
    C: tl.constexpr,
    GAMMA: tl.constexpr,
    KEEP: tl.constexpr,
    STORE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradient of ``z``, and the sums that make the gradients of the bias and of the layer scale.

    Without ``STORE``, the gradient of ``z`` is ``grad``.
    """
    chans = channels(BLOCK)
    offset = vector(bias, chans, C) if GAMMA else 0.0
    scale = vector(gamma, chans, C) if GAMMA else 1.0
    share = tl.load(keep + tl.program_id(0)) if KEEP else 1.0
    bias_sum = tl.zeros((ROWS, BLOCK), tl.float32)
    gamma_sum = tl.zeros((ROWS, BLOCK), tl.float32)
    for step in range(steps):
        place, inside = tile(step, steps, pixels, chans, C, ROWS)
        g = read(grad, place, inside) * share
        if GAMMA:
            gamma_sum += g * (read(z, place, inside) + offset)
        g *= scale
        bias_sum += g
        if STORE:
            tl.store(out + place, g, mask=inside)
    store_sum(partial, 0, bias_sum, chans, C)
    if GAMMA:
        store_sum(partial, 1, gamma_sum, chans, C)
