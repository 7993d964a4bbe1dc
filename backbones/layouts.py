"""Checkpoint layouts: names and shapes of the tensors of a ConvNeXt in other code bases.

A layout is a table of rows ``theirs -> ours``. In a row ``#`` stands for a number and ``@`` for ``weight`` or
``bias``; both sides have the same wildcards in the same order, so that a table can be read in either direction. Our
names are those of the released code, with the classifier as ``head.weight`` (K, C) and ``head.bias`` (K,).

Sources: the released repositories of ConvNeXt and ConvNeXt-V2 (``remap_checkpoint_keys`` of the latter for the sparse
encoder), DINOv3, timm 1.0, torchvision 0.26, Hugging Face transformers 4 and 5, mmpretrain 1.2.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from backbones.errors import CheckpointError
from backbones.variants import CONVNEXT_V1

Rows = tuple[tuple[str, str], ...]
LayoutName = Literal["ours", "timm", "torchvision", "hf"]

_WILD = re.compile(r"([#@])")
# Prefix of the network in a whole model: the wrappers and attributes that hold it, in any order. Sources: ``module`` of
# DistributedDataParallel, ``model`` and ``net`` of Lightning modules, ``encoder`` of segmentation_models_pytorch (its
# timm encoders are ``encoder.model``), ``student`` and ``teacher`` of DINO's checkpoints, ``encoder_q`` and
# ``base_encoder`` of MoCo's, ``visual.trunk`` of OpenCLIP's, ``online_encoder`` of BYOL's.
_HOLDERS = (
    *("module", "model", "net", "network", "backbone", "encoder", "base_model", "feature_extractor"),
    *("student", "teacher", "base_encoder", "encoder_q", "online_encoder", "visual", "trunk", "image_encoder"),
)
WRAPPER_PREFIX = re.compile(rf"(?:(?:{'|'.join(_HOLDERS)})\.)*")
# Tensors, under our names, by which a ConvNeXt is recognised: a depthwise convolution, or at least the stem.
_DEPTHWISE = re.compile(r"(stages\.\d+|blocks)\.\d+\.dwconv\.weight")
_STEM = "downsample_layers.0.0.weight"
_NORMS = ("norm", "norm0", "norm1", "norm2", "norm3")
_NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class ParsedName(NamedTuple):
    """A name of a layout, parsed.

    Attributes:
        prefix: Prefix before the names of the network.
        ours: Our name.
        outside: Whether the tensor may lie outside of the network, as a head does.
    """

    prefix: str
    ours: str
    outside: bool


@dataclass(frozen=True)
class Layout:
    """How one code base names a ConvNeXt.

    Attributes:
        name: Name in messages.
        rows: Names inside of the network, ``(theirs, ours)``; the first match counts.
        outside: Rows of tensors that may also lie beside the network, in a whole model that has it under a prefix.
        inner: Regular expression of the network's own prefixes in this code base.
        lone_norm3_is_norm: Whether ``norm3`` without the other output norms is the norm of the pooled vector.
    """

    name: str
    rows: Rows
    outside: Rows = ()
    inner: str = ""
    lone_norm3_is_norm: bool = False

    @cached_property
    def _read_rules(self) -> list[tuple[re.Pattern[str], str, bool]]:
        rows = [*((*row, False) for row in self.rows), *((*row, True) for row in self.outside)]
        return [(re.compile(rf"(?:(.+?)\.)?{_pattern(theirs)}"), ours, outside) for theirs, ours, outside in rows]

    @cached_property
    def _write_rules(self) -> list[tuple[re.Pattern[str], str]]:
        return [(re.compile(_pattern(ours)), theirs) for theirs, ours in (*self.rows, *self.outside)]

    @cached_property
    def network_modules(self) -> set[str]:
        """Top-level modules that belong to the network alone."""
        return {theirs.partition(".")[0] for theirs, ours in self.rows if not ours.startswith("norm")}

    @cached_property
    def head_modules(self) -> set[str]:
        """Top-level modules of the head."""
        return {theirs.partition(".")[0] for theirs, ours in self.outside if ours == "head.@"}

    def read(self, name: str) -> ParsedName | None:
        """Parse a name of this layout with any prefix; ``None`` if it is not one."""
        for pattern, ours, outside in self._read_rules:
            if match := pattern.fullmatch(name):
                return ParsedName(match[1] or "", _fill(ours, match.groups()[1:]), outside)
        return None

    def write(self, name: str) -> str | None:
        """Translate our name into this layout's; ``None`` if there is none."""
        for pattern, theirs in self._write_rules:
            if match := pattern.fullmatch(name):
                return _fill(theirs, match.groups())
        return None

    def knows_prefix(self, prefix: str) -> bool:
        """Whether whole models of this layout have the network under a prefix."""
        return re.fullmatch(f"{WRAPPER_PREFIX.pattern}({self.inner})?", f"{prefix}." if prefix else "") is not None


