"""Triton kernels of :mod:`backbones.kernels.cuda.packed_dwconv`; importing this module needs Triton, running it a GPU.

A packed map is contiguous ``(N, visible, SIDE, SIDE, C)``. A tile is ROWS rows of UNITS visible units of one image side
by side: COLS columns, the next power of two, which in general are no neighbours in the image. Sums are in float32; the
offset of an image has 64 bits, offsets inside an image 32. Nothing is added with atomics. ``numbers`` holds the number
of each visible unit of each image, ``slots`` the place of each unit among the visible ones or -1.
"""

# mypy: ignore-errors
# Triton reads this as its own language: tuples grow, integers are tensors.

from __future__ import annotations

import triton
import triton.language as tl

from backbones.kernels.cuda.dwconv_norm_triton import convolve
from backbones.kernels.cuda.maps_triton import vector


@triton.jit
def _split(tile, visible, SIDE: tl.constexpr, UNITS: tl.constexpr, ROWS: tl.constexpr):
    """Image, first visible unit, and first row within the units of a tile."""
    groups = tl.cdiv(visible, UNITS)
    bands = tl.cdiv(SIDE, ROWS)
    return tile // (groups * bands), tile // bands % groups * UNITS, tile % bands * ROWS


@triton.jit
def _columns(numbers, first, visible, columns, SIDE: tl.constexpr, UNITS: tl.constexpr, COLS: tl.constexpr):
    """Of each column of a tile: offset in its first row of the packed image, row and column in the image, in bounds."""
    lane = tl.arange(0, COLS)
    slot = first + lane // SIDE
    known = (lane < UNITS * SIDE) & (slot < visible)
    unit = tl.load(numbers + slot, mask=known, other=0).to(tl.int32)
    return slot * SIDE * SIDE + lane % SIDE, unit // columns * SIDE, unit % columns * SIDE + lane % SIDE, known


@triton.jit
def _own(place, known, row, chans, C: tl.constexpr, SIDE: tl.constexpr):
    """Offsets of a row of a tile in the packed image, and a mask of those within bounds."""
    return (place + row * SIDE)[:, None] * C + chans[None, :], (known & (row < SIDE))[:, None] & (chans < C)[None, :]


@triton.jit
def _load_places(source, row, col, chans, seen, C: tl.constexpr):
    """Pixels ``(row, col)`` of an image in float32; zero at hidden units and outside of the image.

    ``source`` is the packed image, its slots, its rows and columns of units; and the side of a unit. As unsigned
    numbers, negative rows and columns are beyond the last one.
    """
    image, slots, rows, columns = source[0]
    SIDE: tl.constexpr = source[1]
    row = row.to(tl.uint32)
    col = col.to(tl.uint32)
    inside = (row < (rows * SIDE).to(tl.uint32)) & (col < (columns * SIDE).to(tl.uint32))
    unit = (row // SIDE).to(tl.int32) * columns + (col // SIDE).to(tl.int32)
    slot = tl.load(slots + unit, mask=inside, other=-1)
    place = (slot * SIDE + (row % SIDE).to(tl.int32)) * SIDE + (col % SIDE).to(tl.int32)
    known = seen & (slot >= 0)[:, None]
    return tl.load(image + place[:, None] * C + chans[None, :], mask=known, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["visible", "rows", "columns"])
def packed_conv_kernel(
    x,
    taps,
    bias,
    numbers,
    slots,
    out,
    visible,
    rows,
    columns,
    C: tl.constexpr,
    K: tl.constexpr,
    SIDE: tl.constexpr,
    UNITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK: tl.constexpr,
    GRAD: tl.constexpr,
):
    """Convolution and bias of a tile; with ``GRAD`` the gradient of its input: the kernel rotated, and no bias."""
    image, first, row0 = _split(tl.program_id(0), visible, SIDE, UNITS, ROWS)
    start = image.to(tl.int64) * visible * SIDE * SIDE * C
    place, top, cols, known = _columns(numbers + image * visible, first, visible, columns, SIDE, UNITS, COLS)
    chans = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    source = (x + start, slots + image * rows * columns, rows, columns)
    acc = convolve(_load_places, (source, SIDE), taps, top + row0, cols, chans, C, K, ROWS, COLS, BLOCK, GRAD)
    offset = tl.zeros((1, BLOCK), tl.float32) if GRAD else vector(bias, chans, C)
    for i in tl.static_range(ROWS):
        target, inside = _own(place, known, row0 + i, chans, C, SIDE)
        tl.store(out + start + target, acc[i] + offset, mask=inside)


@triton.jit(do_not_specialize=["visible", "rows", "columns", "tiles"])
def packed_weight_grad_kernel(
    x,
    grad,
    numbers,
    slots,
    partial,
    visible,
    rows,
    columns,
    tiles,
    C: tl.constexpr,
    K: tl.constexpr,
    TAPS: tl.constexpr,
    SIDE: tl.constexpr,
    UNITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Partial sums ``(programs, K * K + 1, C)`` of the gradients of the depthwise weight and, last, of the bias.

    A program owns BLOCK channels and TAPS rows of the kernel, and takes every ``num_programs``-th tile. The tile's rows
    of ``grad`` are loaded once; each row of ``x`` that the TAPS rows of the kernel reach from there is loaded at K
    shifts and used for up to TAPS * K products. The sums stay in registers, one for each column of the tile.
    """
    chans = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    seen = (chans < C)[None, :]
    first_tap = tl.program_id(2) * TAPS
    acc = ()
    for _ in tl.static_range(TAPS * K + 1):
        acc = acc + (tl.zeros((COLS, BLOCK), tl.float32),)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        image, first, row0 = _split(tile, visible, SIDE, UNITS, ROWS)
        start = image.to(tl.int64) * visible * SIDE * SIDE * C
        place, top, cols, known = _columns(numbers + image * visible, first, visible, columns, SIDE, UNITS, COLS)
        source = (x + start, slots + image * rows * columns, rows, columns)
        window = ()
        total = acc[TAPS * K]
        for i in tl.static_range(ROWS):
            target, inside = _own(place, known, row0 + i, chans, C, SIDE)
            window = window + (tl.load(grad + start + target, mask=inside, other=0.0).to(tl.float32),)
            total += window[i]
        for r in tl.static_range(ROWS + TAPS - 1):
            row = top + row0 + first_tap + (r - K // 2)
            shifted = ()
            for kw in tl.static_range(K):
                shifted = shifted + (_load_places((source, SIDE), row, cols + (kw - K // 2), chans, seen, C),)
            updated = ()
            for tap in tl.static_range(TAPS * K):
                if r - tap // K >= 0 and r - tap // K < ROWS:
                    updated = updated + (acc[tap] + window[r - tap // K] * shifted[tap % K],)
                else:
                    updated = updated + (acc[tap],)
            acc = updated + (total,)
    programs = tl.program_id(0) * (K * K + 1)
    for tap in tl.static_range(TAPS * K):
        owned = (chans < C) & (first_tap * K + tap < K * K)
        tl.store(partial + (programs + first_tap * K + tap) * C + chans, tl.sum(acc[tap], 0), mask=owned)
    tl.store(partial + (programs + K * K) * C + chans, tl.sum(acc[TAPS * K], 0), mask=chans < C)
