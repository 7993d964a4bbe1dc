"""ConvNeXt against independent implementations, the released code's ids and names, and its own options."""

from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models.convnext import checkpoint_filter_fn as timm_names
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from backbones import UserError, build_backbone
from backbones.convnext import ConvNeXt

FOUR = (0, 1, 2, 3)
SMALL: dict[str, Any] = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))

# Released code (layer ids of its optimizer factory), written out: one line for each group of tensors.
LAYERS_TINY = {
    "downsample_layers": [0, 2, 3, 6],
    "stages.0": [1, 1, 1],
    "stages.1": [2, 2, 2],
    "stages.2": [3, 3, 3, 4, 4, 4, 5, 5, 5],
    "stages.3": [6, 6, 6],
    "norm": 7,
}
LAYERS_SMALL = {
    "downsample_layers": [0, 2, 3, 12],
    "stages.0": [1, 1, 1],
    "stages.1": [2, 2, 2],
    "stages.2": [3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6, 7, 7, 7, 8, 8, 8, 9, 9, 9, 10, 10, 10, 11, 11, 11],
    "stages.3": [12, 12, 12],
    "norm": 13,
}
BLOCK_NAMES = ("dwconv.weight", "dwconv.bias", "norm.weight", "norm.bias", "gamma") + tuple(
    f"pwconv{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")
)


