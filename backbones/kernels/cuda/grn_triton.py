"""Triton kernels of :mod:`backbones.kernels.cuda.grn` and of the activation inside of
:mod:`backbones.kernels.cuda.mlp`.

See :mod:`backbones.kernels.cuda.maps_triton` for grid and precision. With ``GELU``, the exact GELU of
``x + bias`` is normalised, recomputed wherever it is needed: that costs arithmetic, not memory traffic. With ``GRN``
off, the same kernels serve a block that has no response normalisation.
"""

# mypy: ignore-errors
# Triton reads this as its own language: tuples grow, integers are tensors.

from __future__ import annotations

import triton
import triton.language as tl

from backbones.kernels.cuda.maps_triton import channels, read, store_sum, tile, vector


@triton.jit
def normal(v):
    """Distribution function of the standard normal, and ``exp(-v * v / 2)``.

    The error function by Abramowitz and Stegun, 7.1.26 (absolute error 1.5e-7, about one rounding of float32 at 1): it
    needs the exponential that the derivative of GELU needs as well, and half the instructions of the library's, which
    took longer than the memory accesses. The lower tail is not computed as a difference, and keeps its digits.
    """
    x = tl.abs(v) * 0.7071067811865476
    t = 1.0 / (1.0 + 0.3275911 * x)
    bell = tl.exp(-x * x)
    series = 1.421413741 + t * (-1.453152027 + t * 1.061405429)
    tail = 0.5 * t * (0.254829592 + t * (-0.284496736 + t * series)) * bell
    return tl.where(v > 0, 1.0 - tail, tail), bell


@triton.jit
def activated(x, bias, inside, GELU: tl.constexpr):
    """The map to be normalised, zero out of bounds."""
    if GELU:
        v = x + bias
        below, _ = normal(v)
        x = tl.where(inside, v * below, 0.0)
    return x


@triton.jit(do_not_specialize=["pixels", "steps"])
def squares_kernel(
    x, bias, partial, pixels, steps, C: tl.constexpr, GELU: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """Sums of squares, from which the normalisation's statistics are computed."""
    chans = channels(BLOCK)
    offset = vector(bias, chans, C) if GELU else 0.0
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for step in range(steps):
        place, inside = tile(step, steps, pixels, chans, C, ROWS)
        a = activated(read(x, place, inside), offset, inside, GELU)
        total += a * a
    store_sum(partial, 0, total, chans, C)


@triton.jit(do_not_specialize=["pixels", "steps"])
def apply_kernel(
    x,
    bias,
    gain,
    shift,
    out,
    pixels,
    steps,
    C: tl.constexpr,
    GELU: tl.constexpr,
    GRN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``a * gain + shift`` with one gain for each image and channel, or ``a`` alone."""
    chans = channels(BLOCK)
    offset = vector(bias, chans, C) if GELU else 0.0
    times = vector(gain + tl.program_id(0) * C, chans, C) if GRN else 1.0
    plus = vector(shift, chans, C) if GRN else 0.0
    for step in range(steps):
        place, inside = tile(step, steps, pixels, chans, C, ROWS)
        a = activated(read(x, place, inside), offset, inside, GELU)
        if GRN:
            a = a * times + plus
        tl.store(out + place, a, mask=inside)


@triton.jit(do_not_specialize=["pixels", "steps"])
def sums_kernel(
    grad,
    x,
    bias,
    partial,
    pixels,
    steps,
    C: tl.constexpr,
    GELU: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums of ``grad * a`` and of ``grad``."""
    chans = channels(BLOCK)
    offset = vector(bias, chans, C) if GELU else 0.0
    product = tl.zeros((ROWS, BLOCK), tl.float32)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for step in range(steps):
        place, inside = tile(step, steps, pixels, chans, C, ROWS)
        g = read(grad, place, inside)
        product += g * activated(read(x, place, inside), offset, inside, GELU)
        total += g
    store_sum(partial, 0, product, chans, C)
    store_sum(partial, 1, total, chans, C)


@triton.jit(do_not_specialize=["pixels", "steps"])
def grad_kernel(
    grad,
    x,
    bias,
    gain,
    pull,
    shift,
    out,
    again,
    partial,
    pixels,
    steps,
    C: tl.constexpr,
    GELU: tl.constexpr,
    GRN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradient of ``x``: ``(grad * gain + a * pull) * slope``; ``out`` may be ``grad``.

    With ``GELU`` also the output of :func:`apply_kernel`, into ``again``, and the gradient of the bias as partial sums.
    """
    chans = channels(BLOCK)
    offset = vector(bias, chans, C) if GELU else 0.0
    times = vector(gain + tl.program_id(0) * C, chans, C) if GRN else 1.0
    back = vector(pull + tl.program_id(0) * C, chans, C) if GRN else 0.0
    plus = vector(shift, chans, C) if GELU and GRN else 0.0
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for step in range(steps):
        place, inside = tile(step, steps, pixels, chans, C, ROWS)
        g = read(grad, place, inside)
        v = read(x, place, inside)
        if GELU:
            v += offset
            below, bell = normal(v)
            a = v * below
            tl.store(again + place, a * times + plus, mask=inside)
            if GRN:
                g = g * times + a * back
            g = tl.where(inside, g * (below + v * bell * 0.3989422804014327), 0.0)
            total += g
        else:
            g = g * times + v * back
        tl.store(out + place, g, mask=inside)
    if GELU:
        store_sum(partial, 0, total, chans, C)
