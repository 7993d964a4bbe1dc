"""A wrong setting is named with its place, however deep the constructor is that refuses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmengine.registry import MODELS
from torch import nn

import detection  # noqa: F401  (registers networks and the layers of mmcv and mmdet)
from backbones.errors import ConfigError, DataError
from engine.config.building import build, building
from engine.config.load import load_config
from engine.config.world import Launch
from engine.planning.plan import build_on_meta

CONFIG = Path(__file__).resolve().parents[3] / "configs/detection/mask_rcnn_digits.py"


@MODELS.register_module()
class LayerOfTest(nn.Linear):
    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"type": "convnext_atoo"}, r"model: convnext_atoo is not in the model registry; nearest: convnext_atto"),
        (
            {"type": "LayerOfTest", "in_features": 2, "out_features": 2, "bais": True},
            r"model: LayerOfTest has no .*'bais'.*bias",
        ),
        (
            {"type": "LayerOfTest", "in_features": -2, "out_features": 2},
            r"model: LayerOfTest: RuntimeError: .*negative",
        ),
        ({"type": "mmdet.FPN", "num_outs": 1, "in_channels": 3}, r"model: mmdet\.FPN: TypeError: .*'out_channels'"),
        (
            [{"type": "LayerOfTest", "in_features": 2, "out_features": "x"}],
            r"model\.0: LayerOfTest: TypeError",
        ),
    ],
)
def test_the_place_the_part_and_the_reason(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"config does not build: {message}") as caught:
        build(MODELS, settings, "model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "inner, message",
    [
        ({"backbone.out_indices": 3}, r"model\.backbone: convnext_atto: TypeError"),
        ({"rpn_head.loss_cls.typo": 1}, r"model\.rpn_head\.loss_cls: CrossEntropyLoss has no argument 'typo'"),
        ({"roi_head.bbox_head.loss_bbox.type": "L2"}, r"model\.roi_head\.bbox_head\.loss_bbox: L2 is not in the"),
        (
            {"rpn_head.anchor_generator.type": "AnchorGen"},
            r"generator: AnchorGen is not in the .*AnchorGenerator",
        ),
    ],
)
def test_parts_that_mmdet_builds_itself(inner: dict[str, Any], message: str) -> None:
    cfg = load_config(CONFIG, None, Launch()).cfg
    cfg.merge_from_dict({f"model.{key}": value for key, value in inner.items()})
    with pytest.raises(ConfigError, match=message):
        build_on_meta(cfg)


def test_what_no_part_alone_raises_names_the_key_if_there_is_one() -> None:
    with (
        pytest.raises(ConfigError, match="config does not build: train_cfg: TypeError: no number"),
        building({}, "train_cfg"),
    ):
        raise TypeError("no number")
    with pytest.raises(ConfigError, match="config does not build: TypeError"), building({}, "train_cfg", "model"):
        raise TypeError("no number")


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(DataError, match="no images"), building({}, "train_dataloader"):
        raise DataError("no images")
    with pytest.raises(RuntimeError, match="group is gone"), building({}, "model"):
        raise RuntimeError("the group is gone")


def test_the_settings_stay_as_they_are() -> None:
    settings = {"type": "LayerOfTest", "in_features": 2, "out_features": 3}
    assert isinstance(build(MODELS, settings, "model"), nn.Linear)
    assert settings == {"type": "LayerOfTest", "in_features": 2, "out_features": 3}
