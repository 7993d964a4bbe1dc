"""Parameter groups: each parameter once, with the rate of its depth and decay for weights alone."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from backbones import UserError, build_backbone
from engine.optim.param_groups import (
    LayerDecayConstructor,
    ParameterGroup,
    group_rows,
    group_table,
    parameter_groups,
)

DECAY = 0.05
# The ids of every other network are tested beside the networks.
ONE_OF_EACH_KIND = (
    *("convnext_tiny", "convnext_small", "convnextv2_atto", "convnext_isotropic_small", "roadmap50_layer_norm"),
    *("swin_tiny", "vit_small", "resnet50", "efficientnet_b7"),
)
# Released code of ConvNeXt V2, Swin and DeiT: no decay for these, although they have more than one axis.
UNDECAYED = re.compile(r"\.grn\.(gamma|beta)$|\.pos_embed$|\.cls_token$|\.relative_position_bias_table$")


class Model(nn.Module):
    """A registered backbone with a neck, a shared layer and a norm, as the three tasks build them."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        self.backbone = build_backbone(name, **options)
        self.neck = nn.Conv2d(self.backbone.out_channels[-1], 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 2)
        self.twin = self.head


def model(name: str = "convnext_tiny", **options: Any) -> Model:
    with torch.device("meta"):
        return Model(name, **options)


def by_name(groups: list[ParameterGroup]) -> dict[str, ParameterGroup]:
    return {name: group for group in groups for name in group.names}


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(decay_rate=0.7),
        dict(decay_rate=0.9, decay_type="stage"),
        dict(decay_rate=0.9, decay_type="block"),
    ],
    ids=str,
)
@pytest.mark.parametrize("out_indices", [None, (0, 1, 2, 3)], ids=["pooled", "maps"])
@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_every_parameter_is_in_one_group(name: str, out_indices: Any, options: dict[str, Any]) -> None:
    one = model(name, out_indices=out_indices)
    groups = parameter_groups(one, DECAY, **options)
    grouped = [param for group in groups for param in group.params]
    assert sorted(map(id, grouped)) == sorted(map(id, one.parameters()))
    names = [name for group in groups for name in group.names]
    assert sorted(names) == sorted(name for name, _ in one.named_parameters())
    for group in groups:
        for parameter, param in zip(group.names, group.params, strict=True):
            assert param is one.get_parameter(parameter)
            decayed = param.ndim > 1 and not UNDECAYED.search(parameter)
            assert group.weight_decay == (DECAY if decayed else 0.0), parameter


def test_rates_of_the_layers_of_tiny() -> None:
    groups = by_name(parameter_groups(model(out_indices=(0, 1, 2, 3)), DECAY, decay_rate=0.5))
    depth = {
        "head.weight": 0,
        "neck.bias": 0,
        "norm.weight": 0,
        "backbone.norm0.weight": 0,
        "backbone.norm3.bias": 0,
        "backbone.stages.3.0.gamma": 1,
        "backbone.downsample_layers.3.1.weight": 1,
        "backbone.stages.2.8.pwconv1.weight": 2,
        "backbone.stages.2.3.pwconv1.weight": 3,
        "backbone.stages.2.2.pwconv1.weight": 4,
        "backbone.downsample_layers.2.1.weight": 4,
        "backbone.stages.1.0.dwconv.weight": 5,
        "backbone.downsample_layers.1.1.weight": 5,
        "backbone.stages.0.2.dwconv.weight": 6,
        "backbone.downsample_layers.0.0.weight": 7,
    }
    for name, below_the_head in depth.items():
        assert groups[name].lr_scale == pytest.approx(0.5**below_the_head), name


def test_rates_of_the_stages() -> None:
    """The released segmentation configs: 6 groups put the last stage three steps below the head, 12 groups nine."""
    for num_groups in (6, 12):
        groups = by_name(parameter_groups(model(), DECAY, decay_rate=0.5, decay_type="stage", num_groups=num_groups))
        assert groups["head.weight"].lr_scale == groups["backbone.norm.weight"].lr_scale == 1
        for i in range(4):
            assert groups[f"backbone.stages.{i}.1.pwconv2.weight"].lr_scale == 0.5 ** (num_groups - i)
            assert groups[f"backbone.downsample_layers.{i}.0.weight"].lr_scale == 0.5 ** (num_groups + 1)


