"""What long work says on its way."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from analysis.explain.network import with_progress


def test_images_are_counted_in_a_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    images = [Path(f"{number}.png") for number in range(30)]
    assert list(with_progress(images, "embeddings")) == images
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["embeddings: image 1 of 30", "embeddings: image 4 of 30"]
    assert len(lines) == 10
    list(with_progress(images[:2], "feature maps"))
    assert capsys.readouterr().out.splitlines() == ["feature maps: image 1 of 2", "feature maps: image 2 of 2"]


def test_a_terminal_has_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    list(with_progress([Path("a.png")], "embeddings"))
    assert "embeddings: 100%" in terminal.getvalue()
    assert capsys.readouterr().out == ""
