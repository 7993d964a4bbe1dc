"""Images that are in the training data and in the tested data: copies of a file, and nearly the same pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from engine.data.image_files import DamagedImageError, inspect_image

THUMBNAIL_SIDE = 16  # pixels
MIN_CORRELATION = 0.99  # of the thumbnails' grey values, from which on two pictures are nearly the same
COMPARED_AT_ONCE = 4096


class Duplicate(NamedTuple):
    """A tested image that is in the training data.

    Attributes:
        tested: Position among the tested images.
        original: Position among the training images.
        exact: Whether the files are the same, and not only the pictures nearly so.
        correlation: Correlation of the thumbnails; 1 for the same files.
    """

    tested: int
    original: int
    exact: bool
    correlation: float


def find_duplicates(
    tested: Sequence[str], train: Sequence[str], read: Callable[[str], np.ndarray]
) -> tuple[list[Duplicate], int]:
    """Find the most similar training image of each tested image that has one.

    Files are compared by size, beginning and end, as in the check of the data. Pictures are nearly the same where grey
    thumbnails of 16 x 16 pixels, as they are or mirrored, correlate by 0.99: scaled and compressed copies do, crops
    do not.

    Args:
        tested: Files of the tested images.
        train: Files of the training images.
        read: Reads a file as RGB, uint8, (H, W, 3).

    Returns:
        The duplicates, by the tested image, and the number of files that cannot be read.
    """
    digests: dict[int, int] = {}
    for index, path in enumerate(train):
        if not (info := inspect_image(path)).problem:
            digests.setdefault(info.digest, index)
    found = []
    for index, path in enumerate(tested):
        info = inspect_image(path)
        if not info.problem and (original := digests.get(info.digest)) is not None:
            found.append(Duplicate(index, original, True, 1.0))
    exact = {one.tested for one in found}
    theirs, unread = _thumbnails(train, read)
    ours, others = _thumbnails(tested, read)
    best: np.ndarray = np.zeros(len(tested))
    place: np.ndarray = np.zeros(len(tested), int)
    for first in range(0, len(train), COMPARED_AT_ONCE):
        rows = theirs[first : first + COMPARED_AT_ONCE]
        mirrored = rows.reshape(-1, THUMBNAIL_SIDE, THUMBNAIL_SIDE)[..., ::-1].reshape(len(rows), -1)
        values = np.maximum(ours @ rows.T, ours @ mirrored.T)
        nearest = values.argmax(axis=1)
        value = values[np.arange(len(ours)), nearest]
        place, best = np.where(value > best, first + nearest, place), np.maximum(value, best)
    near = [index for index in np.flatnonzero(best >= MIN_CORRELATION).tolist() if index not in exact]
    found += [Duplicate(index, int(place[index]), False, round(float(best[index]), 4)) for index in near]
    return sorted(found), unread + others


def _thumbnails(paths: Sequence[str], read: Callable[[str], np.ndarray]) -> tuple[np.ndarray, int]:
    """Grey values of thumbnails with mean 0 and length 1, (N, 256), 0 for an even area; and unreadable files."""
    rows, unread = np.zeros((len(paths), THUMBNAIL_SIDE**2), np.float32), 0
    for index, path in enumerate(paths):
        try:
            grey = cv2.cvtColor(read(path), cv2.COLOR_RGB2GRAY).astype(np.float32)
        except DamagedImageError:
            unread += 1
            continue
        small = cv2.resize(grey, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA).ravel()
        small = small - small.mean()
        length = np.linalg.norm(small)
        rows[index] = small / length if length > 1 else 0.0
    return rows, unread
