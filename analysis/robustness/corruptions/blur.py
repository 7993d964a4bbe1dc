"""The blurs of ImageNet-C: defocus, glass, motion and zoom, and of the extra ones gaussian.

Source of process and constants: hendrycks/robustness, ImageNet-C/create_c/make_imagenet_c.py; the lines are given at
each function. All constants are in pixels of an image of 224x224 and stay the same at other sizes.
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np
from numpy.random import Generator

from analysis.robustness.corruptions.arithmetic import (
    CHANNEL_MASK,
    KERNEL_BITS,
    Array,
    Pixels,
    exact_levels,
    filtered,
    gaussian_filtered,
    packed,
    truncated,
    whole_weights,
)

# Factors of zoom_blur: the released code's numpy.arange(1, end, step).
_ZOOMS = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
_DISK_BITS = 15
_ROW_BITS, _COLUMN_BITS, _ROOM_BITS = 6, 7, 4  # of weights, and for the sum of at most 16 images


def gaussian_blur(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Gaussian of standard deviation 1, 2, 3, 4, 6 pixels, cut off at four of them (lines 289-293)."""
    return truncated(gaussian_filtered(image, (1, 2, 3, 4, 6)[severity - 1]))


def defocus_blur(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Disk of radius 3, 4, 6, 8, 10 with an edge softened by a Gaussian of .1, from 4 on .5 (lines 153-165, 314-325).

    The softening kernel is 3x3 up to radius 8 and 5x5 above. Pixels outside mirror those inside, without the edge.
    """
    radius, softness = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    weights = disk_weights(radius, softness)
    centre = weights.shape[0] // 2
    sums = filtered(image, weights, (centre, centre), cv2.BORDER_REFLECT_101)
    return truncated(np.multiply(sums, np.float32(2.0**-_DISK_BITS), out=sums))


@lru_cache(maxsize=8)
def disk_weights(radius: int, softness: float) -> Array:
    """Kernel of :func:`defocus_blur`, of odd sides, in whole numbers.

    They add up to ``2**15``, and to 1 % more where the disk touches the kernel's edge, as in the released code.
    """
    reach = max(radius, 8)
    steps = np.arange(-reach, reach + 1)
    disk = (steps[:, None] ** 2 + steps**2 <= radius**2).astype(np.float64)
    soft = 1 if radius <= 8 else 2
    around = np.exp(-0.5 * (np.arange(-soft, soft + 1) / softness) ** 2)
    around /= around.sum()
    edges = np.pad(disk / disk.sum(), soft, "reflect")  # as OpenCV does: a radius of 8 touches the kernel's edge
    size = len(steps)
    rows = sum(weight * edges[i : i + size] for i, weight in enumerate(around))
    return whole_weights(sum(weight * rows[:, i : i + size] for i, weight in enumerate(around)), _DISK_BITS)


def glass_blur(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Gaussian, pixels moved about at random, Gaussian again (lines 296-311).

    Standard deviation, largest distance and passes: (.7, 1, 2), (.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2).

    The released code walks over the pixels from the last to the first and writes ``x[a], x[b] = x[b], x[a]``. For an
    array of three channels ``x[a]`` is a view, so that this copies b to a and leaves b as it is: no swap. ImageNet-C
    was made so, and this function makes the same: every pixel takes the present value of a random neighbour. Which
    pixel that value came from first is found for all at once, by following each chain of copies with doubled steps.
    """
    sigma, reach, passes = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[severity - 1]
    soft = truncated(gaussian_filtered(image, sigma))
    height, width = image.shape[:2]
    source: Array = np.arange(height * width, dtype=np.int32)
    for _ in range(passes):
        shape = (2, max(height - 2 * reach, 0), max(width - 2 * reach, 0))
        across, down = rng.integers(-reach, reach, shape, dtype=np.int32)
        source = source.take(copied_from(height, width, reach, across, down))
    moved = soft.reshape(-1, 3).take(source, axis=0).reshape(image.shape)
    return truncated(gaussian_filtered(moved, sigma))


def copied_from(height: int, width: int, reach: int, across: Array, down: Array) -> Array:
    """The pixel whose value each pixel holds after one pass of copies, from the last pixel to the first.

    Args:
        height: Rows of the image.
        width: Columns of the image.
        reach: Largest distance. Pixels in rows ``reach + 1`` to ``height - reach``, and columns likewise, take a
            neighbour's value, as in the released code.
        across: (height - 2 reach, width - 2 reach), columns from each such pixel to its neighbour.
        down: Rows to it.

    Returns:
        Flat indices (height * width,).
    """
    count = height * width
    places: Array = np.arange(count, dtype=np.int32).reshape(height, width)
    inside = (slice(reach + 1, height - reach + 1), slice(reach + 1, width - reach + 1))
    walked = places[inside]
    chosen = np.multiply(down, width, dtype=np.int32)
    chosen += across
    chosen += walked
    changes = np.zeros((height, width), bool)
    changes[inside] = True
    # Numbers from count on stand for values after the pass, those below for values before it, which are final.
    source: Array = np.concatenate([places.ravel(), places.ravel()])
    after = source[count:].reshape(height, width)[inside]
    np.multiply(changes.take(chosen) & (chosen > walked), np.int32(count), out=after)
    after += chosen
    after = source[count:]
    while after.max() >= count:
        source.take(after, out=after, mode="clip")
    return after


def motion_blur(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Blur along a line at an angle of -45 to 45 degrees (lines 328-343), rounded to 8 bits as ImageMagick writes it.

    Radius and standard deviation: (10, 3), (15, 5), (15, 8), (15, 12), (20, 15); see :func:`motion_blurred`.
    """
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    return motion_blurred(image, radius, sigma, rng.uniform(-45, 45))


def motion_blurred(image: Pixels, radius: int, sigma: float, degrees: float) -> Pixels:
    """One-sided Gaussian along a line, as ImageMagick's ``MotionBlurImage`` defines it.

    ``2 radius + 1`` pixels from each pixel on in the direction of the angle, weighted by a Gaussian around the first
    and rounded to the grid (ImageMagick/ImageMagick, MagickCore/effect.c, GetMotionBlurKernel and MotionBlurImage).
    Edges are repeated.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    angle = math.radians(degrees)
    rows = np.ceil(steps * math.sin(angle) - 0.5).astype(int)
    columns = np.ceil(steps * math.cos(angle) - 0.5).astype(int)
    top, left = -int(rows.min()), -int(columns.min())
    kernel = np.zeros((top + int(rows.max()) + 1, left + int(columns.max()) + 1))
    np.add.at(kernel, (rows + top, columns + left), whole_weights(weights / weights.sum(), KERNEL_BITS))
    sums = filtered(image, kernel, (top, left), cv2.BORDER_REPLICATE)
    return np.rint(np.multiply(sums, np.float32(2.0**-KERNEL_BITS), out=sums), out=sums).astype(np.uint8)


def zoom_blur(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Mean of the image and of it enlarged about its centre (lines 231-243, 346-360).

    Factors: 1 to 1.11 and 1 to 1.15 in steps of .01, 1 to 1.20 and 1 to 1.24 of .02, 1 to 1.30 of .03. The image itself
    counts twice. Enlarging is bilinear between the outermost pixels, as SciPy's ``zoom`` of order 1.
    """
    factors = np.arange(1, *_ZOOMS[severity - 1])
    height, width = image.shape[:2]
    pixels = packed(image)
    kept = np.uint64(sum(int(CHANNEL_MASK >> np.uint64(_ROOM_BITS)) << 21 * channel for channel in range(3)))
    total = np.zeros((height, width), np.uint64)
    for factor in factors.tolist():
        top, down = zoomed_axis(height, factor, _ROW_BITS)
        left, right = zoomed_axis(width, factor, _COLUMN_BITS)
        rows = pixels[top] * (np.uint64(2**_ROW_BITS) - down[:, None])
        rows += pixels[np.minimum(top + 1, height - 1)] * down[:, None]
        both: Array = rows.take(left, axis=1) * (np.uint64(2**_COLUMN_BITS) - right)
        both += rows.take(np.minimum(left + 1, width - 1), axis=1) * right
        total += both >> np.uint64(_ROOM_BITS) & kept
    sums = exact_levels(total, _ROW_BITS + _COLUMN_BITS - _ROOM_BITS)
    sums += image
    return truncated(np.divide(sums, np.float32(len(factors) + 1), out=sums))


def zoomed_axis(size: int, factor: float, bits: int) -> tuple[Array, Array]:
    """Where the pixels of an axis lie after its middle is enlarged to the same size.

    Args:
        size: Number of pixels.
        factor: Enlargement, at least 1.
        bits: Bits of the fraction.

    Returns:
        The pixel before each place, and the distance from it in units of ``2**-bits``.
    """
    cut = math.ceil(size / factor)
    enlarged = round(cut * factor)
    step = (cut - 1) / (enlarged - 1) if enlarged > 1 else 0.0
    places = (size - cut) // 2 + ((enlarged - size) // 2 + np.arange(size)) * step
    units = np.rint(places * 2.0**bits).astype(np.int64)
    return units >> bits, (units & (2**bits - 1)).astype(np.uint64)
