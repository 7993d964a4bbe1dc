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
# Sides of a block of weights. OpenCV filters by Fourier transform, which rounds, from 50 weights on.
_BLOCK = 7
# Three channels in one 64-bit number: 21 bits each, 8 of the image and 13 for weights.
CHANNEL_BITS = 21
CHANNEL_MASK = np.uint64(2**CHANNEL_BITS - 1)
# Added before truncation, in levels of 255: above rounding errors, so a value that is a whole number stays it.
_TRUNCATION_GUARD = 2.0**-10


def truncated(levels: Array) -> Pixels:
    """Floats in levels of 255, clipped and cut off to uint8 as ``numpy.uint8(x)`` of the released code does.

    A thousandth of a level is added before, so that rounding errors decide nothing.
    """
    guarded = levels + np.asarray(_TRUNCATION_GUARD, levels.dtype)
    return np.clip(guarded, 0, 255).astype(np.uint8)


def whole_weights(weights: npt.ArrayLike, bits: int) -> Array:
    """Weights of sum 1 as whole numbers of sum ``2**bits``; what rounding leaves goes to the largest."""
    exact = np.asarray(weights, np.float64) * 2.0**bits
    rounded = np.rint(exact)
    rounded.flat[np.argmax(exact)] += np.rint(exact.sum()) - rounded.sum()
    return rounded


@lru_cache(maxsize=32)
def gaussian_weights(sigma: float, truncate: float, bits: int) -> Array:
    """Weights of a Gaussian of standard deviation ``sigma``, cut off at ``truncate`` of them, of sum ``2**bits``."""
    radius = int(truncate * sigma + 0.5)
    steps = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 / sigma**2 * steps**2)
    return whole_weights(weights / weights.sum(), bits)


def gaussian_filtered(image: Pixels, sigma: float, truncate: float = 4.0) -> Array:
    """Image (H, W) or (H, W, C) after a Gaussian filter, in levels; edges are repeated, as in scikit-image."""
    bits = 20
    weights = gaussian_weights(sigma, truncate, bits)
    sums = cv2.sepFilter2D(image, cv2.CV_64F, weights, weights, borderType=cv2.BORDER_REPLICATE)
    return sums * 2.0 ** (-2 * bits)


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
    (rows, columns), (height, width) = weights.shape, image.shape[:2]
    top, left = origin
    padded = cv2.copyMakeBorder(image, top, rows - 1 - top, left, columns - 1 - left, border)
    total = np.zeros(image.shape, np.float32)
    for i in range(0, rows, _BLOCK):
        for j in range(0, columns, _BLOCK):
            block = weights[i : i + _BLOCK, j : j + _BLOCK]
            if block.any():
                part = padded[i : i + block.shape[0] - 1 + height, j : j + block.shape[1] - 1 + width]
                sums: Array = cv2.filter2D(part, cv2.CV_32F, block, anchor=(0, 0), borderType=cv2.BORDER_REPLICATE)
                total += sums[:height, :width]
    return total


def packed(image: Pixels) -> Array:
    """The three channels of (H, W, 3) in one number for each pixel (H, W)."""
    red, green, blue = np.moveaxis(image, -1, 0).astype(np.uint64)
    return red | green << np.uint64(CHANNEL_BITS) | blue << np.uint64(2 * CHANNEL_BITS)


def unpacked(pixels: Array) -> Array:
    """(..., 3) of numbers that :func:`packed` joined, possibly multiplied and added since."""
    channels = [pixels >> np.uint64(shift * CHANNEL_BITS) & CHANNEL_MASK for shift in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint32)


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


def resampled(image: Pixels, rows: Array, columns: Array, fold: Callable[[Array, int], Array]) -> Array:
    """Bilinear samples of an image (H, W, 3).

    Args:
        image: Image to sample.
        rows: Row of each sample, of any shape; rounded to 1/64 of a pixel.
        columns: Column of each sample.
        fold: Function of indices and a size that gives the pixel in place of one outside.

    Returns:
        Samples, of the shape of ``rows`` with a last axis of 3, times ``2**SAMPLE_BITS``.
    """
    height, width = image.shape[:2]
    pixels = packed(image).ravel()
    row, down = _cells(rows, height, fold)
    column, right = _cells(columns, width, fold)
    row = [one * width for one in row]
    one = np.uint64(2**_FRACTION_BITS)
    above = pixels.take(row[0] + column[0]) * (one - right) + pixels.take(row[0] + column[1]) * right
    below = pixels.take(row[1] + column[0]) * (one - right) + pixels.take(row[1] + column[1]) * right
    return unpacked(above * (one - down) + below * down)


def _cells(places: Array, size: int, fold: Callable[[Array, int], Array]) -> tuple[list[Array], Array]:
    """The two pixels on either side of each place along one axis, and the distance from the first in 64ths."""
    steps = np.rint(places * 2.0**_FRACTION_BITS).astype(np.int64)
    first = steps >> _FRACTION_BITS
    lowest = int(first.min())
    table = fold(np.arange(lowest, int(first.max()) + 2), size).astype(np.int64)
    return [table.take(first - lowest), table.take(first + 1 - lowest)], (steps & (2**_FRACTION_BITS - 1)).astype(
        np.uint64
    )
