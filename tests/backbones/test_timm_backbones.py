"""Baselines from timm: the same numbers as timm, mmdet and torchvision; ids; names and sizes in checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision
from mmdet.models.backbones.swin import SwinTransformer as MMDetSwin
from mmdet.models.backbones.swin import swin_converter
from timm.layers import DropPath
from torch import Tensor, nn

from backbones import UserError, build_backbone, list_backbones
from backbones.timm_backbones import TimmBackbone, TimmConvNet, TimmSwin, TimmVisionTransformer
from backbones.variants import BASELINES, CONVNETS, SWIN, VIT

FOUR = (0, 1, 2, 3)
CLASSES = 1000
# Printed as 120 M in Table 2.1; torchvision's EfficientNetV2-L, another independent one, has the same number as timm's.
OTHER_PARAMS = {"efficientnetv2_l": 118_515_272}
SMALL_SWIN: dict[str, Any] = {"embed_dim": 24, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)}
SMALL_VIT: dict[str, Any] = {"embed_dim": 64, "depth": 6, "num_heads": 4}
# Class, network and options of timm, side of the image. Small relatives stand for the big networks of the tables.
RELATIVES: dict[str, tuple[type[TimmBackbone], str, dict[str, Any], int]] = {
    "swin": (TimmSwin, "swin_tiny_patch4_window7_224", {}, 224),
    "swin at 12": (TimmSwin, "swin_base_patch4_window12_384", {**SMALL_SWIN, "embed_dim": 16}, 384),
    "deit": (TimmVisionTransformer, "deit_small_patch16_224", {}, 224),
    "vit at 384": (TimmVisionTransformer, "vit_base_patch16_384", SMALL_VIT, 384),
    "vit huge": (TimmVisionTransformer, "vit_huge_patch14_224", {**SMALL_VIT, "patch_size": 16, "img_size": 512}, 512),
    "resnet": (TimmConvNet, "resnet50", {}, 96),
    "regnet": (TimmConvNet, "regnety_002", {}, 96),
    "efficientnet": (TimmConvNet, "tf_efficientnet_b0", {}, 96),
    "efficientnetv2": (TimmConvNet, "tf_efficientnetv2_l", {"channel_multiplier": 0.25, "depth_multiplier": 0.2}, 96),
    "bit": (TimmConvNet, "resnetv2_50x1_bit", {}, 96),
}
CONV_RELATIVES = [name for name, (kind, *_) in RELATIVES.items() if kind is TimmConvNet]


def randomized(model: nn.Module) -> nn.Module:
    """Move norms, biases, tables and statistics off their initial values: zeros and ones hide mistakes."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and (tensor.ndim == 1 or name.endswith(("_table", "_embed", "_token"))):
                tensor += 0.1 * (torch.rand_like(tensor) if name.endswith("running_var") else torch.randn_like(tensor))
    return model.eval()


def pictures(*shape: int) -> Tensor:
    """Images in the memory format that our networks bring them into: the other model then rounds in the same way."""
    torch.manual_seed(3)
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


def copied(source: nn.Module, network: TimmBackbone) -> dict[str, Tensor]:
    """Load a timm model into ours; what remains, the head."""
    renamed = network.rename_weights(source.state_dict())
    result = network.load_state_dict(renamed, strict=False)
    assert all(network.may_be_missing(name) for name in result.missing_keys)
    network.eval()
    return {name: renamed[name] for name in result.unexpected_keys}


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def relative(name: str, **options: Any) -> TimmBackbone:
    kind, timm_name, timm_options, _ = RELATIVES[name]
    return kind(timm_name=timm_name, timm_options=timm_options, **options)


def small_swin(**options: Any) -> TimmSwin:
    return TimmSwin("swin_tiny_patch4_window7_224", timm_options=SMALL_SWIN, **options)


def test_the_table_is_registered() -> None:
    assert set(BASELINES) <= set(list_backbones())
    assert len(BASELINES) == len(SWIN) + len(VIT) + len(CONVNETS)


@pytest.mark.parametrize("name", BASELINES)
def test_parameters_are_the_printed_ones(name: str) -> None:
    with torch.device("meta"):
        network = build_backbone(name)
    head = network.num_features * CLASSES + CLASSES
    params = sum(parameter.numel() for parameter in network.parameters()) + head
    printed = BASELINES[name].params
    if name in OTHER_PARAMS:
        assert params == OTHER_PARAMS[name]
    elif printed is not None:
        assert round(params / 1e6) == printed


