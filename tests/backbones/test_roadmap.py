"""The roadmap against its tables and against independent networks at both of its ends."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from analysis.flops import Count, count_backbone
from backbones import build_backbone
from backbones.convnext import ConvNeXt
from backbones.errors import UserError
from backbones.roadmap import (
    RESNET50_TO_TINY,
    RESNET200_TO_BASE,
    ROADMAP_STEPS,
    Design,
    RoadmapNet,
    RoadmapRow,
)

ROWS = {**RESNET50_TO_TINY, **RESNET200_TO_BASE}
ON_THE_WAY = {name: row for name, row in ROWS.items() if not row.design.separate_downsampling}
FOUR = (0, 1, 2, 3)
# Where a note explains a deviation, our own numbers: convolutions and linear layers, and by fvcore's rules.
EXPLAINED = {
    "roadmap50_inverted": (4.64, 4.69),
    "roadmap50_layer_norm": (4.15, 4.16),
    "roadmap50_separate_downsampling": (4.46, 4.47),
}


@cache
def count(name: str) -> Count:
    return count_backbone(name)


def products(name: str) -> int:
    """Multiply-adds of convolutions and linear layers alone, the convention of both tables."""
    by_operator = count(name).by_operator
    return by_operator["conv"] + by_operator["linear"]


def small(name: str, **options: Any) -> RoadmapNet:
    """A row's network with few and thin blocks, which runs with numbers in milliseconds."""
    torch.manual_seed(0)
    return RoadmapNet(replace(ON_THE_WAY[name].design, depths=(1, 2, 4, 1), width=8), **options)


