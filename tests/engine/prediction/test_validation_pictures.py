"""Pictures of predictions while a network is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backbones.errors import ConfigError
from engine.prediction import ValidationPicturesHook

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
SMALL = ["model.backbone.depths=(1,1,1,1)", "model.backbone.dims=(8,8,8,16)", "batch.size=8"]


@pytest.mark.parametrize(
    "config, data", [("classification/digits.py", "imagenet"), ("segmentation/upernet_digits.py", "ade")]
)
def test_each_validation_draws_the_same_images(config: str, data: str, tool: Any, digits: Path, tmp_path: Path) -> None:
    length = ["train_cfg.max_epochs=1", "param_scheduler.1.begin=0"]
    if data == "ade":
        length = ["train_cfg.max_iters=5", "train_cfg.val_interval=5", "param_scheduler.0.end=2"]
    options = [f"data_root={digits / data}", *SMALL, *length, "default_hooks.logger.interval=1"]
    options += [f"{split}_dataloader.num_workers=0" for split in ("train", "val")]
    hook = (
        f"_base_ = ['{CONFIGS / config}']\n_base_.custom_hooks.append(dict(type='ValidationPicturesHook', count=3))\n"
    )
    (tmp_path / "own.py").write_text(hook)
    folder = tmp_path / "run"
    ended = tool("train.py", tmp_path / "own.py", "--work-dir", folder, "--cfg-options", *options)
    assert ended.code == 0, ended.err
    assert len(list((folder / "pictures").glob("*.png"))) == 3
    assert json.loads((folder / "pictures/validation.json").read_text()) == {"step": 5}


@pytest.mark.parametrize("count", [0, -1, 2.5, "all"])
def test_a_count_that_is_none_is_named(count: Any) -> None:
    with pytest.raises(ConfigError, match=r"ValidationPicturesHook\.count"):
        ValidationPicturesHook(count)