def _pattern(template: str) -> str:
    numbers = {"#": r"(\d{1,4})", "@": "(weight|bias)"}
    return "".join(numbers.get(part, re.escape(part)) for part in _WILD.split(template))


def _fill(template: str, values: Iterable[str]) -> str:
    left = iter(values)
    return _WILD.sub(lambda wild: next(left), template)


def _blocks(prefix: str, names: Mapping[str, str], ours: str = "stages.#.#") -> Rows:
    """Rows of the block under ``prefix``, from our names inside of a block to theirs."""
    return tuple((f"{prefix}.{theirs}", f"{ours}.{own}") for own, theirs in names.items())


_OWN_BLOCK = {name: name for name in ("dwconv.@", "norm.@", "pwconv1.@", "pwconv2.@", "gamma", "grn.gamma", "grn.beta")}
_OWN_NORMS = (("norm.@", "norm.@"), ("norm#.@", "norm#.@"))
_OWN_HEAD = (("head.@", "head.@"),)

OFFICIAL = Layout(
    "official",
    (("downsample_layers.#.#.@", "downsample_layers.#.#.@"), *_blocks("stages.#.#", _OWN_BLOCK), *_OWN_NORMS),
    outside=_OWN_HEAD,
    inner=r"encoder\.",  # a masked autoencoder in which only the names are dense
)
OFFICIAL_ISOTROPIC = Layout(
    "official isotropic",
    (("stem.@", "stem.@"), *_blocks("blocks.#", _OWN_BLOCK, ours="blocks.#"), *_OWN_NORMS),
    outside=_OWN_HEAD,
)
# The masked autoencoder's encoder is sparse: linear layers and norms are wrapped, convolutions are sparse kernels.
FCMAE = Layout(
    "FCMAE",
    (
        ("downsample_layers.0.#.@", "downsample_layers.0.#.@"),
        ("downsample_layers.#.0.ln.@", "downsample_layers.#.0.@"),
        ("downsample_layers.#.1.kernel", "downsample_layers.#.1.weight"),
        ("downsample_layers.#.1.bias", "downsample_layers.#.1.bias"),
        *_blocks(
            "stages.#.#",
            {
                "dwconv.weight": "dwconv.kernel",
                "dwconv.bias": "dwconv.bias",
                "norm.@": "norm.ln.@",
                "pwconv1.@": "pwconv1.linear.@",
                "pwconv2.@": "pwconv2.linear.@",
                "grn.gamma": "grn.gamma",
                "grn.beta": "grn.beta",
            },
        ),
    ),
    inner=r"encoder\.",
)
MMPRETRAIN = Layout(
    "mmpretrain",
    (
        ("downsample_layers.#.#.@", "downsample_layers.#.#.@"),
        *_blocks(
            "stages.#.#",
            {
                "dwconv.@": "depthwise_conv.@",
                "norm.@": "norm.@",
                "pwconv1.@": "pointwise_conv1.@",
                "pwconv2.@": "pointwise_conv2.@",
                "gamma": "gamma",
                "grn.gamma": "grn.gamma",
                "grn.beta": "grn.beta",
            },
        ),
        ("norm#.@", "norm#.@"),
    ),
    outside=(("head.fc.@", "head.@"),),
    lone_norm3_is_norm=True,
)
TIMM = Layout(
    "timm",
    (
        ("stem.#.@", "downsample_layers.0.#.@"),
        ("stages.#.downsample.#.@", "downsample_layers.#.#.@"),
        *_blocks(
            "stages.#.blocks.#",
            {
                "dwconv.@": "conv_dw.@",
                "norm.@": "norm.@",
                "pwconv1.@": "mlp.fc1.@",
                "pwconv2.@": "mlp.fc2.@",
                "gamma": "gamma",
                "grn.gamma": "mlp.grn.weight",
                "grn.beta": "mlp.grn.bias",
            },
        ),
        ("head.norm.@", "norm.@"),
    ),
    outside=(("head.fc.@", "head.@"),),
    inner=r"visual\.trunk\.",  # the image tower of OpenCLIP
)
_TORCHVISION_BLOCK = {
    "dwconv.@": "block.0.@",
    "norm.@": "block.2.@",
    "pwconv1.@": "block.3.@",
    "pwconv2.@": "block.5.@",
    "gamma": "layer_scale",
}
TORCHVISION = Layout(
    "torchvision",
    (
        *((f"features.{2 * i}.#.@", f"downsample_layers.{i}.#.@") for i in range(4)),
        *(row for i in range(4) for row in _blocks(f"features.{2 * i + 1}.#", _TORCHVISION_BLOCK, f"stages.{i}.#")),
        ("classifier.0.@", "norm.@"),
    ),
    outside=(("classifier.2.@", "head.@"),),
)
HUGGING_FACE = Layout(
    "Hugging Face",
    (
        ("embeddings.patch_embeddings.@", "downsample_layers.0.0.@"),
        ("embeddings.layernorm.@", "downsample_layers.0.1.@"),
        ("encoder.stages.#.downsampling_layer.#.@", "downsample_layers.#.#.@"),
        *_blocks(
            "encoder.stages.#.layers.#",
            {
                "dwconv.@": "dwconv.@",
                "norm.@": "layernorm.@",
                "pwconv1.@": "pwconv1.@",
                "pwconv2.@": "pwconv2.@",
                "gamma": "layer_scale_parameter",
                "grn.gamma": "grn.weight",
                "grn.beta": "grn.bias",
            },
        ),
        ("layernorm.@", "norm.@"),
        *((f"hidden_states_norms.stage{i + 1}.@", f"norm{i}.@") for i in range(4)),
    ),
    outside=(("classifier.@", "head.@"),),
    inner=r"convnext\.|convnextv2\.",
)
# The norm stands beside the encoder, which transformers 5 keeps under ``model.`` and transformers 4 does not.
DINOV3 = Layout(
    "Hugging Face DINOv3",
    (
        ("stages.#.downsample_layers.#.@", "downsample_layers.#.#.@"),
        *_blocks(
            "stages.#.layers.#",
            {
                "dwconv.@": "depthwise_conv.@",
                "norm.@": "layer_norm.@",
                "pwconv1.@": "pointwise_conv1.@",
                "pwconv2.@": "pointwise_conv2.@",
                "gamma": "gamma",
            },
        ),
    ),
    outside=(("layer_norm.@", "norm.@"),),
    inner=r"model\.",
)
CHECKPOINT_LAYOUTS = (OFFICIAL, OFFICIAL_ISOTROPIC, FCMAE, MMPRETRAIN, TIMM, TORCHVISION, HUGGING_FACE, DINOV3)