def released_block_id(name: str, depths: tuple[int, ...]) -> int:
    """``get_num_layer_for_convnext_single`` of the released fine-tuning code of ConvNeXt V2, in our words."""
    kind, *numbers = name.split(".")
    if kind in ("downsample_layers", "stages"):
        return sum(depths[: int(numbers[0])]) + 1 + (int(numbers[1]) if kind == "stages" else 0)
    return sum(depths) + 1


@pytest.mark.parametrize("name", ["convnextv2_atto", "convnext_tiny", "convnext_small"])
def test_rates_of_the_blocks_are_those_of_the_released_code(name: str) -> None:
    one = model(name)
    depths: Any = one.backbone.depths
    groups = by_name(parameter_groups(one, DECAY, decay_rate=0.9, decay_type="block", num_groups=sum(depths)))
    seen = set()
    for parameter, group in groups.items():
        own = released_block_id(parameter.removeprefix("backbone."), depths)
        seen.add(own)
        assert group.layer_id == own, parameter
        assert group.lr_scale == pytest.approx(0.9 ** (sum(depths) + 1 - own)), parameter
    assert seen == set(range(1, sum(depths) + 2))


def test_the_stem_of_the_roadmap_shares_the_first_block_s_rate() -> None:
    groups = by_name(parameter_groups(model("roadmap50_gelu"), DECAY, decay_rate=0.9, decay_type="block"))
    for name, layer in {"downsample_layers.0.0": 1, "stages.0.0": 1, "stages.1.0": 4, "stages.3.2": 18}.items():
        found = {group.layer_id for parameter, group in groups.items() if parameter.startswith(f"backbone.{name}.")}
        assert found == {layer}, name


@pytest.mark.parametrize("name", ["convnext_isotropic_small", "swin_tiny", "vit_small", "resnet50", "efficientnet_b7"])
def test_where_layers_are_blocks_already_both_are_the_same(name: str) -> None:
    one = model(name)
    layers, blocks = (by_name(parameter_groups(one, DECAY, 0.9, kind)) for kind in ("layer", "block"))
    assert {name: group.lr_scale for name, group in layers.items()} == {
        name: group.lr_scale for name, group in blocks.items()
    }


def test_without_a_rate_all_layers_learn_alike() -> None:
    assert {group.lr_scale for group in parameter_groups(model(), DECAY)} == {1.0}


def test_the_first_group_has_the_highest_rate() -> None:
    groups = parameter_groups(model(), DECAY, decay_rate=0.8)
    scales = [group.lr_scale for group in groups]
    assert scales == sorted(scales, reverse=True)
    assert (groups[0].lr_scale, groups[0].weight_decay) == (1.0, DECAY)


def test_names_can_say_what_is_not_decayed() -> None:
    groups = by_name(parameter_groups(model("vit_small"), DECAY, decay_rate=0.8, no_decay=("norm", "cls_")))
    exempt = {name for name, group in groups.items() if group.weight_decay == 0}
    assert exempt == {name for name in groups if "norm" in name or "cls_" in name}
    assert {"norm.bias", "backbone.blocks.3.norm1.weight", "backbone.cls_token"} < exempt
    for name in ("backbone.pos_embed", "backbone.blocks.0.attn.qkv.bias", "neck.bias"):
        assert groups[name].weight_decay == DECAY
    assert groups["backbone.cls_token"].lr_scale < groups["norm.bias"].lr_scale == 1
    assert {group.weight_decay for group in parameter_groups(model(), DECAY, no_decay=())} == {DECAY}


