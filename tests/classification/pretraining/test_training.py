"""Ways to run a masked pre-training that compute the same: processes, shards, accumulation, compiled, recomputed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from backbones.weights import read_checkpoint

CONFIG = Path(__file__).resolve().parents[3] / "configs/pretraining/fcmae_digits.py"
SETTINGS = """
_base_ = {base!r}
data_root = {data!r}
model = dict(backbone=dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)), decoder_dim=16)
train_dataloader = dict(num_workers=0)
val_dataloader = dict(num_workers=0)
batch = dict(size=8, per_gpu=8)
optim_wrapper = dict(optimizer=dict(_delete_=True, type="SGD", lr=0.1, momentum=0.9, weight_decay=0.05))
train_cfg = dict(max_epochs=2)
default_hooks = dict(logger=dict(interval=1))
"""


@pytest.fixture(scope="module")
def config(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.py"
    path.write_text(SETTINGS.format(base=str(CONFIG), data=str(digits / "imagenet")), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def alone(tool: Any, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work directory of the training by one process, without anything below."""
    folder = tmp_path_factory.mktemp("alone")
    ended = tool("train.py", config, "--work-dir", folder)
    assert ended.code == 0, ended.err
    return folder


def logged(folder: Path, name: str) -> list[float]:
    (path,) = folder.glob("*/vis_data/scalars.json")
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return [entry[name] for entry in entries if name in entry]


def assert_same_training(folder: Path, alone: Path) -> None:
    for name, count in (("loss", 10), ("reconstruction_loss", 2)):
        assert len(logged(folder, name)) == count
        assert logged(folder, name) == pytest.approx(logged(alone, name), rel=1e-5)
    ours, theirs = (read_checkpoint(str(place / "epoch_2.pth"))["state_dict"] for place in (folder, alone))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert sorted(one.name for one in (folder / "pictures").iterdir()) == sorted(
        one.name for one in (alone / "pictures").iterdir()
    )


@pytest.mark.parametrize(
    "line",
    [
        "batch['per_gpu'] = 2",
        "model['form'] = 'dense'",
        "env_cfg = dict(compile=dict(backend='aot_eager'))",
        "model['backbone']['grad_checkpointing'] = True",
    ],
    ids=["accumulation", "dense", "compiled", "recomputed"],
)
def test_one_process(tool: Any, config: Path, alone: Path, tmp_path: Path, line: str) -> None:
    other = tmp_path / "other.py"
    other.write_text(config.read_text() + line + "\n", encoding="utf-8")
    ended = tool("train.py", other, "--work-dir", tmp_path / "run", "--no-data-check")
    assert ended.code == 0, ended.err
    assert ("compiled in the first steps: backbone" in ended.out) == ("compile" in line)
    assert_same_training(tmp_path / "run", alone)


@pytest.mark.parametrize(
    ("options", "plan"),
    [
        ([], "2 processes x 4 images x 1 accumulation"),
        (["env_cfg.sharded=True", "batch.per_gpu=2"], "2 processes x 2 images x 2 accumulation"),
    ],
    ids=["replicated", "sharded"],
)
def test_two_processes(program: Any, config: Path, alone: Path, tmp_path: Path, options: list[str], plan: str) -> None:
    more = ["--cfg-options", *options] if options else []
    ended = program("dist_train.sh", config, 2, "--work-dir", tmp_path, *more)
    assert ended.code == 0, ended.err
    assert plan in ended.out
    assert ("sharded over 2 processes" in ended.out) == ("env_cfg.sharded=True" in options)
    assert not re.search("unused|did not receive grad", ended.out + ended.err)
    assert_same_training(tmp_path, alone)


@pytest.mark.parametrize("averaged", [False, True], ids=["raw", "averaged"])
def test_mixed_precision(tool: Any, config: Path, alone: Path, tmp_path: Path, averaged: bool) -> None:
    options = ["optim_wrapper.type=AmpOptimWrapper", "optim_wrapper.dtype=bfloat16", "batch.per_gpu=2"]
    options += ["custom_hooks.1.type=ModelEMAHook", "custom_hooks.1.decay=0.5"] if averaged else []
    ended = tool("train.py", config, "--work-dir", tmp_path, "--cfg-options", *options)
    assert ended.code == 0, ended.err
    assert logged(tmp_path, "loss") == pytest.approx(logged(alone, "loss"), rel=2e-2)
    checkpoint = read_checkpoint(str(tmp_path / "epoch_2.pth"))
    assert ("ema_state_dict" in checkpoint) == averaged
    for name, value in checkpoint["state_dict"].items():
        assert value.dtype == torch.float32, name
        assert value.isfinite().all(), name
