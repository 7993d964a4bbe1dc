"""Trainings of detectors and segmentors log the loss on held-out data, and are the same as without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tools.test_exact_resume import CONFIGS, TASKS, assert_same, final

SMALL = ("model.backbone.depths=(1,1,1,1)", "model.backbone.dims=(8,8,16,16)")
FEW = (  # proposals
    "model.train_cfg.rpn_proposal.max_per_img=50",
    "model.train_cfg.rcnn.sampler.num=32",
    "model.test_cfg.rpn.max_per_img=50",
    "model.test_cfg.rcnn.max_per_img=5",
)
OPTIONS = {
    "detector": (*SMALL, *FEW, "batch.size=8", "val_dataloader.batch_size=2"),  # two epochs, a step each
    "panoptic": ("train_cfg.max_epochs=2", "batch.size=4", "batch.per_gpu=4"),
    "segmentor": (*SMALL, "train_cfg.max_iters=4", "train_cfg.val_interval=2"),
}
AVERAGES = 'custom_hooks = [dict(type="ModelEMAHook", decay=0.9)]\n'
STATE = ("state_dict", "ema_state_dict", "optimizer", "param_schedulers", "resume")


@pytest.mark.parametrize("task", OPTIONS)
def test_a_training_with_it_is_bit_for_bit_the_training_without(
    tool: Any, digits: Path, tmp_path: Path, task: str
) -> None:
    path = tmp_path / f"{task}.py"
    path.write_text(TASKS[task].format(configs=str(CONFIGS), data=str(digits)) + AVERAGES, encoding="utf-8")
    states, losses = [], []
    for images in (0, 500):
        folder = tmp_path / f"{images}"
        options = ["train_dataloader.num_workers=0", "val_dataloader.num_workers=0", f"val_cfg.loss_images={images}"]
        options += OPTIONS[task]
        ended = tool("train.py", path, "--work-dir", folder, "--no-data-check", "--cfg-options", *options)
        assert ended.code == 0, ended.err
        states.append({key: value for key, value in final(folder).items() if key in STATE})
        (scalars,) = folder.glob("*/vis_data/scalars.json")
        lines = [json.loads(line) for line in scalars.read_text().splitlines()]
        losses.append([line[name] for line in lines for name in ("val_loss", "ema/val_loss") if name in line])
    assert set(states[0]) == set(STATE)
    assert_same(*states)
    assert losses[0] == []
    assert len(losses[1]) >= 2
    assert all(0 < loss < 100 for loss in losses[1])
    assert losses[1][0] != losses[1][1]
    assert "held-out data</text>" in (tmp_path / "500" / "report.html").read_text()
    (start,) = json.loads((tmp_path / "500" / "starts.json").read_text())["starts"]
    assert start["loss_images"] > 3