class EncoderFamily(NamedTuple):
    """Published files that end with the last stage: no head, and no norm of the pooled vector.

    Attributes:
        layout: Layout of the files.
        grn: Whether their blocks have response normalisation (V2).
        source: Place of the files, and proof that they have no norm.
    """

    layout: Layout
    grn: bool
    source: str


# All that a published ConvNeXt may lack. The encoder of a masked autoencoder is trained without the norm of the pooled
# vector, which is new when it is loaded. Files of all other families hold every tensor (docs/weights.md).
ENCODER_FAMILIES = (
    EncoderFamily(
        OFFICIAL,
        grn=True,
        source="ConvNeXt-V2 README.md, lines 23-30: pt_only/convnextv2_*_1k_224_fcmae.pt; timm 1.0.31 models/"
        "convnext.py, lines 711-714: they have no classifier or final norm layer",
    ),
    EncoderFamily(
        FCMAE,
        grn=True,
        source="ConvNeXt-V2 main_pretrain.py's checkpoints; models/convnextv2_sparse.py, lines 79-102: no norm after "
        "the stages",
    ),
    EncoderFamily(
        OFFICIAL,
        grn=False,
        source="SparK README.md, lines 123-126: convnext{S,B,L}_1kpretrained_official_style.pth; pretrain/models/"
        "convnext.py, lines 67-72: norm is an identity without classes",
    ),
    EncoderFamily(
        TIMM,
        grn=True,
        source="timm 1.0.31 models/convnext.py, lines 988-1019 and 711-714: convnextv2_*.fcmae, loaded with strict off",
    ),
    EncoderFamily(
        MMPRETRAIN,
        grn=True,
        source="mmpretrain 1.2 configs/convnext_v2/metafile.yml: convnext-v2-*_3rdparty-fcmae_in1k, converted from "
        "ConvNeXt-V2's; configs/spark/metafile.yml: spark_sparse-convnextv2-tiny_800e_in1k",
    ),
)
_WRITABLE = {"timm": TIMM, "torchvision": TORCHVISION, "hf": HUGGING_FACE}
# timm builds these with 1x1 convolutions in place of linear layers, both for V1 and V2.
_TIMM_CONV_MLP = {
    (CONVNEXT_V1[name].depths, CONVNEXT_V1[name].dims)
    for name in ("convnext_atto", "convnext_femto", "convnext_pico", "convnext_nano")
}


