"""Sizes, initial values and stochastic depth of the released networks, alone and under their heads.

The released networks were built and counted. Networks of 200 M parameters and more are built without memory here.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import engine.training.runner  # noqa: F401  (registers what the configs name)
from tests.fidelity.released_configs import resolved

PARAMETERS = {
    # facebookresearch/ConvNeXt: models/convnext.py, lines 52-202; heads of 1,000 and 21,841 classes.
    "classification/convnext_tiny_in1k_300e": 28_589_128,
    "classification/convnext_small_in1k_300e": 50_223_688,
    "classification/convnext_base_in1k_300e": 88_591_464,
    "classification/convnext_large_in1k_300e": 197_767_336,
    "classification/convnext_xlarge_in22k_ft_in1k_224": 350_196_968,
    "classification/convnext_tiny_in22k_90e": 44_615_857,
    "classification/convnext_xlarge_in22k_90e": 392_900_177,
    # facebookresearch/ConvNeXt: models/convnext_isotropic.py, lines 17-92; layer scale with L alone: TRAINING.md, lines
    # 132 and 161, and the default of main.py, line 64.
    "classification/convnext_isotropic_small_in1k_300e": 22_308_712,
    "classification/convnext_isotropic_base_in1k_300e": 87_083_752,
    "classification/convnext_isotropic_large_in1k_300e": 305_942_504,
    # facebookresearch/ConvNeXt-V2: models/convnextv2.py, lines 45-139.
    "classification/convnextv2_atto_fcmae_ft_in1k": 3_708_400,
    "classification/convnextv2_tiny_fcmae_ft_in1k": 28_635_496,
    "classification/convnextv2_base_fcmae_ft_in1k": 88_717_800,
    # facebookresearch/ConvNeXt: object_detection/configs/convnext/*.py, built by mmdet 2.11.0.
    "detection/mask_rcnn_convnext_tiny_coco_3x": 48_095_376,
    "detection/cascade_mask_rcnn_convnext_tiny_coco_3x": 85_930_578,
    "detection/cascade_mask_rcnn_convnext_small_coco_3x": 107_565_138,
    "detection/cascade_mask_rcnn_convnext_base_coco_3x": 145_800_242,
    "detection/cascade_mask_rcnn_convnext_large_in22k_coco_3x": 254_710_770,
    "detection/cascade_mask_rcnn_convnext_xlarge_in22k_coco_3x": 406_875_058,
    # SwinTransformer/Swin-Transformer-Object-Detection: configs/swin/*_3x_coco.py, built by mmdet 2.11.0.
    "detection/mask_rcnn_swin_tiny_coco_3x": 47_794_602,
    "detection/cascade_mask_rcnn_swin_tiny_coco_3x": 85_629_804,
    "detection/cascade_mask_rcnn_swin_small_coco_3x": 106_947_708,
    "detection/cascade_mask_rcnn_swin_base_coco_3x": 144_977_002,
    # facebookresearch/ConvNeXt: semantic_segmentation/configs/convnext/*_ss.py, built by mmseg 0.11.0.
    "segmentation/upernet_convnext_tiny_ade20k_160k": 60_242_636,
    "segmentation/upernet_convnext_small_ade20k_160k": 81_877_196,
    "segmentation/upernet_convnext_base_ade20k_160k": 122_102_956,
    "segmentation/upernet_convnext_large_in22k_ade20k_160k": 234_994_796,
    "segmentation/upernet_convnext_xlarge_in22k_ade20k_160k": 391_140_396,
    # SwinTransformer/Swin-Transformer-Semantic-Segmentation: configs/swin/*.py, built by mmseg 0.11.0.
    "segmentation/upernet_swin_tiny_ade20k_160k": 59_941_862,
    "segmentation/upernet_swin_small_ade20k_160k": 81_259_766,
    "segmentation/upernet_swin_base_ade20k_160k": 121_279_716,
}

# Second and last rate; all lie on the line from 0, over all blocks of the network.
DROP_PATH = {
    # facebookresearch/ConvNeXt: models/convnext.py, line 86; rates of TRAINING.md.
    "classification/convnext_tiny_in1k_300e": (0.005882, 0.1, 18),
    "classification/convnext_small_in1k_300e": (0.011429, 0.4, 36),
    # facebookresearch/ConvNeXt: models/convnext_isotropic.py, line 39.
    "classification/convnext_isotropic_large_in1k_300e": (0.014286, 0.5, 36),
    # facebookresearch/ConvNeXt-V2: models/convnextv2.py, line 76.
    "classification/convnextv2_atto_fcmae_ft_in1k": (0.009091, 0.1, 12),
    # facebookresearch/ConvNeXt: object_detection/mmdet/models/backbones/convnext.py, line 90.
    "detection/mask_rcnn_convnext_tiny_coco_3x": (0.02353, 0.4, 18),
    # SwinTransformer/Swin-Transformer-Object-Detection: mmdet/models/backbones/swin_transformer.py, line 525.
    "detection/mask_rcnn_swin_tiny_coco_3x": (0.01818, 0.2, 12),
    # facebookresearch/ConvNeXt: semantic_segmentation/backbone/convnext.py, line 92.
    "segmentation/upernet_convnext_small_ade20k_160k": (0.3 / 35, 0.3, 36),
}

# Initial layer scale. facebookresearch/ConvNeXt: main.py, line 64; TRAINING.md, lines 132 and 161; 1.0 in all configs
# of object_detection/configs/convnext and semantic_segmentation/configs/convnext, where weights overwrite it.
LAYER_SCALE = {
    "classification/convnext_tiny_in1k_300e": 1e-6,
    "classification/convnext_tiny_in22k_90e": 1e-6,
    "classification/convnext_isotropic_small_in1k_300e": None,
    "classification/convnext_isotropic_base_in1k_300e": None,
    "classification/convnextv2_atto_fcmae_ft_in1k": None,
    "detection/mask_rcnn_convnext_tiny_coco_3x": 1.0,
    "segmentation/upernet_convnext_tiny_ade20k_160k": 1.0,
}


def built(cfg: Config, device: str) -> Any:
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device(device):
        return MODELS.build(copy.deepcopy(cfg.model))


def drop_path_rates(model: nn.Module) -> list[float]:
    """Rates in the order of the blocks; timm's Swin has two modules for each block, or an identity at rate 0."""
    rates = [float(m.drop_prob or 0.0) for m in model.modules() if hasattr(m, "drop_prob")]
    return sorted({0.0, *(round(rate, 9) for rate in rates)})


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_the_released_size(name: str) -> None:
    model = built(resolved(name), "meta")
    assert sum(param.numel() for param in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", DROP_PATH)
def test_stochastic_depth_grows_over_all_blocks_as_released(name: str) -> None:
    second, last, blocks = DROP_PATH[name]
    rates = drop_path_rates(built(resolved(name), "meta").backbone)
    assert rates == pytest.approx([last * i / (blocks - 1) for i in range(blocks)], abs=1e-6)
    assert (rates[1], rates[-1]) == (pytest.approx(second, abs=1e-5), pytest.approx(last))


@pytest.mark.parametrize("name", LAYER_SCALE)
def test_layer_scale_begins_as_released(name: str) -> None:
    cfg = copy.deepcopy(resolved(name))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        backbone = MODELS.build({**cfg.model.backbone, "drop_path_rate": 0.0})
    scales = [param for param_name, param in backbone.named_parameters() if param_name.endswith("gamma")]
    own = [param for param in scales if param.ndim == 1]  # response normalisation has a gamma of four axes
    assert bool(own) == (LAYER_SCALE[name] is not None)
    for param in own:
        assert param.tolist() == pytest.approx([LAYER_SCALE[name]] * len(param))


def test_weights_begin_as_released() -> None:
    torch.manual_seed(0)
    model = built(resolved("classification/convnext_tiny_in1k_300e"), "cpu")
    fine_tuned = built(resolved("classification/convnext_base_in22k_ft_in1k_224"), "cpu")
    backbone = model.backbone
    weights = {
        "stem": backbone.downsample_layers[0][0].weight,
        "downsampling": backbone.downsample_layers[2][1].weight,
        "depthwise": backbone.stages[2][0].dwconv.weight,
        "expansion": backbone.stages[2][0].pwconv1.weight,
        "head": model.head.weight,
    }
    # facebookresearch/ConvNeXt: models/convnext.py, lines 103-106: a normal distribution of standard deviation 0.02,
    # which timm 0.3.2 truncates at -2 and 2, a hundred standard deviations; biases 0. About one weight in 2 ** 24 is -2
    # on both sides, where the uniform numbers from which timm and torch make normal ones are rounded to -1.
    for name, weight in weights.items():
        error = 4 * 0.02 / (2 * weight.numel()) ** 0.5
        common = weight[weight.abs() < 1]
        assert common.std().item() == pytest.approx(0.02, abs=error), name
        assert common.mean().item() == pytest.approx(0.0, abs=2 * error), name
        assert len(common) >= weight.numel() - 2, name
    assert weights["expansion"].abs().max() > 0.08  # not truncated at two standard deviations
    assert not any(param.any() for name, param in model.named_parameters() if name.endswith("bias"))
    # The same file, lines 100-101, with head_init_scale 0.001 of TRAINING.md, lines 305-440; 1 is main.py's, line 140.
    assert fine_tuned.head.weight.abs().median().item() == pytest.approx(0.6745 * 2e-5, rel=0.01)
    # The same file, lines 29, 75, 80 and 96: all norms have an epsilon of 1e-6, where PyTorch's default is 1e-5.
    norms = [module for module in backbone.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 18 + 1 + 4
    assert {norm.eps for norm in norms} == {1e-6}
