"""Boundary IoU of regions whose contours can be counted by hand."""

from __future__ import annotations

import numpy as np

from segmentation.boundary import boundary, boundary_areas, boundary_distance, near_edges


def square(side: int, size: int = 40, at: int = 10) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[at : at + side, at : at + side] = True
    return mask


def test_the_boundary_of_a_square_is_a_frame() -> None:
    nothing = np.zeros((40, 40), bool)
    assert boundary(square(10), nothing, 1).sum() == 10**2 - 8**2
    assert boundary(square(10), nothing, 2).sum() == 10**2 - 6**2
    assert boundary(square(10), nothing, 5).sum() == 10**2
    # The border of the image is a contour.
    assert boundary(np.ones((40, 40), bool), nothing, 1).sum() == 40**2 - 38**2


def test_there_is_no_contour_towards_what_has_no_label() -> None:
    beside = np.zeros((40, 40), bool)
    beside[10:20, 20:30] = True
    left, without = boundary(square(10), beside, 1), boundary(square(10), ~beside & beside, 1)
    assert without.sum() - left.sum() == 8  # the right edge without its corners


def test_the_distance_is_2_percent_of_the_diagonal() -> None:
    assert boundary_distance(300, 400) == 10
    assert boundary_distance(3, 4) == 1


def test_areas_of_each_class() -> None:
    truth, predicted = square(10).astype(int), square(10, at=11).astype(int)
    # Frames of one pixel of two squares, one beside the other along the diagonal: they share two pixels... and corners.
    frames = [boundary(one.astype(bool), np.zeros((40, 40), bool), 1) for one in (truth, predicted)]
    areas = boundary_areas(truth, predicted, 3, 255)
    assert areas[:, 1].tolist() == [(frames[0] & frames[1]).sum(), (frames[0] | frames[1]).sum()] == [2, 70]
    assert areas[:, 2].tolist() == [0, 0]
    assert (boundary_areas(truth, truth, 3, 255)[0] == boundary_areas(truth, truth, 3, 255)[1]).all()
    assert not boundary_areas(np.full((40, 40), 255), predicted, 3, 255).any()


def test_pixels_near_edges() -> None:
    labels = np.zeros((20, 20), int)
    labels[:, 10:] = 1
    assert near_edges(labels, 2)[5].tolist() == [8 <= column < 12 for column in range(20)]
