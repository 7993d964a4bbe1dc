"""``tools/check_data.py`` as a person runs it, and the same check at the beginning of a training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TASKS = {
    "imagenet": (CONFIGS / "classification/digits.py", "train/zero"),
    "coco": (CONFIGS / "detection/mask_rcnn_digits.py", "train2017"),
    "ade": (CONFIGS / "segmentation/upernet_digits.py", "images/training"),
}


@pytest.mark.parametrize("task", TASKS)
def test_each_format(tool: Any, digits: Path, tmp_path: Path, task: str) -> None:
    config, folder = TASKS[task]
    options = ["--cfg-options", f"work_dir={tmp_path / 'work'}", f"data_root={digits / task}"]
    sound = tool("check_data.py", config, "--full", *options)
    assert (sound.code, sound.err) == (0, "")
    assert sound.out.splitlines()[-1].startswith("0 errors, ")
    shutil.copytree(digits / task, tmp_path / "data")
    image = next((tmp_path / "data" / folder).iterdir())
    image.write_bytes(image.read_bytes()[:-20])
    options[-1] = f"data_root={tmp_path / 'data'}"
    listed = tmp_path / "findings.json"
    damaged = tool("check_data.py", config, "--splits", "train", "--json", listed, *options)
    assert damaged.code == 1, damaged.err
    assert damaged.out.startswith(f"error (train): {image}: is cut off after")
    (item,) = (item for item in json.loads(listed.read_text())["findings"] if item["level"] == "error")
    assert (item["file"], item["split"]) == (str(image), "train")
    assert not (tmp_path / "work").exists()


def test_it_could_not_be_checked(tool: Any, digits: Path, tmp_path: Path) -> None:
    config = TASKS["imagenet"][0]
    absent = tool("check_data.py", config, "--cfg-options", f"data_root={tmp_path / 'none'}")
    assert (absent.code, absent.out) == (2, "")
    assert "does not exist" in absent.err
    (tmp_path / "file").touch()
    options = ["--json", tmp_path / "file/a.json", "--cfg-options", f"data_root={digits / 'imagenet'}"]
    assert "cannot be written" in tool("check_data.py", config, *options).err


def test_before_a_training(tool: Any, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits / "imagenet", tmp_path / "data")
    image = next((tmp_path / "data/val/zero").iterdir())
    image.write_bytes(b"")
    work = tmp_path / "work"
    arguments = ["train.py", TASKS["imagenet"][0], "--work-dir", work]
    options = ["--cfg-options", f"data_root={tmp_path / 'data'}", "batch.size=40", "train_cfg.max_epochs=2"]
    stopped = tool(*arguments, *options)
    assert stopped.code == 2
    (line,) = stopped.err.splitlines()
    assert line.startswith(f"error: {image}: is empty (0 bytes)")
    assert f"see {work / 'data_check.json'}; --no-data-check trains all the same" in line
    # The training goes on, up to the image that validation cannot do without; nothing is lost.
    anyhow = tool(*arguments, "--no-data-check", *options)
    assert anyhow.err.splitlines()[-1] == f"error: {image}: is empty (0 bytes)"
    assert (work / "epoch_1.pth").exists()


def test_a_damaged_training_image_is_replaced(tool: Any, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits / "imagenet", tmp_path / "data")
    image = next((tmp_path / "data/train/zero").iterdir())
    image.write_bytes(image.read_bytes()[:-20])
    work = tmp_path / "work"
    options = [f"data_root={tmp_path / 'data'}", "batch.size=40", "train_cfg.max_epochs=2"]
    done = tool("train.py", TASKS["imagenet"][0], "--work-dir", work, "--cfg-options", *options)
    assert done.code == 0, done.err
    log = next(work.glob("*/*.log")).read_text()
    assert log.count(f"{image} is cut off") == 1
    assert "another image takes its place (1 so far)" in log
    lines = (work / "replaced_images.jsonl").read_text().splitlines()
    assert {json.loads(line)["file"] for line in lines} == {str(image)}
