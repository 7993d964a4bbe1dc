"""RandAugment on arrays: timm's random choices and Pillow's pixel values within one level, several times faster.

timm parses the description and draws operations and magnitudes; the operations are implemented here, by look-up tables,
OpenCV's filters and, for shear and translation, one-dimensional interpolation. Pillow's bicubic ``transform`` has the
free parameter a = -1 (OpenCV's and PyTorch's have -0.75) and truncates fractions, as its blending does. Rotation, which
reads sixteen pixels for each one, is left to Pillow.
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

from backbones.errors import ConfigError

FILL_COLOR = (124, 116, 104)  # ImageNet's mean, for what lies outside of the image, as in timm's loader
LUMA_WEIGHTS = np.array([[19595, 38470, 7471]], np.float32) / 65536  # Pillow's; float32 holds the sums exactly
SMOOTHING_KERNEL = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
LEVELS = np.arange(256)
# Added before truncation, so that float32's rounding does not lower whole numbers; raises one pixel in a thousand by 1.
FLOOR_OFFSET = 1e-3

ImageArray = np.ndarray
Operation = Callable[..., Any]


def rand_augment(description: str) -> Callable[[ImageArray], ImageArray]:
    """timm's RandAugment (Cubuk et al. 2020, arXiv:1909.13719) for uint8 arrays ``(H, W, 3)``.

    The same random state gives the same operations and magnitudes as in timm's loader with bicubic resampling.

    Args:
        description: timm's policy string, such as ``rand-m9-mstd0.5-inc1``.

    Raises:
        ConfigError: If timm cannot parse the description.
    """
    settings = dict(img_mean=FILL_COLOR, interpolation=Image.Resampling.BICUBIC)
    try:
        augment: Any = timm_ops.rand_augment_transform(description, settings)
    except (AssertionError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"rand_augment={description!r}: no RandAugment; rand-m9-mstd0.5-inc1 is the paper's"
        ) from error
    for op in augment.ops:
        op.aug_fn = ARRAY_OPS.get(op.aug_fn) or PillowOp(op.aug_fn)
    return augment


class PillowOp:
    """Applies an operation on Pillow images to arrays.

    Args:
        operation: Function of a Pillow image and its level.
    """

    def __init__(self, operation: Operation) -> None:
        self.operation = operation

    def __call__(self, image: ImageArray, *level: float, **settings: Any) -> ImageArray:
        """Apply the operation to an image ``(H, W, 3)``, uint8."""
        return np.array(self.operation(Image.fromarray(image), *level, **settings))


def auto_contrast(image: ImageArray, **_: Any) -> ImageArray:
    """Stretch the levels of each channel to the range 0 to 255."""
    # Extremes of each column first: NumPy vectorizes over columns and channels.
    low, high = (extreme(image, axis=0) for extreme in (np.min, np.max))
    table = np.empty((256, 1, 3), np.uint8)
    for channel in range(3):
        lowest, highest = int(low[:, channel].min()), int(high[:, channel].max())
        scale = 255 / max(highest - lowest, 1)
        stretched = np.clip((LEVELS * scale - lowest * scale).astype(int), 0, 255)
        table[:, 0, channel] = stretched if highest > lowest else LEVELS
    return cv2.LUT(image, table)


def equalize(image: ImageArray, **_: Any) -> ImageArray:
    """Equalize the histogram of each channel."""
    table = np.empty((256, 1, 3), np.uint8)
    for channel in range(3):
        counts = cv2.calcHist([image], [channel], None, [256], [0, 256])[:, 0].astype(int)
        (used,) = counts.nonzero()
        step = int(counts.sum() - counts[used[-1]]) // 255
        table[:, 0, channel] = LEVELS
        if step:
            below = counts.cumsum() - counts
            table[:, 0, channel] = np.minimum((below + step // 2) // step, 255)
    return cv2.LUT(image, table)


def invert(image: ImageArray, **_: Any) -> ImageArray:
    """Invert all levels."""
    return ~image


def posterize(image: ImageArray, bits: int, **_: Any) -> ImageArray:
    """Keep the highest bits of each level; 0 bits, as RandAugment has at magnitude 10, give a black image.

    Magnitude 9 with a standard deviation of 0.5 gets there in one of 44 draws. Pillow 12 refuses 0 bits; earlier
    versions gave a black image too.
    """
    return image & np.uint8(256 - (256 >> bits))


def solarize(image: ImageArray, threshold: int, **_: Any) -> ImageArray:
    """Invert the levels from a threshold up."""
    return cv2.LUT(image, np.where(threshold <= LEVELS, 255 - LEVELS, LEVELS).astype(np.uint8))


def solarize_add(image: ImageArray, add: int, thresh: int = 128, **_: Any) -> ImageArray:
    """Add a number to the levels below a threshold, up to 255."""
    return cv2.LUT(image, np.where(thresh <= LEVELS, LEVELS, np.minimum(LEVELS + add, 255)).astype(np.uint8))


def brightness(image: ImageArray, factor: float, **_: Any) -> ImageArray:
    """Blend with black; a factor above 1 brightens."""
    return cv2.LUT(image, _blend_table(0, factor))


def contrast(image: ImageArray, factor: float, **_: Any) -> ImageArray:
    """Blend with the mean grey; a factor above 1 raises the contrast."""
    return cv2.LUT(image, _blend_table(int(_grey(image).mean() + 0.5), factor))


def color(image: ImageArray, factor: float, **_: Any) -> ImageArray:
    """Blend with the image in grey; a factor above 1 raises the saturation."""
    return _blend(cv2.cvtColor(_grey(image), cv2.COLOR_GRAY2RGB), image, factor)


def sharpness(image: ImageArray, factor: float, **_: Any) -> ImageArray:
    """Blend with the smoothed image; a factor above 1 sharpens."""
    smooth = image.copy()  # the border of one pixel stays as it is
    if min(image.shape[:2]) > 2:
        smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, SMOOTHING_KERNEL)[1:-1, 1:-1]
    return _blend(smooth, image, factor)


def shear_x(image: ImageArray, factor: float, fillcolor: tuple[int, int, int] = FILL_COLOR, **_: Any) -> ImageArray:
    """Shear along x: row y moves to the left by ``factor * (y + 0.5)`` pixels."""
    return _shift_rows(image, factor * (np.arange(image.shape[0]) + 0.5), fillcolor)


def shear_y(image: ImageArray, factor: float, fillcolor: tuple[int, int, int] = FILL_COLOR, **_: Any) -> ImageArray:
    """Shear along y: column x moves up by ``factor * (x + 0.5)`` pixels."""
    return cv2.transpose(shear_x(cv2.transpose(image), factor, fillcolor))


def translate_x_rel(
    image: ImageArray, fraction: float, fillcolor: tuple[int, int, int] = FILL_COLOR, **_: Any
) -> ImageArray:
    """Move to the left by a fraction of the width."""
    return _translate(image, fraction * image.shape[1], 1, fillcolor)


def translate_y_rel(
    image: ImageArray, fraction: float, fillcolor: tuple[int, int, int] = FILL_COLOR, **_: Any
) -> ImageArray:
    """Move up by a fraction of the height."""
    return _translate(image, fraction * image.shape[0], 0, fillcolor)


ARRAY_OPS: dict[Operation, Operation] = {
    getattr(timm_ops, operation.__name__): operation
    for operation in (
        *(auto_contrast, equalize, invert, posterize, solarize, solarize_add, brightness, contrast, color, sharpness),
        *(shear_x, shear_y, translate_x_rel, translate_y_rel),
    )
}


def _grey(image: ImageArray) -> ImageArray:
    """Luma as in Pillow's mode L: (H, W, 3) -> (H, W)."""
    return cv2.transform(image, LUMA_WEIGHTS)


