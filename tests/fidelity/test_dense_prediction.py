"""What detectors and segmentors train on and report, where mmdet and mmseg changed since the release."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS as DETECTION_MODELS
from mmdet.registry import TASK_UTILS
from mmengine.dataset import Compose
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from PIL import Image

from detection.data import CocoInstances
from tests.fidelity.released_configs import ROOT, resolved

MASK, CASCADE = "detection/mask_rcnn_convnext_tiny_coco_3x", "detection/cascade_mask_rcnn_convnext_tiny_coco_3x"
UPERNET = "segmentation/upernet_convnext_tiny_ade20k_160k"
DENSE = sorted(
    f"{path.parent.name}/{path.stem}"
    for path in ROOT.glob("configs/[ds]e[tg]*/*.py")
    if re.search("_(convnext|swin)_", path.stem)
)

# facebookresearch/ConvNeXt: object_detection/configs/_base_/models/mask_rcnn_convnext_fpn.py, lines 78-128 (train_cfg,
# test_cfg), and cascade_mask_rcnn_convnext_fpn.py, lines 118-208; the same in
# SwinTransformer/Swin-Transformer-Object-Detection: configs/_base_/models/*_swin_fpn.py.
SETTINGS = {
    MASK: {
        "train_cfg.rpn_proposal.nms_pre": 2000,
        "train_cfg.rpn_proposal.max_per_img": 1000,
        "train_cfg.rpn.allowed_border": -1,
        "train_cfg.rcnn.assigner.match_low_quality": True,
        "train_cfg.rcnn.assigner.ignore_iof_thr": -1,
        "rpn_head.loss_bbox.type": "L1Loss",
    },
    CASCADE: {
        "train_cfg.rpn_proposal.nms_pre": 2000,
        "train_cfg.rpn_proposal.max_per_img": 2000,
        "train_cfg.rpn.allowed_border": 0,
        "train_cfg.rcnn.0.assigner.match_low_quality": False,
        "train_cfg.rcnn.2.assigner.pos_iou_thr": 0.7,
        "train_cfg.rcnn.2.assigner.ignore_iof_thr": -1,
        "roi_head.stage_loss_weights": [1, 0.5, 0.25],
        "rpn_head.loss_bbox.beta": 1 / 9,
        "roi_head.bbox_head.0.norm_cfg.type": "SyncBN",
    },
}
SETTINGS_OF_BOTH = {
    "train_cfg.rpn.assigner.ignore_iof_thr": -1,
    "train_cfg.rpn.sampler.num": 256,
    "train_cfg.rpn_proposal.nms.iou_threshold": 0.7,
    "test_cfg.rpn.nms_pre": 1000,
    "test_cfg.rpn.max_per_img": 1000,
    "test_cfg.rpn.nms.iou_threshold": 0.7,
    "test_cfg.rcnn.score_thr": 0.05,
    "test_cfg.rcnn.nms.type": "nms",
    "test_cfg.rcnn.nms.iou_threshold": 0.5,
    "test_cfg.rcnn.max_per_img": 100,
    "test_cfg.rcnn.mask_thr_binary": 0.5,
}


def read(node: Any, key: str) -> Any:
    for part in key.split("."):
        node = node[int(part) if part.isdigit() else part]
    return node


@pytest.mark.parametrize("name", SETTINGS)
def test_detectors_have_the_released_assigners_samplers_and_thresholds(name: str) -> None:
    model = resolved(name).model
    expected = SETTINGS[name] | SETTINGS_OF_BOTH
    assert {key: read(model, key) for key in expected} == expected


@pytest.mark.parametrize("name", [MASK, CASCADE])
@pytest.mark.parametrize("training", [True, False], ids=["training", "testing"])
def test_proposals_without_area_are_kept(name: str, training: bool) -> None:
    model = resolved(name).model
    with DefaultScope.overwrite_default_scope("mmdet"):
        head = DETECTION_MODELS.build(
            {**model.rpn_head, "train_cfg": model.train_cfg.rpn, "test_cfg": model.test_cfg.rpn}
        )
    sides = (16, 8, 4, 2, 1)
    scores = [torch.linspace(1, -1, 3 * side**2).view(1, 3, side, side) + 0.01 * i for i, side in enumerate(sides)]
    offsets = [torch.zeros(1, 12, side, side) for side in sides]
    offsets[0][:, 1::4, :, :2] = -8.0  # the boxes of two columns of anchors lie above the image
    image = {"img_shape": (64, 64), "scale_factor": (1.0, 1.0)}
    settings = model.train_cfg.rpn_proposal if training else model.test_cfg.rpn
    (found,) = head.predict_by_feat(scores, offsets, batch_img_metas=[image], cfg=settings)
    areas = (found.bboxes[:, 2:] - found.bboxes[:, :2]).prod(1)
    # SwinTransformer/Swin-Transformer-Object-Detection: mmdet/models/dense_heads/rpn_head.py, lines 220-236, run on
    # these maps with the released settings: min_bbox_size 0 filters nothing in mmdet 2.11.0.
    assert (len(found), int((areas == 0).sum())) == (348, 96)
    assert found.scores.sum().item() == pytest.approx(177.05609, abs=1e-3)


def annotation(image: int, box: list[float], category: int = 1, **options: int) -> dict[str, Any]:
    return {
        "image_id": image,
        "bbox": box,
        "area": box[2] * box[3],
        "category_id": category,
        "segmentation": {"size": [64, 64], "counts": [0, 10, 64 * 64 - 10]},
        "iscrowd": 0,
        **options,
    }


@pytest.fixture
def coco(tmp_path: Path) -> CocoInstances:
    """Six images: two objects and what is left out, none, too narrow, just wide enough, a crowd, another category."""
    widths = {1: 64, 2: 64, 3: 31, 4: 32, 5: 64, 6: 64}
    annotations = [
        annotation(1, [4, 4, 20, 20]),
        annotation(1, [8, 8, 30, 30], 2, iscrowd=1),
        annotation(1, [60, 60, 10, 10]),  # sticks out
        annotation(1, [70, 5, 10, 10]),  # outside
        annotation(1, [5, 5, 0.5, 10]),  # thinner than a pixel
        annotation(1, [9, 9, 9, 9], 3),
        annotation(1, [2, 2, 9, 9], ignore=1),
        annotation(3, [1, 1, 9, 9]),
        annotation(4, [1, 1, 9, 9], 2),
        annotation(5, [0, 0, 30, 30], iscrowd=1),
        annotation(6, [1, 1, 9, 9], 3),
    ]
    content = {
        "categories": [{"id": i, "name": name} for i, name in enumerate(("cat", "dog", "owl"), 1)],
        "images": [{"id": i, "file_name": f"{i}.png", "width": w, "height": 64} for i, w in widths.items()],
        "annotations": [{"id": i, **one} for i, one in enumerate(annotations, 1)],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    for i, width in widths.items():
        Image.new("RGB", (width, 64)).save(tmp_path / f"{i}.png")
    return CocoInstances(
        ann_file="coco.json",
        data_root=str(tmp_path),
        data_prefix={"img": ""},
        metainfo={"classes": ("cat", "dog")},
        filter_cfg=resolved(MASK).train_dataloader.dataset.filter_cfg,
    )


def test_training_images_and_objects_are_the_released_ones(coco: CocoInstances) -> None:
    # SwinTransformer/Swin-Transformer-Object-Detection: mmdet/datasets/coco.py, lines 100-181 (_filter_imgs,
    # _parse_ann_info), run on this file: images 1, 4 and 5 remain, 5 with its crowd alone.
    found = {}
    for i in range(len(coco)):
        info = coco.get_data_info(i)
        for ignored in (0, 1):
            boxes = [one["bbox"] for one in info["instances"] if one["ignore_flag"] == ignored]
            found[info["img_id"], ignored] = boxes
    assert found == {
        (1, 0): [[4, 4, 24, 24], [60, 60, 70, 70]],
        (1, 1): [[8, 8, 38, 38]],
        (4, 0): [[1, 1, 10, 10]],
        (4, 1): [],
        (5, 0): [],
        (5, 1): [[0, 0, 30, 30]],
    }


@pytest.mark.parametrize("name", [MASK, CASCADE])
def test_crowds_are_no_objects_and_change_no_assignment(name: str, coco: CocoInstances) -> None:
    cfg = resolved(name)
    steps = [
        step for step in cfg.train_pipeline if step.type in ("LoadCheckedImage", "LoadAnnotations", "PackDetInputs")
    ]
    with DefaultScope.overwrite_default_scope("mmdet"):
        sample = Compose(steps)(coco.get_data_info(0))["data_samples"]
    assert (len(sample.gt_instances), len(sample.ignored_instances)) == (2, 1)
    # facebookresearch/ConvNeXt: object_detection/configs/convnext/cascade_mask_rcnn_convnext_tiny_*, line 126, and its
    # other configs collect no gt_bboxes_ignore: crowds are background in training. Here they come to the assigners,
    # whose ignore_iof_thr of -1 turns them off.
    proposals = InstanceData(priors=torch.tensor([[25.0, 25, 37, 37], [5, 5, 24, 24], [0, 0, 64, 64]]))
    truth = InstanceData(bboxes=sample.gt_instances.bboxes.tensor, labels=sample.gt_instances.labels)
    ignored = InstanceData(bboxes=sample.ignored_instances.bboxes.tensor)
    stages = cfg.model.train_cfg.rcnn
    for stage in [cfg.model.train_cfg.rpn, *(stages if isinstance(stages, list) else [stages])]:
        with DefaultScope.overwrite_default_scope("mmdet"):
            assigner = TASK_UTILS.build(stage.assigner)
        found = assigner.assign(proposals, truth, ignored).gt_inds
        assert found.tolist() == assigner.assign(proposals, truth, None).gt_inds.tolist()
        assert found[0] == 0  # background, though it lies in the crowd


def test_ignored_pixels_count_in_the_average_of_the_loss() -> None:
    model = resolved(UPERNET).model
    logits = torch.zeros(1, 150, 4, 4)
    logits[:, 3] = 2.0
    target = torch.arange(16).view(1, 4, 4) % 5
    target[0, 0], target[0, 1, :2] = 255, 255
    with DefaultScope.overwrite_default_scope("mmseg"):
        losses = [MODELS.build(model[head].loss_decode) for head in ("auxiliary_head", "decode_head")]
    auxiliary, decode = (loss(logits, target, ignore_index=255).item() for loss in losses)
    # SwinTransformer/Swin-Transformer-Semantic-Segmentation: mmseg/models/losses/cross_entropy_loss.py, lines 9-32, run
    # on these logits with a weight of 0.4: the sum over 10 pixels is divided by 16. No class has a weight of its own.
    assert auxiliary == pytest.approx(1.1630868, rel=1e-6)
    assert decode == pytest.approx(1.1630868 / 0.4, rel=1e-6)
    assert [loss.class_weight for loss in losses] == [None, None]


def test_label_0_of_ade20k_is_ignored_and_norms_are_synchronised() -> None:
    # SwinTransformer/Swin-Transformer-Semantic-Segmentation: mmseg/datasets/ade.py, line 83 (reduce_zero_label), and
    # mmseg/models/decode_heads/decode_head.py, line 61 (ignore_index); configs/_base_/models/upernet_swin.py, lines 2,
    # 30 and 43 (SyncBN in both heads).
    cfg = resolved(UPERNET)
    assert cfg.train_dataloader.dataset.reduce_zero_label
    with DefaultScope.overwrite_default_scope("mmseg"):
        for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
            built = MODELS.build(head)
            assert built.ignore_index == 255
            norms = {type(module).__name__ for module in built.modules() if "Norm" in type(module).__name__}
            assert norms == {"SyncBatchNorm"}


@pytest.mark.parametrize("name", [name for name in DENSE if not re.search("/(mask2former|dino)_", name)])
def test_gradients_are_not_clipped_and_the_loss_scale_is_dynamic(name: str) -> None:
    # facebookresearch/ConvNeXt: object_detection/configs/convnext/cascade_mask_rcnn_convnext_tiny_*, lines 140-147, and
    # its other configs (grad_clip=None); Swin's detectors the same, its segmentors have no optimizer_config.
    settings = resolved(name).optim_wrapper
    assert "clip_grad" not in settings
    assert settings.get("loss_scale", "dynamic") == "dynamic"


def test_the_dynamic_loss_scale_moves_as_in_the_release() -> None:
    # NVIDIA/apex: apex/amp/scaler.py, lines 25-28, with the dynamic scale of O1 in the release's runners: from
    # 65,536, doubled after 2,000 steps, halved after an overflow.
    scaler = torch.amp.GradScaler("cpu")
    assert (scaler.get_scale(), scaler.get_growth_interval()) == (65_536, 2000)
    assert (scaler.get_growth_factor(), scaler.get_backoff_factor()) == (2.0, 0.5)


def test_segmentors_train_160k_steps_and_are_evaluated_ten_times() -> None:
    # SwinTransformer/Swin-Transformer-Semantic-Segmentation: configs/_base_/schedules/schedule_160k.py, lines 7-9.
    cfg = resolved(UPERNET)
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (160_000, 16_000)
    assert np.arange(1, 160_001)[cfg.train_cfg.val_interval - 1 :: cfg.train_cfg.val_interval][-1] == 160_000
