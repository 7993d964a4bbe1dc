"""Published files of every family: what is loaded, what is new, what is skipped, and the outputs.

Each file is made here, small, with the names and shapes of its family. The outputs are those of timm's network with the
same numbers, which timm's own conversion of released names has given it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXt as TimmConvNeXt
from timm.models.convnext import checkpoint_filter_fn
from torch import Tensor, nn
from transformers import ConvNextConfig, ConvNextV2Config, UperNetConfig, UperNetForSemanticSegmentation

from backbones import UserError, build_backbone
from backbones.convnext import ConvNeXt
from backbones.isotropic import IsotropicConvNeXt
from backbones.layouts import ENCODER_FAMILIES
from backbones.weights import find_head, read_checkpoint
from tests.backbones.naming import DECODER, State, dinov3_of_transformers, mmpretrain, sparse

SMALL: dict[str, Any] = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))
V1: dict[str, Any] = {}
V2: dict[str, Any] = dict(use_grn=True, layer_scale_init_value=0.0)
FOUR = (0, 1, 2, 3)
NORM = ("norm.weight", "norm.bias")
CLASSES = 7
HEAD: State = {"head.weight": torch.linspace(-1, 1, CLASSES * 32).view(CLASSES, 32), "head.bias": torch.arange(7.0)}


def released(options: dict[str, Any] = V1, norm: bool = True, head: bool = False) -> State:
    """A network in the names of the released code, with random numbers in which no tensor hides."""
    torch.manual_seed(1)
    state = {}
    for name, value in ConvNeXt(**SMALL, **options).state_dict().items():
        fan_in = value[0].numel() if value.ndim > 1 and len(value) > 1 else 4
        if norm or name not in NORM:
            state[name] = torch.randn_like(value) / fan_in**0.5
    return state | (HEAD if head else {})


def timm_network(state: State, **options: Any) -> Any:
    """timm's network with the tensors of a file in released or OpenCLIP's names; its norm is new if they have none."""
    grn = any(".grn." in name for name in state)
    options = dict(num_classes=0, use_grn=grn, ls_init_value=None if grn else 1e-6) | options
    network = TimmConvNeXt(**SMALL, **options).eval()
    missing, unexpected = network.load_state_dict(checkpoint_filter_fn(dict(state), network), strict=False)
    assert {name.rpartition(".")[0] for name in missing} <= {"head.norm"}
    assert not unexpected
    return network


def flat_grn(state: State) -> State:
    """Response normalisation with (1, 4C) and biases with (1, C), the shapes of the sparse encoder."""
    return {
        name: value.view(1, -1) if ".grn." in name or "conv.bias" in name else value for name, value in state.items()
    }


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


# Text tower, logit scale and projection of a CLIP model (open_clip, src/open_clip/model.py, CLIP), in small.
CLIP: State = {
    "positional_embedding": torch.zeros(5, 6),
    "text_projection": torch.zeros(6, 6),
    "logit_scale": torch.tensor(4.6),
    "token_embedding.weight": torch.zeros(9, 6),
    "transformer.resblocks.0.ln_1.weight": torch.zeros(6),
    "transformer.resblocks.0.attn.in_proj_weight": torch.zeros(18, 6),
    "transformer.resblocks.0.mlp.c_fc.weight": torch.zeros(24, 6),
    "ln_final.weight": torch.zeros(6),
    "attn_mask": torch.full((5, 5), -torch.inf),
}
LINEAR: State = {"visual.head.proj.weight": torch.ones(6, 32)}
MLP: State = {
    "visual.head.mlp.fc1.weight": torch.ones(12, 32),
    "visual.head.mlp.fc1.bias": torch.ones(12),
    "visual.head.mlp.fc2.weight": torch.ones(6, 12),
}
# What SparK holds beside its encoder in mmpretrain (models/selfsup/spark.py, lines 44-75), in small.
SPARK: State = {
    "mask_tokens.0": torch.zeros(1, 32, 1, 1),
    "enc_dec_norms.0.weight": torch.zeros(32),
    "enc_dec_projectors.0.weight": torch.zeros(8, 32, 1, 1),
    "neck.dec.0.up_sample.weight": torch.zeros(8, 8, 4, 4),
}
# A detector and a segmentor of the released code, mmdet and mmseg beside their backbone.
NECK: State = {
    "neck.lateral_convs.0.conv.weight": torch.zeros(4, 8, 1, 1),
    "roi_head.bbox_head.fc_cls.weight": torch.zeros(81, 4),
    "decode_head.conv_seg.weight": torch.zeros(150, 4, 1, 1),
    "auxiliary_head.conv_seg.bias": torch.zeros(150),
}


@dataclass(frozen=True)
class Family:
    """A file of one family, as :func:`read_checkpoint` returns it.

    Attributes:
        layout: Layout that is to be recognised.
        content: The file.
        theirs: timm's network with the same numbers.
        options: Options of our network.
        new: Tensors of a classifier's backbone that the file lacks.
        skipped: Names in the file that no backbone has.
        head: Outputs of the head.
        norm_of_map: Whether the final norm is that of the last map too.
    """

    layout: str
    content: dict[str, Any]
    theirs: Any
    options: dict[str, Any]
    new: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    head: int | None = None
    norm_of_map: bool = False


def fcmae(dense: bool, decoder: bool, key: bool, flat: bool = False, prefix: str = "") -> Family:
    """ConvNeXt V2's pre-training: pt_only/convnextv2_*_1k_224_fcmae.pt, or a checkpoint of main_pretrain.py."""
    state = released(V2, norm=False)
    content = under(prefix, flat_grn(state) if flat else state) | (DECODER if decoder else {})
    if not dense:
        content = {name: value for name, value in sparse(state).items() if decoder or name not in DECODER}
    theirs, layout = timm_network(state), "official" if dense else "FCMAE"
    skipped = tuple(DECODER) if decoder else ()
    return Family(layout, {"model": content} if key else content, theirs, V2, new=NORM, skipped=skipped)