def _blend_table(base: int, factor: float) -> np.ndarray:
    """Look-up table of the blend of one grey level with each level, computed as Pillow does, (256,)."""
    mixed = np.float32(base) + np.float32(factor) * (LEVELS - base).astype(np.float32)
    return np.clip(mixed, 0, 255).astype(np.uint8)


def _blend(base: ImageArray, image: ImageArray, factor: float) -> ImageArray:
    """``base + factor * (image - base)``, truncated."""
    # OpenCV rounds to the nearest: half a level less makes that a truncation.
    return cv2.addWeighted(image, factor, base, 1 - factor, FLOOR_OFFSET - 0.5)


def _translate(image: ImageArray, shift: float, axis: int, fill: tuple[int, int, int]) -> ImageArray:
    """Take each pixel from ``shift`` pixels further down (axis 0) or right (axis 1), with Pillow's bicubic weights."""
    length, whole = image.shape[axis], math.floor(shift)
    first, last = (min(max(math.ceil(edge - 0.5 - shift), 0), length) for edge in (0, length))
    if first == last:
        return _filled(image.shape, fill)
    weights = _cubic_weights(np.array([shift - whole], np.float32)).reshape((4, 1) if axis == 0 else (1, 4))
    # Half of the first pixel lies before its centre, where the filter needs one more pixel.
    border = (1, 0, 0, 0) if axis == 0 else (0, 0, 1, 0)
    wide = cv2.copyMakeBorder(image, *border, cv2.BORDER_REPLICATE)
    anchor = (0, 1) if axis == 0 else (1, 0)
    mixed = cv2.filter2D(wide, -1, weights, anchor=anchor, delta=FLOOR_OFFSET - 0.5, borderType=cv2.BORDER_REPLICATE)
    inside = mixed[(slice(None),) * axis + (slice(first + whole + 1, last + whole + 1),)]
    outside: tuple[int, int, int, int] = (first, length - last, 0, 0) if axis == 0 else (0, 0, first, length - last)
    return cv2.copyMakeBorder(inside, *outside, cv2.BORDER_CONSTANT, value=fill)


