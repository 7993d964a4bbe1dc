"""tools/data_speed.py from the command line: what it prints and writes, and its exit codes."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis.benchmark import loading as loading_speed
from analysis.benchmark.networks import MismatchError

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "configs/classification/digits.py"


@pytest.mark.parametrize("workers", [0, 1])
def test_digits(tool: Any, digits: Path, tmp_path: Path, workers: int) -> None:
    written = tmp_path / "data.json"
    options = ["--cfg-options", f"data_root={digits / 'imagenet'}", f"work_dir={tmp_path / 'work'}"]
    arguments = ["--peer", "timm", "--rounds", "2", "--workers", str(workers), "--json", str(written)]
    ended = tool("data_speed.py", CONFIG, *arguments, *options)
    assert ended.code == 0, ended.err
    assert "ours is x faster" in ended.out
    found = json.loads(written.read_text())
    assert [len(side["seconds"]) for side in found["sides"]] == [2, 2]
    assert {side["name"] for side in found["sides"]} == {"ours", "timm"}
    assert found["workers"] == workers
    assert found["difference"] < loading_speed.ALIKE
    assert not (tmp_path / "work").exists()


def test_what_cannot_be_measured_is_one_line(tool: Any, digits: Path) -> None:
    options = ["--cfg-options", f"data_root={digits / 'coco'}"]
    ended = tool("data_speed.py", "configs/detection/mask_rcnn_digits.py", *options)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: train_pipeline: one ClassificationTransform")


def test_a_mismatch_has_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], digits: Path
) -> None:
    def differ(*args: Any) -> Any:
        raise MismatchError("our images differ")

    monkeypatch.setattr(loading_speed, "measure", differ)
    root = f"data_root={digits / 'imagenet'}"
    monkeypatch.setattr(sys, "argv", ["data_speed.py", str(ROOT / CONFIG), "--cfg-options", root])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "tools/data_speed.py"), run_name="__main__")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: our images differ\n"
