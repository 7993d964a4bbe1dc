"""Synthetic photographs of real sizes and the numbers by which augmented ones are compared.

The released pipelines were run on the same pictures, so every number in these tests can be recomputed from its source.
"""

from __future__ import annotations

import numpy as np


def picture(height: int, width: int) -> np.ndarray:
    """Gradients, squares and stripes by integer arithmetic alone: RGB, (height, width, 3), uint8."""
    y, x = np.mgrid[:height, :width].astype(np.int64)
    red = x * 255 // width + (x // 16 + y // 16) % 2 * 40
    green = y * 255 // height + x * y // 512 % 64
    blue = (x + y) * 255 // (width + height) + x // 7 % 3 * 30
    return (np.stack([red, green, blue], 2) % 256).astype(np.uint8)


def labels(height: int, width: int) -> np.ndarray:
    """Squares of 40 pixels with the values 0 to 150 of ADE20K's label images: (height, width), uint8."""
    y, x = np.mgrid[:height, :width].astype(np.int64)
    return ((x // 40 * 7 + y // 40 * 13) % 151).astype(np.uint8)


def summary(image: np.ndarray) -> list[float]:
    """Means of the channels, standard deviation, and means of the four quarters of an image (H, W, C)."""
    values = image.astype(np.float64)
    height, width = values.shape[:2]
    rows = (slice(0, height // 2), slice(height // 2, height))
    columns = (slice(0, width // 2), slice(width // 2, width))
    quarters = [values[row, column].mean() for row in rows for column in columns]
    return [*values.mean((0, 1)).tolist(), float(values.std()), *(float(mean) for mean in quarters)]