@pytest.mark.parametrize("name", RELATIVES)
@torch.inference_mode()
def test_a_linear_layer_on_the_vector_is_timms_classifier(name: str) -> None:
    _, timm_name, timm_options, side = RELATIVES[name]
    source = randomized(timm.create_model(timm_name, num_classes=CLASSES, **timm_options))
    network = relative(name)
    head = copied(source, network)
    assert set(head) == {"head.weight", "head.bias"}
    classifier = nn.Linear(network.num_features, CLASSES)
    classifier.load_state_dict({key.removeprefix("head."): value for key, value in head.items()})
    images = pictures(2, 3, side, side)
    assert_same(classifier(network(images)), source(images))


@pytest.mark.parametrize("name", CONV_RELATIVES)
@torch.inference_mode()
def test_maps_of_convnets_are_timms(name: str) -> None:
    _, timm_name, timm_options, _ = RELATIVES[name]
    source = timm.create_model(timm_name, **timm_options)
    levels = [i for i, info in enumerate(source.feature_info) if info["reduction"] >= 4]  # type: ignore[union-attr]
    theirs = timm.create_model(timm_name, features_only=True, out_indices=levels, **timm_options)
    randomized(source)
    state = source.state_dict()
    theirs.load_state_dict({flat: state[_nested(flat, state)] for flat in theirs.state_dict()})
    network = relative(name, out_indices=FOUR)
    copied(source, network)
    images = pictures(1, 3, 75, 130)
    for ours, other in zip(network(images), theirs.eval()(images), strict=True):
        assert_same(ours, other)


def _nested(name: str, names: dict[str, Tensor]) -> str:
    """timm's feature extractors write the first dots of a name as underscores."""
    return next(full for full in names if full.replace(".", "_") == name.replace(".", "_"))


@torch.inference_mode()
def test_maps_of_a_vit_are_timms_at_another_size() -> None:
    options = {**SMALL_VIT, "dynamic_img_size": True}
    source: Any = randomized(timm.create_model("vit_base_patch16_224", **options))
    network = TimmVisionTransformer("vit_base_patch16_224", timm_options=SMALL_VIT, out_indices=FOUR)
    copied(source, network)
    theirs = source.forward_intermediates(torch.ones(1, 3, 64, 96), [0, 2, 3, 5], intermediates_only=True)
    for i, (ours, other) in enumerate(zip(network(torch.ones(1, 3, 75, 111)), theirs, strict=True)):
        assert_same(ours, network.get_submodule(f"norm{i}")(other))


@pytest.mark.parametrize("size", [(75, 130), (224, 224), (56, 400)], ids=str)
@torch.inference_mode()
def test_maps_of_a_swin_are_mmdets_at_any_size(size: tuple[int, int]) -> None:
    network = small_swin(out_indices=FOUR)
    randomized(network)
    theirs = MMDetSwin(embed_dims=24, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))
    theirs.eval()
    state = released_names(network.state_dict())
    norms = {name: state.pop(name) for name in list(state) if name.startswith("norm")}
    blocks = {name.removeprefix("backbone."): value for name, value in swin_converter(state).items()}
    result = theirs.load_state_dict({**blocks, **norms}, strict=False)
    assert result.unexpected_keys == []
    assert all(name.endswith("relative_position_index") for name in result.missing_keys)
    images = pictures(2, 3, *size)
    for ours, other in zip(network(images), theirs(images), strict=True):
        assert_same(ours, other)


@torch.inference_mode()
def test_a_classifiers_map_that_fits_into_a_window_on_one_side_is_not_shifted() -> None:
    shifted: Any = small_swin().layers[0].blocks[1]
    x = torch.randn(1, 7, 14, 24)
    free = shifted(x)
    shifted.always_shift = True
    assert not torch.allclose(shifted(x), free)
    shifted.shift = 0
    assert torch.equal(shifted(x), free)


