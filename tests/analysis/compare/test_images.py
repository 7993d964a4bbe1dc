"""Which images one setting has right and another wrong."""

from __future__ import annotations

from analysis.compare.images import judge_pair
from engine.prediction.error_analysis import ImageScore


def test_images_are_right_with_all_seeds_or_wrong_with_all() -> None:
    good, fair, bad = ImageScore(90, True), ImageScore(70, False), ImageScore(10, False)
    first = [[good, good], [good, good], [bad, bad], [good, bad], [fair, fair], [good, good]]
    second = [[bad], [good], [good], [bad], [bad], [ImageScore(95, False)]]
    counts, images = judge_pair("A", "B", [2, 3, 5, 7, 8, 9], first, second)
    assert counts == {"both right": 1, "only A right": 2, "only B right": 1, "both wrong": 1, "seeds differ": 1}
    assert {one.index: one.kinds for one in images} == {
        2: {"only A right": 80},
        5: {"only B right": 80},
        7: {"A better": 40},
        8: {"A better": 60},
        9: {"only A right": 5},
    }
    counts, images = judge_pair("A", "C", [0], [[good]], [[good]])
    assert counts == {"both right": 1, "only A right": 0, "only C right": 0, "both wrong": 0}
    assert images == []
