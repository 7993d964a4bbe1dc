"""Every ConvNeXt: shapes, gradients, sizes and ids; the meta device tracks shapes without numbers."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from backbones import UserError, build_backbone, list_backbones
from backbones.roadmap import RESNET50_TO_TINY, RESNET200_TO_BASE
from backbones.variants import BASELINES, CONVNEXT_ISOTROPIC, CONVNEXT_V1, CONVNEXT_V2

FOUR = (0, 1, 2, 3)
CLASSES = 1000
PRINTED = {**CONVNEXT_V1, **CONVNEXT_V2, **CONVNEXT_ISOTROPIC}
# Run with numbers in them too.
LIGHT = ["convnext_atto", "convnext_tiny", "convnextv2_atto", "convnext_isotropic_small"]
SIZES = [(64, 96), (45, 70), (33, 95)]


def meta(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        return build_backbone(name, **options)


def project(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    """A loss to which no output is indifferent: a norm's outputs have a constant sum and a constant square."""
    parts = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    return torch.stack([(part * torch.randn_like(part)).sum() for part in parts]).sum()


def test_the_tables_are_what_is_registered() -> None:
    assert set(LIGHT) <= set(PRINTED)
    # The baselines and the roadmap have files of their own next to this one.
    assert list_backbones() == [*PRINTED, *BASELINES, *RESNET50_TO_TINY, *RESNET200_TO_BASE]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", PRINTED)
