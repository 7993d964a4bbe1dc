"""Where the names of boxes are written in a picture: readable, and not over a small object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

COVERED = 1 / 4  # of a box, which a name may cover at most
REACH = 4  # heights of a name, which it may be away from its box


class Box(NamedTuple):
    """A rectangle in a picture, by its edges in pixels."""

    left: float
    top: float
    right: float
    bottom: float


class Place(NamedTuple):
    """Place of a name.

    Attributes:
        box: Edges of the name.
        away: Whether the name is so far from its object that a line should lead to it.
    """

    box: Box
    away: bool


def place_labels(
    boxes: Sequence[Box], sizes: Sequence[tuple[float, float]], picture: tuple[float, float]
) -> list[Place | None]:
    """Place a name at each box: inside of a large one, else beside it; where all of that is taken, further away.

    Args:
        boxes: Boxes of the objects, in the order in which they are named.
        sizes: Width and height of each name in pixels.
        picture: Width and height of the picture in pixels.

    Returns:
        The place of each name, inside of the picture; ``None`` where every place within reach covers another name or
        more than a quarter of an object.
    """
    edges = np.asarray(boxes, float).reshape(-1, 4)
    areas = np.maximum((edges[:, 2] - edges[:, 0]) * (edges[:, 3] - edges[:, 1]), 1.0)
    names: list[Box] = []
    places: list[Place | None] = []
    for box, size in zip(boxes, sizes, strict=True):
        taken = np.reshape(names, (-1, 4))
        free = (
            place
            for place in _places(box, size, picture)
            if not _overlap(place.box, taken).any() and (_overlap(place.box, edges) <= COVERED * areas).all()
        )
        found = next(free, None)
        places.append(found)
        if found is not None:
            names.append(found.box)
    return places


def _overlap(box: Box, others: np.ndarray) -> np.ndarray:
    """Pixels that a box has in common with each of some others, (N, 4)."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    common: np.ndarray = np.maximum(high - low, 0).prod(axis=1)
    return common


def _places(box: Box, size: tuple[float, float], picture: tuple[float, float]) -> Iterator[Place]:
    """Places for the name of a box inside of the picture, the best first."""
    width, height = size
    if width > picture[0] or height > picture[1]:
        return
    inside = (box.left, box.top)
    beside = [(box.left, box.top - height), (box.left, box.bottom), (box.right, box.top), (box.left - width, box.top)]
    for x, y in [inside, *beside] if width <= box.right - box.left else [*beside, inside]:
        yield Place(_moved_inside(x, y, size, picture), away=False)
    for step in range(1, 2 * REACH + 1):
        away = step * height / 2
        for x in (box.left, box.right + away, box.left - width - away):
            for y in (box.top - height - away, box.bottom + away):
                yield Place(_moved_inside(x, y, size, picture), away=True)


def _moved_inside(left: float, top: float, size: tuple[float, float], picture: tuple[float, float]) -> Box:
    left, top = (max(0.0, min(at, room - own)) for at, own, room in zip((left, top), size, picture, strict=True))
    return Box(left, top, left + size[0], top + size[1])
