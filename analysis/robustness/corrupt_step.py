"""Corruption of images on the fly, as a step of a test pipeline of any task."""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np
import torch
from mmengine.registry import TRANSFORMS

from analysis.robustness.corruptions import corrupt, image_seed
from backbones.errors import ConfigError


@TRANSFORMS.register_module()
class CorruptImage:
    """Corrupts ``img``, uint8 ``(H, W, 3)``, or ``inputs``, a uint8 tensor ``(3, H, W)``.

    The random numbers depend on the image's path below ``root``, the corruption and the severity alone: neither on the
    order of the images nor on the worker.

    Args:
        name: Name of the corruption.
        severity: Severity from 1 to 5.
        order: Order of the channels; corruptions such as snow and frost assume RGB, which they are given.
        root: Folder from which the path of an image is taken.
    """

    def __init__(self, name: str, severity: int, order: Literal["RGB", "BGR"] = "RGB", root: str = "") -> None:
        self.name, self.severity, self.order, self.root = name, severity, order, root

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Replace the pixels of a sample.

        Raises:
            ConfigError: If the image has not three channels of 8 bits.
        """
        path, step = sample["img_path"], -1 if self.order == "BGR" else 1
        if "img" in sample:
            pixels = self.as_rgb(sample["img"][..., ::step], path)
            return {**sample, "img": np.ascontiguousarray(pixels[..., ::step])}
        pixels = self.as_rgb(sample["inputs"].permute(1, 2, 0).numpy()[..., ::step], path)[..., ::step]
        return {**sample, "inputs": torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))}

    def as_rgb(self, image: np.ndarray, path: str) -> np.ndarray:
        """Corrupt an RGB image, uint8 ``(H, W, 3)``.

        Args:
            image: The image.
            path: Path of its file.

        Raises:
            ConfigError: If it has not three channels of 8 bits.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ConfigError(
                f"corruption {self.name!r}: images are {image.dtype} {image.shape}: three channels of 8 bits are needed"
            )
        seed = image_seed(self._key(path), self.name, self.severity)
        return corrupt(np.ascontiguousarray(image), self.name, self.severity, seed)

    def _key(self, path: str) -> str:
        """The path below the root with slashes, on every machine the same."""
        below = os.path.relpath(path, self.root) if self.root else path
        return below.replace(os.sep, "/")
