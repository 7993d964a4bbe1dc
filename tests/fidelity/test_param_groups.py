"""Which tensors of Swin's and mmdet's detectors and segmentors are decayed, frozen, and at which rate they learn."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from torch import nn

from engine.config.load import load_config
from engine.config.world import Launch
from engine.optim.param_groups import ParameterGroup, groups_of_config, parameter_groups
from engine.planning.plan import build_on_meta

ROOT = Path(__file__).resolve().parents[2]
GPUS = Launch(processes=8, device="cuda", local_processes=8)
# decay_mult=0 in the custom_keys of SwinTransformer/Swin-Transformer-Semantic-Segmentation,
# configs/swin/upernet_swin_tiny_patch4_window7_512x512_160k_ade20k.py:27-29, and of
# SwinTransformer/Swin-Transformer-Object-Detection, configs/swin/cascade_mask_rcnn_swin_tiny_..._3x_coco.py:125-127,
# which set nothing else in paramwise_cfg.
EXEMPT = ("absolute_pos_embed", "relative_position_bias_table", "norm")


def model_and_groups(name: str) -> tuple[Config, nn.Module, list[ParameterGroup]]:
    cfg = load_config(ROOT / f"configs/{name}.py", None, GPUS).cfg
    model = build_on_meta(cfg)
    return cfg, model, groups_of_config(model, cfg.optim_wrapper)


def decay_by_custom_keys(name: str, base: float) -> float:
    """open-mmlab/mmcv v1.3.0, mmcv/runner/optimizer/default_constructor.py:181-217, in our words.

    The longest key in the name decides; without one, biases and norms have the base's decay, since bias_decay_mult and
    norm_decay_mult are 1.
    """
    found = next((key for key in sorted(sorted(EXEMPT), key=len, reverse=True) if key in name), None)
    return base if found is None else 0.0


# Exempt in the released backbone (mmdet/models/backbones/swin_transformer.py): 2 of patch_embed.norm, 4 of norm1 and
# norm2 and a table in each block, 2 of norm in each of 3 downsamplings, 2 in each of 4 output norms: 16 + 5 * blocks.
COUNTS = {
    # Weight decay of the segmentor's config, line 26, and of the detector's, line 124; 12 blocks in T, 24 in B.
    "segmentation/upernet_swin_tiny_ade20k_160k": (0.01, 220, 16 + 5 * 12),
    "detection/cascade_mask_rcnn_swin_tiny_coco_3x": (0.05, 289, 16 + 5 * 12),
    "detection/cascade_mask_rcnn_swin_base_coco_3x": (0.05, 445, 16 + 5 * 24),
}


@pytest.mark.parametrize("name", COUNTS)
def test_swin_decays_biases_and_the_batch_norms_of_its_heads(name: str) -> None:
    decay, total, exempt = COUNTS[name]
    _, model, groups = model_and_groups(name)
    found = {parameter: group.weight_decay for group in groups for parameter in group.names}
    expected = {parameter: decay_by_custom_keys(parameter, decay) for parameter, _ in model.named_parameters()}
    assert found == expected
    assert Counter(found.values()) == {0.0: exempt, decay: total - exempt}
    assert {group.lr_scale for group in groups} == {1.0}


def test_swin_differs_from_the_rule_of_convnext_in_111_of_289_tensors() -> None:
    _, model, groups = model_and_groups("detection/cascade_mask_rcnn_swin_tiny_coco_3x")
    found = {parameter: group.weight_decay for group in groups for parameter in group.names}
    usual = {parameter: group.weight_decay for group in parameter_groups(model, 0.05) for parameter in group.names}
    assert sum(found[parameter] != usual[parameter] for parameter in found) == 111
    for parameter in ("roi_head.bbox_head.0.shared_convs.0.bn.weight", "backbone.layers.0.blocks.0.attn.qkv.bias"):
        assert (found[parameter], usual[parameter]) == (0.05, 0.0)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs").glob("[ds]e*/*_swin_*.py")))
def test_all_swins_have_the_keys(name: str) -> None:
    (path,) = (ROOT / "configs").glob(f"[ds]e*/{name}.py")
    assert tuple(load_config(path, None, GPUS).cfg.optim_wrapper.paramwise_cfg.no_decay) == EXEMPT


# SwinTransformer/Swin-Transformer-Object-Detection, configs/_base_/models/cascade_mask_rcnn_r50_fpn.py:10-12 and
# configs/cascade_rcnn/cascade_mask_rcnn_x101_32x4d_fpn_1x_coco.py:11: frozen_stages=1, norm_eval=True. By mmdet/models/
# backbones/resnet.py:572-588 these are 3 tensors of conv1 and bn1, 9 in each of 3 blocks and 3 of the first shortcut.
@pytest.mark.parametrize("network", ["resnet50", "resnext101_32x4d", "resnext101_64x4d"])
def test_resnets_in_detectors_freeze_the_stem_and_the_first_stage(network: str) -> None:
    _, model, groups = model_and_groups(f"detection/cascade_mask_rcnn_{network}_coco_3x")
    frozen = [name for name, param in model.named_parameters() if not param.requires_grad]
    assert len(frozen) == 3 + 3 * 9 + 3
    assert {name.split(".")[1] for name in frozen} == {"conv1", "bn1", "layer1"}
    # No name contains "norm": all that is trained is decayed, as by Swin's configs with this backbone.
    assert {(group.weight_decay, group.lr_scale) for group in groups} == {(0.05, 1.0)}
    assert sum(len(group.params) for group in groups) + len(frozen) == len(list(model.parameters()))
    backbone: Any = model.train().backbone
    assert [any(block.training for block in stage) for stage in (backbone.layer1, backbone.layer2)] == [False, True]
    assert not any(module.training for module in backbone.modules() if isinstance(module, nn.BatchNorm2d))


def test_tiny_from_imagenet_22k_is_fine_tuned_with_the_groups_of_its_own_depth() -> None:
    # facebookresearch/ConvNeXt, main.py:336-338 has 12 groups and refuses T; object_detection/configs/convnext/
    # cascade_mask_rcnn_convnext_tiny_..._coco_in1k.py:132-134 has 6 for T, and get_num_layer_layer_wise of mmcv_custom/
    # layer_decay_optimizer_constructor.py:14-42 puts 3 blocks of the third stage into each.
    cfg, _, groups = model_and_groups("classification/convnext_tiny_in22k_ft_in1k_224")
    by_name = {name: group for group in groups for name in group.names}
    assert cfg.optim_wrapper.paramwise_cfg.decay_rate == 0.8
    below_the_head = {
        "head.weight": 0,
        "backbone.stages.3.2.pwconv2.weight": 1,
        "backbone.stages.2.8.pwconv2.weight": 2,
        "backbone.stages.2.0.pwconv2.weight": 4,
        "backbone.stages.0.0.pwconv2.weight": 6,
        "backbone.downsample_layers.0.0.weight": 7,
    }
    for name, below in below_the_head.items():
        assert by_name[name].lr_scale == pytest.approx(0.8**below), name
