"""Which images with errors the page shows."""

from __future__ import annotations

from analysis.errors.page import images_to_show
from engine.prediction.error_analysis import ImageErrors


def test_the_worst_of_each_kind_and_of_all_are_chosen() -> None:
    images = [
        ImageErrors(0, {"a": 9}, ""),
        ImageErrors(1, {"a": 8}, ""),
        ImageErrors(2, {"b": 1}, ""),
        ImageErrors(3, {"b": 2, "a": 1}, ""),
    ]
    assert [one.index for one in images_to_show(images, 1)] == [0, 3]
    assert [one.index for one in images_to_show(images, 2)] == [0, 1, 3, 2]
    assert [one.index for one in images_to_show(images, None)] == [0, 1, 3, 2]
    assert images_to_show([], 1) == []
