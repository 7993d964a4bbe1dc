"""Panels, titles and legends: their sizes follow the picture, and nothing is drawn over."""

from __future__ import annotations

import numpy as np
import pytest

from engine.report.lettering import text_size
from engine.report.overlay import name_inside, overlay_labels
from engine.report.panels import MAX_LEGEND_ROWS, PAPER, font_size, ink_on, join_panels


def panel(height: int, width: int, value: int = 9) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


@pytest.mark.parametrize("side", [600, 1200, 4800])
def test_text_has_the_same_size_against_the_picture(side: int) -> None:
    picture = join_panels({"a": panel(side, side), "b": panel(side, side)}, {"newt": (0, 200, 0)})
    assert font_size(side, side) == pytest.approx(side / 50)
    assert (picture.shape[0] - side) / side == pytest.approx(0.07, abs=0.01)


def test_one_panel_without_a_legend_is_the_picture() -> None:
    assert np.array_equal(join_panels({"a": panel(30, 40)}, {}), panel(30, 40))


def test_panels_stand_whole_between_titles_and_legend() -> None:
    picture = join_panels({"a": panel(300, 400, 1), "b": panel(300, 400, 2)}, {"newt": (0, 200, 0)})
    for value in (1, 2):
        assert ((picture == value).all(2)).sum() == 300 * 400
    assert ((picture == (0, 200, 0)).all(2)).any()


def test_a_long_legend_takes_several_rows_and_ends() -> None:
    few, many = ({f"class {i}": (i % 200, 0, 0) for i in range(count)} for count in (12, 900))
    low, high = (join_panels({"a": panel(300, 400)}, names) for names in (few, many))
    row = round(text_size("Ag", 11)[1] + 5.5)
    assert (low.shape[0] - 300) % row == 0
    assert 2 <= (low.shape[0] - 300) // row <= 4
    assert high.shape[0] - 300 == (MAX_LEGEND_ROWS + 1) * row, "one more says how many are left out"


def test_a_legend_name_that_is_longer_than_the_picture_does_not_widen_it() -> None:
    assert join_panels({"a": panel(300, 100)}, {"a" * 90: (0, 200, 0)}).shape[1] == 100


@pytest.mark.parametrize(("colour", "ink"), [((255, 255, 0), 0), ((0, 0, 255), 255), (PAPER, 0), ((0, 0, 0), 255)])
def test_ink_can_be_read(colour: tuple[int, int, int], ink: int) -> None:
    assert ink_on(colour) == (ink, ink, ink)


def test_a_name_is_inside_of_its_segment_or_nowhere() -> None:
    mask = np.zeros((200, 300), bool)
    mask[20:100, 30:180] = True
    found = name_inside(mask, "newt", 12, (0, 0, 0))
    assert found is not None
    width, height = text_size("newt", 12)
    left, top = found.x - width / 2, found.y
    assert mask[int(top) : int(top + height) + 1, int(left) : int(left + width) + 1].all()
    assert name_inside(mask, "newt " * 20, 12, (0, 0, 0)) is None, "too long"
    mask[::8] = False
    assert name_inside(mask, "newt", 12, (0, 0, 0)) is None, "large, but in stripes"


def test_labels_that_are_no_class_leave_the_image() -> None:
    drawn = overlay_labels(panel(2, 3), np.array([[0, 1, 2], [255, -1, 1]]), [(200, 0, 0), (0, 200, 0)])
    assert (drawn[0, 0] > drawn[0, 1]).tolist() == [True, False, False]
    for place in ((0, 2), (1, 0), (1, 1)):
        assert (drawn[place] == 9).all()