def released_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of the released Swin, which keeps a downsampling in the stage before it."""
    renamed = {}
    for name, value in state.items():
        first, *rest = name.split(".")
        if rest[1:2] == ["downsample"]:
            rest[0] = str(int(rest[0]) - 1)
        renamed[".".join([first, *rest])] = value
    return renamed


def test_released_swin_checkpoints() -> None:
    network = small_swin()
    own = network.state_dict()
    released = released_names(own)
    buffers = {
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49),
        "layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49),
    }
    head = {"head.weight": torch.ones(10, 192), "head.bias": torch.ones(10)}
    assert "layers.0.downsample.reduction.weight" in released
    renamed = network.rename_weights({**released, **buffers, **head})
    assert set(renamed) == {*own, *head}
    assert all(renamed[name] is value for name, value in own.items())


@pytest.mark.parametrize("name", RELATIVES)
def test_checkpoints_of_this_project_keep_their_names(name: str) -> None:
    with torch.device("meta"):
        network = relative(name, out_indices=FOUR)
    state = {**network.state_dict(), "head.weight": torch.ones(10, 3), "head.bias": torch.ones(10)}
    renamed = network.rename_weights(state)
    assert renamed.keys() == state.keys()
    assert all(renamed[key] is value for key, value in state.items())


@torch.inference_mode()
def test_torchvision_weights_of_resnet() -> None:
    source = randomized(torchvision.models.resnet50())
    network = build_backbone("resnet50")
    head = copied(source, network)
    images = pictures(1, 3, 96, 96)
    assert_same(network(images) @ head["head.weight"].T + head["head.bias"], source(images))
    old = {key: value for key, value in source.state_dict().items() if not key.endswith("num_batches_tracked")}
    missing = network.state_dict().keys() - network.rename_weights(old).keys()
    assert missing
    assert all(network.may_be_missing(key) for key in missing)


def test_tables_of_another_window_are_resized() -> None:
    source, network = small_swin(), TimmSwin("swin_base_patch4_window12_384", timm_options=SMALL_SWIN)
    tables = {}
    for name, value in source.state_dict().items():
        if name.endswith("_table"):
            tables[name] = torch.ones_like(value)
            tables[name][13 * 6 + 6] = 5.0  # of a place to itself
    renamed = network.rename_weights(tables)
    assert len(renamed) == 8
    for name, value in renamed.items():
        assert value.shape == network.state_dict()[name].shape == (23 * 23, tables[name].shape[1])
        torch.testing.assert_close(value[23 * 11 + 11], torch.full_like(value[0], 5.0))
        torch.testing.assert_close(value[[0, 22, -23, -1]], torch.ones_like(value[:4]), atol=0.1, rtol=0)
    own = "layers.0.blocks.0.attn.relative_position_bias_table"
    for foreign in (torch.ones(169, 5), torch.ones(170, 1), torch.ones(()), torch.ones(0, 1)):
        assert network.rename_weights({own: foreign})[own] is foreign


def test_position_embeddings_of_another_size_are_resized() -> None:
    network = TimmVisionTransformer("vit_base_patch16_384", timm_options=SMALL_VIT)
    class_token, grid = torch.full((1, 1, 64), 5.0), torch.ones(1, 14 * 14, 64)
    resized = network.rename_weights({"pos_embed": torch.cat([class_token, grid], dim=1)})["pos_embed"]
    assert resized.shape == network.pos_embed.shape
    torch.testing.assert_close(resized[:, :1], class_token)
    torch.testing.assert_close(resized[:, 1:], torch.ones_like(resized[:, 1:]))
    distilled = torch.ones(1, 14 * 14 + 2, 64)
    for foreign in (distilled, torch.ones(()), torch.ones(1, 0, 64), torch.ones(1, 1, 64)):
        assert network.rename_weights({"pos_embed": foreign})["pos_embed"] is foreign


@pytest.mark.parametrize(
    ("name", "parameter", "layer", "stage"),
    [
        ("swin_tiny", "patch_embed.norm.weight", 0, 0),
        ("swin_tiny", "layers.0.blocks.1.attn.relative_position_bias_table", 2, 1),
        ("swin_tiny", "layers.1.downsample.reduction.weight", 2, 0),
        ("swin_tiny", "layers.2.blocks.5.mlp.fc1.weight", 10, 3),
        ("swin_tiny", "layers.3.blocks.1.norm2.bias", 12, 4),
        ("swin_tiny", "norm.weight", 13, None),
        ("vit_base", "pos_embed", 0, 0),
        ("vit_base", "blocks.2.attn.qkv.weight", 3, 1),
        ("vit_base", "blocks.3.norm1.weight", 4, 2),
        ("vit_base", "norm.bias", 13, None),
        ("resnet50", "bn1.weight", 0, 0),
        ("resnet50", "layer1.0.conv1.weight", 1, 1),
        ("resnet50", "layer4.2.bn3.bias", 16, 4),
        ("efficientnet_b7", "blocks.0.0.conv_dw.weight", 1, 1),
        ("efficientnet_b7", "blocks.4.0.se.conv_reduce.weight", 29, 3),
        ("efficientnet_b7", "conv_head.weight", 56, None),
        ("regnety_16g", "s1.b1.conv1.conv.weight", 1, 1),
        ("bit_r101x3", "stages.1.blocks.0.downsample.conv.weight", 4, 2),
    ],
)
def test_ids(name: str, parameter: str, layer: int, stage: int | None) -> None:
    with torch.device("meta"):
        network = build_backbone(name)
    assert parameter in dict(network.named_parameters())
    assert (network.layer_id(parameter), network.stage_id(parameter)) == (layer, stage)


def test_a_name_of_no_parameter_has_no_id() -> None:
    with torch.device("meta"):
        network = build_backbone("resnet50")
    with pytest.raises(UserError, match="'layer5' is not a parameter"):
        network.layer_id("layer5")


@pytest.mark.parametrize("out_indices", [None, FOUR], ids=["pooled", "maps"])
@pytest.mark.parametrize("name", ["swin", "deit", "regnet", "efficientnetv2", "bit"])
def test_recomputed_blocks_give_the_same_gradients_and_none_is_zero(name: str, out_indices: Any) -> None:
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(1)
        network = relative(name, out_indices=out_indices, grad_checkpointing=recompute)
        randomized(network).train()
        outputs = network(torch.randn(2, 3, 70, 96))
        parts = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.stack([(one * torch.randn_like(one)).sum() for one in parts]).sum().backward()
        gradients.append({key: parameter.grad for key, parameter in network.named_parameters()})
    assert [key for key, value in gradients[0].items() if value is None or not value.abs().max() > 0] == []
    torch.testing.assert_close(gradients[1], gradients[0])


def test_norm_eval_keeps_the_statistics() -> None:
    kinds = {}
    for norm_eval in (False, True):
        network = relative("regnet", norm_eval=norm_eval).train()
        before = network.get_submodule("stem.bn").running_mean.clone()  # type: ignore[operator, union-attr]
        network(torch.randn(2, 3, 64, 64))
        kinds[norm_eval] = torch.equal(before, network.get_submodule("stem.bn").running_mean)  # type: ignore[arg-type]
        assert network.training
    assert kinds == {False: False, True: True}


@pytest.mark.parametrize(("frozen_stages", "names"), [(-1, ()), (0, ("stem",)), (2, ("stem", "s1", "s2"))])
def test_frozen_stages_do_not_learn(frozen_stages: int, names: tuple[str, ...]) -> None:
    network = relative("regnet", out_indices=FOUR)
    network.freeze_stages(frozen_stages)
    network.train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    torch.stack([one.sum() for one in network(torch.randn(2, 3, 64, 64))]).sum().backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is None) == (name.partition(".")[0] in names), name
    for name, value in network.named_buffers():
        assert torch.equal(value, before[name]) == (name.partition(".")[0] in names), name


@pytest.mark.parametrize("frozen_stages", [-2, 5, 1.5, "1"])
def test_wrong_frozen_stages(frozen_stages: Any) -> None:
    with pytest.raises(UserError, match=r"frozen_stages=\S+: a whole number from -1"):
        relative("regnet").freeze_stages(frozen_stages)


def test_initial_weights_of_convnext() -> None:
    """Truncated normal, no block that begins as the identity: one distribution with the roadmap's ResNet-50."""
    network, own = relative("resnet", init_std=0.02), relative("resnet")
    roadmap = build_backbone("roadmap50_resnet")
    for one in (network, roadmap):
        convolutions = [module.weight for module in one.modules() if isinstance(module, nn.Conv2d)]
        assert len(convolutions) == 53
        assert [weight.std().item() for weight in convolutions] == pytest.approx([0.02] * 53, rel=0.05)
        norms = [module for module in one.modules() if isinstance(module, nn.BatchNorm2d)]
        assert {(*norm.weight.unique().tolist(), *norm.bias.unique().tolist()) for norm in norms} == {(1.0, 0.0)}
    assert not own.get_parameter("layer1.0.bn3.weight").any()


def test_stochastic_depth_reaches_timm() -> None:
    network = small_swin(drop_path_rate=0.5)
    rates = [module.drop_prob for module in network.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.5 * i / 7 for i in range(1, 8) for _ in range(2)])


@pytest.mark.parametrize("name", ["swin_tiny", "vit_small", "resnet50"])
def test_an_option_that_does_not_exist_is_an_error(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: .*layer_scale"):
        build_backbone(name, layer_scale=1.0)


@pytest.mark.parametrize(("name", "side"), [("swin_tiny", 31), ("vit_small", 15), ("resnet50", 31)])
def test_an_image_too_small_is_an_error(name: str, side: int) -> None:
    with torch.device("meta"):
        network = build_backbone(name)
        with pytest.raises(UserError, match=f"at least {side + 1} x {side + 1}"):
            network(torch.empty(1, 3, side, 64))