def test_maps_have_the_announced_channels_and_strides(name: str, size: tuple[int, int]) -> None:
    network = meta(name, out_indices=FOUR)
    maps = network(torch.empty(2, 3, *size, device="meta"))
    assert network.strides == ((16,) * 4 if "isotropic" in name else (4, 8, 16, 32))
    expected = []
    for channels, stride in zip(network.out_channels, network.strides):
        expected.append((2, channels, size[0] // stride, size[1] // stride))
    assert [tuple(one.shape) for one in maps] == expected


@pytest.mark.parametrize("name", PRINTED)
def test_out_indices_choose_among_the_maps(name: str) -> None:
    image = torch.empty(1, 3, 64, 64, device="meta")
    everything = meta(name, out_indices=FOUR)
    for chosen in [(3,), (1, 3), (0, 2)]:
        network = meta(name, out_indices=chosen)
        assert network.out_channels == tuple(everything.out_channels[i] for i in chosen)
        assert network.strides == tuple(everything.strides[i] for i in chosen)
        assert tuple(one.shape[1] for one in network(image)) == network.out_channels


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", PRINTED)
def test_without_out_indices_one_pooled_vector(name: str, size: tuple[int, int]) -> None:
    network = meta(name)
    assert network(torch.empty(2, 3, *size, device="meta")).shape == (2, network.num_features)
    assert network.out_channels == (network.num_features,)
    assert network.strides == ((16,) if "isotropic" in name else (32,))


@pytest.mark.parametrize("out_indices", [None, FOUR], ids=["pooled", "maps"])
@pytest.mark.parametrize("name", PRINTED)
def test_every_parameter_is_reached_by_the_backward_pass(name: str, out_indices: Any) -> None:
    network = meta(name, out_indices=out_indices)
    project(network(torch.empty(2, 3, 45, 70, device="meta"))).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("out_indices", [None, FOUR], ids=["pooled", "maps"])
@pytest.mark.parametrize("name", LIGHT)
def test_every_parameter_gets_a_gradient_that_is_not_zero(name: str, out_indices: Any) -> None:
    torch.manual_seed(0)
    network = build_backbone(name, out_indices=out_indices, layer_scale_init_value=1.0)
    project(network(torch.randn(2, 3, 45, 70))).backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert dead == []


@pytest.mark.parametrize("name", PRINTED)
def test_parameter_count_is_the_printed_one(name: str) -> None:
    printed = PRINTED[name].params
    network = meta(name)
    head = nn.Linear(network.num_features, CLASSES, device="meta")
    millions = sum(p.numel() for part in (network, head) for p in part.parameters()) / 1e6
    # 50.0 stands for the paper's "50M".
    decimals = 0 if printed == int(printed) else len(str(printed).partition(".")[2])
    assert round(millions, decimals) == printed


@pytest.mark.parametrize("out_indices", [None, FOUR], ids=["pooled", "maps"])
@pytest.mark.parametrize("name", PRINTED)
def test_ids_cover_every_parameter(name: str, out_indices: Any) -> None:
    network = meta(name, out_indices=out_indices)
    names = [name for name, _ in network.named_parameters()]
    assert {network.layer_id(name) for name in names} == set(range(network.num_layers + 2))
    assert {network.stage_id(name) for name in names} == {None, 0, 1, 2, 3, 4}
    last = network.num_layers + 1
    assert all((network.layer_id(name) == last) == (network.stage_id(name) is None) for name in names)


@pytest.mark.parametrize("name", PRINTED)
def test_layer_ids_never_fall_on_the_way_through_the_network(name: str) -> None:
    network = meta(name)
    seen: list[int] = []

    def note(prefix: str) -> Any:
        return lambda module, inputs: seen.extend(
            network.layer_id(f"{prefix}.{own}") for own, _ in module.named_parameters(recurse=False)
        )

    for prefix, module in network.named_modules():
        module.register_forward_pre_hook(note(prefix))
    network(torch.empty(1, 3, 64, 64, device="meta"))
    assert seen == sorted(seen)
    assert len(seen) == len(list(network.parameters()))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("grad_checkpointing", [False, True])
@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto", "convnext_isotropic_small", "roadmap50_resnet"])
def test_hooks_on_stages_see_their_outputs(name: str, grad_checkpointing: bool, train: bool) -> None:
    """The last stage is the usual target of Grad-CAM, and its hook the usual way to take out a map."""
    with torch.device("meta"):
        network = build_backbone(name, grad_checkpointing=grad_checkpointing).train(train)
        stages = network.blocks if name.startswith("convnext_iso") else network.stages[3]
        seen: list[Tensor] = []
        stages.register_forward_hook(lambda module, inputs, output: seen.append(output))
        outputs = network(torch.empty(2, 3, 64, 64))
    assert [part.shape[:2] for part in seen] == [outputs.shape]


@pytest.mark.parametrize("name", BASELINES)
def test_hooks_on_the_stages_of_timm_s_networks_see_their_outputs(name: str) -> None:
    with torch.device("meta"):
        network = build_backbone(name).eval()
        parents = {path.rpartition(".")[0] for path in network.block_stages()}
        stages = [
            module for path, module in network.named_modules() if path in parents or re.fullmatch(r"layers\.\d", path)
        ]
        called: list[nn.Module] = []
        for stage in stages:
            stage.register_forward_hook(lambda module, inputs, output: called.append(module))
        network(torch.empty(1, 3, 224, 224))
    assert stages
    assert set(called) == set(stages)


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto", "roadmap50_resnet"])
def test_maps_can_be_taken_out_by_torch_fx(name: str) -> None:
    network = build_backbone(name).eval()
    images = torch.randn(1, 3, 64, 96)
    maps: list[Tensor] = []
    network.stages[2].register_forward_hook(lambda module, inputs, output: maps.append(output))
    extractor = create_feature_extractor(network, {"stages.2": "map"})
    with torch.no_grad():
        network(images)
        torch.testing.assert_close(extractor(images)["map"], maps[-1])
        with pytest.raises(UserError, match="at least 32 x 32"):
            extractor(images[..., :16])


KINDS = ("convnext_atto", "convnextv2_atto", "convnext_isotropic_small", "swin_tiny", "resnet50")


@pytest.mark.parametrize("name", KINDS)
def test_frozen_stages_of_every_kind_of_network(name: str) -> None:
    """Stem and stages up to the given one; each stage with the downsampling before it."""
    with torch.device("meta"):
        network = build_backbone(name)
        total = len(list(network.parameters()))
        left = [total]
        for stages in range(5):
            frozen = build_backbone(name, frozen_stages=stages)
            left.append(sum(param.requires_grad for param in frozen.parameters()))
    assert all(one > other for one, other in pairwise(left))
    trained = {one.partition(".")[0] for one, param in frozen.named_parameters() if param.requires_grad}
    assert trained <= {"norm"}
    assert trained == (set() if name == "resnet50" else {"norm"})


def test_frozen_stages_of_convnext() -> None:
    network = build_backbone("convnext_atto", frozen_stages=2, drop_path_rate=0.5).train()
    frozen = {one.rpartition(".")[0] for one, param in network.named_parameters() if not param.requires_grad}
    assert {".".join(one.split(".")[:2]) for one in frozen} == {
        *("downsample_layers.0", "stages.0", "downsample_layers.1", "stages.1")
    }
    assert [stage.training for stage in network.stages] == [False, False, True, True]
    assert not any(module.training for module in network.stages[1].modules())
    assert network.training
    network.eval()
    assert not any(module.training for module in network.modules())


def test_a_frozen_backbone_keeps_no_activations_and_gets_no_gradient() -> None:
    network = build_backbone("convnext_atto", out_indices=(0, 1, 2, 3), frozen_stages=4, drop_path_rate=0.5).train()
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        maps = network(torch.randn(1, 3, 64, 64))
    # Each of the output norms, which learn, keeps a few tensors of the size of its map; each of 12 blocks would too.
    assert len(kept) <= 4 * 5
    assert sum(kept) < 3 * sum(one.untyped_storage().nbytes() for one in maps)
    sum(one.sum() for one in maps).backward()
    norms = [f"norm{i}" for i in range(4)]
    reached = {name for name, param in network.named_parameters() if param.grad is not None}
    assert reached == {f"{norm}.{kind}" for norm in norms for kind in ("weight", "bias")}
    assert [name for name, one in network.named_modules() if one.training] == ["", *norms]


@pytest.mark.parametrize("stages", [-2, 5, 1.5, "1"])
def test_frozen_stages_out_of_range(stages: Any) -> None:
    with pytest.raises(UserError, match=r"frozen_stages=\S+: a whole number from -1 \(nothing\) to 4"):
        build_backbone("convnext_atto", frozen_stages=stages)