@dataclass(frozen=True)
class ConvNeXtSizes:
    """Sizes of a ConvNeXt. An isotropic one has a single stage.

    Attributes:
        depths: Blocks per stage.
        dims: Channels per stage.
        hidden: Hidden channels of the MLP, per stage.
        in_channels: Channels of the image.
        kernel_size: Side of the depthwise kernels.
        layer_scale: Whether the blocks have ``gamma``.
        grn: Whether the blocks have response normalisation (V2).
        norms: Names of the norms after the stages: ``norm``, ``norm0``...
        classes: Outputs of the head; ``None`` without one.
    """

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    hidden: tuple[int, ...]
    in_channels: int
    kernel_size: int
    layer_scale: bool
    grn: bool
    norms: tuple[str, ...]
    classes: int | None

    @property
    def isotropic(self) -> bool:
        """Whether all blocks have one resolution."""
        return len(self.depths) == 1

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, under our names."""
        dims = self.dims
        layers: dict[str, tuple[int, ...]] = {}
        if self.isotropic:
            layers["stem"] = (dims[0], self.in_channels, 16, 16)
        else:
            layers["downsample_layers.0.0"] = (dims[0], self.in_channels, 4, 4)
            layers["downsample_layers.0.1"] = (dims[0],)
            for i in range(1, 4):
                layers[f"downsample_layers.{i}.0"] = (dims[i - 1],)
                layers[f"downsample_layers.{i}.1"] = (dims[i], dims[i - 1], 2, 2)
        for name in self.norms:
            number = name.removeprefix("norm")
            layers[name] = (dims[int(number)] if number and not self.isotropic else dims[-1],)
        if self.classes is not None:
            layers["head"] = (self.classes, dims[-1])
        shapes = {f"{name}.weight": shape for name, shape in layers.items()}
        shapes |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
        for stage, depth in enumerate(self.depths):
            for block in range(depth):
                place = f"blocks.{block}" if self.isotropic else f"stages.{stage}.{block}"
                shapes |= {f"{place}.{name}": shape for name, shape in self._block(stage).items()}
        return shapes

    def _block(self, stage: int) -> dict[str, tuple[int, ...]]:
        dim, hidden, side = self.dims[stage], self.hidden[stage], self.kernel_size
        shapes: dict[str, tuple[int, ...]] = {
            "dwconv.weight": (dim, 1, side, side),
            "dwconv.bias": (dim,),
            "norm.weight": (dim,),
            "norm.bias": (dim,),
            "pwconv1.weight": (hidden, dim),
            "pwconv1.bias": (hidden,),
            "pwconv2.weight": (dim, hidden),
            "pwconv2.bias": (dim,),
        }
        if self.layer_scale:
            shapes["gamma"] = (dim,)
        if self.grn:
            shapes |= {"grn.gamma": (1, 1, 1, hidden), "grn.beta": (1, 1, 1, hidden)}
        return shapes


def infer_sizes(tensors: Mapping[str, Tensor]) -> ConvNeXtSizes:
    """Infer the sizes of a ConvNeXt from its tensors, which may be incomplete or contradict each other.

    Args:
        tensors: Tensors under our names, with or without head and output norms.
    """
    numbers: dict[int, int] = {}
    for name in tensors:
        if match := re.match(r"(?:stages\.(\d+)|blocks)\.(\d+)\.", name):
            stage = int(match[1] or 0)
            # No file has more blocks than tensors, whatever number one of them bears.
            numbers[stage] = min(max(numbers.get(stage, 0), int(match[2]) + 1), len(tensors))
    isotropic = any(name.startswith("blocks.") for name in tensors)

    def size(name: str, axis: int) -> int:
        shape = tensors[name].shape if name in tensors else ()
        return shape[axis] if -len(shape) <= axis < len(shape) else 0

    def has(module: str) -> bool:
        return f"{module}.weight" in tensors or f"{module}.bias" in tensors

    stages = range(1 if isotropic else 4)
    first = ["blocks.0" if isotropic else f"stages.{i}.0" for i in stages]
    return ConvNeXtSizes(
        depths=tuple(numbers.get(i, 1) for i in stages),
        dims=tuple(size(f"{place}.dwconv.weight", 0) for place in first),
        hidden=tuple(size(f"{place}.pwconv1.weight", 0) for place in first),
        in_channels=size("stem.weight" if isotropic else _STEM, 1),
        kernel_size=size(f"{first[0]}.dwconv.weight", -1),
        layer_scale=any(name.endswith(".gamma") and ".grn." not in name for name in tensors),
        grn=any(".grn." in name for name in tensors),
        # A classifier has a norm before its head, whether or not the file still has it.
        norms=tuple(name for name in _NORMS if has(name) or (name == "norm" and has("head"))),
        classes=size("head.weight", 0) if has("head") else None,
    )


def check_sizes(tensors: Mapping[str, Tensor], owner: str) -> ConvNeXtSizes:
    """Infer the sizes of a ConvNeXt and require that its tensors are complete and fit each other.

    Args:
        tensors: Tensors under our names, with or without head and output norms.
        owner: Name of what the tensors belong to, for messages.

    Raises:
        CheckpointError: If a tensor is missing, does not belong to a ConvNeXt, or does not fit the others.
    """
    sizes = infer_sizes(tensors)
    if problem := _size_problem(tensors, sizes):
        raise CheckpointError(f"{owner} {problem}")
    return sizes


def is_convnext(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors under our names are exactly those of a ConvNeXt."""
    return _size_problem(tensors, infer_sizes(tensors)) is None


