"""Text in pictures: every script that a font has, and words in place of what no font has."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from engine.report import lettering
from engine.report.lettering import DRAWN_NAMES, Lettering, drawn_names, letter, name_legend, write_drawn_names

ANY_SIGN = str(Path(matplotlib.get_data_path()) / "fonts/ttf/LastResortHE-Regular.ttf")


@pytest.fixture(autouse=True)
def _no_system_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fonts the machine has, the tests have matplotlib's alone."""
    monkeypatch.setattr(lettering, "_system_fonts", lambda: ())
    lettering._font_of.cache_clear()


def ink(text: str) -> np.ndarray:
    """Which pixels a text covers."""
    canvas = np.zeros((40, 300, 3), np.uint8)
    return letter(canvas, [Lettering(text, 4, 4, 24, (255, 255, 255))]).any(axis=2)


@pytest.mark.parametrize("name", ["cat", "Käse", "кошка", "Ελλάδα", "קטה", "قطة سوداء", "😀", "♥ of $x$", "a & <b>"])
def test_what_the_bundled_font_has_is_drawn_as_it_is(name: str) -> None:
    assert drawn_names([name]) == (name,)
    missing = ink("\U0010fffd" * len(name))  # no character: the font's empty box
    drawn = ink(name)
    assert drawn.sum() > 20
    assert not np.array_equal(drawn, missing)


@pytest.mark.parametrize(
    "name, drawn",
    [
        ("红绿灯", "class 1"),
        ("日本 cat", "class 1"),
        ("कुत्ता", "class 1"),
        ("고양이", "goyangi"),
        ("ねこ", "neko"),
        ("ＡＢＣ", "ABC"),
        ("🐶", "[dog face]"),
        ("🐶‍\ufe0f x", "[dog face] x"),
        ("🇩🇪", "de"),
        ("two\nlines\t", "two lines"),
        ("\u200b", "class 1"),
    ],
)
def test_what_no_font_has_is_written_in_other_signs(name: str, drawn: str) -> None:
    assert drawn_names(["a", name]) == ("a", drawn)


def test_no_two_classes_have_one_name() -> None:
    names = ("neko", "ねこ", "ネコ", "class 3", "猫", "犬")
    drawn = drawn_names(names)
    assert drawn == ("neko", "neko (1)", "neko (2)", "class 3", "class 4", "class 5")
    assert drawn_names(("class 1", "猫")) == ("class 1", "class 1 (1)")


def test_a_font_of_the_system_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "_system_fonts", lambda: (ANY_SIGN,))
    lettering._font_of.cache_clear()
    assert drawn_names(["红绿灯", "cat"]) == ("红绿灯", "cat")
    assert [run for _, run in lettering._runs("cat 猫 1")] == ["cat ", "猫", " 1"]
    assert ink("红").sum() > 20
    lettering._font_of.cache_clear()


def test_without_a_layout_engine_arabic_is_not_drawn_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "HAS_LAYOUT", False)
    assert drawn_names(["قطة", "cat", "кошка"]) == ("class 0", "cat", "кошка")
    assert ink("cat").any()


def test_letters_of_arabic_are_joined_and_a_number_before_them_stays_there() -> None:
    joined, apart = ink("بيت"), ink("ب ي ت")
    assert joined.any(axis=0).sum() < apart.any(axis=0).sum()
    number = ink("1").any(axis=0)
    assert np.flatnonzero(ink("1 بيت").any(axis=0))[0] == np.flatnonzero(number)[0]


def test_a_text_stays_inside_of_the_picture() -> None:
    canvas = np.zeros((40, 120, 3), np.uint8)
    for x, y in ((200, 100), (-50, -50), (119, 39)):
        drawn = letter(canvas, [Lettering("cat", x, y, 16, (9, 9, 9), background=(255, 0, 0))])
        assert (drawn[..., 0] == 255).sum() > 200
        assert drawn.shape == canvas.shape
    assert not canvas.any()
    assert letter(np.zeros((3, 3, 3), np.uint8), [Lettering("a long name", 0, 0, 30, (9, 9, 9))]).shape == (3, 3, 3)
    assert letter(canvas, [Lettering("", 0, 0, 16, (9, 9, 9))]).sum() == 0


def test_a_folder_of_pictures_says_which_names_stand_for_which_classes(tmp_path: Path) -> None:
    line = write_drawn_names(("猫", "cat", "🐶"), tmp_path)
    assert line is not None
    assert "'class 0' is '猫', '[dog face]' is '🐶'" in line
    assert json.loads((tmp_path / DRAWN_NAMES).read_text(encoding="utf-8")) == {"class 0": "猫", "[dog face]": "🐶"}
    assert write_drawn_names(("cat", "кошка"), tmp_path) is None
    assert not list(tmp_path.iterdir())
    assert "'a' is 'b' and 2 more" in name_legend({"a": "b", "c": "d", "e": "f"}, 1)