def spark() -> Family:
    """SparK's convnext{S,B,L}_1kpretrained_official_style.pth."""
    state = released(norm=False)
    return Family("official", state, timm_network(state), V1, new=NORM)


def official(options: dict[str, Any]) -> Family:
    """The released classifiers, from ImageNet-1K, 22K (XL too) or fine-tuned; V2's after FCMAE."""
    content = {"model": released(options, head=True)}
    return Family("official", content, timm_network(released(options)), options, skipped=tuple(HEAD), head=CLASSES)


def dinov3(projectors: bool) -> Family:
    """DINOv3's own file, with its final norm twice, and EUPE's, with the projectors of its distillation."""
    state = released()
    twice = {"norms.3.weight": state["norm.weight"], "norms.3.bias": state["norm.bias"]}
    more = {"projectors.0.weight": torch.zeros(4, 32), "projectors.0.bias": torch.zeros(4)} if projectors else {}
    return Family("official", state | twice | more, timm_network(state), V1, skipped=(*twice, *more), norm_of_map=True)


def dinov3_hugging_face(prefix: str) -> Family:
    """facebook/dinov3-convnext-*-pretrain-lvd1689m, and the names of transformers 5, which has it under ``model.``."""
    state = released()
    content = {(prefix + n if n[:5] != "layer" else n): v for n, v in dinov3_of_transformers(state).items()}
    return Family("Hugging Face DINOv3", content, timm_network(state), V1, norm_of_map=True)


def timm_file(state: State, skipped: tuple[str, ...] = (), head: int | None = None, **options: Any) -> Family:
    """A file of timm's hub: the state of its network, after timm converted or trained it."""
    theirs = timm_network(state, **options)
    content = dict(theirs.state_dict())
    theirs.reset_classifier(0)
    if "head_hidden_size" in options:
        theirs.head.pre_logits = nn.Identity()
    return Family("timm", content, theirs, V2 if options.get("use_grn") else V1, skipped=skipped, head=head)


def timm_classifier(**options: Any) -> Family:
    """fb_*, in12k, in12k_ft_in1k, d1_in1k, fcmae_ft_*: with a head of any number of classes, here 7."""
    skipped = ("head.fc.weight", "head.fc.bias")
    return timm_file(
        released(V2 if options.get("use_grn") else V1, head=True), skipped, CLASSES, num_classes=7, **options
    )


def timm_clip(head: State) -> Family:
    """clip_laion2b*, clip_laiona*, soup and rewind: timm's conversion of OpenCLIP's image tower and projection."""
    sizes = dict(head_hidden_size=12) if head is MLP else {}
    names = [
        f"head.{part}.{kind}" for part in (["pre_logits.fc"] * bool(sizes) + ["fc"]) for kind in ("weight", "bias")
    ]
    projection = None if sizes else 6  # of two layers, the last alone is no head
    return timm_file(open_clip_file(head), tuple(names), projection, num_classes=6, **sizes)


