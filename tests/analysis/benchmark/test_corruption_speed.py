from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from analysis.benchmark import corruptions
from analysis.benchmark.corruptions import measure_corruptions
from analysis.benchmark.timing import MismatchError
from analysis.robustness.corruptions import corrupt
from backbones.errors import ConfigError, DataError, MachineError


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (8, 9, 3)).astype(np.uint8)
        Image.fromarray(noise).resize((90, 70)).save(tmp_path / f"{number}.png")
    return tmp_path


def another(change: int) -> SimpleNamespace:
    """A package whose images differ from ours by so many severities."""
    return SimpleNamespace(
        corrupt=lambda image, severity, corruption_name: corrupt(
            image, corruption_name, min(severity + change, 5), severity
        )
    )


def test_both_sides_are_timed_in_turns(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecorruptions", another(0))  # type: ignore[arg-type]
    monkeypatch.setattr(corruptions, "version", lambda name: "0")
    result = measure_corruptions(photographs, ["gaussian_noise", "fog"], 32, 2)
    assert (result.images, result.size) == (3, 32)
    assert [row["name"] for row in result.as_dict()["corruptions"]] == ["gaussian_noise", "fog"]
    assert all(len(side) == 2 for sides in result.seconds.values() for side in sides.values())
    assert "gaussian_noise" in result.as_text()
    monkeypatch.setitem(sys.modules, "imagecorruptions", another(2))  # type: ignore[arg-type]
    with pytest.raises(MismatchError, match="gaussian_noise changes an image by"):
        measure_corruptions(photographs, ["gaussian_noise"], 32, 1)


def test_errors(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)  # type: ignore[arg-type]
    with pytest.raises(MachineError, match="pip install imagecorruptions-imaug"):
        measure_corruptions(photographs, ["fog"], 32, 1)
    monkeypatch.setitem(sys.modules, "imagecorruptions", another(0))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="nearest: fog"):
        measure_corruptions(photographs, ["fogg"], 32, 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image in"):
        measure_corruptions(tmp_path / "empty", ["fog"], 32, 1)
