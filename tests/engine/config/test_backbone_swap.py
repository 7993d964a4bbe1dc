"""A backbone of ours in the place of another: which stages, and what necks and heads are told."""

from __future__ import annotations

from typing import Any

import pytest
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope

import detection.task  # noqa: F401
from backbones.errors import ConfigError
from engine.config.backbone_swap import (
    Levels,
    chosen_stages,
    original_levels,
    our_levels,
    swap_backbones,
    without_downloads,
)

ATTO = (40, 80, 160, 320)
OURS = Levels(ATTO, (4, 8, 16, 32))


def resnet(**options: Any) -> dict[str, Any]:
    return {"type": "ResNet", "depth": 18, **options}


@pytest.fixture(autouse=True)
def scope() -> None:
    init_default_scope("mmdet")


@pytest.mark.parametrize(
    ("strides", "stages"),
    [
        ((4, 8, 16, 32), (0, 1, 2, 3)),
        ((8, 16, 32), (1, 2, 3)),
        ((32,), (3,)),
        ((4, 8, 8, 8), (0, 1, 2, 3)),  # dilated
        ((16, 16, 16, 16), (0, 1, 2, 3)),  # a vision transformer
        ((16, 8, 4, 2, 1), (0, 0, 1, 2, 3)),  # a U-Net
        ((2,), (3,)),
    ],
)
def test_stages_of_the_same_stride(strides: tuple[int, ...], stages: tuple[int, ...]) -> None:
    assert chosen_stages(Levels(tuple(range(len(strides))), strides), OURS) == stages


def test_levels_of_a_backbone_and_of_one_that_is_not_here() -> None:
    node = ConfigDict(backbone=resnet(out_indices=(1, 3)), neck={"type": "FPN", "in_channels": [7, 8, 9]})
    assert original_levels(node) == Levels((128, 512), (8, 32))
    node.backbone.type = "mmpretrain.ConvNeXt"
    assert original_levels(node) == Levels((7, 8, 9))
    heads = ConfigDict(backbone={"type": "x"}, head={"in_channels": 5}, aux_head={"in_channels": [3, 4]})
    assert original_levels(heads) == Levels((3, 4))
    heads.head.in_index = -1
    assert original_levels(heads) == Levels((3, 4))
    heads.head.in_index = 3
    heads.aux_head.in_index = [1, 2]
    assert original_levels(heads) == Levels((0, 3, 4, 5))


def test_our_levels_and_an_unknown_name() -> None:
    assert our_levels("convnext_atto") == OURS
    with pytest.raises(ConfigError, match="convnext_ato"):
        our_levels("convnext_ato")


def test_a_neck_gets_our_channels_and_its_heads_keep_theirs() -> None:
    model = ConfigDict(
        backbone=resnet(),
        neck=[{"type": "FPN", "in_channels": [64, 128, 256, 512], "out_channels": 64}, {"in_channels": 64}],
        bbox_head={"in_channels": 64},
    )
    swap_backbones(model, "convnext_atto")
    assert model.backbone == {"type": "convnext_atto", "out_indices": (0, 1, 2, 3)}
    assert model.neck[0].in_channels == [*ATTO]
    assert model.neck[0].out_channels == 64
    assert model.neck[1].in_channels == model.bbox_head.in_channels == 64


def test_heads_without_a_neck_follow_their_index() -> None:
    model = ConfigDict(
        backbone=resnet(out_indices=(1, 2, 3)),
        decode_head={"in_channels": [128, 512], "in_index": [0, 2]},
        auxiliary_head=[{"in_channels": 256, "in_index": 1}, {"in_channels": 512}, {"in_channels": 9}],
    )
    swap_backbones(model, "convnext_atto")
    assert model.decode_head == {"in_channels": [80, 320], "in_index": [0, 2]}
    assert [head.in_channels for head in model.auxiliary_head] == [160, 320, 9]


def test_numbers_deep_in_a_head_are_of_its_own_layers() -> None:
    inner = {"in_channels": 512, "conv": {"in_channels": 512}}
    model = ConfigDict(
        backbone=resnet(),
        decode_head={"generator": {"in_channels": 512, "in_index": 3}, "update": [dict(inner)], "in_channels": 512},
    )
    swap_backbones(model, "convnext_atto")
    head = model.decode_head
    assert (head.generator.in_channels, head.in_channels, head["update"]) == (320, 320, [inner])


def test_a_tuple_stays_one() -> None:
    model = ConfigDict(
        backbone=resnet(), neck={"in_channels": (128, 256)}, head={"in_channels": (64,), "in_index": (0,)}
    )
    swap_backbones(model, "convnext_atto")
    assert model.neck.in_channels == (80, 160)
    del model["neck"]
    model.backbone = ConfigDict(resnet())
    swap_backbones(model, "convnext_atto")
    assert model.head.in_channels == (40,)


def test_stages_can_be_stated_and_nested_models_are_found() -> None:
    model = ConfigDict(detector={"backbone": resnet(out_indices=(3,)), "bbox_head": {"in_channels": 512}})
    swap_backbones(model, "convnext_atto", stages=(0,))
    assert model.detector.backbone.out_indices == (0,)
    assert model.detector.bbox_head.in_channels == 40


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ([512, 256, 128], [320, 160, 80]),  # from the coarsest
        ([128, 256], [80, 160]),  # the first maps alone
        ([256, 512], [160, 320]),
        ([1, 2, 3], [1, 2, 3]),  # of something else
    ],
)
def test_a_neck_that_takes_some_maps_or_all_in_another_order(stated: list[int], expected: list[int]) -> None:
    model = ConfigDict(backbone=resnet(out_indices=(1, 2, 3)), neck={"in_channels": stated})
    swap_backbones(model, "convnext_atto")
    assert model.neck.in_channels == expected


def test_pretrained_weights_are_left_out() -> None:
    kaiming = {"type": "Kaiming"}
    model = ConfigDict(
        pretrained="x", teacher_ckpt="y", a=[{"init_cfg": {"type": "Pretrained"}}], b={"init_cfg": dict(kaiming)}
    )
    without_downloads(model)
    assert model == {"pretrained": None, "teacher_ckpt": None, "a": [{"init_cfg": None}], "b": {"init_cfg": kaiming}}
