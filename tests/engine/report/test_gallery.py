"""Cards and tables that can be filtered, and the confusions beside them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from engine.report.confusion import confusion_section, count_confusions, top_confusions
from engine.report.gallery import SCRIPT, Card, gallery, sortable_table
from engine.report.html import document, picture
from tests.pages import Page
from tests.programs import PATIENCE

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ACT = """<script>
const choose = (by, value) => {
  const field = document.querySelector(`[data-by=${by}]`);
  field.value = value;
  field.dispatchEvent(new Event("input", {bubbles: true}));
};
%s
</script>"""


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
    counts = {"classes": list("abc"), "matrix": matrix.tolist()}
    assert top_confusions(counts) == [(1, 0, 4, 40.0), (0, 1, 1, 100 / 6)]
    assert top_confusions(counts, 1) == [(1, 0, 4, 40.0)]
    few = confusion_section(counts, "it said", "Pixels", percent=True)
    assert "<td" in few
    assert ">83<" in few  # percent of the row
    many = confusion_section(
        {"classes": [str(i) for i in range(40)], "matrix": np.eye(40, dtype=int).tolist()}, "x", "y"
    )
    assert "confusion" not in many.replace("confusions", "").replace("confused", "")
    assert "No class is confused with another." in many


def test_many_classes_take_no_matrix() -> None:
    true, said = np.array([5, 5, 5, 7, 21_840, 7]), np.array([5, 6, 6, 7, 0, 7])
    classes = [f"n{one:08d}" for one in range(21_841)]
    counts = count_confusions(classes, true, said)
    assert counts == {"classes": classes, "pairs": [[5, 6, 2], [7, 7, 2], [5, 5, 1], [21_840, 0, 1]]}
    assert top_confusions(counts) == [(5, 6, 2, 200 / 3), (21_840, 0, 1, 100.0)]
    assert {"n00000005", "n00000006", "66.7"} <= set(Page(confusion_section(counts, "it said", "Images")).lines)
    few = count_confusions(["a", "b"], np.array([0, 1, 1]), np.array([1, 1, 1]))
    assert few == {"classes": ["a", "b"], "matrix": [[0, 1], [0, 2]]}
    assert count_confusions(["a"], np.array([], int), np.array([], int))["matrix"] == [[0]]


def shown_in_browser(sections: str, actions: str, folder: Path) -> str:
    """The page's HTML after a browser has run its script and then what a reader does."""
    if BROWSER is None:
        pytest.skip("needs Chromium or Chrome")
    file = folder / "page.html"
    file.write_text(document("t", "", {"s": sections + SCRIPT + ACT % actions}), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'browser'}", "--dump-dom"]
    done = subprocess.run(
        [BROWSER, *options, file.as_uri()], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    return done.stdout


@pytest.mark.parametrize(
    ("actions", "seen"),
    [
        ("", ["1", "2", "3"]),
        ('choose("kind", "missed")', ["2", "1"]),
        ('choose("class", "dog")', ["1", "3"]),
        ('choose("text", "ALLEY")', ["3"]),
        ('choose("kind", "missed"); choose("class", "dog")', ["1"]),
        ('choose("kind", "missed"); choose("kind", "")', ["1", "2", "3"]),
    ],
)
def test_a_browser_filters_and_sorts_the_cards(actions: str, seen: list[str], tmp_path: Path) -> None:
    cards = [
        Card("<p>1</p>", "street", {"missed": 1}, ["cat", "dog"]),
        Card("<p>2</p>", "street", {"missed": 2}, ["cat"]),
        Card("<p>3</p>", "Alley", {"both": 1}, ["dog"]),
    ]
    page = shown_in_browser(gallery(cards), actions, tmp_path)
    found = re.findall(r'<div class="card"([^>]*)><p>(\d)</p>', page)
    assert [number for attributes, number in found if "hidden" not in attributes] == seen
    assert (f"{len(seen)} of 3 pictures" if actions else "3 pictures") in page


def test_a_long_name_stays_within_its_card(tmp_path: Path) -> None:
    card = f'<div class="gallery"><div class="card">{picture(b"", "0" * 60, "")}</div></div>'
    look = 'const words = document.querySelector("figcaption"); document.title = words.scrollWidth > words.clientWidth;'
    assert "<title>false</title>" in shown_in_browser(card, look, tmp_path)


def test_a_browser_sorts_the_rows_of_a_table(tmp_path: Path) -> None:
    table = sortable_table(["class", "AP"], [["a", "9.5"], ["b", "–"], ["c", "12.0"]], ["mean", "10.8"])
    for clicks, order in ((1, ["c", "a", "b", "mean"]), (2, ["a", "c", "b", "mean"])):
        page = shown_in_browser(table, 'document.querySelectorAll("th")[1].click();' * clicks, tmp_path)
        assert re.findall(r'<th scope="row">(\w+)</th>', page) == order
