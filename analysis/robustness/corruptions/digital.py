"""The digital corruptions of ImageNet-C, with the extra one saturate: contrast, elastic transform, pixelation, JPEG.

Source of process and constants: hendrycks/robustness, ImageNet-C/create_c/make_imagenet_c.py; the lines are given at
each function.
"""

from __future__ import annotations

import io
from functools import lru_cache

import cv2
import numpy as np
from numpy.random import Generator
from PIL import Image

from analysis.robustness.corruptions.arithmetic import (
    SAMPLE_BITS,
    Array,
    Pixels,
    gaussian_weights,
    mirrored,
    mirrored_without_edge,
    packed,
    resampled,
    rounded,
    truncated,
    whole_levels,
)

_NOISE_BITS, _WEIGHT_BITS, _KEPT_BITS = 16, 24, 20
_BLOCKS_PER_REACH = 3


def lowered_contrast(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Contrast: .4, .3, .2, .1, .05 of the distance from each channel's mean (lines 489-494)."""
    share = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    mean = image.sum(axis=(0, 1), dtype=np.int64) / (image.shape[0] * image.shape[1])
    return truncated((image - mean) * share + mean)


def saturate(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Saturation of HSV times and plus (.3, 0), (.1, 0), (2, 0), (5, .1), (20, .2), up to 1 (lines 508-516).

    A grey pixel has the hue of red, as in scikit-image, so that the last two tint it.
    """
    factor, more = ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))[severity - 1]
    value = image.max(axis=-1, keepdims=True).astype(np.float64)
    spread = value - image.min(axis=-1, keepdims=True)
    saturation = spread / np.maximum(value, 1)
    wanted = np.clip(saturation * factor + more, 0, 1)
    # Distance of each channel from the value, in units of the largest of the three.
    distance = np.where(spread > 0, (value - image) / np.maximum(spread, 1), np.array([0.0, 1.0, 1.0]))
    return truncated(value - distance * (value * wanted))


def pixelate(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Shrink to .6, .5, .4, .3, .25 of the size and enlarge again, both by Pillow's box filter (lines 529-535)."""
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    height, width = image.shape[:2]
    small = (max(int(width * share), 1), max(int(height * share), 1))
    resized = Image.fromarray(image).resize(small, Image.Resampling.BOX)
    return np.array(resized.resize((width, height), Image.Resampling.BOX))


def jpeg_compression(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Save as JPEG of quality 25, 18, 15, 10, 7 by Pillow and read again (lines 519-526)."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=(25, 18, 15, 10, 7)[severity - 1])
    return np.array(Image.open(buffer))


def elastic_transform(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Random affine map, then smooth random displacements (lines 538-570).

    In units of 244 pixels (a slip of the released code for 224, which stays): strength of the displacements, deviation
    of their Gaussian (cut off at three of them), largest shift of the affine map's three points: (2, .7, .1),
    (2, .08, .2), (.05, .01, .02), (.07, .01, .02), (.12, .01, .02). The values of the affine map are rounded to 8 bits.
    """
    strength, sigma, shift = (
        (2, 0.7, 0.1),
        (2, 0.08, 0.2),
        (0.05, 0.01, 0.02),
        (0.07, 0.01, 0.02),
        (0.12, 0.01, 0.02),
    )[severity - 1]
    height, width = image.shape[:2]
    moved = _random_affine(packed(image), 244 * shift, rng)
    across, down = (244 * strength * smooth_noise((height, width), (244 * sigma,) * 2, rng) for _ in range(2))
    return _displaced(moved, across, down)


def elastic_transform_in_place(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Smooth random displacements alone, so that boxes and masks stay valid: the variant of detection benchmarks.

    Source: bethgelab/imagecorruptions, imagecorruptions/corruptions.py, elastic_transform. Uniform noise of .005 of the
    height, smoothed by a Gaussian of .01 of height and width (cut off at three deviations), times 12.5, 16.25, 21.25,
    25, 30.
    """
    strength = (12.5, 16.25, 21.25, 25.0, 30.0)[severity - 1]
    height, width = image.shape[:2]
    sigmas = (0.01 * height, 0.01 * width)
    across, down = (0.005 * height * strength * smooth_noise((height, width), sigmas, rng) for _ in range(2))
    return _displaced(packed(image), across, down)


def smooth_noise(shape: tuple[int, int], sigmas: tuple[float, float], rng: Generator) -> Array:
    """Uniform noise in -1 to 1 of a shape (H, W) after a Gaussian filter with mirrored edges, cut off at 3 deviations.

    The noise has 16 bits and the weights 24, so that all sums are exact.
    """
    limit = 2 ** (_NOISE_BITS - 1)
    noise = rng.integers(-limit, limit, shape, dtype=np.int32).astype(np.float64)
    rows = _smoothed(noise, sigmas[0], axis=0)
    kept = np.rint(np.multiply(rows, 2.0 ** (_KEPT_BITS - _NOISE_BITS + 1 - _WEIGHT_BITS), out=rows), out=rows)
    field = _smoothed(kept, sigmas[1], axis=1)
    return np.multiply(field, 2.0 ** (-_KEPT_BITS - _WEIGHT_BITS), out=field)


def _smoothed(values: Array, sigma: float, axis: int) -> Array:
    """Sums of whole numbers (H, W) along an axis with the weights of :func:`smooth_noise`; edges are mirrored.

    By products of matrices, which are exact too and faster than OpenCV's filters of doubles: in blocks of the axis with
    what they reach beyond, or, where the weights reach over most of the axis, its symmetric and antisymmetric halves.
    """
    sums = np.empty_like(values)
    seen, out = (values, sums) if axis == 0 else (values.T, sums.T)
    size, reach = len(seen), len(gaussian_weights(sigma, 3.0, _WEIGHT_BITS)) // 2
    block = _BLOCKS_PER_REACH * (reach + 1)
    if block >= size:
        even, odd = _smoothing_halves(size, sigma)
        half = len(even)
        first, last = seen[:half], seen[::-1][:half]
        symmetric, antisymmetric = even @ (first + last), odd @ (first - last)
        np.add(symmetric, antisymmetric, out=out[:half])
        np.subtract(symmetric, antisymmetric, out=out[::-1][:half])
        return sums
    around = (reach, reach, 0, 0) if axis == 0 else (0, 0, reach, reach)
    padded = cv2.copyMakeBorder(values, *around, cv2.BORDER_REFLECT)
    seen, matrix = padded if axis == 0 else padded.T, _smoothing_band(block, sigma)
    for start in range(0, size, block):
        count = min(block, size - start)
        part, needed = matrix[:count, : count + 2 * reach], seen[start : start + count + 2 * reach]
        np.matmul(needed.T, part.T, out=out[start : start + count].T)
    return sums


@lru_cache(maxsize=4)
def _smoothing_band(block: int, sigma: float) -> Array:
    """The filter of :func:`_smoothed` as a matrix (block, block + 2 reach), from a block and what it reaches beyond."""
    weights = gaussian_weights(sigma, 3.0, _WEIGHT_BITS)
    matrix = np.zeros((block, block + len(weights) - 1))
    for place in range(block):
        matrix[place, place : place + len(weights)] = weights
    return matrix


@lru_cache(maxsize=4)
def _smoothing_halves(size: int, sigma: float) -> tuple[Array, Array]:
    """The filter of :func:`_smoothed` over a whole axis as two matrices (ceil(size / 2), ceil(size / 2)).

    The first is for the sum of an axis and its mirror image, the second for their difference: from a symmetric axis
    the filter makes a symmetric one. Their entries are whole numbers and halves, so that sums stay exact.
    """
    weights = gaussian_weights(sigma, 3.0, _WEIGHT_BITS)
    half = -(-size // 2)
    places = np.arange(half)[:, None]
    neighbours = mirrored(places + np.arange(len(weights)) - len(weights) // 2, size)
    matrix = np.zeros((half, size))
    np.add.at(matrix, (places, neighbours), weights)
    first, last = matrix[:, :half], matrix[:, ::-1][:, :half].copy()
    if size % 2:
        last[:, -1] = 0  # the middle is in the first half already
    return (first + last) / 2, (first - last) / 2


def _random_affine(pixels: Array, shift: float, rng: Generator) -> Array:
    """Packed pixels (H, W) moved with three points around the centre, each by up to ``shift`` pixels either way."""
    height, width = pixels.shape
    centre, side = np.array([width // 2, height // 2]), min(height, width) // 3
    before = centre + side * np.array([[1, 1], [1, -1], [-1, -1]])
    after = before + rng.uniform(-shift, shift, before.shape)
    # The map from new places to old ones: both edges that meet at the second point go to where they were.
    (a, c), (b, d) = after[0] - after[1], after[2] - after[1]
    area = a * d - b * c
    down, left = (before[0] - before[1]) / area, (before[2] - before[1]) / area
    x, y = np.arange(width) - after[1][0], (np.arange(height) - after[1][1])[:, None]
    columns, rows = (
        (before[1][i] + (d * down[i] - c * left[i]) * x) + (a * left[i] - b * down[i]) * y for i in range(2)
    )
    return rounded(resampled(pixels, rows, columns, mirrored_without_edge), SAMPLE_BITS)


def _displaced(pixels: Array, across: Array, down: Array) -> Pixels:
    """Packed pixels (H, W) sampled at distances (H, W) from each; those outside mirror those inside."""
    height, width = pixels.shape
    samples = resampled(pixels, np.arange(height)[:, None] + down, np.arange(width) + across, mirrored)
    return whole_levels(samples, SAMPLE_BITS)
