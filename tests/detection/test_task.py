"""The batch that is made up for a detector: what it learns from, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS

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


def test_scores_of_a_dense_head_are_those_of_its_detections_and_have_gradients() -> None:
    head = dict(type="RetinaHead", num_classes=3, in_channels=16, feat_channels=16, stacked_convs=1)
    head |= dict(anchor_generator=dict(type="AnchorGenerator", ratios=[1.0], scales=[4], strides=[8, 16]))
    backbone = dict(type="convnext_atto", depths=[1] * 4, dims=[8, 16, 16, 16], out_indices=(1, 2), init_std=0.5)
    test_cfg = ConfigDict(nms_pre=1000, score_thr=0.0, nms=dict(type="nms", iou_threshold=0.99), max_per_img=1000)
    neck = dict(type="FPN", in_channels=[16, 16], out_channels=16, num_outs=2)
    with MODELS.switch_scope_and_registry("mmdet") as registry:
        model = registry.build(dict(type="RetinaNet", backbone=backbone, neck=neck, bbox_head=head, test_cfg=test_cfg))
    model.eval()
    images = torch.randn(1, 3, 64, 96).requires_grad_()
    batch = {"inputs": images, "data_samples": DETECTION.dummy_batch(model, images, False)["data_samples"]}
    assert DETECTION.explain is not None
    scores = DETECTION.explain.class_scores(model, batch, 3)
    with torch.no_grad():
        (found,) = model.predict(images, batch["data_samples"], rescale=False)
    objects = found.pred_instances
    for label in range(3):
        mine = objects.scores[objects.labels == label]
        assert len(mine)
        assert scores[0, label].item() == pytest.approx(mine.max().item(), abs=1e-5)
    (gradient,) = torch.autograd.grad(scores[0, 1], images)
    assert gradient.abs().max() > 0
