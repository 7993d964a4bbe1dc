"""Checkpoint layouts: under which names and in which shapes others keep the tensors of a ConvNeXt.

A layout is a table of rows ``theirs -> ours``. In a row ``#`` stands for a number and ``@`` for ``weight`` or
``bias``; both sides have the same ones in the same order, so that a table is read in either direction. Ours are the
names of the released code, with the classifier as ``head.weight`` (K, C) and ``head.bias`` (K,).

Sources: the released repositories of ConvNeXt and ConvNeXt-V2 (``remap_checkpoint_keys`` of the latter for the sparse
encoder), timm 1.0, torchvision 0.26, Hugging Face transformers 4 and 5, mmpretrain 1.2.
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

from backbones.errors import UserError
from backbones.variants import CONVNEXT_V1

Rows = tuple[tuple[str, str], ...]
LayoutName = Literal["ours", "timm", "torchvision", "hf"]

_WILD = re.compile(r"([#@])")
# Around the network in a whole model: parallel wrapper, training wrapper, the backbone's own place.
PLACE = re.compile(r"(module\.)?(model\.)?(backbone\.)?")
# A tensor, under our name, by which a ConvNeXt is known: a depthwise convolution, or at least the stem.
_DEPTHWISE = re.compile(r"(stages\.\d+|blocks)\.\d+\.dwconv\.weight")
_STEM = "downsample_layers.0.0.weight"
_NORMS = ("norm", "norm0", "norm1", "norm2", "norm3")
_NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Place(NamedTuple):
    """Where a tensor belongs: what stands before the network's names, our name, and whether it may be outside."""

    prefix: str
    ours: str
    outside: bool


@dataclass(frozen=True)
class Layout:
    """How one code base names a ConvNeXt.

    Attributes:
        name: For people.
        rows: Names inside of the network, ``(theirs, ours)``; the first that fits counts.
        outside: Rows that may also stand beside the network, where a whole model holds it under a prefix.
        inner: Prefixes of the network's own place in this code base, a regular expression.
        lone_norm3_is_norm: Whether ``norm3`` without the other output norms is the norm of the pooled vector.
        final_norm: Whether a whole network of this layout ends in a norm.
    """

    name: str
    rows: Rows
    outside: Rows = ()
    inner: str = ""
    lone_norm3_is_norm: bool = False
    final_norm: bool = True

    @cached_property
    def _theirs(self) -> list[tuple[re.Pattern[str], str, bool]]:
        rows = [*((*row, False) for row in self.rows), *((*row, True) for row in self.outside)]
        return [(re.compile(rf"(?:(.+?)\.)?{_pattern(theirs)}"), ours, outside) for theirs, ours, outside in rows]

    @cached_property
    def _ours(self) -> list[tuple[re.Pattern[str], str]]:
        return [(re.compile(_pattern(ours)), theirs) for theirs, ours in (*self.rows, *self.outside)]

    @cached_property
    def rooms(self) -> set[str]:
        """First parts of the names that belong to the network and to nothing else."""
        return {theirs.partition(".")[0] for theirs, ours in self.rows if not ours.startswith("norm")}

    @cached_property
    def head_rooms(self) -> set[str]:
        """First parts of the head's names."""
        return {theirs.partition(".")[0] for theirs, ours in self.outside if ours == "head.@"}

    def read(self, name: str) -> Place | None:
        """Understand a name of this layout, whatever stands before it."""
        for pattern, ours, outside in self._theirs:
            if match := pattern.fullmatch(name):
                return Place(match[1] or "", _fill(ours, match.groups()[1:]), outside)
        return None

    def write(self, name: str) -> str | None:
        """Translate our name into this layout's."""
        for pattern, theirs in self._ours:
            if match := pattern.fullmatch(name):
                return _fill(theirs, match.groups())
        return None

    def knows_prefix(self, prefix: str) -> bool:
        """Whether whole models of this layout keep the network there."""
        return re.fullmatch(f"{PLACE.pattern}({self.inner})?", f"{prefix}." if prefix else "") is not None


def _pattern(template: str) -> str:
    numbers = {"#": r"(\d{1,4})", "@": "(weight|bias)"}
    return "".join(numbers.get(part, re.escape(part)) for part in _WILD.split(template))


def _fill(template: str, values: Iterable[str]) -> str:
    left = iter(values)
    return _WILD.sub(lambda wild: next(left), template)


def _blocks(place: str, names: Mapping[str, str], ours: str = "stages.#.#") -> Rows:
    """Rows of a block that lies at ``place``, from our names inside of a block to theirs."""
    return tuple((f"{place}.{theirs}", f"{ours}.{own}") for own, theirs in names.items())