def test_frozen_parameters_are_left_out() -> None:
    one = model()
    one.backbone.requires_grad_(False)
    names = {name for group in parameter_groups(one, DECAY) for name in group.names}
    assert names == {"neck.weight", "neck.bias", "norm.weight", "norm.bias", "head.weight", "head.bias"}


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(decay_rate=0.9, decay_type="depth"), "decay_type='depth'.*layer, stage, block"),
        (dict(decay_rate=0.0), r"decay_rate=0\.0"),
        (dict(decay_rate=1.1), r"decay_rate=1\.1"),
        (dict(decay_rate="half"), "decay_rate='half': a factor"),
        (dict(decay_rate=0.9, num_groups=12), "num_groups=12: this backbone has 6 layer groups"),
        (dict(decay_rate=0.9, decay_type="block", num_groups=12), "num_groups=12: this backbone has 18 block groups"),
        (dict(decay_rate=0.9, decay_type="stage", num_groups=3), "num_groups=3: the last stage"),
        (dict(decay_rat=0.9), "no option decay_rat: choose from decay_rate"),
        (dict(num_groups=6), "num_groups=6 does nothing at decay_rate=1"),
        (dict(decay_rate=1.0, num_groups=6), "num_groups=6 does nothing at decay_rate=1"),
        (dict(decay_type="layer"), "decay_type='layer' does nothing at decay_rate=1"),
        (dict(decay_rate=1.0, decay_type="stage"), "decay_type='stage' does nothing at decay_rate=1"),
        (dict(no_decay="norm"), "no_decay='norm': a list of parts of names is needed"),
        (dict(no_decay=["norm", ""]), r"no_decay=\['norm', ''\]: a list of parts of names"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    wrapper = dict(optimizer=dict(type="AdamW", lr=1e-3, weight_decay=DECAY))
    with pytest.raises(UserError, match=message):
        LayerDecayConstructor(wrapper, options)(model())


class Foreign(nn.Module):
    """A model whose backbone is of the task's library and answers no questions."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(4, 2)


def test_a_foreign_backbone_learns_at_one_rate_or_not_at_all() -> None:
    groups = parameter_groups(Foreign(), DECAY)
    assert [(group.lr_scale, group.weight_decay, group.names) for group in groups] == [
        (1.0, DECAY, ["backbone.weight", "head.weight"]),
        (1.0, 0.0, ["backbone.bias", "head.bias"]),
    ]
    with pytest.raises(UserError, match=r"decay_rate=0\.9: the model has Conv2d as backbone, which has no layer ids"):
        parameter_groups(Foreign(), DECAY, 0.9)
    with pytest.raises(UserError, match="the model has no backbone"):
        parameter_groups(nn.Linear(2, 2), DECAY, 0.9)


@pytest.mark.parametrize("name", ["convnext_tiny", "swin_tiny", "resnet50", "vit_small", "efficientnet_b7"])
def test_the_table_has_every_parameter_and_the_drop_path_of_each_layer(name: str) -> None:
    one = model(name, drop_path_rate=0.4)
    one.neck.requires_grad_(False)
    rows = group_rows(one, parameter_groups(one, DECAY, 0.5, "block"), 1e-3)
    frozen = sum(param.numel() for param in one.neck.parameters())
    total = sum(param.numel() for param in one.parameters())
    assert sum(row.params for row in rows) + frozen == total
    assert group_table(rows, frozen)[-1].split() == ["total", str(sum(row.tensors for row in rows)), f"{total:,}"]
    assert group_table(rows, frozen)[-2].split() == ["frozen", f"{frozen:,}"]
    assert (rows[0].rate, rows[0].scale, rows[0].drop_path) == (1e-3, 1.0, None)
    blocks = {row.layer_id: row.drop_path for row in rows if row.drop_path is not None}
    ends = [blocks[layer] for layer in sorted(blocks)]
    assert [low for low, _ in ends] == sorted(low for low, _ in ends)
    assert len(blocks) >= 11
    assert max(high for _, high in ends) == pytest.approx(0.4, rel=0.05)


def test_the_table_shows_the_span_of_a_layer_of_several_blocks() -> None:
    one = model(drop_path_rate=0.17)
    rows = group_rows(one, parameter_groups(one, DECAY, 0.5), 1e-3)
    (third,) = (row for row in rows if row.layer_id == 3 and row.weight_decay)
    assert third.drop_path == pytest.approx((0.06, 0.08))
    line = next(line for line in group_table(rows) if line.split()[0] == "3")
    assert line.split()[1:4] == ["6.25e-05", "0.0625", "0.05"]
    assert "0.06 to 0.08" in line


class Parallel(nn.Module):
    """Holds a model as DistributedDataParallel does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "parallel"])
