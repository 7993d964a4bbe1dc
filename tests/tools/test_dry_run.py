"""``tools/train.py --dry-run`` and ``--per-gpu-batch``: what is announced without data is what a training announces."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DIGITS = CONFIGS / "classification/digits.py"
CASCADE = CONFIGS / "detection/cascade_mask_rcnn_convnext_tiny_coco_3x.py"
PLAN = re.compile(r"(?:^|INFO - )((?:batch|length|rate|precision|memory): .*)$", re.MULTILINE)


def announced(text: str) -> dict[str, str]:
    lines = PLAN.findall(text)
    assert len({line.partition(":")[0] for line in lines}) == len(lines) == 5
    return {line.partition(": ")[0]: line.partition(": ")[2] for line in lines}


def test_what_32_gpus_would_do_is_seen_without_any_and_without_data(tool: Any, tmp_path: Path) -> None:
    place = tmp_path / "run"
    options = ("--cfg-options", f"data_root={tmp_path / 'coco'}", "batch.size=64")
    ended = tool("train.py", CASCADE, "--dry-run", "--gpus", 32, "--work-dir", place, *options)
    assert (ended.code, ended.err) == (0, "")
    plan = announced(ended.out)
    assert plan["batch"] == "32 processes x 2 images x 1 accumulation = global batch 64"
    assert plan["length"].startswith("36 epochs of 1,832 steps = 65,952 steps")
    assert plan["precision"] == "mixed, float16 with scaled loss"
    assert f"work directory: {place}" in ended.out
    assert f"train data: {tmp_path / 'coco/train2017'} (ABSENT)" in ended.out
    assert "note: global batch 16 -> 64" in ended.out
    assert ended.out.splitlines()[-1].split()[0] == "total"
    assert list(tmp_path.iterdir()) == []


def test_the_same_is_announced_by_the_training(tool: Any, digits: Path, tmp_path: Path) -> None:
    length = ("train_cfg.max_epochs=1", "param_scheduler.1.begin=0", "batch.size=8", "train_dataloader.num_workers=0")
    options = ("--work-dir", tmp_path / "run", "--per-gpu-batch", 2)
    options = (*options, "--cfg-options", f"data_root={digits / 'imagenet'}", *length)
    dry = tool("train.py", DIGITS, "--dry-run", *options)
    assert dry.code == 0, dry.err
    assert "(ABSENT)" not in dry.out
    assert f"a page of what the network gets: python tools/browse.py {DIGITS}, with the same --cfg-options" in dry.out
    assert not (tmp_path / "run").exists()
    ended = tool("train.py", DIGITS, *options)
    assert ended.code == 0, ended.err
    before, after = announced(dry.out), announced(ended.out)
    assert after["batch"] == "1 process x 2 images x 4 accumulation = global batch 8"
    assert after["length"] == "1 epoch of 5 steps = 5 steps (40 images)"
    assert after["rate"].endswith("linear warm-up over 5 steps (1 epoch)")
    rates = re.compile(r"(?:^|INFO - )(rates: 5e-06 in the first step, \S+ at most, \S+ in the last)$", re.MULTILINE)
    assert rates.findall(dry.out) == rates.findall(ended.out) != []
    assert "WARNING" not in dry.out
    assert before == after


def test_without_a_check_of_the_data_its_number_of_images_is_not_known(tool: Any, digits: Path, tmp_path: Path) -> None:
    options = ("--dry-run", "--no-data-check", "--work-dir", tmp_path / "run")
    dry = tool("train.py", DIGITS, *options, "--cfg-options", f"data_root={digits / 'imagenet'}")
    assert dry.code == 0, dry.err
    assert announced(dry.out)["length"] == "5 epochs; steps per epoch are known when the data is read"
    assert re.search(r"^rates: \S+ in the first step, .* \(if an epoch has 100 steps\)$", dry.out, re.MULTILINE)


def test_a_schedule_that_does_not_end_with_the_training_is_a_warning(tool: Any, digits: Path, tmp_path: Path) -> None:
    options = ("--work-dir", tmp_path / "run", "--cfg-options", f"data_root={digits / 'imagenet'}", "batch.size=8")
    shorter = (*options, "train_cfg.max_epochs=2", "train_dataloader.num_workers=0")
    followed = tool("train.py", DIGITS, "--dry-run", *shorter)
    assert followed.code == 0, followed.err
    assert "WARNING" not in followed.out
    said = "param_scheduler.1: it falls until epoch 10, and the training ends at 2: leave T_max and end out"
    dry = tool("train.py", DIGITS, "--dry-run", *shorter, "param_scheduler.1.T_max=9")
    assert f"WARNING: {said}" in dry.out
    ended = tool("train.py", DIGITS, *shorter, "param_scheduler.1.T_max=9")
    assert ended.code == 0, ended.err
    assert f"WARNING - {said}" in ended.out


def test_of_several_processes_one_speaks(tool: Any) -> None:
    first, second = (tool("train.py", DIGITS, "--dry-run", RANK=rank, WORLD_SIZE="2") for rank in "01")
    assert (first.code, second.code) == (0, 0)
    assert "2 processes x 32 images x 1 accumulation" in first.out
    assert second.out == ""


@pytest.mark.parametrize(
    "arguments, needle",
    [
        (["--per-gpu-batch", "auto"], "auto measures a GPU's memory, and here is none: give a number"),
        (["--per-gpu-batch", "auto", "--dry-run"], "which a dry run does not: give a number"),
        (["--per-gpu-batch", "many"], "--per-gpu-batch 'many': a number of images, or auto"),
        (["--per-gpu-batch", "0"], "batch.per_gpu=0: positive numbers are needed"),
        (["--per-gpu-batch", "2", "--cfg-options", "batch.per_gpu=4"], "say the same: give one of them"),
        (["--dry-run", "--gpus", "0"], "--gpus 0: at least one is needed"),
        (["--dry-run", "--gpus", "3"], "global batch 64 does not divide among 3 processes"),
        (["--gpus", "2"], "--gpus is for --dry-run; tools/dist_train.sh CONFIG GPUS trains on several"),
    ],
    ids=" ".join,
)
def test_wrong_arguments(tool: Any, digits: Path, arguments: list[str], needle: str) -> None:
    data = [f"data_root={digits / 'imagenet'}"]
    given = arguments if "--cfg-options" in arguments else [*arguments, "--cfg-options"]
    ended = tool("train.py", DIGITS, *given, *data)
    assert ended.code == 2
    assert needle in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err