_OWN_BLOCK = {name: name for name in ("dwconv.@", "norm.@", "pwconv1.@", "pwconv2.@", "gamma", "grn.gamma", "grn.beta")}
_OWN_NORMS = (("norm.@", "norm.@"), ("norm#.@", "norm#.@"))
_OWN_HEAD = (("head.@", "head.@"),)

OFFICIAL = Layout(
    "official",
    (("downsample_layers.#.#.@", "downsample_layers.#.#.@"), *_blocks("stages.#.#", _OWN_BLOCK), *_OWN_NORMS),
    outside=_OWN_HEAD,
)
ISOTROPIC = Layout(
    "official isotropic",
    (("stem.@", "stem.@"), *_blocks("blocks.#", _OWN_BLOCK, ours="blocks.#"), *_OWN_NORMS),
    outside=_OWN_HEAD,
)
# The masked autoencoder's encoder is sparse: linear layers and norms lie inside of wrappers, convolutions are kernels.
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
    final_norm=False,
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
LAYOUTS = (OFFICIAL, ISOTROPIC, FCMAE, MMPRETRAIN, TIMM, TORCHVISION, HUGGING_FACE, DINOV3)
_WRITABLE = {"timm": TIMM, "torchvision": TORCHVISION, "hf": HUGGING_FACE}
# timm builds these with 1x1 convolutions in place of linear layers, both for V1 and V2.
_TIMM_CONV_MLP = {
    (CONVNEXT_V1[name].depths, CONVNEXT_V1[name].dims)
    for name in ("convnext_atto", "convnext_femto", "convnext_pico", "convnext_nano")
}


@dataclass(frozen=True)
class Anatomy:
    """Sizes of a ConvNeXt, as its tensors tell them. An isotropic one has a single stage.

    Attributes:
        depths: Blocks per stage.
        dims: Channels per stage.
        hidden: Channels inside of the blocks' MLP, per stage.
        in_channels: Channels of the image.
        kernel_size: Side of the depthwise kernels.
        layer_scale: Whether the blocks have ``gamma``.
        grn: Whether the blocks have response normalisation (V2).
        norms: Norms after the stages: ``norm``, ``norm0``...
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
        """Whether all blocks work at one resolution."""
        return len(self.depths) == 1

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Our name and the shape of every tensor."""
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


def measure(tensors: Mapping[str, Tensor], owner: str) -> Anatomy:
    """Read the sizes of a ConvNeXt off its tensors, all of which must be there and fit each other.

    Args:
        tensors: Under our names, head and output norms as they are.
        owner: What holds them, for errors.

    Raises:
        UserError: If a tensor is missing, has no place in a ConvNeXt, or does not fit the others.
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
    anatomy = Anatomy(
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
    shapes = anatomy.shapes()
    if missing := [name for name in shapes if name not in tensors]:
        raise UserError(f"{owner} lacks {len(missing)} of {len(shapes)} tensors: {summary(missing)}")
    if strange := [name for name in tensors if name not in shapes]:
        raise UserError(f"{owner} is no plain ConvNeXt: nothing here has a place for {summary(strange)}")
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise UserError(
                f"{owner} does not fit together: {name} is {tuple(tensors[name].shape)}, its other tensors want {shape}"
            )
    return anatomy


def is_convnext(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors under our names are those of a ConvNeXt, whole and nothing else."""
    try:
        measure(tensors, "the network")
    except UserError:
        return False
    return True


@dataclass(frozen=True)
class Found:
    """A ConvNeXt in a file.

    Attributes:
        layout: Name of its layout, for people.
        tensors: Its tensors under our names and in our shapes, those of the head included.
        names: For each of these, the name in the file.
        others: Names of the file's other tensors.
        final_norm: Whether files of this layout have the norm of the pooled vector; a pre-trained encoder has none.
    """

    layout: str
    tensors: dict[str, Tensor]
    names: dict[str, str]
    others: tuple[str, ...]
    final_norm: bool = True

    @property
    def head(self) -> tuple[Tensor, Tensor] | None:
        """Weight ``(K, C)`` and bias ``(K,)`` of the classifier, where there is one."""
        return (self.tensors["head.weight"], self.tensors["head.bias"]) if "head.weight" in self.tensors else None


def to_ours(tensors: Mapping[str, Tensor], source: str) -> Found:
    """Recognise the layout of a ConvNeXt and bring it under our names.

    Args:
        tensors: Content of a file, with whatever stands around the network.
        source: Name of the file, for errors.

    Raises:
        UserError: If there is no ConvNeXt or more than one, if a tensor is missing, does not fit or is not finite, or
            if something is inside of the network that no ConvNeXt has.
    """
    found = find_convnext(tensors, source)
    if found is None:
        first = ", ".join(list(tensors)[:2]) or "no tensors at all"
        raise UserError(f"checkpoint {source!r} holds no ConvNeXt of a known layout; it begins with: {first}")
    return found