def total(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    parts = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    return torch.stack([(part * torch.randn_like(part)).sum() for part in parts]).sum()


@pytest.mark.parametrize("name", ROWS)
def test_multiply_adds_are_the_printed_ones(name: str) -> None:
    printed, counted = ROWS[name].printed, round(products(name) / 1e9, 2)
    by_fvcore = count(name).flops / 1e9
    assert bool(printed.note) == (name in EXPLAINED)
    if name in EXPLAINED:
        assert (counted, round(by_fvcore, 2)) == EXPLAINED[name]
    else:
        assert counted == printed.gflops
        assert by_fvcore == pytest.approx(printed.gflops, rel=0.01)


def test_the_printed_count_of_convnext_tiny_stands_one_row_early() -> None:
    assert RESNET50_TO_TINY["roadmap50_layer_norm"].printed.gflops == EXPLAINED["roadmap50_separate_downsampling"][0]
    assert products("roadmap50_layer_norm") == products("roadmap50_fewer_norms")
    assert products("roadmap200_layer_norm") == products("roadmap200_fewer_norms")


@pytest.mark.parametrize("table", [RESNET50_TO_TINY, RESNET200_TO_BASE], ids=["2.10", "2.11"])
def test_norms_and_activations_cost_nothing_in_the_tables(table: dict[str, RoadmapRow]) -> None:
    regime = next(iter(table)).partition("_")[0]
    costs = {step: products(f"{regime}_{step}") for step in ("kernel7", "gelu", "fewer_activations", "fewer_norms")}
    assert set(costs.values()) == {products(f"{regime}_layer_norm")}
    assert count(f"{regime}_fewer_norms").flops < count(f"{regime}_fewer_activations").flops


@pytest.mark.parametrize("table", [RESNET50_TO_TINY, RESNET200_TO_BASE], ids=["2.10", "2.11"])
def test_each_row_is_a_small_difference_from_the_row_before(table: dict[str, RoadmapRow]) -> None:
    before = Design(depths=next(iter(table.values())).design.depths)
    for step, row in zip(ROADMAP_STEPS, table.values(), strict=True):
        names = [field.name for field in fields(Design)]
        changed = [name for name in names if getattr(row.design, name) != getattr(before, name)]
        assert len(changed) <= (2 if step.name == "stage_ratio" else 1)
        if step.adopted:
            before = row.design
    assert before.kernel_size == 7
    assert before.separate_downsampling


def test_the_tables_are_complete() -> None:
    assert len(RESNET50_TO_TINY) == len(RESNET200_TO_BASE) == 16
    assert all(row.printed.std is not None for row in RESNET50_TO_TINY.values())
    assert all(row.printed.std is None for row in RESNET200_TO_BASE.values())
    best = max(ROWS, key=lambda name: ROWS[name].printed.accuracy)
    assert best == "roadmap200_separate_downsampling"


def torchvision_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A ResNet's tensors under the roadmap's names."""
    renamed = {}
    for name, value in state.items():
        if name.startswith("layer"):
            layer, block, kind, rest = name.split(".", 3)
            place = {"downsample": "shortcut"}.get(kind, f"branch.{kind.replace('bn', 'norm')}")
            renamed[f"stages.{int(layer[-1]) - 1}.{block}.{place}.{rest}"] = value
        else:
            stem = {"conv1": "0", "bn1": "1"}[name.partition(".")[0]]
            renamed[f"downsample_layers.0.{stem}.{name.partition('.')[2]}"] = value
    return renamed


@pytest.mark.parametrize("name", ["roadmap50_resnet", "roadmap200_resnet"])
def test_the_baseline_is_torchvisions_resnet(name: str) -> None:
    torch.manual_seed(0)
    theirs = ResNet(Bottleneck, list(ROWS[name].design.depths))
    theirs.fc = nn.Identity()
    with torch.device("meta"):
        ours = build_backbone(name)
    ours.load_state_dict(torchvision_names(theirs.state_dict()), assign=True)
    image = torch.randn(2, 3, 70, 45, dtype=torch.float64)
    for training in (True, False):  # first, for the running statistics that the second uses
        with torch.no_grad():
            outputs = [network.double().train(training)(image) for network in (ours, theirs)]
        torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("name, target", [("roadmap50", "convnext_tiny"), ("roadmap200", "convnext_base")])
def test_the_last_row_is_the_convnext_itself(name: str, target: str) -> None:
    with torch.device("meta"):
        last, convnext = build_backbone(f"{name}_separate_downsampling"), build_backbone(target)
    shapes = [{key: value.shape for key, value in net.state_dict().items()} for net in (last, convnext)]
    assert shapes[0] == shapes[1]
    assert isinstance(last, ConvNeXt)
    state = {key: torch.randn(shape) * 0.05 for key, shape in shapes[0].items()}
    image = torch.randn(1, 3, 32, 48)
    outputs = []
    for network in (last, convnext):
        network.load_state_dict(state, assign=True)
        with torch.no_grad():
            outputs.append(network.eval()(image))
    assert torch.equal(*outputs)


def test_the_last_design_is_refused_by_the_networks_before_it() -> None:
    with pytest.raises(UserError, match="separate_downsampling=True is a ConvNeXt"):
        RoadmapNet(ROWS["roadmap50_separate_downsampling"].design)


def test_layer_scale_enters_with_the_last_row() -> None:
    last = build_backbone("roadmap50_separate_downsampling")
    assert last.get_parameter("stages.0.0.gamma").unique().tolist() == pytest.approx([1e-6])
    before = {name for name, _ in small("roadmap50_layer_norm").named_parameters()}
    scaled = {name for name, _ in small("roadmap50_layer_norm", layer_scale_init_value=0.5).named_parameters()}
    assert len(scaled - before) == 8
    assert all(name.endswith(".gamma") for name in scaled - before)


def test_layer_scale_scales_the_branch() -> None:
    plain, scaled = (small("roadmap50_fewer_norms", layer_scale_init_value=value) for value in (0.0, 0.25))
    scaled.load_state_dict(plain.state_dict(), strict=False)
    block, same = plain.stages[2][1].eval(), scaled.stages[2][1].eval()
    x = torch.randn(1, 32, 5, 5)
    torch.testing.assert_close(same(x) - x, 0.25 * (block(x) - x))


@pytest.mark.parametrize("out_indices", [None, FOUR], ids=["pooled", "maps"])
@pytest.mark.parametrize("name", [name for name in RESNET50_TO_TINY if name in ON_THE_WAY])
def test_every_parameter_gets_a_gradient_that_is_not_zero(name: str, out_indices: Any) -> None:
    network = small(name, out_indices=out_indices)
    outputs = network(torch.randn(2, 3, 70, 45))
    total(outputs).backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert dead == []


@pytest.mark.parametrize("name", ON_THE_WAY)
def test_ids_cover_every_parameter_and_leave_the_head_out(name: str) -> None:
    with torch.device("meta"):
        network = build_backbone(name)
    names = [name for name, _ in network.named_parameters()]
    assert {network.layer_id(name) for name in names} == set(range(network.num_layers + 1))
    assert {network.stage_id(name) for name in names} == {0, 1, 2, 3, 4}
    assert {name for name in names if network.layer_id(name) == 0} == {
        name for name in names if network.stage_id(name) == 0
    }


def test_layer_ids_group_three_blocks_as_in_convnext() -> None:
    with torch.device("meta"):
        resnet, late, convnext = (
            build_backbone(name) for name in ("roadmap50_resnet", "roadmap50_layer_norm", "convnext_tiny")
        )
    assert (resnet.num_layers, late.num_layers, convnext.num_layers) == (5, 6, 6)
    for stage, depth in enumerate((3, 3, 9, 3)):
        for block in range(depth):
            ours, theirs = f"stages.{stage}.{block}.branch.conv1.weight", f"stages.{stage}.{block}.dwconv.weight"
            assert late.layer_id(ours) == convnext.layer_id(theirs)
            assert late.stage_id(ours) == convnext.stage_id(theirs)
    with pytest.raises(UserError, match=r"'fc\.weight' is not a parameter"):
        resnet.layer_id("fc.weight")


@pytest.mark.parametrize("name", ["roadmap50_resnet", "roadmap50_patchify", "roadmap50_layer_norm"])
@pytest.mark.parametrize("size", [(64, 96), (45, 70), (33, 95)], ids=str)
def test_maps_round_up_as_a_resnets_do(name: str, size: tuple[int, int]) -> None:
    network = small(name, out_indices=FOUR)
    patches = [ceil(side / 4) if name == "roadmap50_resnet" else side // 4 for side in size]
    maps = network(torch.randn(2, 3, *size))
    assert network.strides == (4, 8, 16, 32)
    assert [tuple(one.shape) for one in maps] == [
        (2, channels, *(ceil(side / 2**i) for side in patches)) for i, channels in enumerate(network.out_channels)
    ]
    assert small(name)(torch.randn(2, 3, *size)).shape == (2, network.num_features)


@pytest.mark.parametrize(
    "step, norms, activations",
    [
        ("kernel7", ["branch.norm1", "branch.norm2", "branch.norm3"], ["act", "branch.act1", "branch.act2"]),
        ("fewer_activations", ["branch.norm1", "branch.norm2", "branch.norm3"], ["branch.act2"]),
        ("fewer_norms", ["branch.norm1"], ["branch.act2"]),
        ("layer_norm", ["branch.norm1"], ["branch.act2"]),
    ],
)
def test_where_norms_and_activations_stand(step: str, norms: list[str], activations: list[str]) -> None:
    block = small(f"roadmap50_{step}").stages[2][1]
    kinds: tuple[Any, Any] = ((nn.BatchNorm2d, nn.LayerNorm), (nn.ReLU, nn.GELU))
    found = [sorted(name for name, part in block.named_modules() if isinstance(part, kind)) for kind in kinds]
    assert found == [norms, activations]
    gelu, layer_norm = step != "kernel7", step == "layer_norm"
    parts = list(small(f"roadmap50_{step}").modules())
    assert any(isinstance(part, nn.GELU) for part in parts) == gelu
    assert any(isinstance(part, nn.ReLU) for part in parts) != gelu
    assert any(isinstance(part, nn.LayerNorm) for part in parts) == layer_norm
    assert any(isinstance(part, nn.BatchNorm2d) for part in parts) != layer_norm


@pytest.mark.parametrize("step", ["resnet", "kernel7", "fewer_norms", "layer_norm"])
def test_stem_and_shortcut_have_norms_until_there_are_fewer(step: str) -> None:
    network = small(f"roadmap50_{step}")
    norms = 0 if step in ("fewer_norms", "layer_norm") else 1
    for part in (network.downsample_layers[0], network.stages[1][0].shortcut):
        assert sum(isinstance(layer, nn.BatchNorm2d | nn.LayerNorm) for layer in part) == norms


@pytest.mark.parametrize("name", ON_THE_WAY)
def test_a_convolution_has_a_bias_unless_a_batch_norm_undoes_it(name: str) -> None:
    chains = [part for part in small(name).modules() if isinstance(part, nn.Sequential)]
    for chain in chains:
        layers = list(chain)
        for layer, after in zip(layers, [*layers[1:], None]):
            if isinstance(layer, nn.Conv2d):
                assert (layer.bias is None) == isinstance(after, nn.BatchNorm2d)


def test_weights_begin_as_in_convnext() -> None:
    network = small("roadmap50_layer_norm")
    weight = network.get_parameter("stages.3.0.branch.conv2.weight")
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not network.get_parameter("stages.3.0.branch.conv2.bias").any()


def test_stochastic_depth_grows_to_the_last_block() -> None:
    network = small("roadmap50_width", drop_path_rate=0.7)
    rates = [block.drop_path.drop_prob for stage in network.stages for block in stage]
    assert rates == pytest.approx([0.1 * i for i in range(8)])


def test_checkpointed_blocks_give_the_same_gradients() -> None:
    image = torch.randn(2, 3, 64, 64)
    gradients = []
    for grad_checkpointing in (False, True):
        network = small("roadmap50_layer_norm", grad_checkpointing=grad_checkpointing)
        network(image).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_weights_return(tmp_path: Path) -> None:
    trained = small("roadmap50_inverted")
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in trained.state_dict().items()}}, tmp_path / "trained.pth")
    network = small("roadmap50_inverted", weights=str(tmp_path / "trained.pth"), out_indices=FOUR)
    nn.init.zeros_(network.get_parameter("stages.0.0.branch.conv1.weight"))
    report = network.init_weights()
    assert report is not None
    assert report.loaded == report.total == len(trained.state_dict())
    torch.testing.assert_close(dict(network.state_dict()), dict(trained.state_dict()))