def _size_problem(tensors: Mapping[str, Tensor], sizes: ConvNeXtSizes) -> str | None:
    """The first reason why tensors are not those of a ConvNeXt of these sizes; ``None`` if they are."""
    shapes = sizes.shapes()
    if missing := [name for name in shapes if name not in tensors]:
        return f"lacks {len(missing)} of {len(shapes)} tensors: {summarize_names(missing)}"
    if unexpected := [name for name in tensors if name not in shapes]:
        return f"is no plain ConvNeXt: nothing here has a place for {summarize_names(unexpected)}"
    for name, shape in shapes.items():
        found = tuple(tensors[name].shape)
        if found != shape:
            return f"does not fit together: {name} is {found}, its other tensors want {shape}"
    return None


@dataclass(frozen=True)
class MatchedTensors:
    """Tensors of a file, matched to the names of a network.

    Attributes:
        layout: Name of the file's layout; empty if the file has the network's own names.
        tensors: Tensors of the network, including the head, under our names and in our shapes.
        names: Name in the file for each of ``tensors``.
        others: Names of the file's other tensors.
        final_norm: Whether the file must have the norm of the pooled vector; one of :data:`ENCODER_FAMILIES` need not.
        norm_of_map: Whether the norm of the pooled vector was trained on each place of the last map too, as DINOv3's.
    """

    layout: str
    tensors: dict[str, Tensor]
    names: dict[str, str]
    others: tuple[str, ...]
    final_norm: bool = True
    norm_of_map: bool = False

    @property
    def head(self) -> tuple[Tensor, Tensor] | None:
        """Weight ``(K, C)`` and bias ``(K,)`` of the classifier; ``None`` without one."""
        return (self.tensors["head.weight"], self.tensors["head.bias"]) if "head.weight" in self.tensors else None


def to_ours(tensors: Mapping[str, Tensor], source: str) -> MatchedTensors:
    """Recognise the layout of a ConvNeXt and convert its tensors to our names and shapes.

    Args:
        tensors: Content of a file, with any prefix and other tensors.
        source: Name of the file, for messages.

    Raises:
        CheckpointError: If there is no ConvNeXt or more than one, if a tensor is missing, does not fit or is not
            finite, or if the network has tensors that a ConvNeXt has not.
    """
    found = find_convnext(tensors, source)
    if found is None:
        first = ", ".join(list(tensors)[:2]) or "no tensors at all"
        raise CheckpointError(f"checkpoint {source!r} holds no ConvNeXt of a known layout; it begins with: {first}")
    return found


