"""Layouts: the same numbers out as the implementation that a file is from, for every size, and back bit by bit."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.models.convnext import ConvNeXt as TimmConvNeXt
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.convnext import ConvNeXt as TorchvisionConvNeXt
from transformers import (
    ConvNextBackbone,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextModel,
    ConvNextV2Backbone,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
)

from backbones import UserError, build_backbone
from backbones.convnext import ConvNeXt
from backbones.isotropic import IsotropicConvNeXt
from backbones.layouts import MatchedTensors, find_convnext, from_ours, hugging_face_config, to_ours
from backbones.variants import CONVNEXT_V1, CONVNEXT_V2
from tests.backbones.naming import DECODER, mmpretrain, sparse

FOUR = (0, 1, 2, 3)
SMALL: dict[str, Any] = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))
HF_SMALL: dict[str, Any] = dict(depths=[1, 1, 2, 1], hidden_sizes=[8, 16, 24, 32])
V2: dict[str, Any] = dict(use_grn=True, layer_scale_init_value=0.0)
TORCHVISION = ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large")
State = dict[str, Tensor]


class Numbers:
    """Random tensors of a network, scaled so that none hides.

    They are windows on a few stores, at places that depend on their names: the largest network takes no memory.
    """

    def __init__(self) -> None:
        torch.manual_seed(1)
        largest = torch.randn(34_000_000)  # the largest tensor of all sizes has 31,719,424 numbers
        # By the power of two that is nearest to the root of the fan-in; large tensors have a large one.
        self.stores = [largest[: 2**22] * 0.5**power for power in range(5)]
        self.stores += [largest * 0.5**power for power in (5, 6)]
        self.stores.append(largest.mul_(0.5**7))

    def __call__(self, network: nn.Module) -> State:
        state = {}
        for name, value in network.state_dict().items():
            fan_in = value[0].numel() if value.ndim > 1 and value.shape[0] > 1 else 4
            store = self.stores[round(math.log2(fan_in) / 2)]
            start = zlib.crc32(name.encode()) % (len(store) - value.numel())
            state[name] = store[start : start + value.numel()].view(value.shape)
        return state


@pytest.fixture(scope="module")
def numbers() -> Numbers:
    return Numbers()


def meta(build: Callable[[], Any]) -> Any:
    with torch.device("meta"):
        return build().eval()


def filled(network: Any, state: Mapping[str, Tensor]) -> Any:
    """The network with these tensors themselves, every one of which must have its place."""
    network.load_state_dict(state, assign=True)
    return network


def near(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()) and float(theirs.std()) > 1e-2


def picture(width: int) -> Tensor:
    """A batch of one image; the wider the network, the fewer pixels."""
    torch.manual_seed(2)
    return torch.randn(1, 3, *((64, 48) if width <= 128 else (32, 32)))


def backbone_of(found: MatchedTensors, network: Any) -> Any:
    return filled(network, {name: value for name, value in found.tensors.items() if not name.startswith("head.")})


def assert_same_bits(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].shape == value.shape, name
        assert ours[name].dtype == value.dtype
        assert torch.equal(ours[name], value), name


@torch.no_grad()
def check_classifier(name: str, theirs: Any, state: State, layout: str, back: Any = None) -> None:
    """Logits of both networks are equal, and the way back gives the same bits."""
    found = to_ours(state, "weights.pth")
    assert (found.layout, found.others) == (layout, ())
    network = backbone_of(found, meta(lambda: build_backbone(name)))
    image = picture(network.dims[0])
    output = filled(theirs, state)(image)
    assert found.head is not None
    assert near(F.linear(network(image), *found.head), getattr(output, "logits", output))
    if back:
        assert_same_bits(from_ours(found.tensors, back), state)


@pytest.mark.parametrize("name", [*CONVNEXT_V1, *CONVNEXT_V2])
def test_timm(name: str, numbers: Numbers) -> None:
    theirs = meta(lambda: timm.create_model(name))
    check_classifier(name, theirs, numbers(theirs), "timm", back="timm")


@pytest.mark.parametrize(
    "name, conv_mlp", [("convnext_atto", False), ("convnext_tiny", True), ("convnextv2_tiny", True)]
)
def test_timm_with_the_other_kind_of_mlp(name: str, conv_mlp: bool, numbers: Numbers) -> None:
    theirs = meta(lambda: timm.create_model(name, conv_mlp=conv_mlp))
    state = numbers(theirs)
    assert state["stages.0.blocks.0.mlp.fc1.weight"].ndim == (4 if conv_mlp else 2)
    check_classifier(name, theirs, state, "timm")


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str, numbers: Numbers) -> None:
    theirs = meta(getattr(torchvision.models, name))
    check_classifier(name, theirs, numbers(theirs), "torchvision", back="torchvision")


@pytest.mark.parametrize("name", [*CONVNEXT_V1, *CONVNEXT_V2])
def test_hugging_face(name: str, numbers: Numbers) -> None:
    row = {**CONVNEXT_V1, **CONVNEXT_V2}[name]
    sizes: dict[str, Any] = dict(depths=list(row.depths), hidden_sizes=list(row.dims), num_labels=10)
    if row.version == 2:
        theirs = meta(lambda: ConvNextV2ForImageClassification(ConvNextV2Config(**sizes)))
    else:
        theirs = meta(lambda: ConvNextForImageClassification(ConvNextConfig(**sizes)))
    check_classifier(name, theirs, numbers(theirs), "Hugging Face", back="hf")


@pytest.mark.parametrize("published", [False, True], ids=["transformers 5", "published"])
@pytest.mark.parametrize("name", TORCHVISION)
@torch.no_grad()
def test_dinov3(name: str, published: bool, numbers: Numbers) -> None:
    row = CONVNEXT_V1[name]
    config = DINOv3ConvNextConfig(depths=list(row.depths), hidden_sizes=list(row.dims))
    theirs = meta(lambda: DINOv3ConvNextModel(config))
    state = numbers(theirs)
    filled(theirs, state)
    if published:
        state = {key.removeprefix("model."): value for key, value in state.items()}
    found = to_ours(state, "model.safetensors")
    assert (found.layout, found.others, found.head) == ("Hugging Face DINOv3", (), None)
    image = picture(row.dims[0])
    assert near(backbone_of(found, meta(lambda: build_backbone(name)))(image), theirs(image).pooler_output)


@pytest.mark.parametrize("version", [1, 2])
@torch.no_grad()
def test_maps_of_a_hugging_face_backbone(version: int, numbers: Numbers) -> None:
    config, build = ((ConvNextConfig, ConvNextBackbone), (ConvNextV2Config, ConvNextV2Backbone))[version - 1]
    stages = [f"stage{i + 1}" for i in FOUR]
    theirs = meta(lambda: build(config(**HF_SMALL, out_features=stages)))
    state = numbers(theirs)
    found = to_ours(state, "model.safetensors")
    ours = ConvNeXt(**SMALL, out_indices=FOUR, **(V2 if version == 2 else {})).eval()
    image = torch.randn(1, 3, 70, 77)
    for one, other in zip(backbone_of(found, ours)(image), filled(theirs, state)(image).feature_maps, strict=True):
        assert near(one, other)
    assert_same_bits(from_ours(found.tensors, "hf"), state)


@torch.no_grad()
def test_hugging_face_without_a_head_has_no_prefix(numbers: Numbers) -> None:
    theirs = meta(lambda: ConvNextModel(ConvNextConfig(**HF_SMALL)))
    state = numbers(theirs)
    found = to_ours(state, "model.safetensors")
    image = torch.randn(1, 3, 64, 64)
    assert near(backbone_of(found, ConvNeXt(**SMALL).eval())(image), filled(theirs, state)(image).pooler_output)
    assert_same_bits(from_ours(found.tensors, "hf"), state)


# Layouts that cannot be installed are made from ours by renaming.


def random_network(numbers: Numbers, build: Callable[..., nn.Module] = ConvNeXt, **options: Any) -> State:
    """Tensors under our names, with a head of 7 classes."""
    network = build(**{**(SMALL if build is ConvNeXt else {}), **options})
    network.add_module("head", nn.Linear(network.num_features, 7))  # type: ignore[arg-type]
    return numbers(network)


@pytest.mark.parametrize("options", [{}, V2, {"kernel_size": 3, "mlp_ratio": 2}], ids=["V1", "V2", "3x3"])
def test_official(options: dict[str, Any], numbers: Numbers) -> None:
    state = random_network(numbers, **options)
    found = to_ours(state, "weights.pth")
    assert (found.layout, found.others) == ("official", ())
    assert_same_bits(found.tensors, state)
    assert_same_bits(from_ours(state, "ours"), state)


@pytest.mark.parametrize("layer_scale", [0.0, 1.0])
def test_official_isotropic(layer_scale: float, numbers: Numbers) -> None:
    state = random_network(numbers, IsotropicConvNeXt, depth=5, dim=12, layer_scale_init_value=layer_scale)
    found = to_ours(state, "weights.pth")
    assert (found.layout, found.others) == ("official isotropic", ())
    assert_same_bits(found.tensors, state)
    assert_same_bits(from_ours(state, "ours"), state)
    dense = numbers(IsotropicConvNeXt(depth=5, dim=12, layer_scale_init_value=layer_scale, out_indices=(1, 3)))
    assert_same_bits(to_ours({f"backbone.{name}": value for name, value in dense.items()}, "x").tensors, dense)


def test_fcmae(numbers: Numbers) -> None:
    state = random_network(numbers, **V2)
    found = to_ours(sparse(state), "weights.pt")
    assert (found.layout, found.final_norm, found.head) == ("FCMAE", False, None)
    assert found.others == tuple(DECODER)
    assert_same_bits(found.tensors, {n: v for n, v in state.items() if not n.startswith(("head", "norm"))})
    assert found.names["downsample_layers.1.1.weight"] == "encoder.downsample_layers.1.1.kernel"
    bare = {name.removeprefix("encoder."): value for name, value in sparse(state).items()}
    assert_same_bits(to_ours(bare, "weights.pt").tensors, found.tensors)


@pytest.mark.parametrize("conv_mlp", [False, True])
@pytest.mark.parametrize("options", [{}, V2], ids=["V1", "V2"])
def test_mmpretrain(options: dict[str, Any], conv_mlp: bool, numbers: Numbers) -> None:
    state = random_network(numbers, **options)
    found = to_ours(mmpretrain(state, conv_mlp) | {"data_preprocessor.mean": torch.zeros(3)}, "weights.pth")
    assert (found.layout, found.others) == ("mmpretrain", ("data_preprocessor.mean",))
    assert_same_bits(found.tensors, state)


def test_norm3_of_mmpretrain_beside_other_output_norms_is_no_final_norm(numbers: Numbers) -> None:
    state = numbers(ConvNeXt(**SMALL, out_indices=(1, 3)))
    assert_same_bits(to_ours(mmpretrain(state), "weights.pth").tensors, state)


def small(layout: str, numbers: Numbers) -> State:
    """A small classifier in each layout, with a head of 7 classes."""
    stages = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, 24, 1), CNBlockConfig(24, 32, 2), CNBlockConfig(32, None, 1)]
    makers: dict[str, Callable[[], State]] = {
        "official": lambda: random_network(numbers),
        "isotropic": lambda: random_network(numbers, IsotropicConvNeXt, depth=4, dim=8),
        "FCMAE": lambda: sparse(random_network(numbers, **V2)),
        "mmpretrain": lambda: {n.removeprefix("backbone."): v for n, v in mmpretrain(random_network(numbers)).items()},
        "timm": lambda: numbers(TimmConvNeXt(**SMALL, num_classes=7)),
        "torchvision": lambda: numbers(TorchvisionConvNeXt(stages, num_classes=7)),
        "hf": lambda: numbers(ConvNextForImageClassification(ConvNextConfig(**HF_SMALL, num_labels=7))),
        "dinov3": lambda: numbers(DINOv3ConvNextModel(DINOv3ConvNextConfig(**HF_SMALL))),
    }
    return makers[layout]()


KINDS = ("official", "isotropic", "FCMAE", "mmpretrain", "timm", "torchvision", "hf", "dinov3")


PREFIXES = (
    *("module.", "model.", "backbone.", "module.backbone.", "module.model.backbone.", "net.", "model.net."),
    *("encoder.model.", "teacher.backbone.", "module.encoder_q.", "module.visual.trunk.", "model.model."),
)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("kind", KINDS)
def test_prefixes(kind: str, prefix: str, numbers: Numbers) -> None:
    bare = small(kind, numbers)
    plain = to_ours(bare, "weights.pth")
    found = to_ours({prefix + name: value for name, value in bare.items()}, "weights.pth")
    assert_same_bits(found.tensors, plain.tensors)
    assert found.layout == plain.layout
    assert found.others == tuple(prefix + name for name in plain.others)
    assert all(name.startswith(prefix) for name in found.names.values())


def test_two_heads_are_ambiguous(numbers: Numbers) -> None:
    state = {f"backbone.{name}": value for name, value in random_network(numbers).items()}
    with pytest.raises(UserError, match=r"both backbone\.head\.weight and head\.weight are its head\.weight"):
        to_ours(state | {"head.weight": torch.zeros(7, 32)}, "weights.pth")


def test_parts_of_a_whole_model_stay_outside(numbers: Numbers) -> None:
    backbone = numbers(ConvNeXt(**SMALL, out_indices=FOUR))
    others = {
        "neck.lateral_convs.0.conv.weight": torch.zeros(4, 8, 1, 1),
        "decode_head.conv_seg.weight": torch.zeros(3, 4, 1, 1),
        "norm.weight": torch.zeros(32),
        "roi_head.bbox_head.shared_fcs.0.bias": torch.full((4,), torch.nan),
    }
    found = to_ours({f"backbone.{name}": value for name, value in backbone.items()} | others, "detector.pth")
    assert_same_bits(found.tensors, backbone)
    assert found.others == tuple(others)
    assert find_convnext(others, "detector.pth") is None


def test_a_head_of_several_layers_is_no_head(numbers: Numbers) -> None:
    theirs = TimmConvNeXt(**SMALL, num_classes=7, head_hidden_size=32)
    found = to_ours(numbers(theirs), "weights.pth")
    assert found.head is None
    assert set(found.others) == {
        f"head.{name}.{kind}" for name in ("pre_logits.fc", "fc") for kind in ("weight", "bias")
    }
    assert set(found.tensors) == set(ConvNeXt(**SMALL).state_dict())


def changed(state: State, **changes: Any) -> State:
    """The tensors with some replaced (``__`` for dots), and those with the value None taken out."""
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in (state | named).items() if value is not None}


NAN = torch.tensor([0.0, torch.nan, torch.inf] + [0.0] * 5)


@pytest.mark.parametrize(
    "kind, changes, message",
    [
        (
            "official",
            dict(stages__2__1__gamma=None, norm__bias=None),
            r"official layout\) lacks 2 of 65 tensors: norm, st",
        ),
        ("official", dict(stages__2__0__dwconv__weight=None), r"lacks 1 of 65 tensors: stages\.2\.0\.dwconv"),
        ("official", dict(head__bias=None), "lacks 1 of 65 tensors: head"),
        ("official", dict(norm__bias=None, norm__weight=None), "lacks 2 of 65 tensors: norm"),
        ("official", dict(stages__2__9999__gamma=torch.zeros(24)), "lacks [0-9]+ of [0-9]+ tensors"),
        ("official", dict(stages__1__0__grn__gamma=torch.zeros(1, 1, 1, 64)), "lacks 9 of 75 tensors"),
        ("timm", dict(stem__0__weight=None), r"timm layout\) lacks 1 of 65 tensors: downsample_layers\.0\.0"),
        ("official", dict(stages__0__0__attn__weight=torch.zeros(8)), r"no plain ConvNeXt.*stages\.0\.0\.attn\.weight"),
        ("official", {"stages__4__0__dwconv__bias": torch.zeros(8)}, r"no plain ConvNeXt.*stages\.4\.0"),
        ("official", {"stages__0__" + "9" * 5000 + "__gamma": torch.zeros(8)}, "no plain ConvNeXt"),
        (
            "timm",
            dict(stages__0__downsample__0__weight=torch.zeros(8)),
            r"both stem\.0\.weight and stages\.0\.downsample\.0",
        ),
        ("isotropic", dict(stem__1__weight=torch.zeros(8)), "no plain ConvNeXt"),
        ("torchvision", dict(features__1__0__block__7__weight=torch.zeros(8)), "no plain ConvNeXt"),
        (
            "official",
            dict(stages__0__0__norm__weight=torch.zeros(9)),
            r"does not fit together: .* is \(9,\).* want \(8,\)",
        ),
        ("official", dict(stages__0__0__dwconv__weight=torch.zeros(())), "does not fit together"),
        ("official", dict(head__weight=torch.zeros(7, 32, 2, 2)), "does not fit together: head.weight"),
        ("FCMAE", {"encoder__stages__1__0__dwconv__kernel": torch.zeros(48, 16)}, "does not fit together"),
        ("official", dict(stages__0__0__norm__bias=NAN), r"stages\.0\.0\.norm\.bias has 2 NaN or infinite values of 8"),
        ("timm", {"stages__0__blocks__0__conv_dw__bias": NAN}, r"stages\.0\.blocks\.0\.conv_dw\.bias has 2 NaN"),
        ("official", dict(head__bias=torch.full((7,), torch.inf)), "head.bias has 7 NaN"),
        ("official", dict(norm__bias=torch.zeros(32, dtype=torch.int64)), "norm.bias is no array of floating-point"),
        ("official", dict(norm__bias=torch.zeros(32).to_sparse()), "norm.bias is no array of floating-point"),
        ("official", dict(norm__bias=torch.zeros(32, device="meta")), "norm.bias is no array of floating-point"),
        ("official", dict(norm__bias=torch.zeros(32, dtype=torch.complex64)), "norm.bias is no array"),
        ("timm", {"backbone__head__fc__bias": torch.zeros(7)}, None),
        ("mmpretrain", dict(head__fc__x=torch.zeros(7)), None),
    ],
    ids=str,
)
def test_defects_are_named(kind: str, changes: dict[str, Any], message: str | None, numbers: Numbers) -> None:
    state = changed(small(kind, numbers), **changes)
    if message is None:  # something outside of the network
        assert to_ours(state, "weights.pth").others
        return
    with pytest.raises(UserError, match=message) as caught:
        to_ours(state, "weights.pth")
    assert "\n" not in str(caught.value)
    assert "weights.pth" in str(caught.value)


@pytest.mark.parametrize("other", [kind for kind in KINDS if kind != "official"])
def test_two_networks_in_one_file_are_ambiguous(other: str, numbers: Numbers) -> None:
    state = {f"backbone.{name}": value for name, value in small("official", numbers).items()}
    with pytest.raises(UserError, match="ambiguous, it mixes several ConvNeXts: official under 'backbone' and"):
        to_ours(state | small(other, numbers), "weights.pth")
    with pytest.raises(UserError, match=r"official under 'student\.backbone' and official under 'teacher\.b"):
        to_ours({f"{who}.{n}": v for who in ("student", "teacher") for n, v in state.items()}, "weights.pth")


def test_a_file_that_was_renamed_by_half_is_refused(numbers: Numbers) -> None:
    timm_names = small("timm", numbers)
    for share in (1, 5, len(timm_names) // 2, len(timm_names) - 3):
        official = to_ours(timm_names, "weights.pth").tensors
        kept = dict(list(timm_names.items())[:share])
        done = {name for name, theirs in to_ours(timm_names, "weights.pth").names.items() if theirs in kept}
        mixed = kept | {name: value for name, value in official.items() if name not in done}
        with pytest.raises(UserError, match=r"ambiguous|lacks|no plain ConvNeXt"):
            to_ours(mixed, "weights.pth")


@pytest.mark.parametrize(
    "variant",
    ["convnext_atto_ols", "convnext_nano_ols", "convnext_tiny_hnf", "convnext_zepto_rms", "convnext_atto_rms"],
)
def test_relatives_of_timm_are_no_convnexts_of_ours(variant: str, numbers: Numbers) -> None:
    with pytest.raises(UserError, match=r"no plain ConvNeXt|lacks|does not fit"):
        to_ours(numbers(timm.create_model(variant)), "weights.pth")


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "efficientnet_b0", "regnety_002"])
def test_other_networks_are_no_convnexts(name: str) -> None:
    state = timm.create_model(name).state_dict()
    assert find_convnext(state, "weights.pth") is None
    with pytest.raises(UserError, match="holds no ConvNeXt of a known layout; it begins with: "):
        to_ours(state, "weights.pth")


@pytest.mark.parametrize(
    "layout, options, message",
    [
        ("torchvision", V2, r"torchvision has no ConvNeXt with global response normalisation \(V2\)"),
        ("torchvision", dict(layer_scale_init_value=0.0), "no layer scale"),
        ("torchvision", dict(kernel_size=5), "kernels of 5 x 5"),
        ("torchvision", dict(mlp_ratio=2), "MLP"),
        ("torchvision", dict(out_indices=FOUR), r"norms for dense outputs \(norm0, norm1, norm2, norm3\)"),
        ("timm", dict(out_indices=(1, 3)), r"norms for dense outputs \(norm1, norm3\)"),
        ("timm", dict(mlp_ratio=3), "MLP"),
        ("hf", dict(kernel_size=9), "kernels of 9 x 9"),
        ("hf", dict(mlp_ratio=3), "MLP"),
        ("hf", dict(use_grn=True), "both global response normalisation and layer scale"),
    ],
    ids=str,
)
def test_what_a_layout_cannot_hold(layout: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_ours(ConvNeXt(**SMALL, **options).state_dict(), layout)


@pytest.mark.parametrize("layout", ["timm", "torchvision", "hf"])
def test_nobody_else_has_isotropic_networks(layout: Any) -> None:
    with pytest.raises(UserError, match=f"{layout} has no ConvNeXt with one resolution"):
        from_ours(IsotropicConvNeXt(depth=4, dim=8).state_dict(), layout)


def test_only_whole_networks_are_renamed() -> None:
    state = ConvNeXt(**SMALL).state_dict()
    with pytest.raises(UserError, match="the network lacks 1 of 63 tensors"):
        from_ours({name: value for name, value in state.items() if name != "stages.0.0.dwconv.bias"}, "timm")
    with pytest.raises(UserError, match=r"lacks \d+ of \d+ tensors"):
        from_ours(state | {"stages.1.9999999999.gamma": torch.zeros(16)}, "timm")
    with pytest.raises(UserError, match="no plain ConvNeXt"):
        from_ours(state | {"neck.weight": torch.zeros(2)}, "timm")


@pytest.mark.parametrize("options", [dict(kernel_size=9), dict(layer_scale_init_value=0.0), V2], ids=str)
@torch.no_grad()
def test_options_that_timm_has_too(options: dict[str, Any], numbers: Numbers) -> None:
    words = {"kernel_size": "kernel_sizes", "use_grn": "use_grn"}
    theirs = {words[key]: value for key, value in options.items() if key in words}
    if "layer_scale_init_value" in options:
        theirs["ls_init_value"] = None
    network = ConvNeXt(**SMALL, **options).eval()
    state = numbers(network)
    image = torch.randn(1, 3, 64, 64)
    other = TimmConvNeXt(**SMALL, num_classes=0, **theirs).eval()
    assert near(filled(network, state)(image), filled(other, from_ours(state, "timm"))(image))


def test_config_for_transformers() -> None:
    state = ConvNeXt(**SMALL, in_channels=4).half().state_dict()
    config = hugging_face_config(state | {"head.weight": torch.zeros(3, 32), "head.bias": torch.zeros(3)})
    assert config["architectures"] == ["ConvNextForImageClassification"]
    assert (config["num_channels"], config["dtype"], config["layer_norm_eps"]) == (4, "float16", 1e-6)
    assert config["label2id"] == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    dense = hugging_face_config(ConvNeXt(**SMALL, **V2, out_indices=(0, 2)).state_dict())
    assert dense["architectures"] == ["ConvNextV2Backbone"]
    assert dense["out_features"] == ["stage1", "stage3"]
    assert hugging_face_config(ConvNeXt(**SMALL).state_dict())["architectures"] == ["ConvNextModel"]
