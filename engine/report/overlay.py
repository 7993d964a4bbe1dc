"""Segments shown on an image: tinted in the colours of their classes, named where a name has room inside."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from engine.report.lettering import Colour, Lettering, text_size
from engine.report.panels import ink_on

TINT = 0.5  # share of the colour


def tint(image: np.ndarray, mask: np.ndarray, colour: Colour, share: float = TINT) -> None:
    """Mix a colour into the pixels of a mask.

    Args:
        image: RGB image, uint8, (H, W, 3), which is changed.
        mask: Pixels, bool, (H, W).
        colour: Colour, RGB.
        share: Share of the colour, 0 to 1.
    """
    image[mask] = (image[mask] * (1 - share) + np.asarray(colour) * share).round().astype(np.uint8)


def name_inside(mask: np.ndarray, name: str, size: int, colour: Colour) -> Lettering | None:
    """Place a name inside of a segment, where most of the segment is around it.

    Args:
        mask: Pixels of the segment, bool, (H, W).
        name: Text.
        size: Size of the font in pixels.
        colour: Colour behind the text, RGB.

    Returns:
        The text in its place; ``None`` where it would cover pixels of others, which the legend names.
    """
    width, height = (int(np.ceil(side)) for side in text_size(name, size))
    pixels = mask.astype(np.uint8)
    if pixels.sum() < width * height:
        return None
    box = np.ones((height, width), np.uint8)
    rooms = np.asarray(cv2.erode(pixels, box, borderType=cv2.BORDER_CONSTANT, borderValue=0))  # where the text fits
    if not rooms.any():
        return None
    depth = cv2.distanceTransform(np.pad(pixels, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    row, column = np.unravel_index(np.argmax(depth * rooms), depth.shape)
    return Lettering(name, float(column), float(row) - height / 2, size, ink_on(colour), colour, centred=True)


def overlay_labels(image: np.ndarray, labels: np.ndarray, colours: Sequence[Colour]) -> np.ndarray:
    """Tint each pixel in the colour of its class.

    Args:
        image: RGB image, uint8, (H, W, 3).
        labels: Class of each pixel, integers, (H, W); those that are no class leave the image as it is.
        colours: Colours of the classes, RGB.

    Returns:
        The tinted image, a copy.
    """
    drawn = image.copy()
    known = (labels >= 0) & (labels < len(colours))
    drawn[known] = (drawn[known] * (1 - TINT) + np.asarray(colours)[labels[known]] * TINT).round().astype(np.uint8)
    return drawn
