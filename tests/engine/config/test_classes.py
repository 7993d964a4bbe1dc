"""The ``classes`` setting."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

import classification  # noqa: F401  (the packages register their sets of classes)
import detection  # noqa: F401
import segmentation  # noqa: F401
from backbones import UserError
from engine.config.classes import class_names, palette


@pytest.mark.parametrize(
    "name, count, first, last",
    [
        ("imagenet-1k", 1000, "n01440764", "n15075141"),
        ("imagenet-22k", 21841, "n00004475", None),
        ("coco", 80, "person", "toothbrush"),
        ("ade20k", 150, "wall", "flag"),
    ],
)
def test_known_sets(name: str, count: int, first: str, last: str | None) -> None:
    names = class_names(name)
    assert len(names) == len(set(names)) == count
    assert names[0] == first
    assert last is None or names[-1] == last


def test_names_keep_their_order() -> None:
    assert class_names(["b", "a"]) == ("b", "a")
    assert class_names(("one",)) == ("one",)


def test_numbers_are_taken_as_text(tmp_path: Path) -> None:
    assert class_names([1, 2, 10]) == class_names(("1", "2", "10")) == ("1", "2", "10")
    path = tmp_path / "config.yaml"
    path.write_text("classes: [0, 10, -1, zero]\n")
    assert class_names(Config.fromfile(path).classes) == ("0", "10", "-1", "zero")
    names = tmp_path / "names.txt"
    names.write_text("01\n2\n")
    assert class_names(str(names)) == ("01", "2")


def test_a_file_has_one_name_per_line(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("Käse\r\nnew york\n\n", encoding="utf-8")
    assert class_names(str(path)) == ("Käse", "new york")
    path.write_text("\n\n", encoding="utf-8")
    with pytest.raises(UserError, match="at least one name"):
        class_names(str(path))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ([], "at least one name"),
        (["a", ""], "not empty"),
        (["a", 3.5], "3.5 is neither text nor a whole number: write the name in quotes"),
        (["no", True], "True is neither text nor a whole number"),
        ([3, "3"], "'3' stands twice"),
        (10, "classes=10: names in order are needed, not their number"),
        (["a", "b", "b"], "'b' stands twice"),
        (
            "cocoo",
            "classes='cocoo' is neither a file.*ade20k, coco, coco-panoptic, coco-stuff, imagenet-1k, .*",
        ),
    ],
)
def test_wrong_classes(wrong: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        class_names(wrong)


@pytest.mark.parametrize("count", [1, 10, 81, 150])
def test_colours_are_distinct_bytes(count: int) -> None:
    colours = palette(["background", *(f"class {i}" for i in range(count - 1))])
    assert colours[0] == (64, 64, 64)
    assert len(set(colours)) == len(colours) == count
    assert all(len(colour) == 3 and all(0 <= c <= 255 for c in colour) for colour in colours)