def find_convnext(tensors: Mapping[str, Tensor], source: str) -> MatchedTensors | None:
    """Like :func:`to_ours`, but ``None`` where there is no ConvNeXt."""
    detected = _detect_layout(tensors, source)
    if detected is None:
        return None
    layout, prefix = detected
    owner = f"checkpoint {source!r} ({layout.name} layout)"
    if not layout.knows_prefix(prefix):
        raise CheckpointError(
            f"checkpoint {source!r} keeps its ConvNeXt under the unknown prefix {prefix + '.'!r}: "
            "save it without that prefix"
        )
    names, others = _assign_names(tensors, layout, prefix, owner)
    found = {}
    for ours, name in names.items():
        check_float_tensor(name, tensors[name], source)
        found[ours] = _reshape_to_ours(ours, tensors[name], kernel=name.endswith(".kernel"))
    sizes = check_sizes(found, owner)
    for ours, name in names.items():
        check_finite(name, found[ours], source)
    check_constant(_without_head(found), source)
    # DINOv3 normalises patches and pooled vector alike (facebookresearch/dinov3, dinov3/models/convnext.py, norms[3]);
    # its own files have that norm a second time, those of transformers have their own layout.
    norm_of_map = layout is DINOV3 or _module_prefix(prefix, "norms.3") + "weight" in others
    final_norm = not _is_encoder(sizes, layout, prefix, others)
    return MatchedTensors(layout.name, found, names, others, final_norm, norm_of_map)


