"""Filters and resampling that give the same bytes on every machine.

Sums are made of whole numbers small enough to be exact in the floats that hold them, so neither the order of additions
nor fused instructions can change a result. What is not exact is done by NumPy element by element.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Pixels = npt.NDArray[np.uint8]

KERNEL_BITS = 16  # weights of a filter add up to 2**16: with 8 bits of image, sums are exact in float32
SAMPLE_BITS = 12  # weights of four neighbours add up to 2**12
_FRACTION_BITS = SAMPLE_BITS // 2
# Sides of a block of weights: OpenCV may filter larger kernels by Fourier transform, which rounds.
_BLOCK = 7
# Three channels in one 64-bit number: 21 bits each, 8 of the image and 13 for weights.
CHANNEL_BITS = 21
CHANNEL_MASK = np.uint64(2**CHANNEL_BITS - 1)
# Added before truncation, in levels of 255: above rounding errors, so a value that is a whole number stays it.
_TRUNCATION_GUARD = 2.0**-10


def truncated(levels: Array) -> Pixels:
    """Floats in levels of 255, clipped and cut off to uint8 as ``numpy.uint8(x)`` of the released code does.

    A thousandth of a level is added before, so that rounding errors decide nothing. The floats are overwritten.
    """
    levels += np.asarray(_TRUNCATION_GUARD, levels.dtype)
    return np.clip(levels, 0, 255, out=levels).astype(np.uint8)


def whole_weights(weights: npt.ArrayLike, bits: int) -> Array:
    """Weights of sum 1 as whole numbers of sum ``2**bits``: the largest remainders are rounded up, in order."""
    exact = np.asarray(weights, np.float64) * 2.0**bits
    whole = np.floor(exact + 1e-6)
    missing = int(np.rint(exact.sum() - whole.sum()))
    order = np.argsort(-np.round(exact - whole, 6), axis=None, kind="stable")
    whole.flat[order[:missing]] += 1
    return whole


@lru_cache(maxsize=32)
def gaussian_weights(sigma: float, truncate: float, bits: int) -> Array:
    """Weights of a Gaussian of standard deviation ``sigma``, cut off at ``truncate`` of them, of sum ``2**bits``.

    They are symmetric: what rounding leaves goes to the middle one.
    """
    radius = int(truncate * sigma + 0.5)
    steps = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 / sigma**2 * steps**2)
    whole = np.rint(weights / weights.sum() * 2.0**bits)
    whole[radius] += 2.0**bits - whole.sum()
    return whole


def gaussian_filtered(image: Pixels, sigma: float, truncate: float = 4.0) -> Array:
    """Image (H, W) or (H, W, C) after a Gaussian filter, in levels (float32); edges are repeated, as in scikit-image.

    Rows are filtered with weights of 16 bits and rounded to 16ths of a level, columns with weights of 12 bits.
    """
    across, down = gaussian_weights(sigma, truncate, KERNEL_BITS), gaussian_weights(sigma, truncate, 12)
    alone = np.ones(1)
    rows = cv2.sepFilter2D(image, cv2.CV_32F, across, alone, borderType=cv2.BORDER_REPLICATE)
    sixteenths = np.rint(np.multiply(rows, np.float32(2.0 ** (4 - KERNEL_BITS)), out=rows), out=rows)
    sums: Array = cv2.sepFilter2D(sixteenths, cv2.CV_32F, alone, down, borderType=cv2.BORDER_REPLICATE)
    return np.multiply(sums, np.float32(2.0**-16), out=sums)


def filtered(image: Pixels, weights: Array, origin: tuple[int, int], border: int) -> Array:
    """Correlation of an image with a kernel of whole weights.

    Args:
        image: (H, W) or (H, W, C).
        weights: Whole numbers whose sum is at most ``2**KERNEL_BITS``; zeros cost nothing.
        origin: Row and column of the weight that belongs to the pixel itself.
        border: OpenCV's constant for pixels outside.

    Returns:
        Sums, exact, as float32: levels times the sum of the weights.
    """
    height, width = image.shape[:2]
    rows, columns = (-(-size // _BLOCK) * _BLOCK for size in weights.shape)
    blocks = np.pad(weights, ((0, rows - weights.shape[0]), (0, columns - weights.shape[1])))
    top, left = origin
    padded = cv2.copyMakeBorder(image, top, rows - 1 - top, left, columns - 1 - left, border).astype(np.float32)
    total: Array | None = None
    sums = None
    for i in range(0, rows, _BLOCK):
        for j in range(0, columns, _BLOCK):
            block = blocks[i : i + _BLOCK, j : j + _BLOCK]
            if block.any():
                part = padded[i : i + _BLOCK - 1 + height, j : j + _BLOCK - 1 + width]
                sums = cv2.filter2D(part, cv2.CV_32F, block, sums, (0, 0), borderType=cv2.BORDER_REPLICATE)
                if total is None:
                    total, sums = sums[:height, :width], None
                else:
                    total += sums[:height, :width]
    return np.asarray(total)


def packed(image: Pixels) -> Array:
    """The three channels of (H, W, 3) in one number for each pixel (H, W), which can be multiplied and added."""
    red, green, blue = cv2.split(image)
    pixels: Array = blue.astype(np.uint64)
    for channel in (green, red):
        pixels <<= np.uint64(CHANNEL_BITS)
        pixels |= channel
    return pixels


def rounded(pixels: Array, bits: int) -> Array:
    """Packed pixels that were multiplied by ``2**bits`` in all, rounded to whole levels; half a level is rounded up."""
    half = np.uint64(sum(1 << channel * CHANNEL_BITS + bits - 1 for channel in range(3)))
    levels = np.uint64(sum(255 << channel * CHANNEL_BITS for channel in range(3)))
    return pixels + half >> np.uint64(bits) & levels


def whole_levels(pixels: Array, bits: int) -> Pixels:
    """Image (H, W, 3) of packed pixels (H, W) that were multiplied by ``2**bits`` in all, cut off to whole levels."""
    channels = [(pixels >> np.uint64(shift * CHANNEL_BITS + bits)).astype(np.uint8) for shift in range(3)]
    return np.asarray(cv2.merge(channels), np.uint8)


def exact_levels(pixels: Array, bits: int) -> Array:
    """Image (H, W, 3) in levels, float32, of packed pixels (H, W) that were multiplied by ``2**bits`` in all."""
    channels = [(pixels >> np.uint64(shift * CHANNEL_BITS) & CHANNEL_MASK).astype(np.float32) for shift in range(3)]
    merged: Array = cv2.merge(channels)
    return np.multiply(merged, np.float32(2.0**-bits), out=merged)


def clamped(index: Array, size: int) -> Array:
    """Indices moved to the nearest one of a row of ``size``: ``a a | a b c | c c``."""
    return np.clip(index, 0, size - 1)


def mirrored(index: Array, size: int) -> Array:
    """Indices folded into a row of ``size`` that is repeated as ``c b a | a b c | c b a``."""
    index = np.mod(index, 2 * size)
    return np.minimum(index, 2 * size - 1 - index)


def mirrored_without_edge(index: Array, size: int) -> Array:
    """Indices folded into a row of ``size`` that is repeated as ``c b | a b c | b a``."""
    period = max(2 * size - 2, 1)
    index = np.mod(index, period)
    return np.minimum(index, period - index)


def resampled(pixels: Array, rows: Array, columns: Array, fold: Callable[[Array, int], Array]) -> Array:
    """Bilinear samples of an image.

    Args:
        pixels: Packed pixels (H, W) of the image.
        rows: Row of each sample, of any shape; rounded to 1/64 of a pixel.
        columns: Column of each sample.
        fold: Function of indices and a size that gives the pixel in place of one outside.

    Returns:
        Packed samples, of the shape of ``rows``, times ``2**SAMPLE_BITS``.
    """
    height, width = pixels.shape
    pixels = pixels.ravel()
    row_pair, down = _cells(rows, height, width, fold)
    column_pair, right = _cells(columns, width, 1, fold)
    whole = np.uint64(2**_FRACTION_BITS)
    total: Array = np.zeros((), np.uint64)
    for row, row_weight in zip(row_pair, (whole - down, down)):
        line: Array = pixels.take(row + column_pair[0], mode="clip")  # all are inside: without a check
        line *= whole - right
        beside: Array = pixels.take(row + column_pair[1], mode="clip")
        beside *= right
        line += beside
        line *= row_weight
        total = np.add(total, line, out=line)
    return total


def _cells(
    places: Array, size: int, stride: int, fold: Callable[[Array, int], Array]
) -> tuple[tuple[Array, Array], Array]:
    """Offsets of the two pixels around each place along one axis, and the distance from the first in 64ths."""
    scaled = places * 2.0**_FRACTION_BITS
    steps = np.rint(scaled, out=scaled).astype(np.int32)
    fraction = (steps & (2**_FRACTION_BITS - 1)).astype(np.uint64)
    steps >>= _FRACTION_BITS
    lowest = int(steps.min())
    table = fold(np.arange(lowest, int(steps.max()) + 2), size).astype(np.int32) * np.int32(stride)
    steps -= lowest
    return (table[:-1].take(steps, mode="clip"), table[1:].take(steps, mode="clip")), fraction
