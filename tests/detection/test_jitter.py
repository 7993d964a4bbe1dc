"""Large-scale jitter and soft-NMS of ConvNeXt V2's detectors, by their config with a small network and small images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, DefaultScope
from torch import Tensor
from torchvision.ops import box_iou

from backbones import UserError
from detection.task import DETECTION
from engine.config.load import load_config
from engine.config.world import Launch
from tests.own_data import SIZE, objects

CONFIG = Path(__file__).resolve().parents[2] / "configs/detection/mask_rcnn_convnextv2_base_coco_lsj_3x.py"
SIDE = 64
SMALL = {
    "classes": ("red kite", "Füchse"),
    "train_pipeline.2.scale": (SIDE, SIDE),
    "train_pipeline.3.crop_size": (SIDE, SIDE),
    "test_pipeline.1.scale": (80, 60),
    "model.data_preprocessor.batch_augments.0.size": (SIDE, SIDE),
    "model.backbone": {"type": "convnextv2_atto", "depths": (1, 1, 1, 1), "dims": (8, 8, 8, 16), "init_std": 0.06},
    "model.neck.out_channels": 16,
    "model.rpn_head.in_channels": 16,
    "model.rpn_head.feat_channels": 16,
    "model.roi_head.bbox_roi_extractor.out_channels": 16,
    "model.roi_head.bbox_head.in_channels": 16,
    "model.roi_head.bbox_head.fc_out_channels": 16,
    "model.roi_head.mask_roi_extractor.out_channels": 16,
    "model.roi_head.mask_head.in_channels": 16,
    "model.roi_head.mask_head.conv_out_channels": 16,
    "model.train_cfg.rcnn.sampler.num": 16,
    "model.test_cfg.rpn.max_per_img": 40,
    "model.test_cfg.rcnn.score_thr": 0.0,
}


def config(root: Path, **changes: Any) -> Any:
    places = {
        "data_root": str(root),
        "train_dataloader.dataset.ann_file": "Lehre (final).json",
        "train_dataloader.dataset.data_prefix.img": "Bilder Lehre",
        "val_dataloader.dataset.ann_file": "Probe (final).json",
        "val_dataloader.dataset.data_prefix.img": "Bilder Probe",
    }
    return load_config(CONFIG, {**SMALL, **places, **changes}, Launch()).cfg


def batches(cfg: Any, split: str, count: int = 1) -> list[dict[str, Any]]:
    with DefaultScope.overwrite_default_scope("mmdet"):
        dataset = DATASETS.build(cfg[f"{split}_dataloader"].dataset)
        np.random.seed(0)
        return [pseudo_collate([dataset[i] for i in range(len(dataset))]) for _ in range(count)]


def built(cfg: Any) -> Any:
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(cfg.model)
    return model


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return objects(tmp_path_factory.mktemp("objects"))


def test_boxes_masks_and_padding_of_jittered_images(root: Path) -> None:
    cfg = config(root)
    preprocessor = built(cfg).data_preprocessor
    mean, std = (torch.tensor(cfg.model.data_preprocessor[key]).view(3, 1, 1) for key in ("mean", "std"))
    widths = []
    for batch in batches(cfg, "train", 12):
        images = [image.clone() for image in batch["inputs"]]
        padded = preprocessor(batch, True)
        assert padded["inputs"].shape == (len(images), 3, SIDE, SIDE)
        for image, after, sample in zip(images, padded["inputs"], padded["data_samples"], strict=True):
            height, width = image.shape[-2:]
            widths.append(width)
            assert sample.img_shape == (height, width)
            assert sample.batch_input_shape == (SIDE, SIDE)
            torch.testing.assert_close(after[:, :height, :width], (image.flip(0).float() - mean) / std)
            assert not after[:, height:].any()
            assert not after[:, :, width:].any()
            truth = sample.gt_instances
            assert truth.masks.masks.shape == (len(truth), SIDE, SIDE)
            assert not truth.masks.masks[:, height:].any()
            assert not truth.masks.masks[:, :, width:].any()
            for box, mask in zip(truth.bboxes.tolist(), truth.masks.masks, strict=True):
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                # The box of what the crop left of an object, as mmdet computes it from the mask.
                assert box == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    # Scaled by 0.1 to 2 of what fits, 64 x 48, and cropped.
    assert min(widths) < SIDE / 4
    assert max(widths) == SIDE < SIZE[0]


def test_a_detector_without_masks_is_padded_too(root: Path) -> None:
    cfg = config(root, **{"model.roi_head.mask_head": None})
    (batch,) = batches(cfg, "train")
    (augment,) = cfg.model.data_preprocessor.batch_augments
    assert augment.pad_mask is False
    model = built(cfg)
    padded = model.data_preprocessor(batch, True)
    assert padded["inputs"].shape[-2:] == (SIDE, SIDE)
    losses = model.loss(padded["inputs"], padded["data_samples"])
    assert "loss_mask" not in losses


@pytest.mark.parametrize(
    "place, size",
    [("train_pipeline.3.crop_size", (80, 80)), ("model.data_preprocessor.batch_augments.0.size", (48, 48))],
)
def test_a_padding_smaller_than_the_crop_is_refused(place: str, size: tuple[int, int], root: Path) -> None:
    DETECTION.check_training(config(root), 4)
    with pytest.raises(UserError, match="give RandomCrop and the padding the same size"):
        DETECTION.check_training(config(root, **{place: size}), 4)


def test_a_step_of_training(root: Path) -> None:
    cfg = config(root)
    model = built(cfg).train()
    (batch,) = batches(cfg, "train")
    losses = model(**model.data_preprocessor(batch, True), mode="loss")
    total, named = model.parse_losses(losses)
    total.backward()
    assert all(torch.isfinite(value).all() for value in named.values())
    assert all(parameter.grad is not None for parameter in model.parameters())


def overlaps(boxes: Tensor, labels: Tensor) -> Tensor:
    """IoU of the pairs of boxes of the same class; 0 for boxes without area."""
    same = (labels[:, None] == labels[None]).triu(diagonal=1)
    return box_iou(boxes, boxes)[same].nan_to_num()


def test_soft_nms_lowers_what_nms_drops(root: Path) -> None:
    found = {}
    for kind in ("soft_nms", "nms"):
        cfg = config(root, **{"model.test_cfg.rcnn.nms.type": kind})
        model = built(cfg).eval()
        (batch,) = batches(cfg, "val")
        data = model.data_preprocessor(batch, False)
        assert data["inputs"].shape[-2:] == (64, 96)  # testing is padded to multiples of 32 alone
        with torch.inference_mode():
            found[kind] = [sample.pred_instances for sample in model(**data, mode="predict")]
    for soft, hard in zip(found["soft_nms"], found["nms"], strict=True):
        assert len(soft) > len(hard) > 0
        assert overlaps(hard.bboxes, hard.labels).max() <= 0.5
        assert overlaps(soft.bboxes, soft.labels).max() > 0.5
        assert soft.masks.shape == (len(soft), SIZE[1], SIZE[0])
        assert (soft.scores[:-1] >= soft.scores[1:]).all()
        for label in soft.labels.unique():  # nothing overlaps the best box of a class and is better
            assert soft.scores[soft.labels == label][0] == hard.scores[hard.labels == label][0]
