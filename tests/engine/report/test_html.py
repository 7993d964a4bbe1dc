"""Pages that can be sent around: folders of the machine are left out, a click enlarges a picture."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from PIL import Image

from engine.report.html import document, figure, note, shaded_table, without_folders
from tests.pages import Page


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("HERE/work_dirs/run/epoch_1.pth", "work_dirs/run/epoch_1.pth"),
        ("data_root=HOME/coco, then", "data_root=~/coco, then"),
        ("python tools/train.py a.py --work-dir /srv/disks/7/runs/b", "python tools/train.py a.py --work-dir …/runs/b"),
        ("'/scratch/a.jpg' cannot be read", "'…/a.jpg' cannot be read"),
        ("/other HERE/a", "/other a"),
        ("USERS/alice/a.pth MACS/bob/x/y/z USERS/carol", "…/a.pth …/y/z …"),
        ("/otherHERE/a/b", "…/a/b"),
        ("https://host/a/b.pth s3://bucket/c/d.tar", "https://host/a/b.pth s3://bucket/c/d.tar"),
        ("3 img/s, train/loss, and/or, 1/2, ../up/there", "3 img/s, train/loss, and/or, 1/2, ../up/there"),
    ],
)
def test_folders_of_the_machine_are_left_out(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "cwd", lambda: Path("/srv/someone/checkout"))
    monkeypatch.setattr(Path, "home", lambda: Path("/users/someone"))
    given = text.replace("HERE", "/srv/someone/checkout").replace("HOME", "/users/someone")
    given = given.replace("USERS", "/" + "home").replace("MACS", "/" + "Users")
    assert without_folders(given) == shown
    page = Page(document(given, note(given), {given: note(given)}))
    assert page.words.count(shown) >= 4
    assert "someone" not in page.words


def test_a_name_that_is_no_text_can_be_written(tmp_path: Path) -> None:
    page = document(os.fsdecode(b"a\xff"), "", {"x": note("é \N{GRINNING FACE}")})
    (tmp_path / "a.html").write_text(page, encoding="utf-8")
    assert "<h1>a\\udcff</h1>" in page
    assert "é \N{GRINNING FACE}" in page


def test_pictures_and_style_stay_as_they_are(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 90).save(tmp_path / "a.png")
    shown = figure(tmp_path / "a.png", "/srv/data/a.png")
    page = document("x", "", {"pictures": shown})
    assert shown.replace("/srv/data/a.png", "…/data/a.png") in page


def test_a_picture_can_be_enlarged_without_a_script(tmp_path: Path) -> None:
    Image.new("RGB", (64, 32)).save(tmp_path / "a.png")
    page = Page(document("x", "", {"pictures": figure(tmp_path / "a.png", "a")}))
    assert page.tags.count("input") == page.tags.count("label") == 1
    assert "script" not in page.tags
    assert ".zoom input:checked+img{position:fixed" in page.text


def test_the_largest_number_of_a_grid_is_shaded_most() -> None:
    text = shaded_table([[1.0, None], [3.0, 2.0]])
    Page(text)
    cells = re.findall(r"var\(--trained\) (\d+)%, transparent\)\">(.*?)</td>", text)
    assert cells == [("0", "1.000"), ("0", "–"), ("60", "3.000"), ("30", "2.000")]