def test_the_optimizer_gets_rates_and_decay(wrapped: bool) -> None:
    one = Model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))
    settings = dict(
        type="OptimWrapper",
        accumulative_counts=4,
        optimizer=dict(type="AdamW", lr=1e-3, betas=(0.8, 0.9), weight_decay=DECAY),
    )
    before = str(settings)
    wrapper = LayerDecayConstructor(settings, dict(decay_rate=0.5))(Parallel(one) if wrapped else one)
    assert str(settings) == before
    assert type(wrapper) is OptimWrapper
    assert wrapper._accumulative_counts == 4
    assert isinstance(wrapper.optimizer, torch.optim.AdamW)
    rates: dict[int, tuple[float, float]] = {}
    for group in wrapper.optimizer.param_groups:
        assert group["betas"] == (0.8, 0.9)
        for param in group["params"]:
            rates[id(param)] = (group["lr"], group["weight_decay"])
    assert rates[id(one.head.weight)] == (1e-3, DECAY)
    assert rates[id(one.head.bias)] == (1e-3, 0.0)
    assert rates[id(one.backbone.downsample_layers[0][0].weight)] == (pytest.approx(1e-3 / 2**5), DECAY)
    assert rates[id(one.backbone.stages[3][0].gamma)] == (pytest.approx(5e-4), 0.0)


def test_a_step_follows_the_rates() -> None:
    torch.manual_seed(0)
    one = Model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))
    wrapper = LayerDecayConstructor(dict(optimizer=dict(type="SGD", lr=1.0)), dict(decay_rate=0.5))(one)
    assert type(wrapper) is OptimWrapper
    before = {name: value.detach().clone() for name, value in one.named_parameters()}
    for param in one.parameters():
        param.grad = torch.ones_like(param)
    wrapper.step()

    def moved(name: str) -> Tensor:
        return (before[name] - one.get_parameter(name)).detach().mean()

    assert float(moved("head.weight")) == pytest.approx(1.0)
    assert float(moved("backbone.stages.3.0.pwconv1.weight")) == pytest.approx(0.5)
    assert float(moved("backbone.downsample_layers.0.0.weight")) == pytest.approx(0.5**5)


def probe() -> nn.Module:
    """A small ConvNeXt under a head."""
    model = nn.Module()
    model.backbone = build_backbone("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))
    model.head = nn.Linear(8, 3)
    return model


def test_custom_keys_multiply_rate_and_decay() -> None:
    keys = {"head": {"lr_mult": 10.0}, "head.bias": {"decay_mult": 0.5}, "stages.1": {"lr_mult": 0.0, "decay_mult": 2}}
    model = probe()
    plain = {name: group for group in parameter_groups(model, 0.05, 0.5) for name in group.names}
    groups = parameter_groups(model, 0.05, 0.5, custom_keys=keys)
    found = {name: group for group in groups for name in group.names}
    assert found.keys() == plain.keys()
    assert (found["head.weight"].lr_scale, found["head.weight"].weight_decay) == (10.0, 0.05)
    assert (found["head.bias"].lr_scale, found["head.bias"].weight_decay) == (1.0, 0.025)
    for name, group in found.items():
        if "stages.1" in name:
            assert (group.lr_scale, group.weight_decay) == (0.0, 0.1)
        elif "head" not in name:
            assert (group.lr_scale, group.weight_decay) == (plain[name].lr_scale, plain[name].weight_decay)
    assert groups[0].names == ["head.weight"]


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"hed": {"lr_mult": 2}}, "'hed' is in no parameter's name"),
        ({"head": {"lr": 2}}, r"custom_keys\['head'\].*: dict\(lr_mult=\.\.\., decay_mult=\.\.\.\) is needed"),
        ({"head": {"lr_mult": -1}}, "factors from 0 up"),
        ({"head": {}}, "is needed"),
        (["head"], "a dict by part of a name is needed"),
    ],
)
def test_custom_keys_that_do_nothing(keys: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parameter_groups(probe(), 0.05, custom_keys=keys)
