"""Triton kernels of :mod:`backbones.kernels.cuda.dwconv_norm`; importing this module needs Triton, running it a GPU.

Maps are contiguous ``(N, H, W, C)``. Every sum is computed in float32. The offset of an image has 64 bits, offsets
inside an image 32. There are no atomics: sums over programs are partial sums that the caller adds up in a fixed order,
so that runs are reproducible bit by bit.
"""

# mypy: ignore-errors
# Triton reads this as its own language: tuples grow, integers are tensors.

from __future__ import annotations

import triton
import triton.language as tl

from backbones.kernels.cuda.maps_triton import vector


@triton.jit
def _tile_origin(tile, height, width, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Image, first row and first column of a tile."""
    across = tl.cdiv(width, COLS)
    down = tl.cdiv(height, ROWS)
    return tile // (across * down), (tile // across) % down * ROWS, tile % across * COLS


@triton.jit
def _load_row(source, row, col, chans, seen, C: tl.constexpr):
    """Pixels ``(row, col)`` of some channels in float32; zero outside of the image, which is the padding.

    ``source`` is the image, its height and its width.
    """
    image, height, width = source
    inside = seen & ((col >= 0) & (col < width))[:, None] & ((row >= 0) & (row < height))
    offset = (row * width + col)[:, None] * C + chans[None, :]
    return tl.load(image + offset, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def convolve(
    load: tl.constexpr,
    source,
    taps,
    row0,
    cols,
    chans,
    C: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK: tl.constexpr,
    FLIP: tl.constexpr,
):
    """Depthwise correlation (``FLIP``: convolution) of ROWS x COLS pixels: a tuple of one tensor for each row.

    An input row is loaded once for each of the K columns of the kernel and used for up to K output rows, which stay in
    registers: (ROWS + K - 1) * K loads in place of ROWS * K * K. The loop over columns is not unrolled, so that the
    code stays small enough for the instruction cache. ``load`` reads pixels ``(row, col)`` of ``source``.
    """
    known = (chans < C)[None, :]
    # As wide as the pixels, although equal in each column: each thread then loads its own channels, without a barrier.
    wide = tl.zeros((COLS, 1), tl.int32) + chans[None, :]
    acc = ()
    for _ in tl.static_range(ROWS):
        acc = acc + (tl.zeros((COLS, BLOCK), tl.float32),)
    for kw in range(K):
        column = ()
        for kh in tl.static_range(K):
            tap = kh * K + kw
            if FLIP:
                tap = K * K - 1 - tap
            column = column + (tl.load(taps + tap * C + wide, mask=wide < C, other=0.0),)
        for r in tl.static_range(ROWS + K - 1):
            pixels = load(source, row0 + (r - K // 2), cols + (kw - K // 2), chans, known, C)
            updated = ()
            for i in tl.static_range(ROWS):
                if r - i >= 0 and r - i < K:
                    updated = updated + (acc[i] + pixels * column[r - i],)
                else:
                    updated = updated + (acc[i],)
            acc = updated
    return acc


@triton.jit
def _merge(mean, squares, seen, chunk, known, count):
    """Mean and squared deviations of ``seen`` channels, joined with those of a chunk (Chan, Golub, LeVeque, 1979)."""
    part = tl.sum(tl.where(known, chunk, 0.0), 1) / count
    off = tl.where(known, chunk - part[:, None], 0.0)
    delta = part - mean
    share = count / (seen + count)
    return mean + delta * share, squares + tl.sum(off * off, 1) + delta * delta * (seen * share)


@triton.jit
def _pixel_offsets(row, cols, chans, height, width, C: tl.constexpr):
    """Offsets of some pixels of a row in an image, and a mask of those within bounds."""
    place = (row * width + cols)[:, None] * C + chans[None, :]
    return place, (chans < C)[None, :] & (cols < width)[:, None] & (row < height)


@triton.jit
def _read_back(
    conv,
    out,
    scale,
    shift,
    mean,
    squares,
    row0,
    cols,
    height,
    width,
    eps,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Normalise a tile that this program has just written, with the statistics of its pixels."""
    for first in range(0, C, BLOCK):
        chans = first + tl.arange(0, BLOCK)
        gain = vector(scale, chans, C)
        lift = vector(shift, chans, C)
        for i in tl.static_range(ROWS):
            place, inside = _pixel_offsets(row0 + i, cols, chans, height, width, C)
            y = tl.load(conv + place, mask=inside, other=0.0).to(tl.float32)
            unit = (y - mean[i][:, None]) * tl.rsqrt(squares[i] / C + eps)[:, None]
            tl.store(out + place, unit * gain + lift, mask=inside)


@triton.jit
def _store_statistics(means, rstds, mean, squares, row0, cols, height, width, eps, C: tl.constexpr, ROWS: tl.constexpr):
    """Mean and 1 / deviation of a tile's pixels, for the backward pass."""
    for i in tl.static_range(ROWS):
        inside = (cols < width) & (row0 + i < height)
        place = (row0 + i) * width + cols
        tl.store(means + place, mean[i], mask=inside)
        tl.store(rstds + place, tl.rsqrt(squares[i] / C + eps), mask=inside)


@triton.jit(do_not_specialize=["height", "width", "eps"])
def conv_norm_kernel(
    x,
    taps,
    bias,
    scale,
    shift,
    conv,
    out,
    means,
    rstds,
    height,
    width,
    eps,
    C: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK: tl.constexpr,
    SAVE: tl.constexpr,
):
    """Convolution, bias and layer norm of ROWS x COLS pixels of one image, all channels in chunks of BLOCK.

    The first pass writes the convolution to ``conv`` and gathers the statistics; the second reads it back (from the
    cache: the tile was just written, each element by the thread that reads it) and normalises. Where one chunk is all,
    nothing is read back. Without ``SAVE``, ``conv`` may be ``out``.
    """
    image, row0, col0 = _tile_origin(tl.program_id(0), height, width, ROWS, COLS)
    pixel0 = image.to(tl.int64) * height * width
    cols = col0 + tl.arange(0, COLS)
    x, conv, out = x + pixel0 * C, conv + pixel0 * C, out + pixel0 * C
    mean = ()
    for _ in tl.static_range(ROWS):
        mean = mean + (tl.zeros((COLS,), tl.float32),)
    squares = mean
    for first in range(0, C, BLOCK):
        chans = first + tl.arange(0, BLOCK)
        acc = convolve(_load_row, (x, height, width), taps, row0, cols, chans, C, K, ROWS, COLS, BLOCK, False)
        offset = vector(bias, chans, C)
        count = tl.minimum(C - first, BLOCK) * 1.0
        new_mean = ()
        new_squares = ()
        for i in tl.static_range(ROWS):
            y = acc[i] + offset
            m, s = _merge(mean[i], squares[i], first * 1.0, y, (chans < C)[None, :], count)
            new_mean = new_mean + (m,)
            new_squares = new_squares + (s,)
            place, inside = _pixel_offsets(row0 + i, cols, chans, height, width, C)
            if SAVE or C > BLOCK:
                tl.store(conv + place, y, mask=inside)
            if C <= BLOCK:
                unit = (y - m[:, None]) * tl.rsqrt(s / C + eps)[:, None]
                tl.store(out + place, unit * vector(scale, chans, C) + vector(shift, chans, C), mask=inside)
        mean = new_mean
        squares = new_squares
    if C > BLOCK:
        tl.debug_barrier()
        _read_back(conv, out, scale, shift, mean, squares, row0, cols, height, width, eps, C, ROWS, BLOCK)
    if SAVE:
        _store_statistics(means + pixel0, rstds + pixel0, mean, squares, row0, cols, height, width, eps, C, ROWS)


@triton.jit(do_not_specialize=["height", "width"])
def input_grad_kernel(
    grad,
    taps,
    out,
    height,
    width,
    C: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradient of the convolution's input: the same convolution with the kernel rotated by 180 degrees."""
    image, row0, col0 = _tile_origin(tl.program_id(0), height, width, ROWS, COLS)
    start = image.to(tl.int64) * height * width * C
    cols = col0 + tl.arange(0, COLS)
    chans = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    source = (grad + start, height, width)
    acc = convolve(_load_row, source, taps, row0, cols, chans, C, K, ROWS, COLS, BLOCK, True)
    for i in tl.static_range(ROWS):
        place, inside = _pixel_offsets(row0 + i, cols, chans, height, width, C)
        tl.store(out + start + place, acc[i], mask=inside)


@triton.jit(do_not_specialize=["height", "width", "units", "band"])
def weight_grad_kernel(
    x,
    grad,
    partial,
    height,
    width,
    units,
    band,
    C: tl.constexpr,
    K: tl.constexpr,
    TAPS: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Partial sums ``(programs, K * K, C)`` of the gradient of the depthwise weight.

    A program owns BLOCK channels and TAPS rows of the kernel, and walks down bands (``band`` rows by COLS columns of an
    image; every ``num_programs``-th one). Its TAPS * K sums stay in registers, one for each column of the tile, and
    are added up over these only at the end. On the way down, each row of ``x`` is loaded once at each of K shifts, and
    each row of ``grad`` once: it then moves through a window of TAPS rows. K + 1 loads feed TAPS * K products.
    """
    chans = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = (chans < C)[None, :]
    first_tap = tl.program_id(2) * TAPS
    acc = ()
    for _ in tl.static_range(TAPS * K):
        acc = acc + (tl.zeros((COLS, BLOCK), tl.float32),)
    for unit in range(tl.program_id(0), units, tl.num_programs(0)):
        image, row0, col0 = _tile_origin(unit, height, width, band, COLS)
        start = image.to(tl.int64) * height * width * C
        pixels, grads = (x + start, height, width), (grad + start, height, width)
        cols = col0 + tl.arange(0, COLS)
        past = ()
        for j in tl.static_range(TAPS - 1):
            row = row0 + K // 2 - first_tap - (j + 1)
            past = past + (_load_row(grads, row, cols, chans, known, C),)
        for row in range(row0, tl.minimum(row0 + band, height)):
            newest = _load_row(grads, row + K // 2 - first_tap, cols, chans, known, C)
            window = (newest,) + past
            shifted = ()
            for kw in tl.static_range(K):
                shifted = shifted + (_load_row(pixels, row, cols + (kw - K // 2), chans, known, C),)
            updated = ()
            for tap in tl.static_range(TAPS * K):
                updated = updated + (acc[tap] + window[tap // K] * shifted[tap % K],)
            acc = updated
            past = ()
            for j in tl.static_range(TAPS - 1):
                past = past + (window[j],)
    for tap in tl.static_range(TAPS * K):
        place = (tl.program_id(0) * (K * K) + first_tap * K + tap) * C + chans
        tl.store(partial + place, tl.sum(acc[tap], 0), mask=(chans < C) & (first_tap * K + tap < K * K))


@triton.jit(do_not_specialize=["pixels", "steps"])
def norm_grad_kernel(
    grad,
    conv,
    means,
    rstds,
    scale,
    out,
    partial,
    pixels,
    steps,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradient of the convolution's output through the layer norm, ROWS pixels with all channels at a time.

    Also partial sums ``(3, programs, C)``: gradients of the norm's scale, its shift, and of the convolution's bias.
    """
    chans = tl.arange(0, BLOCK)
    known = (chans < C)[None, :]
    gain = vector(scale, chans, C)
    scale_sum = tl.zeros((ROWS, BLOCK), tl.float32)
    shift_sum = tl.zeros((ROWS, BLOCK), tl.float32)
    bias_sum = tl.zeros((ROWS, BLOCK), tl.float32)
    for step in range(steps):
        rows = (tl.program_id(0).to(tl.int64) * steps + step) * ROWS + tl.arange(0, ROWS)
        inside = (rows < pixels)[:, None] & known
        place = rows[:, None] * C + chans[None, :]
        g = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        y = tl.load(conv + place, mask=inside, other=0.0).to(tl.float32)
        mean = tl.load(means + rows, mask=rows < pixels, other=0.0)[:, None]
        rstd = tl.load(rstds + rows, mask=rows < pixels, other=0.0)[:, None]
        unit = tl.where(inside, (y - mean) * rstd, 0.0)
        scaled = g * gain
        level = tl.sum(scaled, 1)[:, None] / C
        slope = tl.sum(scaled * unit, 1)[:, None] / C
        through = tl.where(inside, (scaled - level - unit * slope) * rstd, 0.0)
        tl.store(out + place, through, mask=inside)
        scale_sum += g * unit
        shift_sum += g
        bias_sum += through
    place = tl.program_id(0) * C + chans
    stride = tl.num_programs(0) * C
    tl.store(partial + place, tl.sum(scale_sum, 0), mask=chans < C)
    tl.store(partial + stride + place, tl.sum(shift_sum, 0), mask=chans < C)
    tl.store(partial + 2 * stride + place, tl.sum(bias_sum, 0), mask=chans < C)
