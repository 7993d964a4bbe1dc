"""RandAugment on arrays: timm's draws and magnitudes, and Pillow's pixels within a level, several times faster.

timm describes the augmentation and draws operations and magnitudes; what an operation does to the pixels is done here,
by tables of 256 entries, OpenCV's filters and, for shearing and moving, one-dimensional interpolation. Pillow's bicubic
``transform`` has the free parameter a = -1 (OpenCV's and PyTorch's have -0.75) and cuts fractions off, as its blending
does. A rotation, which needs sixteen pixels for each one, is left to Pillow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment as timm_ops

from backbones.errors import UserError

MEAN = (124, 116, 104)  # of ImageNet's pixels: what comes into the picture from outside, as timm's loader has it
LUMA = np.array([[19595, 38470, 7471]], np.float32) / 65536  # of Pillow; float32 holds the sums exactly
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
LEVELS = np.arange(256)
# What is cut off keeps its whole number in spite of float32's rounding; a pixel in a thousand is one level higher.
CUT_OFF = 1e-3

Picture = np.ndarray
Operation = Callable[..., Any]


def rand_augment(description: str) -> Callable[[Picture], Picture]:
    """timm's RandAugment for arrays ``(H, W, 3)`` of uint8.

    The same random state gives the same operations and magnitudes as in timm's loader with bicubic resampling.

    Args:
        description: timm's, such as ``rand-m9-mstd0.5-inc1``.

    Raises:
        UserError: If the description is not understood.
    """
    settings = dict(img_mean=MEAN, interpolation=Image.Resampling.BICUBIC)
    try:
        augment: Any = timm_ops.rand_augment_transform(description, settings)
    except (AssertionError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"rand_augment={description!r}: no RandAugment; rand-m9-mstd0.5-inc1 is the paper's") from error
    for op in augment.ops:
        op.aug_fn = ON_ARRAYS.get(op.aug_fn) or ThroughPillow(op.aug_fn)
    return augment


class ThroughPillow:
    """An operation on Pillow's images, for arrays."""

    def __init__(self, operation: Operation) -> None:
        self.operation = operation

    def __call__(self, picture: Picture, *level: float, **settings: Any) -> Picture:
        """Change a picture ``(H, W, 3)``."""
        return np.array(self.operation(Image.fromarray(picture), *level, **settings))


def auto_contrast(picture: Picture, **_: Any) -> Picture:
    """Spread the levels of each channel over all 256."""
    # Of each column and channel first, which NumPy does several pixels at a time.
    low, high = (extreme(picture, axis=0) for extreme in (np.min, np.max))
    table = np.empty((256, 1, 3), np.uint8)
    for channel in range(3):
        least, most = int(low[:, channel].min()), int(high[:, channel].max())
        scale = 255 / max(most - least, 1)
        spread = np.clip((LEVELS * scale - least * scale).astype(int), 0, 255)
        table[:, 0, channel] = spread if most > least else LEVELS
    return cv2.LUT(picture, table)


