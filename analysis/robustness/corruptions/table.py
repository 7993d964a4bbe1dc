"""The corruptions by name, and the seed of one image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from numpy.random import PCG64, Generator

from analysis.robustness.corruptions import bar, blur, digital, frost, noise, weather
from analysis.robustness.corruptions.arithmetic import Pixels
from analysis.robustness.scores import SEVERITIES
from backbones.errors import ConfigError, DataError, nearest, printable

Corruption = Callable[[Pixels, int, Generator], Pixels]

_COMMON: dict[str, Corruption] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "snow": weather.snow,
    "frost": frost.frost,
    "fog": weather.fog,
    "brightness": weather.brightened,
    "contrast": digital.lowered_contrast,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
}
_EXTRA: dict[str, Corruption] = {
    "speckle_noise": noise.speckle_noise,
    "gaussian_blur": blur.gaussian_blur,
    "spatter": weather.spatter,
    "saturate": digital.saturate,
}
_BAR: dict[str, Corruption] = {
    "blue_noise_sample": bar.blue_noise_sample,
    "brownish_noise": bar.brownish_noise,
    "caustic_refraction": bar.caustic_refraction,
    "checkerboard_cutout": bar.checkerboard_cutout,
    "cocentric_sine_waves": bar.cocentric_sine_waves,
    "inverse_sparkles": bar.inverse_sparkles,
    "perlin_noise": bar.perlin_noise,
    "plasma_noise": bar.plasma_noise,
    "single_frequency_greyscale": bar.single_frequency_greyscale,
    "sparkles": bar.sparkles,
}
_IN_PLACE: dict[str, Corruption] = {"elastic_transform_in_place": digital.elastic_transform_in_place}
_FUNCTIONS = _COMMON | _EXTRA | _BAR | _IN_PLACE

CORRUPTIONS = tuple(_COMMON)
"""The 15 of ImageNet-C, in the order of its paper."""
EXTRA_CORRUPTIONS = tuple(_EXTRA)
"""The 4 that ImageNet-C holds out."""
BAR_CORRUPTIONS = tuple(_BAR)
"""The 10 of ImageNet-C-bar."""
DENSE_CORRUPTIONS = tuple("elastic_transform_in_place" if name == "elastic_transform" else name for name in _COMMON)
"""The 15 of detection and segmentation benchmarks: their elastic transform leaves objects where their labels are."""


def corrupt(image: Pixels, name: str, severity: int, seed: int) -> Pixels:
    """A corrupted copy of an image.

    Args:
        image: uint8 RGB image (H, W, 3) of any size.
        name: Name of a corruption, such as ``gaussian_noise``.
        severity: Severity, 1 to 5.
        seed: Seed of the random numbers, such as that of :func:`image_seed`.

    Returns:
        uint8 RGB image (H, W, 3).

    Raises:
        ConfigError: if the name or the severity is unknown.
        DataError: if the image is of another type or shape, or empty.
    """
    check_corruption(name, severity)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DataError(f"{name} needs a uint8 RGB image (H, W, 3), got {image.dtype} of shape {image.shape}")
    return np.ascontiguousarray(_FUNCTIONS[name](np.ascontiguousarray(image), int(severity), Generator(PCG64(seed))))


def check_corruption(name: str, severity: int) -> None:
    """Refuse an unknown name or severity.

    Raises:
        ConfigError: if there is no such corruption, or the severity is not 1 to 5.
    """
    if name not in _FUNCTIONS:
        others = nearest(str(name), _FUNCTIONS) or f"; known: {', '.join(_FUNCTIONS)}"
        raise ConfigError(f"unknown corruption {printable(name)!r}{others}")
    if severity not in SEVERITIES:
        raise ConfigError(f"severity {printable(severity)} of {name}: must be 1, 2, 3, 4 or 5")


def image_seed(key: str | int, name: str, severity: int, drawing: int = 0) -> int:
    """Seed of the random numbers of one image, the same in every process and on every machine.

    Args:
        key: Name of the image that does not depend on where it lies, such as its path below the data's folder.
        name: Name of the corruption.
        severity: Severity, 1 to 5.
        drawing: Number of the drawing, for more than one corrupted copy.
    """
    text = f"{key}\n{name}\n{severity}" + (f"\n{drawing}" if drawing else "")
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
