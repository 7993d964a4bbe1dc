"""Which images with errors the page shows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config

from analysis.errors import page
from analysis.errors.page import draw_worst_images, images_to_show, write_error_page
from engine.prediction.error_analysis import AnalysisRequest, ErrorAnalysis, ErrorFindings, ImageErrors


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


class NoisyErrors(ErrorAnalysis):
    """Draws pictures that no format makes small."""

    def add(self, index: int, sample: Any) -> None:
        pass

    def findings(self) -> ErrorFindings:
        return ErrorFindings({}, {}, [ImageErrors(index, {"a": 100 - index}, str(index)) for index in range(60)])

    def draw(self, image: np.ndarray, scale: tuple[float, float], sample: Any) -> np.ndarray:
        return np.random.default_rng(sample["index"]).integers(0, 255, (360, 480, 3), np.uint8)


def test_a_page_can_be_mailed_unless_all_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MAX_PICTURE_BYTES", 2_000_000)
    monkeypatch.setattr(page, "read_picture", lambda *_: np.zeros((36, 48, 3), np.uint8))
    analysis = NoisyErrors(AnalysisRequest(Config({}), {"classes": ["a"]}))
    findings = analysis.findings()
    images: Any = [{"img_path": "picture.png", "index": index} for index in range(60)]
    task: Any = SimpleNamespace(name="made up", main_metric="AP", scores=())
    about = {"source": "w.pth", "averaged": False, "tta": False, "command": "analyze"}
    sizes = {}
    for full in (False, True):
        drawn = draw_worst_images(Config({}), images, analysis, findings, full)
        assert drawn.left_out == 60 - len(drawn.cards)
        assert [card.text.split(": ")[1] for card in drawn.cards] == [str(index) for index in range(len(drawn.cards))]
        written = write_error_page(tmp_path, task, about, {}, findings, drawn)
        sizes[full] = written.path.stat().st_size
        assert written.left_out == drawn.left_out
    assert 1_000_000 < sizes[False] < 2_100_000 < sizes[True]
    assert len(drawn.cards) == 60
