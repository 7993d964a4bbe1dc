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
    truncated,
    whole_levels,
)

_NOISE_BITS, _WEIGHT_BITS, _KEPT_BITS = 16, 24, 20


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
    moved = _random_affine(image, 244 * shift, rng)
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
    return _displaced(image, across, down)


def smooth_noise(shape: tuple[int, int], sigmas: tuple[float, float], rng: Generator) -> Array:
    """Uniform noise in -1 to 1 of a shape (H, W) after a Gaussian filter with mirrored edges, cut off at 3 deviations.

    The noise has 16 bits and the weights 24, so that all sums are exact.
    """
    limit = 2 ** (_NOISE_BITS - 1)
    noise = rng.integers(-limit, limit, shape, dtype=np.int32).astype(np.float64)
    rows = _smoothed_down(noise, sigmas[0])
    kept = np.rint(rows * 2.0 ** (_KEPT_BITS - _NOISE_BITS + 1 - _WEIGHT_BITS))
    return _smoothed_down(kept.T, sigmas[1]).T * 2.0 ** (-_KEPT_BITS - _WEIGHT_BITS)


def _smoothed_down(values: Array, sigma: float) -> Array:
    """Sums of whole numbers (N, M) along the first axis with the weights of :func:`smooth_noise`."""
    weights = gaussian_weights(sigma, 3.0, _WEIGHT_BITS)
    if 8 * len(weights) > len(values):  # the product of whole matrices is faster from there on
        return _smoothing_matrix(len(values), sigma) @ values
    alone = np.ones(1)
    return cv2.sepFilter2D(np.ascontiguousarray(values), cv2.CV_64F, alone, weights, borderType=cv2.BORDER_REFLECT)


@lru_cache(maxsize=4)
def _smoothing_matrix(size: int, sigma: float) -> Array:
    """The filter of :func:`_smoothed_down` as a matrix (size, size)."""
    weights = gaussian_weights(sigma, 3.0, _WEIGHT_BITS)
    places = np.arange(size)[:, None]
    neighbours = mirrored(places + np.arange(len(weights)) - len(weights) // 2, size)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (places, neighbours), weights)
    return matrix


def _random_affine(image: Pixels, shift: float, rng: Generator) -> Pixels:
    """Move three points around the centre by up to ``shift`` pixels each way, and the image with them."""
    height, width = image.shape[:2]
    centre, side = np.array([width // 2, height // 2]), min(height, width) // 3
    before = centre + side * np.array([[1, 1], [1, -1], [-1, -1]])
    after = before + rng.uniform(-shift, shift, before.shape)
    # The map from new places to old ones: both edges that meet at the second point go to where they were.
    (a, c), (b, d) = after[0] - after[1], after[2] - after[1]
    area = a * d - b * c
    down, left = (before[0] - before[1]) / area, (before[2] - before[1]) / area
    x, y = np.arange(width) - after[1][0], (np.arange(height) - after[1][1])[:, None]
    along_down, along_left = d * x - b * y, a * y - c * x
    columns, rows = (before[1][i] + down[i] * along_down + left[i] * along_left for i in range(2))
    half = packed(np.ones((1, 1, 3), np.uint8)) << np.uint64(SAMPLE_BITS - 1)
    return whole_levels(resampled(image, rows, columns, mirrored_without_edge) + half, SAMPLE_BITS)


def _displaced(image: Pixels, across: Array, down: Array) -> Pixels:
    """Image (H, W, 3) sampled at distances (H, W) from each pixel; pixels outside mirror those inside."""
    height, width = image.shape[:2]
    samples = resampled(image, np.arange(height)[:, None] + down, np.arange(width) + across, mirrored)
    return whole_levels(samples, SAMPLE_BITS)