def timm_fcmae(norm: bool) -> Family:
    """convnextv2_*.fcmae: with timm's new norm, or converted without one."""
    theirs = timm_network(released(V2, norm=False))
    content = {name: value for name, value in theirs.state_dict().items() if norm or "head" not in name}
    return Family("timm", content, theirs, V2, new=() if norm else NORM)


def open_clip_file(head: State) -> State:
    trunk = timm_network(released()).state_dict()
    return CLIP | under("visual.trunk.", trunk) | head


def open_clip(head: State, prefix: str = "") -> Family:
    """laion/CLIP-convnext_*: open_clip_pytorch_model.bin; a training checkpoint has it under ``module.``."""
    content = under(prefix, open_clip_file(head))
    skipped = tuple(under(prefix, CLIP | head))
    content = {"state_dict": content, "epoch": 3} if prefix else content
    return Family("timm", content, timm_network(released()), V1, skipped=skipped)


def mmpretrain_file(
    options: dict[str, Any], norm: bool = True, head: bool = False, more: State | None = None
) -> Family:
    """mmpretrain's classifiers; convnext-v2-*_3rdparty-fcmae_in1k; SparK's ConvNeXt V2-T."""
    state = released(options, norm)
    content = mmpretrain(state | (HEAD if head else {})) | (more or {})
    skipped = (("head.fc.weight", "head.fc.bias") if head else ()) + tuple(more or {})
    new, classes = () if norm else NORM, CLASSES if head else None
    return Family("mmpretrain", {"state_dict": content}, timm_network(state), options, new, skipped, classes)


FAMILIES: dict[str, Callable[[], Family]] = {
    **{
        f"FCMAE {'dense' if dense else 'sparse'}{', decoder' * decoder}{', under model' * key}": (
            lambda dense=dense, decoder=decoder, key=key: fcmae(dense, decoder, key)
        )
        for dense in (True, False)
        for decoder in (True, False)
        for key in (True, False)
    },
    "FCMAE dense, flat": lambda: fcmae(True, False, True, flat=True),
    "FCMAE dense, encoder.": lambda: fcmae(True, True, True, prefix="encoder."),
    "SparK": spark,
    "official V1": lambda: official(V1),
    "official V2": lambda: official(V2),
    "DINOv3": lambda: dinov3(False),
    "EUPE": lambda: dinov3(True),
    "DINOv3 of transformers 4": lambda: dinov3_hugging_face(""),
    "DINOv3 of transformers 5": lambda: dinov3_hugging_face("model."),
    "DINOv3 of timm": lambda: timm_file(released()),
    "timm fcmae": lambda: timm_fcmae(False),
    "timm fcmae, new norm": lambda: timm_fcmae(True),
    "timm fcmae_ft": lambda: timm_classifier(use_grn=True, ls_init_value=None, conv_mlp=True),
    "timm in12k": timm_classifier,
    "timm in12k, nano": lambda: timm_classifier(conv_mlp=True),
    "timm clip": lambda: timm_clip(LINEAR),
    "timm clip, mlp": lambda: timm_clip(MLP),
    "OpenCLIP": lambda: open_clip(LINEAR),
    "OpenCLIP, mlp": lambda: open_clip(MLP),
    "OpenCLIP in training": lambda: open_clip(LINEAR, prefix="module."),
    "mmpretrain V1": lambda: mmpretrain_file(V1, head=True),
    "mmpretrain V2": lambda: mmpretrain_file(V2, head=True),
    "mmpretrain FCMAE": lambda: mmpretrain_file(V2, norm=False),
    "mmpretrain SparK": lambda: mmpretrain_file(V2, norm=False, more=SPARK),
}


def saved(content: Any, path: Path) -> str:
    torch.save(content, path)
    return str(path)


