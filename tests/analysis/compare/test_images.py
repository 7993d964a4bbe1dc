"""Which images one setting has right and another wrong."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from analysis.compare.images import judge_pair, stale_predictions
from engine.checkpoint.store import content_mark
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


def test_predictions_of_another_checkpoint_are_named(tmp_path: Path) -> None:
    marks = {}
    for name, value in (("best_top1.pth", 1.0), ("epoch_2.pth", 2.0), ("epoch_1.pth", 3.0)):
        torch.save({"weight": torch.full((2,), value)}, tmp_path / name)
        marks[name] = content_mark(tmp_path / name)
    assert len(set(marks.values())) == 3
    (tmp_path / "last_checkpoint").write_text("/elsewhere/epoch_2.pth")
    run: Any = SimpleNamespace(folder=tmp_path, name="mine", config_file=Path("c.py"))
    assert stale_predictions(run, "best_top1.pth", marks["best_top1.pth"]) == []
    assert stale_predictions(run, "a_copy.pth", marks["epoch_2.pth"]) == []
    for name, mark, words in (
        ("epoch_1.pth", marks["epoch_1.pth"], "are of epoch_1.pth"),
        ("best_top1.pth", "0123", "are of an earlier best_top1.pth"),
        ("", "", "do not name their checkpoint"),
    ):
        (line,) = stale_predictions(run, name, mark)
        now = "and the training has best_top1.pth and epoch_2.pth now: python tools/test.py c.py "
        assert line.startswith(f"the saved predictions of mine {words}, {now}")
    (tmp_path / "no_zip.pth").write_text("no")
    assert content_mark(tmp_path / "no_zip.pth") == content_mark(tmp_path / "absent.pth") == ""
