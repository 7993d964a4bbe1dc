"""A sharded run by the launcher: it takes over from one process, and one process tests and takes over from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from backbones.weights import read_checkpoint

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# Nothing random but the initial weights and the order of the images, which one seed decides for all processes.
CONFIG = """
_base_ = {base!r}
data_root = {data!r}
model = dict(
    backbone=dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), drop_path_rate=0.0),
    data_preprocessor=dict(mixup=0.0, erasing=0.0),
)
train_pipeline = [dict(type="ClassificationTransform", size=48, crop_ratio=1.0)]
train_dataloader = dict(num_workers=0)
val_dataloader = dict(num_workers=0)
batch = dict(size=8, per_gpu=8)
optim_wrapper = dict(optimizer=dict(lr=0.01), clip_grad=dict(max_norm=1.0))
train_cfg = dict(max_epochs=3)
# Of a length of its own: one that follows the training would differ in the run that is moved after 2 of 3 epochs.
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, end=1, by_epoch=True, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=1, T_max=2, eta_min=1e-6, by_epoch=True, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(max_keep_ckpts=3))
env_cfg = dict(sharded=True)
"""


def tensors(folder: Path, epoch: int, key: str) -> dict[str, torch.Tensor]:
    return dict(read_checkpoint(str(folder / f"epoch_{epoch}.pth"))[key])


def test_a_run_moves_between_one_process_and_a_sharded_two(
    program: Any, tool: Any, digits: Path, tmp_path: Path
) -> None:
    config, alone, moved = tmp_path / "plain.py", tmp_path / "alone", tmp_path / "moved"
    base = str(CONFIGS / "classification/digits.py")
    config.write_text(CONFIG.format(base=base, data=str(digits / "imagenet")), encoding="utf-8")
    ended = tool("train.py", config, "--work-dir", alone)
    assert ended.code == 0, ended.err
    assert "env_cfg.sharded: there is one process, the model stays whole" in ended.out

    moved.mkdir()
    shutil.copy(alone / "epoch_1.pth", moved)
    (moved / "last_checkpoint").write_text(str(moved / "epoch_1.pth"))
    options = ("--cfg-options", "train_cfg.max_epochs=2", "batch.per_gpu=2")
    ended = program("dist_train.sh", config, 2, "--work-dir", moved, "--resume", *options)
    assert ended.code == 0, ended.err
    assert "sharded over 2 processes" in ended.out
    assert "2 processes x 2 images x 2 accumulation = global batch 8" in ended.out
    ended = tool("test.py", config, moved / "epoch_2.pth", "--work-dir", tmp_path / "test", "--ema")
    assert ended.code == 0, ended.err
    score = json.loads((tmp_path / "test/test_ema.json").read_text())["metrics"]
    assert 0 <= score["top1"] <= 100
    ended = tool("train.py", config, "--work-dir", moved, "--resume")
    assert ended.code == 0, ended.err

    for epoch in (2, 3):
        for key in ("state_dict", "ema_state_dict"):
            ours, theirs = tensors(moved, epoch, key), tensors(alone, epoch, key)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)  # 1.2e-7 was seen
            stepped = tensors(alone, epoch - 1, key)
            assert all(float((theirs[name] - value).abs().max()) > 5e-4 for name, value in stepped.items())