def loaded(network: Any) -> Any:
    """The network after its load, with the report; whatever its norms held before."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(5.0)
    return network.init_weights()


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert theirs.std() > 1e-2


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_published_file(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]()
    path = saved(family.content, tmp_path / "published.pth")
    image = torch.randn(2, 3, 70, 77)
    network = ConvNeXt(**SMALL, **family.options, weights=path).eval()
    report = loaded(network)
    assert (report.layout, report.missing) == (family.layout, family.new)
    assert set(report.unexpected) == set(family.skipped)
    assert (report.loaded, report.total) == (len(network.state_dict()) - len(family.new), len(network.state_dict()))
    assert ("new: norm (weight 1, bias 0)" in str(report)) == bool(family.new)
    assert_near(network(image), family.theirs(image))
    head = find_head(read_checkpoint(path), path)
    assert (None if head is None else len(head[0])) == family.head

    dense = ConvNeXt(**SMALL, **family.options, out_indices=FOUR, weights=path).eval()
    report = loaded(dense)
    new = [f"norm{i}" for i in FOUR[: 3 if family.norm_of_map else 4]]
    assert report.missing == tuple(f"{norm}.{part}" for norm in new for part in ("weight", "bias"))
    assert f"new: {', '.join(new)} (weight 1, bias 0)" in str(report)
    maps = family.theirs.forward_intermediates(image, intermediates_only=True)
    for i, (ours, theirs) in enumerate(zip(dense(image), maps, strict=True)):
        norm = family.theirs.head.norm if i == 3 and family.norm_of_map else None
        affine = (norm.weight, norm.bias) if norm is not None else (None, None)
        normalised = F.layer_norm(theirs.permute(0, 2, 3, 1), theirs.shape[1:2], *affine, eps=1e-6)
        assert_near(ours, normalised.permute(0, 3, 1, 2))


def test_every_family_without_a_norm_is_tried() -> None:
    """The table of what a published file may lack has no row that no file above needs."""
    tried = {(family.layout, "use_grn" in family.options) for make in FAMILIES.values() if (family := make()).new}
    assert tried == {(row.layout.name, row.grn) for row in ENCODER_FAMILIES}
    assert all(row.source for row in ENCODER_FAMILIES)


@pytest.mark.parametrize(
    "names", ["released", "mmpretrain", "UperNet of transformers V1", "UperNet of transformers V2"]
)
@torch.no_grad()
def test_the_backbone_of_a_published_detector_or_segmentor(names: str, tmp_path: Path) -> None:
    options = V2 if names.endswith("V2") else V1
    source = ConvNeXt(**SMALL, **options, out_indices=FOUR).eval()
    torch.manual_seed(1)
    for parameter in source.parameters():
        parameter.copy_(torch.randn_like(parameter) / 4)
    own = dict(source.state_dict())
    image, layout = torch.randn(1, 3, 64, 64), names
    if names.startswith("UperNet"):
        kind = ConvNextV2Config if options is V2 else ConvNextConfig
        backbone = kind(depths=[1, 1, 2, 1], hidden_sizes=[8, 16, 24, 32], out_features=[f"stage{i + 1}" for i in FOUR])
        sizes: dict[str, Any] = dict(hidden_size=8, auxiliary_channels=8, auxiliary_in_channels=24)
        theirs: Any = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone, **sizes)).eval()
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter) / 4)
        content, maps, layout = theirs.state_dict(), theirs.backbone(image).feature_maps, "Hugging Face"
    else:
        content = NECK | (mmpretrain(own) if names == "mmpretrain" else under("backbone.", own))
        maps, layout = source(image), names.replace("released", "official")
    path = saved({"state_dict": content}, tmp_path / "detector.pth")
    dense = ConvNeXt(**SMALL, **options, out_indices=FOUR, weights=path).eval()
    report = loaded(dense)
    assert (report.layout, report.missing) == (layout, ())
    assert set(report.unexpected) == {name for name in content if not name.startswith("backbone.")}
    for one, other in zip(dense(image), maps, strict=True):
        assert_near(one, other)
    with pytest.raises(UserError, match=r"lacks 2 of \d+ tensors: norm$"):
        ConvNeXt(**SMALL, **options, weights=path).init_weights()


@pytest.mark.parametrize("layer_scale", [0.0, 1e-6], ids=["S and B", "L"])
@torch.no_grad()
def test_a_published_isotropic_file(layer_scale: float, tmp_path: Path) -> None:
    """convnext_iso_{small,base,large}_1k_224_ema.pth."""
    source = IsotropicConvNeXt(depth=4, dim=32, layer_scale_init_value=layer_scale).eval()
    for parameter in source.parameters():
        parameter.copy_(torch.randn_like(parameter) / 4)
    path = saved({"model": source.state_dict() | HEAD}, tmp_path / "published.pth")
    network = IsotropicConvNeXt(depth=4, dim=32, layer_scale_init_value=layer_scale, weights=path).eval()
    report = loaded(network)
    assert (report.layout, report.missing, report.unexpected) == ("official isotropic", (), tuple(HEAD))
    image = torch.randn(1, 3, 64, 64)
    assert_near(network(image), source(image))
    # An encoder of this kind is not published.
    lacking = {name: value for name, value in source.state_dict().items() if name not in NORM}
    with pytest.raises(UserError, match=r"lacks 2 of \d+ tensors: norm$"):
        IsotropicConvNeXt(
            4, 32, weights=saved(lacking, tmp_path / "x.pth"), layer_scale_init_value=layer_scale
        ).init_weights()


def without(state: State, *names: str) -> State:
    assert set(names) <= state.keys()
    return {name: value for name, value in state.items() if name not in names}


INCOMPLETE: dict[str, tuple[Callable[[], State], dict[str, Any], str]] = {
    "half a norm": (lambda: without(released(V2), "norm.bias"), V2, "lacks 1 of 68 tensors: norm$"),
    "a head, no norm": (lambda: released(V2, norm=False, head=True), V2, "lacks 2 of 70 tensors: norm$"),
    "an encoder that lacks more": (
        lambda: without(released(V2, norm=False), "stages.2.1.grn.beta", "downsample_layers.3.1.bias"),
        V2,
        r"lacks 2 of 66 tensors: downsample_layers\.3\.1, stages\.2\.1\.grn$",
    ),
    "a norm under another name": (
        lambda: without(released() | {"norms.3.weight": torch.ones(32)}, *NORM),
        V1,
        "lacks 2 of 63 tensors: norm$",
    ),
    "a sparse encoder that lacks more": (
        lambda: without(sparse(released(V2)), "encoder.stages.0.0.norm.ln.bias"),
        V2,
        r"lacks 1 of 66 tensors: stages\.0\.0\.norm$",
    ),
    "a sparse V1": (
        lambda: without(
            sparse(released(V2)), *(n for n in sparse(released(V2)) if n[:7] == "encoder" and ".grn." in n)
        ),
        dict(layer_scale_init_value=0.0),
        "lacks 2 of 58 tensors: norm$",
    ),
    "timm V1": (
        lambda: without(dict(timm_network(released()).state_dict()), "head.norm.weight", "head.norm.bias"),
        V1,
        "",
    ),
    "timm, norm before the pool": (
        lambda: TimmConvNeXt(
            **SMALL, num_classes=0, use_grn=True, ls_init_value=None, head_norm_first=True
        ).state_dict(),
        V2,
        "lacks 2 of 68 tensors: norm$",
    ),
    "mmpretrain V1": (lambda: mmpretrain(released(norm=False)), V1, "lacks 2 of 63 tensors: norm$"),
    "a head of another kind": (
        lambda: mmpretrain(released(V2, norm=False)) | {"head.layers.0.fc.weight": torch.zeros(4, 32)},
        V2,
        "lacks 2 of 68 tensors: norm$",
    ),
    "DINOv3 of transformers": (
        lambda: dinov3_of_transformers(released(norm=False)),
        V1,
        "lacks 2 of 63 tensors: norm$",
    ),
}


@pytest.mark.parametrize("case", INCOMPLETE)
def test_an_incomplete_file_is_an_error_that_names_what_it_lacks(case: str, tmp_path: Path) -> None:
    make, options, message = INCOMPLETE[case]
    with pytest.raises(UserError, match=message or "lacks 2 of 63 tensors: norm$"):
        ConvNeXt(**SMALL, **options, weights=saved(make(), tmp_path / "weights.pth")).init_weights()


@torch.no_grad()
def test_the_released_size(tmp_path: Path) -> None:
    state = without(dict(build_backbone("convnextv2_atto").state_dict()), *NORM)
    path = saved({"model": state}, tmp_path / "convnextv2_atto_1k_224_fcmae.pt")
    line = f"136/138 backbone tensors loaded from {path} (official layout), new: norm (weight 1, bias 0)"
    assert str(build_backbone("convnextv2_atto", weights=path).load_report) == line