def find_convnext(tensors: Mapping[str, Tensor], source: str) -> Found | None:
    """Like :func:`to_ours`, but ``None`` where there is no ConvNeXt."""
    place = _locate(tensors, source)
    if place is None:
        return None
    layout, prefix = place
    owner = f"checkpoint {source!r} ({layout.name} layout)"
    if not layout.knows_prefix(prefix):
        raise UserError(f"checkpoint {source!r} keeps its ConvNeXt under the unknown prefix {prefix + '.'!r}")
    names, others = _sort(tensors, layout, prefix, owner)
    found = {}
    for ours, name in names.items():
        check_plain(name, tensors[name], source)
        found[ours] = _adapt(ours, tensors[name], kernel=name.endswith(".kernel"))
    measure(found, owner)
    for ours, name in names.items():
        check_finite(name, found[ours], source)
    return Found(layout.name, found, names, others, layout.final_norm)


def _locate(names: Iterable[str], source: str) -> tuple[Layout, str] | None:
    """Layout and prefix of the one ConvNeXt among some names; ``None`` without one."""
    counts: Counter[tuple[int, str]] = Counter()
    certain: set[tuple[int, str]] = set()
    likely: set[tuple[int, str]] = set()
    for name in names:
        for number, layout in enumerate(LAYOUTS):
            if place := layout.read(name):
                counts[number, place.prefix] += 1
                if _DEPTHWISE.fullmatch(place.ours):
                    certain.add((number, place.prefix))
                elif place.ours == _STEM:
                    likely.add((number, place.prefix))
    if len(certain) > 1:
        several = " and ".join(f"{LAYOUTS[i].name} under {prefix!r}" for i, prefix in sorted(certain))
        raise UserError(f"checkpoint {source!r} is ambiguous, it mixes several ConvNeXts: {several}")
    # Without a single depthwise convolution the error will tell what is missing, in the layout that explains most.
    chosen = sorted(certain or likely, key=lambda one: (-counts[one], one))
    return (LAYOUTS[chosen[0][0]], chosen[0][1]) if chosen else None


