"""Learning-rate scales and weight decay of the released optimizers, for every family with ConvNeXt's groups.

The released functions were run on the released networks. Of each network: the number of trained tensors, those with
weight decay, the sum of the scales of all tensors, and scale and decay of single ones, by names that both sides have.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

import engine.training.runner  # noqa: F401  (registers the constructor)
from engine.config.load import load_config
from engine.config.world import Launch
from engine.optim.param_groups import ParameterGroup, groups_of_config

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = Launch(processes=8, device="cuda", local_processes=8)

# tensors, tensors with weight decay, sum of the scales
WHOLE = {
    # facebookresearch/ConvNeXt: optim_factory.py, lines 32-112 (get_num_layer_for_convnext, get_parameter_groups), with
    # the 12 groups of main.py, line 336, and rates of decay of TRAINING.md.
    "classification/convnext_tiny_in1k_300e": (182, 59, 182.0),
    "classification/convnext_large_in22k_90e": (344, 113, 344.0),
    "classification/convnext_base_in22k_ft_in1k_224": (344, 113, 108.771293),
    "classification/convnext_xlarge_in22k_ft_in1k_384": (344, 113, 108.771293),
    "classification/convnext_base_in1k_ft_in1k_384": (344, 113, 69.158838),
    "classification/convnext_large_in1k_ft_in1k_384": (344, 113, 69.158838),
    "classification/convnext_isotropic_small_in1k_300e": (150, 56, 150.0),
    "classification/convnext_isotropic_large_in1k_300e": (330, 110, 330.0),
    # facebookresearch/ConvNeXt-V2: optim_factory.py, lines 32-137, called by main_finetune.py, lines 314-322, with the
    # types and rates of decay of TRAINING.md: single for atto and tiny, group for base.
    "classification/convnextv2_atto_fcmae_ft_in1k": (140, 41, 76.067642),
    "classification/convnextv2_tiny_fcmae_ft_in1k": (200, 59, 85.961144),
    "classification/convnextv2_base_fcmae_ft_in1k": (380, 113, 51.345967),
    # facebookresearch/ConvNeXt: object_detection/mmcv_custom/layer_decay_optimizer_constructor.py, lines 14-123, on the
    # detectors of object_detection/configs/convnext/*.py, paramwise_cfg of each.
    "detection/mask_rcnn_convnext_tiny_coco_3x": (228, 79, 198.844358),
    "detection/cascade_mask_rcnn_convnext_tiny_coco_3x": (298, 108, 180.35021),
    "detection/cascade_mask_rcnn_convnext_small_coco_3x": (460, 162, 185.158838),
    "detection/cascade_mask_rcnn_convnext_base_coco_3x": (460, 162, 224.771293),
    "detection/cascade_mask_rcnn_convnext_base_in22k_coco_3x": (460, 162, 224.771293),
    "detection/cascade_mask_rcnn_convnext_large_in22k_coco_3x": (460, 162, 185.158838),
    "detection/cascade_mask_rcnn_convnext_xlarge_in22k_coco_3x": (460, 162, 185.158838),
    # facebookresearch/ConvNeXt: semantic_segmentation/mmcv_custom/layer_decay_optimizer_constructor.py, lines 14-123,
    # on the segmentors of semantic_segmentation/configs/convnext/*.py, paramwise_cfg of each.
    "segmentation/upernet_convnext_tiny_ade20k_160k": (229, 73, 161.771987),
    "segmentation/upernet_convnext_small_ade20k_160k": (391, 127, 166.354683),
    "segmentation/upernet_convnext_base_ade20k_160k": (391, 127, 166.354683),
    "segmentation/upernet_convnext_base_in22k_ade20k_160k": (391, 127, 166.354683),
    "segmentation/upernet_convnext_large_in22k_ade20k_160k": (391, 127, 166.354683),
    "segmentation/upernet_convnext_xlarge_in22k_ade20k_160k": (391, 127, 166.354683),
}

# scale, weight decay
SINGLE = {
    # The same functions of facebookresearch/ConvNeXt: optim_factory.py, lines 32-112.
    "classification/convnext_base_in22k_ft_in1k_224": {
        "backbone.downsample_layers.0.0.weight": (0.0549755814, 1e-8),
        "backbone.downsample_layers.1.1.weight": (0.0858993459, 1e-8),
        "backbone.downsample_layers.2.0.weight": (0.1073741824, 0.0),
        "backbone.downsample_layers.3.1.weight": (0.8, 1e-8),
        "backbone.stages.0.0.dwconv.weight": (0.0687194767, 1e-8),
        "backbone.stages.2.0.gamma": (0.1073741824, 0.0),
        "backbone.stages.2.8.pwconv2.weight": (0.16777216, 1e-8),
        "backbone.stages.2.26.dwconv.weight": (0.64, 1e-8),
        "backbone.stages.3.2.norm.weight": (0.8, 0.0),
        "backbone.norm.weight": (1.0, 0.0),
        "head.weight": (1.0, 1e-8),
        "head.bias": (1.0, 0.0),
    },
    "classification/convnext_large_in1k_ft_in1k_384": {
        "backbone.downsample_layers.0.0.weight": (0.009688901, 1e-8),
        "backbone.stages.1.2.pwconv1.weight": (0.0197732674, 1e-8),
        "backbone.stages.2.8.pwconv2.weight": (0.05764801, 1e-8),
        "backbone.stages.2.26.dwconv.weight": (0.49, 1e-8),
    },
    # facebookresearch/ConvNeXt-V2: optim_factory.py, lines 32-48 (single).
    "classification/convnextv2_atto_fcmae_ft_in1k": {
        "backbone.downsample_layers.0.0.weight": (0.2824295365, 0.3),
        "backbone.downsample_layers.1.1.weight": (0.3486784401, 0.3),
        "backbone.downsample_layers.3.0.weight": (0.81, 0.0),
        "backbone.stages.0.0.dwconv.weight": (0.2824295365, 0.3),
        "backbone.stages.1.1.grn.gamma": (0.387420489, 0.0),
        "backbone.stages.1.1.grn.beta": (0.387420489, 0.0),
        "backbone.stages.2.5.dwconv.weight": (0.729, 0.3),
        "backbone.stages.3.1.pwconv2.bias": (0.9, 0.0),
        "head.weight": (1.0, 0.3),
    },
    "classification/convnextv2_tiny_fcmae_ft_in1k": {
        "backbone.downsample_layers.0.0.weight": (0.1500946353, 0.05),
        "backbone.stages.2.0.pwconv1.weight": (0.2824295365, 0.05),
        "backbone.stages.3.1.pwconv2.bias": (0.81, 0.0),
    },
    # facebookresearch/ConvNeXt-V2: optim_factory.py, lines 51-78 (group).
    "classification/convnextv2_base_fcmae_ft_in1k": {
        "backbone.downsample_layers.0.0.weight": (0.0013060694, 0.05),
        "backbone.stages.0.0.dwconv.weight": (0.0021767823, 0.05),
        "backbone.stages.1.1.grn.gamma": (0.0036279706, 0.0),
        "backbone.stages.2.5.dwconv.weight": (0.010077696, 0.05),
        "backbone.stages.2.26.pwconv2.weight": (0.36, 0.05),
        "backbone.norm.weight": (1.0, 0.0),
    },
    # facebookresearch/ConvNeXt: object_detection/mmcv_custom/layer_decay_optimizer_constructor.py, lines 14-42
    # (get_num_layer_layer_wise); 6 groups with T, 12 with the others.
    "detection/cascade_mask_rcnn_convnext_tiny_coco_3x": {
        "backbone.downsample_layers.0.0.weight": (0.0823543, 0.05),
        "backbone.downsample_layers.1.0.weight": (0.16807, 0.0),
        "backbone.downsample_layers.3.1.weight": (0.7, 0.05),
        "backbone.stages.0.0.dwconv.weight": (0.117649, 0.05),
        "backbone.stages.1.2.gamma": (0.16807, 0.0),
        "backbone.stages.2.0.dwconv.weight": (0.2401, 0.05),
        "backbone.stages.2.8.pwconv1.bias": (0.49, 0.0),
        "backbone.stages.3.0.dwconv.weight": (0.7, 0.05),
        "backbone.norm0.weight": (1.0, 0.0),
        "neck.fpn_convs.0.conv.weight": (1.0, 0.05),
        "rpn_head.rpn_cls.bias": (1.0, 0.0),
        "roi_head.bbox_head.0.shared_convs.0.bn.weight": (1.0, 0.0),
        "roi_head.mask_head.0.upsample.weight": (1.0, 0.05),
    },
    "detection/mask_rcnn_convnext_tiny_coco_3x": {
        "backbone.downsample_layers.0.0.weight": (0.6983372961, 0.05),
        "backbone.stages.2.0.dwconv.weight": (0.81450625, 0.05),
        "roi_head.bbox_head.fc_cls.weight": (1.0, 0.05),
    },
    "detection/cascade_mask_rcnn_convnext_base_coco_3x": {
        "backbone.downsample_layers.0.0.weight": (0.0549755814, 0.05),
        "backbone.stages.2.8.pwconv1.bias": (0.16777216, 0.0),
        "backbone.stages.2.26.pwconv2.weight": (0.64, 0.05),
    },
    "detection/cascade_mask_rcnn_convnext_xlarge_in22k_coco_3x": {
        "backbone.downsample_layers.0.0.weight": (0.009688901, 0.05),
        "backbone.stages.2.0.dwconv.weight": (0.0282475249, 0.05),
        "backbone.stages.2.26.pwconv2.weight": (0.49, 0.05),
    },
    # facebookresearch/ConvNeXt: semantic_segmentation/mmcv_custom/layer_decay_optimizer_constructor.py, lines 45-55
    # (get_num_layer_stage_wise): with 12 groups the last stage learns at 0.387 of the head's rate.
    "segmentation/upernet_convnext_tiny_ade20k_160k": {
        "backbone.downsample_layers.0.0.weight": (0.4782969, 0.05),
        "backbone.downsample_layers.3.1.weight": (0.4782969, 0.05),
        "backbone.stages.0.0.dwconv.weight": (0.531441, 0.05),
        "backbone.stages.1.2.gamma": (0.59049, 0.0),
        "backbone.stages.2.8.pwconv1.bias": (0.6561, 0.0),
        "backbone.stages.3.0.dwconv.weight": (0.729, 0.05),
        "backbone.norm0.weight": (1.0, 0.0),
        "decode_head.conv_seg.weight": (1.0, 0.05),
        "decode_head.fpn_convs.0.bn.weight": (1.0, 0.0),
        "auxiliary_head.conv_seg.bias": (1.0, 0.0),
    },
    "segmentation/upernet_convnext_xlarge_in22k_ade20k_160k": {
        "backbone.downsample_layers.3.1.weight": (0.2541865828, 0.05),
        "backbone.stages.0.0.dwconv.weight": (0.2824295365, 0.05),
        "backbone.stages.1.2.gamma": (0.3138105961, 0.0),
        "backbone.stages.2.8.dwconv.weight": (0.3486784401, 0.05),
        "backbone.stages.3.0.dwconv.weight": (0.387420489, 0.05),
    },
}


@cache
def groups(name: str) -> dict[str, ParameterGroup]:
    """The group of each parameter of a config, by its name."""
    cfg = load_config(ROOT / f"configs/{name}.py", None, CLUSTER).cfg
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device("meta"):
        model = MODELS.build(copy.deepcopy(cfg.model))
    return {param: group for group in groups_of_config(model, cfg.optim_wrapper) for param in group.names}


@pytest.mark.parametrize("name", WHOLE)
def test_all_tensors_learn_at_the_released_rates(name: str) -> None:
    found = groups(name).values()
    decayed = sum(group.weight_decay > 0 for group in found)
    assert (len(found), decayed) == WHOLE[name][:2]
    assert sum(group.lr_scale for group in found) == pytest.approx(WHOLE[name][2], abs=1e-5)


@pytest.mark.parametrize("name", SINGLE)
def test_single_tensors_learn_at_the_released_rates(name: str) -> None:
    found = groups(name)
    for param, (scale, decay) in SINGLE[name].items():
        assert (found[param].lr_scale, found[param].weight_decay) == (pytest.approx(scale, rel=1e-6), decay), param
