"""mmdet's methods, as :mod:`analysis.zoo` tries them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from engine.config.datasets import mappings
from engine.task import ZooSpec

TRACKER = "tracker, or a tracker's detector: takes videos"
LANGUAGE = "detects by text, whose tokenizer and encoder are a download"
DATA = "only names a data set; the method has a folder of its own"
BACKBONE, RECIPE = "backbone", "recipe of training"

# Heads on the semantic maps of Hybrid Task Cascade read label maps of an eighth of the image's size.
SEMANTIC_STRIDE = 8
STUFF, IGNORED = 100, 255  # labels of made-up label maps: a class of stuff of COCO's panoptic 133, and none
MAX_LANES, LANE_POINTS = 4, 72


def _before_swap(folder: str, cfg: Config) -> None:
    """Find the teacher's config, which is named by its place in mmdet's repository; norms of one process alone."""
    for node in mappings(cfg.model):
        if node.get("type") == "MMSyncBN":  # needs a process group
            node.type = "BN"
    teacher = cfg.model.get("teacher_config")
    if isinstance(teacher, str):
        configs = next(parent for parent in Path(cfg.filename).parents if parent.name == "configs")
        cfg.model.teacher_config = str(configs.parent / teacher)


def _after_swap(folder: str, cfg: Config, channels: Sequence[int]) -> None:
    """Tell necks and heads what they need beside channels: SSD, CenterNet, and those on an hourglass's two stacks."""
    model = cfg.model
    if folder == "ssd":
        passed = tuple(model.neck.in_channels)
        model.neck.out_channels = passed + tuple(model.neck.out_channels)[len(passed) :]
        model.bbox_head.in_channels = model.neck.out_channels
    if folder == "centernet":
        model.neck = [model.neck, {"type": "ContiguousMaps"}]
    if "num_feat_levels" in model.get("bbox_head", {}):
        model.bbox_head.num_feat_levels = 1


def _label_map(shape: tuple[int, int]) -> PixelData:
    """Half stuff, half nothing."""
    labels = torch.full((1, *shape), IGNORED)
    labels[..., : shape[1] // 2] = STUFF
    return PixelData(sem_seg=labels)


def _lanes() -> np.ndarray:
    """One lane upwards in the middle, in the layout of mmdet's ``LinesToArray``, and places for others."""
    lanes = np.full((MAX_LANES, 6 + LANE_POINTS), -1e5, np.float32)
    lanes[:, 0], lanes[:, 1] = 1, 0
    lanes[0, :6] = 0, 1, 0, 400, 0.5, 40
    lanes[0, 6:46] = 400
    return lanes


def _complete_batch(folder: str, model: nn.Module, batch: dict[str, Any], training: bool) -> dict[str, Any]:
    """Add to each sample what only a few methods read, and the branches of a semi-supervised one."""
    height, width = batch["inputs"][0].shape[-2:]
    nothing = batch["data_samples"][0].gt_instances[:0]
    roi_head = getattr(model, "roi_head", None)
    eighth = getattr(roi_head, "with_semantic", False)
    scale = SEMANTIC_STRIDE if eighth else 1
    for index, sample in enumerate(batch["data_samples"]):
        sample.ignored_instances = nothing.clone()
        sample.set_metainfo({"img_id": index, "img_path": "", "border": (0, 0, 0, 0)})
        sample.set_metainfo({"homography_matrix": np.eye(3, dtype=np.float32)})
        sample.gt_sem_seg = _label_map((height // scale, width // scale))
        if getattr(model, "rpn_head", None) is None:  # Fast R-CNN and others without proposals of their own
            boxes: Tensor = sample.gt_instances.bboxes
            sample.proposals = InstanceData(bboxes=boxes.clone(), scores=torch.ones(len(boxes)))
        if folder == "clrnet":
            sample.lines_array, sample.org_width, sample.org_height = _lanes(), width, height
            sample.gt_sem_seg = PixelData(sem_seg=torch.ones(1, height, width, dtype=torch.long))
    if training and folder == "soft_teacher":
        branches = ("sup", "unsup_teacher", "unsup_student")
        return {
            "inputs": {branch: list(batch["inputs"]) for branch in branches},
            "data_samples": {branch: [sample.clone() for sample in batch["data_samples"]] for branch in branches},
        }
    return batch


DETECTION_ZOO = ZooSpec(
    package="mmdet",
    out_of_scope={
        **dict.fromkeys(("bytetrack", "deepsort", "ocsort", "qdtrack", "sort", "strongsort"), TRACKER),
        **dict.fromkeys(("mask2former_vis", "masktrack_rcnn"), TRACKER),
        "reid": "re-identification: classifies persons, for trackers",
        **dict.fromkeys(("glip", "grounding_dino", "mm_grounding_dino"), LANGUAGE),
        **dict.fromkeys(("cityscapes", "deepfashion", "dsdl", "lvis", "objects365", "openimages"), DATA),
        **dict.fromkeys(("pascal_voc", "v3det", "wider_face"), DATA),
        "common": "bases for others, no models",
    },
    kinds={
        **dict.fromkeys(("convnext", "efficientnet", "hrnet", "pvt", "regnet", "res2net", "resnest"), BACKBONE),
        **dict.fromkeys(("resnet_strikes_back", "swin", "timm_example"), BACKBONE),
        **dict.fromkeys(("empirical_attention", "gcnet"), BACKBONE),  # attention inside of a ResNet
        **dict.fromkeys(("albu_example", "gn", "gn+ws", "instaboost", "scratch"), RECIPE),
        **dict.fromkeys(("selfsup_pretrain", "simple_copy_paste", "strong_baselines"), RECIPE),
    },
    bound={
        "detectors": "feeds its pyramid back into its own ResNet",
        "misc": "wraps detectors of Detectron2, with backbones of their own",
        "queryinst": "mmdet pastes no mask of an (untrained) box outside the image on a CPU; on its own ResNet too",
        "ssd": "mmdet's prediction reads loss_cls, which its head does not have; on its own VGG too",
        "tridentnet": "the three branches of its own ResNet are the method",
    },
    configs={
        "cascade_rpn": "cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py",
        "fpg": "faster-rcnn_r50_fpg-chn128_crop640-50e_coco.py",
        "guided_anchoring": "ga-retinanet_r50_fpn_1x_coco.py",
        "hrnet": "faster-rcnn_hrnetv2p-w18-1x_coco.py",
        "lad": "lad_r50-paa-r101_fpn_2xb8_coco_1x.py",
        "nas_fpn": "retinanet_r50_nasfpn_crop640-50e_coco.py",
        "pvt": "retinanet_pvt-t_fpn_1x_coco.py",
        "reppoints": "reppoints-moment_r50_fpn-gn_head-gn_1x_coco.py",
        "res2net": "faster-rcnn_res2net-101_fpn_2x_coco.py",
        "yolox": "yolox_s_8xb8-300e_coco.py",
        "rtmdet": "rtmdet-ins_s_8xb32-300e_coco.py",
    },
    # An hourglass returns two maps of stride 4, which heads here get once.
    stages={"centripetalnet": (0, 0), "cornernet": (0, 0), "ssd": (1, 2)},
    shapes={"clrnet": (320, 800), "ssd": (320, 320)},
    before_swap=_before_swap,
    after_swap=_after_swap,
    complete_batch=_complete_batch,
)