def _sort(names: Iterable[str], layout: Layout, prefix: str, owner: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Our names and the file's for the network at ``prefix``, and the file's names of everything else."""
    around = prefix.rpartition(".")[0]
    rooms = tuple(_below(prefix, room) for room in layout.rooms)
    head_rooms = tuple(_below(place, room) for room in layout.head_rooms for place in (prefix, around))
    found: dict[str, str] = {}
    others = []
    for name in names:
        place = layout.read(name)
        if place and (place.prefix == prefix or (place.outside and place.prefix == around)):
            if place.ours in found:
                raise UserError(f"{owner} is ambiguous: both {found[place.ours]} and {name} are its {place.ours}")
            found[place.ours] = name
        elif name.startswith(rooms):
            raise UserError(f"{owner} is no plain ConvNeXt: nothing here has a place for {name}")
        else:
            others.append(name)
    if any(name.startswith(head_rooms) for name in others):
        # More than one linear layer (a hidden layer, a projection): the last of them alone is no classifier.
        others += [found.pop(part) for part in ("head.weight", "head.bias") if part in found]
    outputs = {ours.partition(".")[0] for ours in found if re.match(r"norm\d?\.", ours)}
    if layout.lone_norm3_is_norm and outputs == {"norm3"}:
        found = {re.sub(r"^norm3\.", "norm.", ours): name for ours, name in found.items()}
    return found, tuple(others)


def _below(prefix: str, part: str) -> str:
    return f"{prefix}.{part}." if prefix else f"{part}."


def check_plain(name: str, value: Tensor, source: str) -> None:
    """Refuse what only looks like a weight: integers, sparse tensors, tensors without numbers or of 8 bits.

    Raises:
        UserError: With the tensor's name.
    """
    if value.layout is not torch.strided or value.is_meta or value.dtype not in _NUMBERS:
        raise UserError(f"checkpoint {source!r}: {name} is no array of floating-point numbers of 16, 32 or 64 bits")
    if value.untyped_storage().nbytes() < value.nbytes:
        # One number seen at many places: a small file could ask for more memory than there is.
        raise UserError(f"checkpoint {source!r}: {name} claims {value.numel()} numbers, the file has fewer")


def check_finite(name: str, value: Tensor, source: str) -> None:
    """Refuse a weight with NaN or infinity in it.

    Raises:
        UserError: With the tensor's name.
    """
    if not bool(torch.isfinite(value).all()):
        bad = int((~torch.isfinite(value)).sum())
        raise UserError(f"checkpoint {source!r}: {name} has {bad} NaN or infinite values of {value.numel()}")


def _adapt(name: str, value: Tensor, kernel: bool) -> Tensor:
    """Bring a tensor into our shape; one that cannot be brought there stays as it is, and :func:`measure` says so.

    Args:
        name: Our name.
        value: Tensor of any layout.
        kernel: Whether it is a sparse kernel: ``(k * k, C)``, or ``(k * k, C_in, C_out)``, the place in the window
            counted column by column.
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
    """Bring a ConvNeXt from our names under those of another code base.

    Args:
        tensors: Under our names, with or without the head, of V1 or V2.
        layout: Whose names and shapes: ``ours``, ``timm``, ``torchvision`` or ``hf`` (transformers).

    Returns:
        New names, in the order of ``tensors``; the values are views where that is possible.

    Raises:
        UserError: If the tensors are no whole ConvNeXt, or that code base has no such network.
    """
    anatomy = measure(tensors, "the network")
    if layout == "ours":
        return dict(tensors)
    if lacking := _lacking(anatomy, layout):
        raise UserError(f"{layout} has no ConvNeXt with {lacking}: choose another layout")
    table = _WRITABLE[layout]
    inside = ""
    if layout == "hf" and anatomy.classes is not None:
        inside = "convnextv2." if anatomy.grn else "convnext."
    renamed = {}
    for name, value in tensors.items():
        theirs = table.write(name)
        assert theirs is not None, f"{layout} has no name for {name}"
        place = theirs if name.startswith("head.") else inside + theirs
        renamed[place] = _RESHAPE[layout](name, value, anatomy)
    return renamed


def _lacking(anatomy: Anatomy, layout: LayoutName) -> str | None:
    """What a code base has no ConvNeXt with; ``None`` if it has this one."""
    if anatomy.isotropic:
        return "one resolution at all depths (isotropic)"
    if anatomy.hidden != tuple(4 * dim for dim in anatomy.dims):
        return "an MLP that is not 4 times as wide as its block"
    if layout != "timm" and anatomy.kernel_size != 7:
        return f"depthwise kernels of {anatomy.kernel_size} x {anatomy.kernel_size} (7 x 7 only)"
    if layout == "torchvision" and anatomy.grn:
        return "global response normalisation (V2)"
    if layout == "torchvision" and not anatomy.layer_scale:
        return "no layer scale"
    if layout == "hf" and anatomy.grn and anatomy.layer_scale:
        return "both global response normalisation and layer scale"
    if layout != "hf" and (outputs := [name for name in anatomy.norms if name != "norm"]):
        return f"norms for dense outputs ({', '.join(outputs)})"
    return None


def _shape_for_timm(name: str, value: Tensor, anatomy: Anatomy) -> Tensor:
    if ".grn." in name:
        return value.flatten()
    convolutions = (anatomy.depths, anatomy.dims) in _TIMM_CONV_MLP
    return value[:, :, None, None] if convolutions and re.search(r"pwconv\d\.weight$", name) else value


def _shape_for_torchvision(name: str, value: Tensor, anatomy: Anatomy) -> Tensor:
    return value[:, None, None] if name.endswith(".gamma") else value


def _shape_for_hugging_face(name: str, value: Tensor, anatomy: Anatomy) -> Tensor:
    return value


_RESHAPE: dict[str, Callable[[str, Tensor, Anatomy], Tensor]] = {
    "timm": _shape_for_timm,
    "torchvision": _shape_for_torchvision,
    "hf": _shape_for_hugging_face,
}


def hugging_face_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """``config.json`` for transformers, which cannot tell a network's sizes from its tensors.

    Args:
        tensors: Under our names; with the head the config is a classifier's, with ``norm0``... a backbone's.
    """
    anatomy = measure(tensors, "the network")
    family = "ConvNextV2" if anatomy.grn else "ConvNext"
    outputs = [f"stage{int(name[4:]) + 1}" for name in anatomy.norms if name != "norm"]
    kind = "ForImageClassification" if anatomy.classes is not None else "Backbone" if outputs else "Model"
    config: dict[str, Any] = {
        "architectures": [family + kind],
        "model_type": family.lower(),
        "num_channels": anatomy.in_channels,
        "patch_size": 4,
        "num_stages": 4,
        "hidden_sizes": list(anatomy.dims),
        "depths": list(anatomy.depths),
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "dtype": str(next(iter(tensors.values())).dtype).removeprefix("torch."),
    }
    if not anatomy.grn:
        config["layer_scale_init_value"] = 1e-6 if anatomy.layer_scale else 0.0
    if outputs:
        config["out_features"] = outputs
    if anatomy.classes is not None:
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(anatomy.classes)}
        config["label2id"] = {label: int(i) for i, label in config["id2label"].items()}
    return config


def summary(names: Iterable[str]) -> str:
    """The first modules among some tensor names, and how many more there are."""
    groups = list(dict.fromkeys(name.rsplit(".", 1)[0] for name in names))
    return ", ".join(groups[:4]) + (f" and {len(groups) - 4} more" if len(groups) > 4 else "")
