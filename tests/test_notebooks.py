"""The notebooks of docs/notebooks/: their cells run as they stand, with another checkpoint and image."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from mmengine.registry import DefaultScope
from PIL import Image

from tests.engine.prediction.test_predictor import SMALL
from tests.tools.test_submission import random_checkpoint

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = {"classification": "classifier", "detection": "detector", "segmentation": "segmentor"}
CONFIG = re.compile(r'config = "(.*)"')


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_there_is_one_for_each_task() -> None:
    assert sorted(path.stem for path in (ROOT / "docs/notebooks").iterdir()) == sorted(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_its_cells_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    parameters, *cells = code_cells(ROOT / f"docs/notebooks/{name}.ipynb")
    assert parameters["metadata"]["tags"] == ["parameters"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells), "outputs are not committed"
    config = CONFIG.search("".join(parameters["source"]))
    assert config is not None
    checkpoint = random_checkpoint(NOTEBOOKS[name], tmp_path)
    Image.radial_gradient("L").resize((160, 120)).convert("RGB").save(tmp_path / "image.png")
    given = {"config": str(ROOT / config[1]), "checkpoint": str(checkpoint), "image": str(tmp_path / "image.png")}
    names: dict[str, Any] = {**given, "options": (*SMALL, f"work_dir={tmp_path}")}
    monkeypatch.chdir(tmp_path)
    before = dict(DefaultScope._instance_dict)
    try:
        for cell in cells:
            exec(compile("".join(cell["source"]), f"{name}.ipynb", "exec"), names)
    finally:
        DefaultScope._instance_dict.clear()
        DefaultScope._instance_dict.update(before)
    assert (tmp_path / "prediction.png").stat().st_size
    assert len(capsys.readouterr().out.splitlines()) >= 2
