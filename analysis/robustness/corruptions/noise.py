"""The noises of ImageNet-C: gaussian, shot and impulse, and of the extra ones speckle.

Source of process and constants: hendrycks/robustness, ImageNet-C/create_c/make_imagenet_c.py, lines 249-274.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from analysis.robustness.corruptions.arithmetic import Pixels, truncated


def gaussian_noise(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Add independent normal noise to every value.

    Standard deviation .08, .12, .18, .26, .38 of the range.
    """
    scale = 255 * (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    return truncated(image + np.float32(scale) * rng.standard_normal(image.shape, np.float32))


def shot_noise(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Count photons: a Poisson number whose mean is the value times 60, 25, 12, 5, 3 photons at full brightness."""
    photons = (60, 25, 12, 5, 3)[severity - 1]
    return truncated(rng.poisson(image * (photons / 255)) * (255 / photons))


def impulse_noise(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Set values to 0 or 255, either with equal chance, each channel by itself.

    Share of the values: .03, .06, .09, .17, .27 (salt and pepper of scikit-image's ``random_noise``).
    """
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    drawn = rng.random(image.shape, np.float32)
    out = image.copy()
    out[drawn < np.float32(share / 2)] = 0
    out[drawn >= np.float32(1 - share / 2)] = 255
    return out


def speckle_noise(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Add normal noise in proportion to the value: standard deviation .15, .2, .35, .45, .6 of it."""
    scale = np.float32((0.15, 0.2, 0.35, 0.45, 0.6)[severity - 1])
    return truncated(image * (1 + scale * rng.standard_normal(image.shape, np.float32)))