def _filled(shape: tuple[int, ...], color: tuple[int, int, int]) -> ImageArray:
    """Image of one colour, (H, W, 3)."""
    image = np.empty((shape[0], shape[1] * 3), np.uint8)
    image[:] = np.tile(np.array(color, np.uint8), shape[1])
    return image.reshape(shape)


def _shift_rows(image: ImageArray, shift: np.ndarray, fill: tuple[int, int, int]) -> ImageArray:
    """Take the pixels of each row from ``shift`` (H,) pixels further right, with Pillow's bicubic weights."""
    height, width, channels = image.shape
    whole = np.floor(shift).astype(int)
    before, after = max(1 - int(whole.min()), 1), max(int(whole.max()) + 2, 2)
    wide = cv2.copyMakeBorder(image, 0, 0, before, after, cv2.BORDER_REPLICATE)
    # A view of each row from every start; a row is read from one pixel before its shift.
    starts = np.lib.stride_tricks.as_strided(
        wide, (height, before + after - 2, (width + 3) * channels), (wide.strides[0], channels, 1)
    )
    rows = torch.from_numpy(starts[np.arange(height), whole - 1 + before]).float()
    weights = torch.from_numpy(_cubic_weights(shift - whole).astype(np.float32))
    size = width * channels
    mixed = torch.full((height, size), FLOOR_OFFSET)
    for tap in range(4):
        mixed.addcmul_(rows[:, tap * channels : tap * channels + size], weights[tap])
    moved = mixed.clamp_(0, 255).numpy().astype(np.uint8).reshape(image.shape)
    first, last = (np.ceil(edge - 0.5 - shift)[:, None].astype(np.int32) for edge in (0, width))
    column = np.arange(width, dtype=np.int32)
    outside = (column < first) | (column >= last)
    return cv2.copyTo(_filled(image.shape, fill), outside.view(np.uint8), moved)


def _cubic_weights(distance: np.ndarray) -> np.ndarray:
    """Weights of four neighbours, (n,) -> (4, n, 1), by the distance to the second: cubic convolution, a = -1."""
    d = distance[:, None]
    square, cube = d * d, d * d * d
    return np.stack([-d + 2 * square - cube, 1 - 2 * square + cube, d + square - cube, cube - square])