def equalize(picture: Picture, **_: Any) -> Picture:
    """Make the levels of each channel equally frequent."""
    table = np.empty((256, 1, 3), np.uint8)
    for channel in range(3):
        counts = cv2.calcHist([picture], [channel], None, [256], [0, 256])[:, 0].astype(int)
        (used,) = counts.nonzero()
        step = int(counts.sum() - counts[used[-1]]) // 255
        table[:, 0, channel] = LEVELS
        if step:
            below = counts.cumsum() - counts
            table[:, 0, channel] = np.minimum((below + step // 2) // step, 255)
    return cv2.LUT(picture, table)


def invert(picture: Picture, **_: Any) -> Picture:
    """Swap black and white."""
    return ~picture


def posterize(picture: Picture, bits: int, **_: Any) -> Picture:
    """Keep the highest bits of each level; 0 of them, as RandAugment asks for at magnitude 10, leave a black picture.

    Magnitude 9 with a deviation of 0.5 gets there in one of 44 draws. Pillow 12 refuses it; before, it gave black too.
    """
    return picture & np.uint8(256 - (256 >> bits))


def solarize(picture: Picture, threshold: int, **_: Any) -> Picture:
    """Invert the levels from a threshold on."""
    return cv2.LUT(picture, np.where(threshold <= LEVELS, 255 - LEVELS, LEVELS).astype(np.uint8))


def solarize_add(picture: Picture, add: int, thresh: int = 128, **_: Any) -> Picture:
    """Add to the levels below a threshold."""
    return cv2.LUT(picture, np.where(thresh <= LEVELS, LEVELS, np.minimum(LEVELS + add, 255)).astype(np.uint8))


def brightness(picture: Picture, factor: float, **_: Any) -> Picture:
    """Away from black, or towards it for a factor below 1."""
    return cv2.LUT(picture, _blended(0, factor))


def contrast(picture: Picture, factor: float, **_: Any) -> Picture:
    """Away from the mean grey, or towards it for a factor below 1."""
    return cv2.LUT(picture, _blended(int(_grey(picture).mean() + 0.5), factor))


def color(picture: Picture, factor: float, **_: Any) -> Picture:
    """Away from the picture in grey, or towards it for a factor below 1."""
    return _blend(cv2.cvtColor(_grey(picture), cv2.COLOR_GRAY2RGB), picture, factor)


def sharpness(picture: Picture, factor: float, **_: Any) -> Picture:
    """Away from the smoothed picture, or towards it for a factor below 1."""
    smooth = picture.copy()  # its rim stays as it is
    if min(picture.shape[:2]) > 2:
        smooth[1:-1, 1:-1] = cv2.filter2D(picture, -1, SMOOTH)[1:-1, 1:-1]
    return _blend(smooth, picture, factor)


def shear_x(picture: Picture, factor: float, fillcolor: tuple[int, int, int] = MEAN, **_: Any) -> Picture:
    """Move each row to the left by the factor for each row above it and half a row."""
    return _slide(picture, factor * (np.arange(picture.shape[0]) + 0.5), fillcolor)


def shear_y(picture: Picture, factor: float, fillcolor: tuple[int, int, int] = MEAN, **_: Any) -> Picture:
    """Move each column up by the factor for each column on its left and half a column."""
    return cv2.transpose(shear_x(cv2.transpose(picture), factor, fillcolor))


def translate_x_rel(picture: Picture, share: float, fillcolor: tuple[int, int, int] = MEAN, **_: Any) -> Picture:
    """Move to the left by a share of the width."""
    return _translate(picture, share * picture.shape[1], 1, fillcolor)


def translate_y_rel(picture: Picture, share: float, fillcolor: tuple[int, int, int] = MEAN, **_: Any) -> Picture:
    """Move up by a share of the height."""
    return _translate(picture, share * picture.shape[0], 0, fillcolor)


ON_ARRAYS: dict[Operation, Operation] = {
    getattr(timm_ops, operation.__name__): operation
    for operation in (
        *(auto_contrast, equalize, invert, posterize, solarize, solarize_add, brightness, contrast, color, sharpness),
        *(shear_x, shear_y, translate_x_rel, translate_y_rel),
    )
}


def _grey(picture: Picture) -> Picture:
    """Pillow's mode L."""
    return cv2.transform(picture, LUMA)


def _blended(base: int, factor: float) -> np.ndarray:
    """Table of a blend of one grey level and each level, computed as Pillow does."""
    mixed = np.float32(base) + np.float32(factor) * (LEVELS - base).astype(np.float32)
    return np.clip(mixed, 0, 255).astype(np.uint8)


def _blend(base: Picture, picture: Picture, factor: float) -> Picture:
    """``base + factor * (picture - base)``, its fractions cut off."""
    # OpenCV rounds to the nearest, so half a level is taken away before.
    return cv2.addWeighted(picture, factor, base, 1 - factor, CUT_OFF - 0.5)


def _translate(picture: Picture, shift: float, axis: int, fill: tuple[int, int, int]) -> Picture:
    """Take each pixel from ``shift`` pixels further down (axis 0) or right (1), by Pillow's bicubic interpolation."""
    length, whole = picture.shape[axis], math.floor(shift)
    first, last = (min(max(math.ceil(edge - 0.5 - shift), 0), length) for edge in (0, length))
    if first == last:
        return _plain(picture.shape, fill)
    weights = _cubic_weights(np.array([shift - whole], np.float32)).reshape((4, 1) if axis == 0 else (1, 4))
    border = (1, 0, 0, 0) if axis == 0 else (0, 0, 1, 0)  # half of the first pixel lies before its centre
    wide = cv2.copyMakeBorder(picture, *border, cv2.BORDER_REPLICATE)
    anchor = (0, 1) if axis == 0 else (1, 0)
    mixed = cv2.filter2D(wide, -1, weights, anchor=anchor, delta=CUT_OFF - 0.5, borderType=cv2.BORDER_REPLICATE)
    inside = mixed[(slice(None),) * axis + (slice(first + whole + 1, last + whole + 1),)]
    outside: tuple[int, int, int, int] = (first, length - last, 0, 0) if axis == 0 else (0, 0, first, length - last)
    return cv2.copyMakeBorder(inside, *outside, cv2.BORDER_CONSTANT, value=fill)


def _plain(shape: tuple[int, ...], color: tuple[int, int, int]) -> Picture:
    """A picture of one colour."""
    picture = np.empty((shape[0], shape[1] * 3), np.uint8)
    picture[:] = np.tile(np.array(color, np.uint8), shape[1])
    return picture.reshape(shape)


def _slide(picture: Picture, shift: np.ndarray, fill: tuple[int, int, int]) -> Picture:
    """Take the pixels of each row from its ``shift`` pixels further right, by Pillow's bicubic interpolation."""
    height, width, channels = picture.shape
    whole = np.floor(shift).astype(int)
    before, after = max(1 - int(whole.min()), 1), max(int(whole.max()) + 2, 2)
    wide = cv2.copyMakeBorder(picture, 0, 0, before, after, cv2.BORDER_REPLICATE)
    # One row of each picture's row that begins a pixel in front of where it is taken from.
    starts = np.lib.stride_tricks.as_strided(
        wide, (height, before + after - 2, (width + 3) * channels), (wide.strides[0], channels, 1)
    )
    rows = torch.from_numpy(starts[np.arange(height), whole - 1 + before]).float()
    weights = torch.from_numpy(_cubic_weights(shift - whole).astype(np.float32))
    size = width * channels
    mixed = torch.full((height, size), CUT_OFF)
    for tap in range(4):
        mixed.addcmul_(rows[:, tap * channels : tap * channels + size], weights[tap])
    moved = mixed.clamp_(0, 255).numpy().astype(np.uint8).reshape(picture.shape)
    first, last = (np.ceil(edge - 0.5 - shift)[:, None].astype(np.int32) for edge in (0, width))
    column = np.arange(width, dtype=np.int32)
    outside = (column < first) | (column >= last)
    return cv2.copyTo(_plain(picture.shape, fill), outside.view(np.uint8), moved)


def _cubic_weights(distance: np.ndarray) -> np.ndarray:
    """Of the four neighbours ``(4, n, 1)``, by the distance to the second one: cubic convolution with a = -1."""
    d = distance[:, None]
    square, cube = d * d, d * d * d
    return np.stack([-d + 2 * square - cube, 1 - 2 * square + cube, d + square - cube, cube - square])
