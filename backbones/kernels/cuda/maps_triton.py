"""How the elementwise Triton kernels walk over a contiguous map ``(images, pixels, C)``.

The grid is (image, share of its pixels, block of channels); a program takes ``steps`` tiles of ROWS x BLOCK. Arithmetic
is in float32, offsets have 64 bits. A sum over pixels leaves one partial sum for each program, ``(images, shares, C)``,
which the caller adds up: no atomics, so that runs are reproducible bit by bit.
"""

# mypy: ignore-errors
# Triton reads this as its own language: tuples grow, integers are tensors.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def channels(BLOCK: tl.constexpr):
    """Channel indices of a program; those from C on are out of bounds."""
    return tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def vector(values, chans, C: tl.constexpr):
    """Values of the channels as one row in float32."""
    return tl.load(values + chans, mask=chans < C, other=0.0).to(tl.float32)[None, :]


@triton.jit
def tile(step, steps, pixels, chans, C: tl.constexpr, ROWS: tl.constexpr):
    """Offsets of a program's next tile in the whole map, and a mask of those within bounds."""
    rows = (tl.program_id(1).to(tl.int64) * steps + step) * ROWS + tl.arange(0, ROWS)
    place = (tl.program_id(0).to(tl.int64) * pixels + rows)[:, None] * C + chans[None, :]
    return place, (rows < pixels)[:, None] & (chans < C)[None, :]


@triton.jit
def read(values, place, inside):
    """A tile in float32, zero out of bounds."""
    return tl.load(values + place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store_sum(partial, index, total, chans, C: tl.constexpr):
    """Store a program's sum over its rows in the ``index``-th table of partial sums."""
    programs = tl.num_programs(0) * tl.num_programs(1)
    row = index * programs + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(partial + row * C + chans, tl.sum(total, 0), mask=chans < C)