def shaken(network: nn.Module) -> nn.Module:
    """Random values in every parameter, so that none hides behind its initial 0, 1 or 1e-6."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn_like(parameter) / fan_in**0.5)
    return network.eval()


def normalised(x: Tensor, norm: nn.Module) -> Tensor:
    """Layer normalisation over axis 1 by its definition."""
    centred = x - x.mean(1, keepdim=True)
    unit = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
    return unit * norm.weight[:, None, None] + norm.bias[:, None, None]  # type: ignore[index]


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("name", ["convnext_atto", "convnext_tiny"])
@torch.no_grad()
def test_same_outputs_as_timm(name: str) -> None:
    pooled, dense = shaken(build_backbone(name)), shaken(build_backbone(name, out_indices=FOUR))
    shared = {key: value for key, value in pooled.state_dict().items() if not key.startswith("norm.")}
    dense.load_state_dict(shared, strict=False)
    theirs = timm.create_model(name, num_classes=0).eval()
    theirs.load_state_dict(timm_names(pooled.state_dict(), theirs))
    image = torch.randn(2, 3, 70, 77)
    assert_near(pooled(image), theirs(image))
    raw = theirs.forward_intermediates(image, norm=False, intermediates_only=True)
    for i, (ours, one) in enumerate(zip(dense(image), raw, strict=True)):
        assert_near(ours, normalised(one, dense.get_submodule(f"norm{i}")))


@torch.no_grad()
def test_same_outputs_as_torchvision() -> None:
    ours, theirs = shaken(build_backbone("convnext_tiny")), torchvision.models.convnext_tiny().eval()
    places = {"dwconv": "block.0", "norm": "block.2", "pwconv1": "block.3", "pwconv2": "block.5"}
    renamed = {}
    for name, value in ours.state_dict().items():
        name = re.sub(r"^norm\.", "classifier.0.", name)
        name = re.sub(r"^downsample_layers\.(\d)", lambda m: f"features.{2 * int(m[1])}", name)
        name = re.sub(r"^stages\.(\d)", lambda m: f"features.{2 * int(m[1]) + 1}", name)
        name = re.sub(r"(?<=\.)(dwconv|norm|pwconv[12])(?=\.)", lambda m: places[m[1]], name)
        if name.endswith(".gamma"):
            name, value = name.replace("gamma", "layer_scale"), value[:, None, None]
        renamed[name] = value
    head = {name: value for name, value in theirs.state_dict().items() if name.startswith("classifier.2.")}
    theirs.load_state_dict(renamed | head)
    theirs.classifier[2] = nn.Identity()
    image = torch.randn(2, 3, 70, 77)
    assert_near(ours(image), theirs(image))


@pytest.mark.parametrize("name, table", [("convnext_tiny", LAYERS_TINY), ("convnext_small", LAYERS_SMALL)])
def test_layer_ids_are_those_of_the_released_code(name: str, table: dict[str, Any]) -> None:
    with torch.device("meta"):
        pooled, dense = build_backbone(name), build_backbone(name, out_indices=FOUR)
    assert pooled.num_layers == table["norm"] - 1
    for network in (pooled, dense):
        for parameter, _ in network.named_parameters():
            if parameter.startswith("norm"):
                expected = table["norm"]
            elif parameter.startswith("downsample_layers"):
                expected = table["downsample_layers"][int(parameter.split(".")[1])]
            else:
                _, stage, block, *_ = parameter.split(".")
                expected = table[f"stages.{stage}"][int(block)]
            assert network.layer_id(parameter) == expected, parameter


def test_stage_ids_are_those_of_the_released_code() -> None:
    with torch.device("meta"):
        network = build_backbone("convnext_tiny", out_indices=FOUR)
    for i in range(4):
        assert network.stage_id(f"downsample_layers.{i}.0.weight") == 0
        assert network.stage_id(f"stages.{i}.1.pwconv1.weight") == i + 1
        assert network.stage_id(f"norm{i}.bias") is None


def test_a_foreign_name_has_no_id() -> None:
    network = ConvNeXt(**SMALL)
    for name in ("head.weight", "backbone.norm.weight", "stages.weight"):
        with pytest.raises(UserError, match="not a parameter"):
            network.layer_id(name)


def test_parameter_names_are_the_official_ones() -> None:
    expected = {f"downsample_layers.{i}.{j}.{kind}" for i in FOUR for j in (0, 1) for kind in ("weight", "bias")}
    for stage, depth in enumerate((3, 3, 9, 3)):
        expected |= {f"stages.{stage}.{block}.{name}" for block in range(depth) for name in BLOCK_NAMES}
    with torch.device("meta"):
        pooled, dense = build_backbone("convnext_tiny"), build_backbone("convnext_tiny", out_indices=(1, 3))
    assert set(pooled.state_dict()) == expected | {"norm.weight", "norm.bias"}
    assert set(dense.state_dict()) == expected | {f"norm{i}.{kind}" for i in (1, 3) for kind in ("weight", "bias")}
    assert len(pooled.state_dict()) == 180


@torch.no_grad()
def test_memory_format_of_the_input_changes_nothing() -> None:
    network = shaken(ConvNeXt(**SMALL, out_indices=FOUR))
    image = torch.randn(2, 3, 45, 70)
    for one, other in zip(network(image), network(image.contiguous(memory_format=torch.channels_last))):
        assert torch.equal(one, other)


def test_every_map_on_the_way_is_in_channels_last() -> None:
    network = ConvNeXt(**SMALL, out_indices=FOUR)
    seen: list[bool] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda _, inputs: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
            )
    maps = network(torch.randn(2, 3, 64, 64))
    assert seen == [True] * (4 + sum(SMALL["depths"]))
    assert all(one.is_contiguous(memory_format=torch.channels_last) for one in maps)


def training_pass(grad_checkpointing: bool) -> tuple[Tensor, tuple[Tensor, ...], int]:
    """Loss, gradients and the number of numbers kept for the backward pass."""
    torch.manual_seed(3)
    network = ConvNeXt(
        **SMALL, out_indices=FOUR, drop_path_rate=0.5, layer_scale_init_value=1.0, grad_checkpointing=grad_checkpointing
    ).train()
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    torch.manual_seed(4)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = sum(one.square().mean() * one.flatten()[0] for one in network(torch.randn(4, 3, 64, 64)))
    # autograd.grad refuses reentrant checkpoints.
    return loss, torch.autograd.grad(loss, list(network.parameters())), sum(kept)


def test_gradient_checkpointing_gives_the_same_gradients_and_keeps_less() -> None:
    loss, gradients, kept = training_pass(False)
    loss_again, gradients_again, kept_again = training_pass(True)
    assert torch.equal(loss, loss_again)
    for one, other in zip(gradients, gradients_again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
    assert kept_again < kept / 2


def test_stochastic_depth_grows_linearly_and_sleeps_in_evaluation() -> None:
    with torch.device("meta"):
        network = build_backbone("convnext_tiny", drop_path_rate=0.34)
    rates = [block.drop_path.drop_prob for stage in network.stages for block in stage]
    assert rates == pytest.approx([0.02 * i for i in range(18)])
    torch.manual_seed(0)
    small = ConvNeXt(**SMALL, drop_path_rate=0.5, layer_scale_init_value=1.0)
    image = torch.randn(8, 3, 32, 32)
    assert not torch.equal(small.train()(image), small(image))
    assert torch.equal(small.eval()(image), small(image))


def test_layer_scale() -> None:
    with_scale, without = ConvNeXt(**SMALL, layer_scale_init_value=0.25), ConvNeXt(**SMALL, layer_scale_init_value=0)
    gammas = [value for name, value in with_scale.state_dict().items() if name.endswith("gamma")]
    assert len(gammas) == 5
    assert all(bool((gamma == 0.25).all()) for gamma in gammas)
    assert set(with_scale.state_dict()) - set(without.state_dict()) == {
        name for name in with_scale.state_dict() if name.endswith("gamma")
    }
    assert without.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 32)


def test_initial_weights_are_narrow_and_biases_zero() -> None:
    network = ConvNeXt(**SMALL)
    weights = torch.cat([p.detach().flatten() for p in network.parameters() if p.ndim > 1])
    assert float(weights.std()) == pytest.approx(0.02, rel=0.05)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()


@pytest.mark.parametrize("kernel_size, mlp_ratio", [(3, 4), (11, 2)])
def test_kernel_size_and_mlp_ratio(kernel_size: int, mlp_ratio: float) -> None:
    network = ConvNeXt(**SMALL, kernel_size=kernel_size, mlp_ratio=mlp_ratio, in_channels=1)
    block = network.get_submodule("stages.2.1")
    assert block.dwconv.weight.shape == (24, 1, kernel_size, kernel_size)
    assert block.pwconv1.out_features == 24 * mlp_ratio
    assert network(torch.randn(1, 1, 40, 40)).shape == (1, 32)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(depths=(1, 1, 1)), "depths"),
        (dict(dims=(8, 16, 0, 32)), "dims"),
        (dict(kernel_size=4), "kernel_size=4"),
        (dict(drop_path_rate=1.0), "drop_path_rate=1.0"),
        (dict(drop_path_rate=-0.1), "drop_path_rate=-0.1"),
        (dict(out_indices=(0, 4)), "out_indices"),
        (dict(out_indices=()), "out_indices"),
        (dict(out_indices=(3, 0)), "ascending"),
        (dict(out_indices=(1, 1)), "ascending"),
        (dict(mlp_ratio=0.0), "mlp_ratio=0.0"),
        (dict(mlp_ratio=-1.0), "mlp_ratio=-1.0"),
        (dict(out_indicies=(0, 1)), "out_indicies"),
        (dict(weights="nowhere.pth"), "nowhere.pth"),
    ],
)
def test_a_wrong_argument_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_backbone("convnext_atto", **{**SMALL, **wrong})
    assert "\n" not in str(caught.value)


def test_a_tiny_image_is_an_error() -> None:
    network = ConvNeXt(**SMALL)
    assert network(torch.randn(1, 3, 32, 32)).shape == (1, 32)
    with pytest.raises(UserError, match="31 x 64 pixels"):
        network(torch.randn(1, 3, 31, 64))
