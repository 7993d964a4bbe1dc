"""Each detector and segmentor trains in the precision of its released config, classifiers in that of the code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from engine.config.load import load_config
from engine.config.world import Launch
from engine.planning.memory import autocast_dtype

ROOT = Path(__file__).resolve().parents[2]
GPUS = Launch(processes=8, device="cuda", local_processes=8)
HALF, FULL = torch.float16, None

# facebookresearch/ConvNeXt and SwinTransformer/Swin-Transformer-Object-Detection train with apex at opt_level O1,
# float16, where optimizer_config has use_fp16=True, else in float32 (Swin's repository, mmdet/apis/train.py:83-85).
# Config, line.
RELEASED = {
    # facebookresearch/ConvNeXt, object_detection/configs/convnext/, SIZE for
    # cascade_mask_rcnn_convnext_SIZE_patch4_window7_mstrain_480-800_giou_4conv1f_adamw_3x_coco_in1k.py or ..._in22k.py
    "detection/mask_rcnn_convnext_tiny_coco_3x": HALF,  # mask_rcnn_convnext_tiny_..._adamw_3x_coco_in1k.py:87
    "detection/cascade_mask_rcnn_convnext_tiny_coco_3x": HALF,  # tiny, in1k, :146
    "detection/cascade_mask_rcnn_convnext_small_coco_3x": HALF,  # small, in1k, :146
    "detection/cascade_mask_rcnn_convnext_base_coco_3x": HALF,  # base, in1k, :146
    "detection/cascade_mask_rcnn_convnext_base_in22k_coco_3x": HALF,  # base, in22k, :146
    "detection/cascade_mask_rcnn_convnext_large_in22k_coco_3x": FULL,  # large, in22k, :146
    "detection/cascade_mask_rcnn_convnext_xlarge_in22k_coco_3x": FULL,  # xlarge, in22k, :146
    # facebookresearch/ConvNeXt, semantic_segmentation/configs/convnext/upernet_convnext_SIZE_SIDE_160k_ade20k_ms.py
    "segmentation/upernet_convnext_tiny_ade20k_160k": HALF,  # tiny_512, :60
    "segmentation/upernet_convnext_small_ade20k_160k": HALF,  # small_512, :59
    "segmentation/upernet_convnext_base_ade20k_160k": HALF,  # base_512, :60
    "segmentation/upernet_convnext_base_in22k_ade20k_160k": HALF,  # base_640, :60
    "segmentation/upernet_convnext_large_in22k_ade20k_160k": FULL,  # large_640, :60
    "segmentation/upernet_convnext_xlarge_in22k_ade20k_160k": FULL,  # xlarge_640, :60
    # SwinTransformer/Swin-Transformer-Object-Detection,
    # configs/swin/cascade_mask_rcnn_swin_SIZE_patch4_window7_mstrain_480-800_giou_4conv1f_adamw_3x_coco.py:139. It has
    # no config of L, and none with a ResNet or ResNeXt; the Swin paper trains these like its own networks.
    "detection/mask_rcnn_swin_tiny_coco_3x": HALF,  # mask_rcnn_swin_tiny_..._adamw_3x_coco.py:79
    "detection/cascade_mask_rcnn_swin_tiny_coco_3x": HALF,
    "detection/cascade_mask_rcnn_swin_small_coco_3x": HALF,
    "detection/cascade_mask_rcnn_swin_base_coco_3x": HALF,
    "detection/cascade_mask_rcnn_swin_base_in22k_coco_3x": HALF,
    "detection/cascade_mask_rcnn_swin_large_in22k_coco_3x": HALF,
    "detection/cascade_mask_rcnn_resnet50_coco_3x": HALF,
    "detection/cascade_mask_rcnn_resnext101_32x4d_coco_3x": HALF,
    "detection/cascade_mask_rcnn_resnext101_64x4d_coco_3x": HALF,
    # SwinTransformer/Swin-Transformer-Semantic-Segmentation: optimizer_config=dict() and mmcv's plain runner, without
    # any fp16 setting (configs/_base_/schedules/schedule_160k.py:3,7; the file of each network adds none)
    "segmentation/upernet_swin_tiny_ade20k_160k": FULL,
    "segmentation/upernet_swin_small_ade20k_160k": FULL,
    "segmentation/upernet_swin_base_ade20k_160k": FULL,
    "segmentation/upernet_swin_base_in22k_ade20k_160k": FULL,
    "segmentation/upernet_swin_large_in22k_ade20k_160k": FULL,
    # open-mmlab/mmdetection, projects/ConvNeXt-V2/configs/mask-rcnn_convnext-v2-b_fpn_lsj-3x-fcmae_coco.py:76, the one
    # config of V2's detectors that is published, B; L and H like it
    "detection/mask_rcnn_convnextv2_base_coco_lsj_3x": HALF,
    "detection/mask_rcnn_convnextv2_large_coco_lsj_3x": HALF,
    "detection/mask_rcnn_convnextv2_huge_coco_lsj_3x": HALF,
    # no config of V2's segmentors is published: the precision of V2's fine-tuning, below
    "segmentation/upernet_convnextv2_base_ade20k_160k": HALF,
    "segmentation/upernet_convnextv2_large_ade20k_160k": HALF,
    "segmentation/upernet_convnextv2_huge_ade20k_160k": HALF,
    "segmentation/upernet_convnextv2_huge_in22k_ade20k_160k": HALF,
    # facebookresearch/dinov3, dinov3/eval/segmentation/configs/config-ade20k-linear-training.yaml:6, FLOAT32
    "segmentation/linear_dinov3_convnext_tiny_ade20k_40k": FULL,
    "segmentation/linear_dinov3_convnext_small_ade20k_40k": FULL,
    "segmentation/linear_dinov3_convnext_base_ade20k_40k": FULL,
    "segmentation/linear_dinov3_convnext_large_ade20k_40k": FULL,
    # no config of a tuned or a frozen DINOv3 in UperNet or Mask R-CNN is published: as ConvNeXt of the same size, above
    "segmentation/upernet_dinov3_convnext_tiny_ade20k_160k": HALF,
    "segmentation/upernet_dinov3_convnext_small_ade20k_160k": HALF,
    "segmentation/upernet_dinov3_convnext_base_ade20k_160k": HALF,
    "segmentation/upernet_dinov3_convnext_large_ade20k_160k": FULL,
    "detection/mask_rcnn_dinov3_convnext_tiny_coco_3x": HALF,
    "detection/mask_rcnn_dinov3_convnext_tiny_frozen_coco_3x": HALF,
    "detection/mask_rcnn_dinov3_convnext_small_coco_3x": HALF,
    "detection/mask_rcnn_dinov3_convnext_base_coco_3x": HALF,
    "detection/mask_rcnn_dinov3_convnext_large_coco_3x": FULL,
    # open-mmlab/mmsegmentation, configs/mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py, optim_wrapper:
    # OptimWrapper, that is float32
    "segmentation/mask2former_convnext_tiny_ade20k_160k": FULL,
    "segmentation/mask2former_convnext_base_in22k_ade20k_50k": FULL,
    "segmentation/mask2former_convnext_large_in22k_ade20k_160k": FULL,
    # no config of DINOv3 in Mask2Former is published: as ConvNeXt's
    "segmentation/mask2former_dinov3_convnext_tiny_ade20k_160k": FULL,
    "segmentation/mask2former_dinov3_convnext_small_ade20k_160k": FULL,
    "segmentation/mask2former_dinov3_convnext_base_ade20k_160k": FULL,
    "segmentation/mask2former_dinov3_convnext_large_ade20k_160k": FULL,
    # facebookresearch/ConvNeXt, main.py:191, --use_amp False, which no command of TRAINING.md changes
    "classification/convnext_tiny_in1k_300e": FULL,
    "classification/convnext_xlarge_in22k_90e": FULL,
    "classification/convnext_xlarge_in22k_ft_in1k_384": FULL,
    # facebookresearch/ConvNeXt-V2, TRAINING.md:84,112,135, --use_amp True: autocast, engine_finetune.py:47
    "classification/convnextv2_base_fcmae_ft_in1k": HALF,
}
BFLOAT16 = {"optim_wrapper.type": "AmpOptimWrapper", "optim_wrapper.dtype": "bfloat16"}


@pytest.mark.parametrize("name", RELEASED)
def test_precision_is_the_released_one(name: str) -> None:
    path = ROOT / f"configs/{name}.py"
    assert autocast_dtype(load_config(path, None, GPUS).cfg.optim_wrapper) is RELEASED[name]


def test_every_detector_and_segmentor_is_listed() -> None:
    dense = {f"{path.parent.name}/{path.stem}" for path in (ROOT / "configs").glob("[ds]e*/*_[1-9]*[kx].py")}
    assert dense == {name for name in RELEASED if not name.startswith("classification")}


def test_every_row_of_the_transcription_states_its_precision() -> None:
    tables = yaml.safe_load((ROOT / "tests/data/recipes.yaml").read_text(encoding="utf-8"))
    rows = {name: {**table["all"], **own} for table in tables for name, own in table["runs"].items()}
    assert [name for name, row in rows.items() if "precision" not in row] == []


@pytest.mark.parametrize("name", [name for name in RELEASED if RELEASED[name] is FULL and "classif" not in name])
def test_float32_can_be_replaced_by_bfloat16_as_the_docstring_says(name: str) -> None:
    path = ROOT / f"configs/{name}.py"
    words = path.read_text(encoding="utf-8").split()
    option = words.index("--cfg-options", words.index("released;"))
    assert words[option + 1 : option + 3] == [f"{key}={value}" for key, value in BFLOAT16.items()]
    assert autocast_dtype(load_config(path, BFLOAT16, GPUS).cfg.optim_wrapper) is torch.bfloat16
