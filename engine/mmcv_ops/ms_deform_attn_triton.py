"""Triton kernels of :mod:`engine.mmcv_ops.ms_deform_attn`.

A row is one head of one query of one image, in the order of the output; a program takes ROWS of them and goes through
their points one after another. Arithmetic and sums are in float32, offsets in the values have 64 bits. Nothing between
input and output is written: PyTorch's steps store a sample of each point and channel, sixteen times the output.

A pixel takes gradients from any number of points, which are added with atomics, as the compiled op of mmcv does: in any
order, so that the last bits of the gradient of the values differ between runs. The other two are reproducible.
"""

# mypy: ignore-errors
# Triton reads this as its own language: tuples grow, integers are tensors.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def first_elements(rows, per_image, keys, HEADS: tl.constexpr, C: tl.constexpr):
    """Offset of the first value of each row's image and head."""
    return (rows // per_image * keys * HEADS + rows % HEADS) * C


@triton.jit
def read_point(locations, weights, place, inside, height, width):
    """Weight of a point of each row, its pixel to the upper left, the fractions towards the next, whether it counts.

    Points that are a pixel or more outside, or not finite, see nothing but zeros.
    """
    weight = tl.load(weights + place, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(locations + 2 * place, mask=inside, other=0.0).to(tl.float32) * width - 0.5
    y = tl.load(locations + 2 * place + 1, mask=inside, other=0.0).to(tl.float32) * height - 0.5
    near = inside & (x >= -1) & (x < width) & (y >= -1) & (y < height)
    x = tl.where(near, x, 0.0)
    y = tl.where(near, y, 0.0)
    left = tl.floor(x)
    top = tl.floor(y)
    return weight, top.to(tl.int32), left.to(tl.int32), y - top, x - left, near


@triton.jit
def level_size(shapes, level):
    """Height and width of a level."""
    return tl.load(shapes + 2 * level).to(tl.int32), tl.load(shapes + 2 * level + 1).to(tl.int32)


@triton.jit
def pixel(firsts, near, row, column, start, height, width, STEP: tl.constexpr):
    """Offset of the first value of a pixel for each row, and whether the pixel exists."""
    exists = near & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return firsts + (start + row * width + column).to(tl.int64) * STEP, exists


@triton.jit
def corners(firsts, near, top, left, start, height, width, STEP: tl.constexpr):
    """The four pixels around a point as of :func:`pixel`: upper left, upper right, lower left, lower right."""
    a, has_a = pixel(firsts, near, top, left, start, height, width, STEP)
    b, has_b = pixel(firsts, near, top, left + 1, start, height, width, STEP)
    c, has_c = pixel(firsts, near, top + 1, left, start, height, width, STEP)
    d, has_d = pixel(firsts, near, top + 1, left + 1, start, height, width, STEP)
    return a, has_a, b, has_b, c, has_c, d, has_d


@triton.jit
def read_pixel(values, place, exists, chans, C: tl.constexpr):
    """Values of a pixel of each row in float32, zero where there is none."""
    mask = exists[:, None] & (chans < C)[None, :]
    return tl.load(values + place[:, None] + chans[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def spread(values, grad_values, g, factor, place, exists, chans, C: tl.constexpr):
    """Add ``g * factor`` to the gradient of a pixel; returns the sum of ``g`` times the pixel over the channels."""
    mask = exists[:, None] & (chans < C)[None, :]
    tl.atomic_add(grad_values + place[:, None] + chans[None, :], g * factor[:, None], mask=mask, sem="relaxed")
    return tl.sum(g * read_pixel(values, place, exists, chans, C), 1)


@triton.jit(do_not_specialize=["rows", "per_image", "keys", "levels", "points"])
def attention_kernel(
    values,
    shapes,
    locations,
    weights,
    out,
    rows,
    per_image,
    keys,
    levels,
    points,
    HEADS: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Weighted sums of bilinear samples; the grid is (rows, blocks of channels)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    chans = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    firsts = first_elements(row, per_image, keys, HEADS, C)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    start = 0
    for level in range(levels):
        height, width = level_size(shapes, level)
        for point in range(points):
            place = (row * levels + level) * points + point
            weight, top, left, down, right, near = read_point(locations, weights, place, inside, height, width)
            a, has_a, b, has_b, c, has_c, d, has_d = corners(firsts, near, top, left, start, height, width, HEADS * C)
            total += read_pixel(values, a, has_a, chans, C) * (weight * (1 - down) * (1 - right))[:, None]
            total += read_pixel(values, b, has_b, chans, C) * (weight * (1 - down) * right)[:, None]
            total += read_pixel(values, c, has_c, chans, C) * (weight * down * (1 - right))[:, None]
            total += read_pixel(values, d, has_d, chans, C) * (weight * down * right)[:, None]
        start += height * width
    tl.store(out + row[:, None] * C + chans[None, :], total, mask=inside[:, None] & (chans < C)[None, :])


@triton.jit(do_not_specialize=["rows", "per_image", "keys", "levels", "points"])
def attention_grad_kernel(
    values,
    shapes,
    locations,
    weights,
    grad,
    grad_values,
    grad_locations,
    grad_weights,
    rows,
    per_image,
    keys,
    levels,
    points,
    HEADS: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All gradients; ``grad_values`` is float32 and zero before. A program takes all channels, a block at a time."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    firsts = first_elements(row, per_image, keys, HEADS, C)
    start = 0
    for level in range(levels):
        height, width = level_size(shapes, level)
        for point in range(points):
            place = (row * levels + level) * points + point
            weight, top, left, down, right, near = read_point(locations, weights, place, inside, height, width)
            a, has_a, b, has_b, c, has_c, d, has_d = corners(firsts, near, top, left, start, height, width, HEADS * C)
            none = tl.zeros((ROWS,), tl.float32)
            by_a, by_b, by_c, by_d = none, none, none, none  # products of the gradient and the four pixels
            for block in range(0, C, BLOCK):
                chans = block + tl.arange(0, BLOCK)
                g = read_pixel(grad, row * C, inside, chans, C)
                by_a += spread(values, grad_values, g, weight * (1 - down) * (1 - right), a, has_a, chans, C)
                by_b += spread(values, grad_values, g, weight * (1 - down) * right, b, has_b, chans, C)
                by_c += spread(values, grad_values, g, weight * down * (1 - right), c, has_c, chans, C)
                by_d += spread(values, grad_values, g, weight * down * right, d, has_d, chans, C)
            upper, lower = (1 - right) * by_a + right * by_b, (1 - right) * by_c + right * by_d
            across = (1 - down) * (by_b - by_a) + down * (by_d - by_c)
            tl.store(grad_weights + place, (1 - down) * upper + down * lower, mask=inside)
            tl.store(grad_locations + 2 * place, weight * width * across, mask=inside)
            tl.store(grad_locations + 2 * place + 1, weight * height * (lower - upper), mask=inside)
        start += height * width
