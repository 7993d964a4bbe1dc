"""The weather of ImageNet-C: snow, fog and brightness, and of the extra ones spatter. Frost is in a module of its own.

Source of process and constants: hendrycks/robustness, ImageNet-C/create_c/make_imagenet_c.py; the lines are given at
each function.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator

from analysis.robustness.corruptions.arithmetic import Array, Pixels, gaussian_filtered, gaussian_weights, truncated
from analysis.robustness.corruptions.blur import motion_blurred, zoomed_axis

_LUMA = (0.299, 0.587, 0.114)  # of OpenCV's RGB2GRAY
_WATER = (175, 238, 238)
_MUD = (63, 42, 20)


def snow(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Enlarged, thresholded noise, blurred downwards, over a whitened image, and once more turned by 180 degrees.

    Lines 407-431. Mean and deviation of the noise, enlargement, threshold, radius and deviation of the blur, share of
    the image: (.1, .3, 3, .5, 10, 4, .8), (.2, .3, 2, .5, 12, 4, .7), (.55, .3, 4, .9, 12, 8, .7),
    (.55, .3, 4.5, .85, 12, 8, .65), (.55, .3, 2.5, .85, 12, 12, .55). Of the noise only the part that is enlarged is
    drawn.
    """
    mean, deviation, enlargement, threshold, radius, sigma, share = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[severity - 1]
    flakes = mean + deviation * enlarged_noise(image.shape[:2], enlargement, rng)
    flakes[flakes < threshold] = 0
    layer = motion_blurred(truncated(255 * flakes), radius, sigma, rng.uniform(-135, -45)).astype(np.float32)
    fallen = layer + layer[::-1, ::-1]
    channels = [channel.astype(np.float32) for channel in cv2.split(image)]
    white = channels[0] * np.float32(1.5 * _LUMA[0])
    for channel, weight in zip(channels[1:], _LUMA[1:]):
        white += channel * np.float32(1.5 * weight)
    white += np.float32(127.5)
    for channel in channels:
        whitened = np.maximum(channel, white)
        whitened *= np.float32(1 - share)
        channel *= np.float32(share)
        channel += whitened
        channel += fallen
    return np.stack([truncated(channel) for channel in channels], axis=-1)


def enlarged_noise(shape: tuple[int, ...], factor: float, rng: Generator) -> Array:
    """Standard normal noise (H, W), enlarged bilinearly about its centre as :func:`zoom_blur` enlarges an image."""
    bits = 32
    (top, down), (left, right) = (zoomed_axis(size, factor, bits) for size in shape)
    first = top[0], left[0]
    noise = rng.standard_normal((top[-1] - first[0] + 2, left[-1] - first[1] + 2))
    top, left = top - first[0], left - first[1]
    below, beside = down[:, None] * 2.0**-bits, right * 2.0**-bits
    rows = noise[top] * (1 - below) + noise[top + 1] * below
    return rows[:, left] * (1 - beside) + rows[:, left + 1] * beside


def fog(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Add a plasma cloud and scale back to the brightest value (lines 381-387).

    Strength and decay of the roughness with the scale: (1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4).
    """
    strength, decay = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[severity - 1]
    height, width = image.shape[:2]
    cloud = plasma_cloud(1 << max(height - 1, width - 1, 1).bit_length(), decay, rng)[:height, :width]
    brightest = float(image.max()) / 255
    fogged = image + 255 * strength * cloud[..., None]
    return truncated(fogged * (brightest / (brightest + strength)))


def plasma_cloud(size: int, decay: float, rng: Generator) -> Array:
    """Heights in 0-1 on a torus by the diamond-square algorithm (lines 181-228).

    A new point is the mean of its four neighbours plus a uniform number of at most ``a**2``, where ``a`` is 100 at the
    coarsest scale and falls by ``decay`` from scale to scale.

    Args:
        size: Side, a power of two.
        decay: Fall of the roughness.
        rng: Random numbers.
    """
    heights = np.zeros((size, size))
    amplitude, step = 100.0, size

    def new(total: Array) -> Array:
        return total / 4 + rng.uniform(-(amplitude**2), amplitude**2, total.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=0)
        centres = new(pairs + np.roll(pairs, -1, axis=1))
        heights[half::step, half::step] = centres
        beside = corners + np.roll(corners, -1, axis=1)
        heights[::step, half::step] = new(centres + np.roll(centres, 1, axis=0) + beside)
        above = corners + np.roll(corners, -1, axis=0)
        heights[half::step, ::step] = new(centres + np.roll(centres, 1, axis=1) + above)
        step, amplitude = half, amplitude / decay
    heights -= heights.min()
    return heights / heights.max()


def brightened(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Brightness: raise the value of HSV by .1, .2, .3, .4, .5, up to 1 (lines 497-505)."""
    value = image.max(axis=-1, keepdims=True).astype(np.float64)
    raised = np.minimum(value + 255 * (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1], 255)
    return truncated(np.where(value > 0, image * (raised / np.maximum(value, 1)), raised))


def spatter(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Drops of water, from severity 4 on spots of mud (lines 434-486).

    Mean and deviation of noise, deviation of its Gaussian, threshold, and strength of the water or deviation of the
    mud's Gaussian: (.65, .3, 4, .69, .6), (.65, .3, 3, .68, .6), (.65, .3, 2, .68, .5), (.65, .3, 1, .65, 1.5),
    (.67, .4, 1, .65, 1.5).
    """
    mean, deviation, sigma, threshold, strength = (
        (0.65, 0.3, 4, 0.69, 0.6),
        (0.65, 0.3, 3, 0.68, 0.6),
        (0.65, 0.3, 2, 0.68, 0.5),
        (0.65, 0.3, 1, 0.65, 1.5),
        (0.67, 0.4, 1, 0.65, 1.5),
    )[severity - 1]
    # In 4096ths, so that the sums are exact.
    noise = np.rint(4096 * rng.normal(mean, deviation, image.shape[:2]))
    weights = gaussian_weights(sigma, 4.0, 19)
    liquid = cv2.sepFilter2D(noise, cv2.CV_64F, weights, weights, borderType=cv2.BORDER_REPLICATE) * (2.0**-38 / 4096)
    liquid[liquid < threshold] = 0
    if severity <= 3:
        water = _water_drops(truncated(255 * liquid)) * np.float32(255 * strength)
        return truncated(image + water[..., None] * (np.array(_WATER, np.float32) / 255))
    mud = gaussian_filtered((liquid > threshold) * np.uint8(255), strength) / 255
    mud[mud < 0.8] = 0
    return truncated(image * (1 - mud[..., None]) + np.array(_MUD) * mud[..., None])


def _water_drops(liquid: Pixels) -> Array:
    """Thickness of water, at most 1: the liquid times a relief of the distance from its edges."""
    distance = cv2.distanceTransform(255 - cv2.Canny(liquid, 50, 150), cv2.DIST_L2, 5)
    relief = cv2.equalizeHist(truncated(cv2.blur(np.minimum(distance, 20), (3, 3))))
    relief = cv2.filter2D(relief, cv2.CV_8U, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]))
    drops = liquid.astype(np.float32) * cv2.blur(relief, (3, 3))
    return drops / max(float(drops.max()), 1.0)
