"""Where the names of boxes are written in a picture: readable, and not over a small object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

COVERED = 1 / 4  # of a box, which its name may cover at most
REACH = 4  # heights of a name, which it may be away from its box


class Box(NamedTuple):
    """A rectangle in a picture, by its edges in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def area(self) -> float:
        """Pixels inside."""
        return max(0.0, self.right - self.left) * max(0.0, self.bottom - self.top)

    def common(self, other: Box) -> float:
        """Pixels that are in another rectangle too."""
        left, top = max(self.left, other.left), max(self.top, other.top)
        return Box(left, top, min(self.right, other.right), min(self.bottom, other.bottom)).area


def place_labels(
    boxes: Sequence[Box], sizes: Sequence[tuple[float, float]], picture: tuple[float, float]
) -> list[tuple[Box, bool]]:
    """Place a name at each box: inside of a large one, else beside it; where all of that is taken, further away.

    Args:
        boxes: Boxes of the objects, in the order in which they are named.
        sizes: Width and height of each name in pixels.
        picture: Width and height of the picture in pixels.

    Returns:
        The place of each name, inside of the picture as far as it fits, and whether it is so far from its box that a
        line should lead to it. Names cover one another, or a small object, only where no other place is within reach.
    """
    placed: list[tuple[Box, bool]] = []
    for box, size in zip(boxes, sizes, strict=True):
        found: tuple[float, Box, bool] | None = None
        for place, away in _places(box, size, picture):
            taken = sum(place.common(other) for other, _ in placed)
            taken += 0 if _is_large(box, size) else place.common(box)
            if found is None or taken < found[0]:
                found = taken, place, away
            if not taken:
                break
        assert found is not None, "every box has places"
        placed.append(found[1:])
    return placed


def _places(box: Box, size: tuple[float, float], picture: tuple[float, float]) -> Iterator[tuple[Box, bool]]:
    """Places for the name of a box, the best first, and whether they are away from it."""
    width, height = size
    inside = (box.left, box.top)
    beside = [(box.left, box.top - height), (box.left, box.bottom), (box.right, box.top), (box.left - width, box.top)]
    for x, y in [inside, *beside] if _is_large(box, size) else [*beside, inside]:
        yield _moved_inside(x, y, size, picture), False
    for step in range(1, 2 * REACH + 1):
        away = step * height / 2
        for x in (box.left, box.right + away, box.left - width - away):
            for y in (box.top - height - away, box.bottom + away):
                yield _moved_inside(x, y, size, picture), True


def _is_large(box: Box, size: tuple[float, float]) -> bool:
    """Whether the name of a box leaves most of it to be seen."""
    return size[0] * size[1] <= COVERED * box.area and size[0] <= box.right - box.left


def _moved_inside(left: float, top: float, size: tuple[float, float], picture: tuple[float, float]) -> Box:
    left, top = (max(0.0, min(at, room - own)) for at, own, room in zip((left, top), size, picture, strict=True))
    return Box(left, top, left + size[0], top + size[1])