def _without_head(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the network below its classifier, which may begin as zeros."""
    return {name: value for name, value in tensors.items() if not name.startswith("head.")}


def _is_encoder(sizes: ConvNeXtSizes, layout: Layout, prefix: str, others: Iterable[str]) -> bool:
    """Whether a network is of :data:`ENCODER_FAMILIES`: the file has no norm or head of any name after the stages."""
    if sizes.norms:  # a head counts as one
        return False
    known = any(family.layout is layout and family.grn == sizes.grn for family in ENCODER_FAMILIES)
    heads = tuple(_module_prefix(prefix.rpartition(".")[0], module) for module in layout.head_modules)
    ending = re.compile(re.escape(f"{prefix}." if prefix else "") + r"\w*(norm|head)")
    return known and not any(name.startswith(heads) or ending.match(name) for name in others)


def _detect_layout(names: Iterable[str], source: str) -> tuple[Layout, str] | None:
    """Layout and prefix of the ConvNeXt among some names; ``None`` without one."""
    counts: Counter[tuple[int, str]] = Counter()
    certain: set[tuple[int, str]] = set()
    likely: set[tuple[int, str]] = set()
    for name in names:
        for number, layout in enumerate(CHECKPOINT_LAYOUTS):
            if parsed := layout.read(name):
                counts[number, parsed.prefix] += 1
                if _DEPTHWISE.fullmatch(parsed.ours):
                    certain.add((number, parsed.prefix))
                elif parsed.ours == _STEM:
                    likely.add((number, parsed.prefix))
    if len(certain) > 1:
        several = " and ".join(f"{CHECKPOINT_LAYOUTS[i].name} under {prefix!r}" for i, prefix in sorted(certain))
        raise CheckpointError(
            f"checkpoint {source!r} is ambiguous, it mixes several ConvNeXts: {several}; save one alone"
        )
    # Without a depthwise convolution the error will say what is missing, in the layout that matches most names.
    chosen = sorted(certain or likely, key=lambda one: (-counts[one], one))
    return (CHECKPOINT_LAYOUTS[chosen[0][0]], chosen[0][1]) if chosen else None


def _assign_names(
    names: Iterable[str], layout: Layout, prefix: str, owner: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Our names and the file's names for the network at ``prefix``, and the names of all other tensors."""
    around = prefix.rpartition(".")[0]
    network_modules = tuple(_module_prefix(prefix, module) for module in layout.network_modules)
    head_modules = tuple(_module_prefix(outer, module) for module in layout.head_modules for outer in (prefix, around))
    found: dict[str, str] = {}
    others = []
    for name in names:
        parsed = layout.read(name)
        if parsed and (parsed.prefix == prefix or (parsed.outside and parsed.prefix == around)):
            ours = parsed.ours
            if ours in found:
                raise CheckpointError(f"{owner} is ambiguous: both {found[ours]} and {name} are its {ours}")
            found[ours] = name
        elif name.startswith(network_modules):
            raise CheckpointError(f"{owner} is no plain ConvNeXt: nothing here has a place for {name}")
        else:
            others.append(name)
    if any(name.startswith(head_modules) for name in others):
        # More than one linear layer (a hidden layer, a projection): the last one alone is no classifier.
        others += [found.pop(part) for part in ("head.weight", "head.bias") if part in found]
    outputs = {ours.partition(".")[0] for ours in found if re.match(r"norm\d?\.", ours)}
    if layout.lone_norm3_is_norm and outputs == {"norm3"}:
        found = {re.sub(r"^norm3\.", "norm.", ours): name for ours, name in found.items()}
    return found, tuple(others)


def _module_prefix(prefix: str, part: str) -> str:
    return f"{prefix}.{part}." if prefix else f"{part}."


def check_float_tensor(name: str, value: Tensor, source: str) -> None:
    """Refuse tensors that are not dense floating-point numbers of 16, 32 or 64 bits, or that have no storage.

    Raises:
        CheckpointError: If the tensor is refused, with its name.
    """
    if value.layout is not torch.strided or value.is_meta or value.dtype not in _NUMBERS:
        raise CheckpointError(
            f"checkpoint {source!r}: {name} is no array of floating-point numbers of 16, 32 or 64 bits"
        )
    if value.untyped_storage().nbytes() < value.nbytes:
        # An expanded view: a small file could ask for more memory than there is.
        raise CheckpointError(f"checkpoint {source!r}: {name} claims {value.numel()} numbers, the file has fewer")


def check_finite(name: str, value: Tensor, source: str) -> None:
    """Refuse a tensor with NaN or infinite values.

    Raises:
        CheckpointError: If there are any, with the tensor's name.
    """
    if not bool(torch.isfinite(value).all()):
        bad = int((~torch.isfinite(value)).sum())
        raise CheckpointError(f"checkpoint {source!r}: {name} has {bad} NaN or infinite values of {value.numel()}")


def check_constant(tensors: Mapping[str, Tensor], source: str) -> str:
    """Refuse weights of which most are one value throughout, such as zeros: a network with them computes a constant.

    Looked at are matrices and kernels. Vectors, such as layer scales and norms, begin as constants.

    Args:
        tensors: Tensors of a network by name.
        source: Path or URL, for messages.

    Returns:
        A remark about those that are, if they are few; empty if none is.

    Raises:
        CheckpointError: If more than half are.
    """
    matrices = {name: value for name, value in tensors.items() if sum(side > 1 for side in value.shape) > 1}
    constant = [name for name, value in matrices.items() if _is_constant(value)]
    if not constant:
        return ""
    which = f"{len(constant)} of {len(matrices)} weight matrices have one value throughout"
    if 2 * len(constant) > len(matrices):
        example = f"{constant[0]} is {float(matrices[constant[0]].flatten()[0]):g}"
        raise CheckpointError(
            f"checkpoint {source!r} holds no trained network: {which} ({example}); save them again after training"
        )
    return f"{which}, such as {constant[0]}"


def _is_constant(value: Tensor) -> bool:
    """Whether all values are the same; the first few answer in most cases. On the meta device there are none."""
    values = value.flatten()
    return not value.is_meta and all(bool((part == values[0]).all()) for part in (values[:64], values))


def _reshape_to_ours(name: str, value: Tensor, kernel: bool) -> Tensor:
    """Reshape a tensor to our shape; one that does not fit is returned unchanged, for :func:`check_sizes` to refuse.

    Args:
        name: Our name.
        value: Tensor of any layout.
        kernel: The tensor is a sparse kernel: ``(k * k, C)``, or ``(k * k, C_in, C_out)``, with the positions of the
            window in column-major order.
    """
    if kernel:
        side = math.isqrt(value.shape[0]) if value.ndim in (2, 3) else -1
        if side * side != (value.shape[0] if value.ndim else 0):
            return value
        weight = value.unsqueeze(1) if value.ndim == 2 else value  # (k * k, C_in / groups, C_out)
        return weight.permute(2, 1, 0).unflatten(2, (side, side)).transpose(2, 3)
    if ".grn." in name:
        return value.reshape(1, 1, 1, -1) if value.numel() == value.shape[-1:].numel() else value
    if name.endswith((".gamma", ".bias")):
        return value.reshape(-1) if value.numel() == max(value.shape, default=0) else value
    if re.search(r"(pwconv\d|head)\.weight$", name) and value.shape[2:] == (1, 1):
        return value.flatten(1)
    return value


def from_ours(tensors: Mapping[str, Tensor], layout: LayoutName) -> dict[str, Tensor]:
    """Convert a ConvNeXt from our names and shapes to those of another code base.

    Args:
        tensors: Tensors of V1 or V2 under our names, with or without the head.
        layout: Layout to write: ``ours``, ``timm``, ``torchvision`` or ``hf`` (transformers).

    Returns:
        Tensors under the new names, in the order of ``tensors``; views where possible.

    Raises:
        CheckpointError: If the tensors are no complete ConvNeXt, or that code base has no such network.
    """
    sizes = check_sizes(tensors, "the network")
    if layout == "ours":
        return dict(tensors)
    if missing := _unsupported_feature(sizes, layout):
        raise CheckpointError(f"{layout} has no ConvNeXt with {missing}: choose another layout")
    table = _WRITABLE[layout]
    inside = ""
    if layout == "hf" and sizes.classes is not None:
        inside = "convnextv2." if sizes.grn else "convnext."
    renamed = {}
    for name, value in tensors.items():
        theirs = table.write(name)
        assert theirs is not None, f"{layout} has no name for {name}"
        prefix = "" if name.startswith("head.") else inside
        renamed[prefix + theirs] = _RESHAPE[layout](name, value, sizes)
    return renamed


def _unsupported_feature(sizes: ConvNeXtSizes, layout: LayoutName) -> str | None:
    """A feature of this ConvNeXt that a code base does not have; ``None`` if it has all."""
    if sizes.isotropic:
        return "one resolution at all depths (isotropic)"
    if sizes.hidden != tuple(4 * dim for dim in sizes.dims):
        return "an MLP that is not 4 times as wide as its block"
    if layout != "timm" and sizes.kernel_size != 7:
        return f"depthwise kernels of {sizes.kernel_size} x {sizes.kernel_size} (7 x 7 only)"
    if layout == "torchvision" and sizes.grn:
        return "global response normalisation (V2)"
    if layout == "torchvision" and not sizes.layer_scale:
        return "no layer scale"
    if layout == "hf" and sizes.grn and sizes.layer_scale:
        return "both global response normalisation and layer scale"
    if layout != "hf" and (outputs := [name for name in sizes.norms if name != "norm"]):
        return f"norms for dense outputs ({', '.join(outputs)})"
    return None


def _shape_for_timm(name: str, value: Tensor, sizes: ConvNeXtSizes) -> Tensor:
    if ".grn." in name:
        return value.flatten()
    convolutions = (sizes.depths, sizes.dims) in _TIMM_CONV_MLP
    return value[:, :, None, None] if convolutions and re.search(r"pwconv\d\.weight$", name) else value


def _shape_for_torchvision(name: str, value: Tensor, sizes: ConvNeXtSizes) -> Tensor:
    return value[:, None, None] if name.endswith(".gamma") else value


def _shape_for_hugging_face(name: str, value: Tensor, sizes: ConvNeXtSizes) -> Tensor:
    return value


_RESHAPE: dict[str, Callable[[str, Tensor, ConvNeXtSizes], Tensor]] = {
    "timm": _shape_for_timm,
    "torchvision": _shape_for_torchvision,
    "hf": _shape_for_hugging_face,
}


def hugging_face_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """``config.json`` for transformers, which does not infer the sizes of a network from its tensors.

    Args:
        tensors: Tensors under our names; with a head the config is a classifier's, with ``norm0``... a backbone's.
    """
    sizes = check_sizes(tensors, "the network")
    family = "ConvNextV2" if sizes.grn else "ConvNext"
    outputs = [f"stage{int(name[4:]) + 1}" for name in sizes.norms if name != "norm"]
    kind = "ForImageClassification" if sizes.classes is not None else "Backbone" if outputs else "Model"
    config: dict[str, Any] = {
        "architectures": [family + kind],
        "model_type": family.lower(),
        "num_channels": sizes.in_channels,
        "patch_size": 4,
        "num_stages": 4,
        "hidden_sizes": list(sizes.dims),
        "depths": list(sizes.depths),
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "dtype": str(next(iter(tensors.values())).dtype).removeprefix("torch."),
    }
    if not sizes.grn:
        config["layer_scale_init_value"] = 1e-6 if sizes.layer_scale else 0.0
    if outputs:
        config["out_features"] = outputs
    if sizes.classes is not None:
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(sizes.classes)}
        config["label2id"] = {label: int(i) for i, label in config["id2label"].items()}
    return config


def summarize_names(names: Iterable[str]) -> str:
    """The first four modules among tensor names, and the number of the others."""
    groups = list(dict.fromkeys(name.rsplit(".", 1)[0] for name in names))
    return ", ".join(groups[:4]) + (f" and {len(groups) - 4} more" if len(groups) > 4 else "")
