"""The batch that is made up for a detector: what it learns from, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detection.task import DETECTION
from engine.config.load import load_config
from engine.config.world import Launch
from engine.planning.plan import build_on_meta

CONFIGS = Path(__file__).resolve().parents[2] / "configs/detection"


@pytest.mark.parametrize("name, masks", [("rtmdet_convnext_base_in22k_coco_100e", False), ("mask_rcnn_digits", True)])
def test_masks_are_made_up_for_a_model_that_learns_them(name: str, masks: bool) -> None:
    model = build_on_meta(load_config(CONFIGS / f"{name}.py", None, Launch()).cfg)
    batch = DETECTION.dummy_batch(model, torch.zeros(2, 3, 64, 96), True)
    assert batch["mode"] == "loss"
    for sample in batch["data_samples"]:
        assert sample.img_shape == (64, 96)
        assert ("masks" in sample.gt_instances) == masks
        assert len(sample.gt_instances.bboxes) == len(sample.gt_instances.labels) > 1
