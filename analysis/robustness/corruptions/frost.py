"""Frost of ImageNet-C with generated crystals.

The released code lays one of five photographs of frost over the image. Their licence keeps them out of this project, so
the overlay is drawn: ice ferns over a cloud of rime, with the colours and the contrast of those photographs.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator

from analysis.robustness.corruptions.arithmetic import Array, Pixels, gaussian_filtered, truncated
from analysis.robustness.corruptions.weather import plasma_cloud

# Mean colour of the photographs frost1 to frost5 beside the released code (ImageNet-C/create_c; the second and the
# third are the same, the sixth is never used), and standard deviation of the grey values in parts of 224x224, measured.
_LOOKS = (
    ((78, 149, 166), 15),
    ((201, 205, 214), 20),
    ((201, 205, 214), 20),
    ((138, 153, 165), 27),
    ((112, 123, 135), 36),
)
_LAYERS = 5  # of ferns, from dark to bright
_PIXELS_PER_FERN = 600.0  # of a layer
_BRANCHES = 12  # on each side of a stem
_SHIFT = 4  # bits of a fraction of a pixel in drawing


def frost(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Generated frost: share of the image and of the overlay, (1, .4), (.8, .6), (.7, .7), (.65, .7), (.6, .75).

    Shares from hendrycks/robustness, ImageNet-C/create_c/make_imagenet_c.py, lines 390-404. The overlay differs from
    the released one (see :func:`frost_overlay`).
    """
    share, ice = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity - 1]
    colour, deviation = _LOOKS[int(rng.integers(len(_LOOKS)))]
    relief = frost_overlay(image.shape[0], image.shape[1], rng)
    overlay = np.clip(np.array(colour) + deviation * relief[..., None], 0, 255)
    return truncated(share * image + ice * overlay)


def frost_overlay(height: int, width: int, rng: Generator) -> Array:
    """Relief of frost (height, width), of mean 0 and standard deviation 1.

    Layers of ferns, each a stem with branches at 60 degrees that shorten towards the tip, are drawn from dark to bright
    and softened a little. A plasma cloud and grain are added. The scale is in pixels, as that of the photographs.
    """
    canvas = np.full((height, width), 40, np.uint8)
    for layer in range(_LAYERS):
        count = int(np.ceil(height * width / _PIXELS_PER_FERN / (layer + 1)))
        lines = fern_lines(height, width, count, rng)
        brightness = 60 + 195 * (layer + 1) // _LAYERS
        cv2.polylines(canvas, list(lines), False, brightness, 1, cv2.LINE_AA, _SHIFT)
    crystals = gaussian_filtered(canvas, 0.5)
    cloud = plasma_cloud(1 << max(height - 1, width - 1, 1).bit_length(), 1.7, rng)[:height, :width]
    grain = rng.standard_normal((height, width))
    relief = crystals + 160 * cloud + 15 * grain
    return (relief - relief.mean()) / max(float(relief.std()), 1.0)


def fern_lines(height: int, width: int, count: int, rng: Generator) -> Array:
    """Lines of ferns at random places: (N, 2, 2), start and end, x and y in 16ths of a pixel, as whole numbers."""
    start = rng.uniform(0, 1, (count, 1, 2)) * (width, height)
    angle = rng.uniform(0, 2 * np.pi, (count, 1))
    length = rng.uniform(25, 90, (count, 1))
    along = np.linspace(0.05, 0.95, _BRANCHES)  # of the stem, where the branches begin
    direction = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    feet = start + (length * along)[..., None] * direction
    parts = [np.stack([start, start + length[..., None] * direction], axis=-2)]
    for side in (-np.pi / 3, np.pi / 3):
        turned = np.stack([np.cos(angle + side), np.sin(angle + side)], axis=-1)
        reach = length * 0.3 * (1 - along) * rng.uniform(0.6, 1, (count, _BRANCHES))
        parts.append(np.stack([feet, feet + reach[..., None] * turned], axis=-2))
    lines = np.concatenate([part.reshape(-1, 2, 2) for part in parts])
    return np.rint(lines * 2**_SHIFT).astype(np.int32)
