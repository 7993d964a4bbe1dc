"""Cards and tables that can be filtered, and the confusions beside them."""

from __future__ import annotations

import numpy as np

from engine.report.confusion import confusion_section, top_confusions
from engine.report.gallery import SCRIPT, Card, gallery, sortable_table
from engine.report.html import document
from tests.pages import Page


def test_a_gallery_offers_what_there_is_to_choose() -> None:
    cards = [Card("<p>1</p>", "Größe <b>", {"missed": 2}, ["cat", "dog"]), Card("<p>2</p>", "b", {"both": 1}, ["cat"])]
    page = Page(document("t", "", {"s": gallery(cards) + SCRIPT}))
    assert page.lines.count("all") == 2
    assert {"missed", "both", "cat", "dog", "2 pictures"} <= set(page.lines)
    one_kind = Page(document("t", "", {"s": gallery(cards[:1])}))
    assert "missed" not in one_kind.lines
    assert gallery([]) == ""


def test_a_long_table_has_a_search() -> None:
    assert "<input" not in sortable_table(["a"], [["1"]])
    assert "<input" in sortable_table(["a"], [[str(row)] for row in range(12)])


def test_confusions_are_listed_by_their_number() -> None:
    matrix = np.array([[5, 1, 0], [4, 6, 0], [0, 0, 9]])
    assert top_confusions(matrix) == [(1, 0, 4, 40.0), (0, 1, 1, 100 / 6)]
    assert top_confusions(matrix, 1) == [(1, 0, 4, 40.0)]
    few = confusion_section({"classes": list("abc"), "matrix": matrix.tolist()}, "it said", "Pixels", percent=True)
    assert "<td" in few
    assert ">83<" in few  # percent of the row
    many = confusion_section(
        {"classes": [str(i) for i in range(40)], "matrix": np.eye(40, dtype=int).tolist()}, "x", "y"
    )
    assert "confusion" not in many.replace("confusions", "").replace("confused", "")
    assert "No class is confused with another." in many
