"""Weights in and out: every load is reported tensor by tensor, and no code in a checkpoint is executed."""

from __future__ import annotations

import argparse
import json
import logging
import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path, PosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch
from mmengine.logging import HistoryBuffer, print_log
from torch import Tensor, nn

from backbones.channels import adapt_input_layer
from backbones.errors import CheckpointError, first_line
from backbones.file_kinds import describe_weight_file, is_torchscript
from backbones.files import atomic_write, describe_special
from backbones.layouts import (
    WRAPPER_PREFIX,
    LayoutName,
    MatchedTensors,
    check_constant,
    check_finite,
    check_float_tensor,
    find_convnext,
    from_ours,
    hugging_face_config,
    is_convnext,
    summarize_names,
    to_ours,
)
from backbones.published import FOLDER_FILES, fetch, is_published, is_url, nearest_published

if TYPE_CHECKING:
    from backbones.base import Backbone

_STATISTICS = ("min", "max", "current", "mean")


def _statistic(owner: Any, name: str) -> Any:
    """Replace ``getattr``, by which a pickled :class:`HistoryBuffer` refers to its own four methods."""
    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise pickle.UnpicklingError(f"unsupported getattr of {name!r}")
    return getattr(owner, name)


# Plain data that mmengine, timm and the released code save beside tensors: loss histories as numpy arrays, and the
# arguments of the command with their paths.
_PLAIN_DATA: list[Any] = [
    HistoryBuffer,
    (_statistic, "builtins.getattr"),
    argparse.Namespace,
    np.ndarray,
    np.dtype,
    np.ndarray.__reduce__(np.empty(0))[0],  # rebuilds an array; its module differs between NumPy 1 and 2
    np.float64().__reduce__()[0],  # likewise for a number
    *((PosixPath, f"pathlib{module}.PosixPath") for module in ("", "._local")),  # the latter by Python 3.13
    *((PureWindowsPath, f"pathlib{module}.WindowsPath") for module in ("", "._local")),
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "uint8", "bool")),
]
# Attributes by which wrappers hold a module, in the middle of names too: those of torch.compile, FSDP and activation
# checkpointing.
_WRAPPER_NAMES = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_MODULE_CLASS = re.compile(r"torch\.nn\.modules\.|timm\.|torchvision\.models\.|torch\.nn\.parallel\.")
# Keys of the tensors in a file: raw weights, from which the papers fine-tune, are preferred to averaged ones.
_RAW_KEYS = ("state_dict", "model", "module", "model_ema")
_AVERAGED_KEYS = ("ema_state_dict", "model_ema", "state_dict_ema")
_MAX_NESTING = 4
MAX_KEYS_IN_MESSAGE = 8
# Heads of classifiers other than ConvNeXt: ours and ViT, Swin and RegNet, ResNet, EfficientNet.
_HEAD_WEIGHT = re.compile(r"(module\.)?(model\.)?(head|head\.fc|fc|classifier)\.weight")
_OUTPUT_NORM = re.compile(r"norm[0-3]?\.(weight|bias)")


@dataclass(frozen=True)
class LoadReport:
    """Result of loading a backbone.

    Attributes:
        source: Path or URL.
        loaded: Number of the network's tensors that came from the file.
        total: Number of the network's tensors.
        missing: Names of the network's tensors that are not in the file and need not be.
        unexpected: Names of tensors in the file that this network does not have (heads, necks).
        layout: Layout that was recognised; empty where the file has the network's own names.
        head: Result of loading the classifier's head; ``None`` where there is no classifier.
        adapted: Mapping of the first layer to another number of image channels; empty without one.
    """

    source: str
    loaded: int
    total: int
    missing: tuple[str, ...] = field(default=())
    unexpected: tuple[str, ...] = field(default=())
    layout: str = ""
    head: str | None = None
    adapted: str = ""

    def __str__(self) -> str:
        line = f"{self.loaded}/{self.total} backbone tensors loaded from {self.source}"
        line += f" ({self.layout} layout)" if self.layout else ""
        line += f", {self.adapted}" if self.adapted else ""
        line += f", new: {summarize_names(self.missing)}" if self.missing else ""
        line += " (weight 1, bias 0)" if self.missing and all(map(_OUTPUT_NORM.fullmatch, self.missing)) else ""
        line += f", skipped: {summarize_names(self.unexpected)}" if self.unexpected else ""
        return line + (f"; classifier's head {self.head}" if self.head else "")

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data; ``fresh`` and ``skipped`` are the keys in the files of a run."""
        report = asdict(self)
        report["fresh"], report["skipped"] = report.pop("missing"), report.pop("unexpected")
        return report


def read_checkpoint(source: str, trust: bool = False, in_place: bool = False) -> dict[str, Any]:
    """Read a checkpoint file, by default without executing any code in it.

    Args:
        source: Path of a ``torch.save`` or safetensors file (told apart by content), a folder written by Hugging
            Face's ``save_pretrained``, or what :func:`backbones.published.fetch` takes: an ``http(s)``/``file`` URL, a
            name of timm, a repository of Hugging Face. A path that exists is a path.
        trust: Execute code that the file asks for (``--trust-checkpoint``), for old files with more than plain data.
        in_place: Map the tensors of a ``torch.save`` file into memory without verifying them, to read only what is
            beside them.

    Returns:
        The mapping in the file; of a whole model or a TorchScript program, which are read with ``trust`` alone, the
        tensors by name.

    Raises:
        CheckpointError: If the file is absent, unreadable, truncated, of another kind or not a mapping, if a tensor
            does not match the checksum in the file, or if the file holds objects other than plain data and ``trust`` is
            off.
    """
    try:
        path = _local_file(source)
        if _is_safetensors(path):
            content: Any = safetensors.torch.load_file(path)
        elif foreign := describe_weight_file(path):
            again = f" (delete {path} to download it again)" if is_url(source) else ""
            raise CheckpointError(f"checkpoint {source!r} {foreign}{again}")
        elif is_torchscript(path):
            content = _read_torchscript(path, source, trust)
        else:
            if not in_place:
                verify_checkpoint(path, source)
            # Newer versions of torch believe a name that ends in .safetensors; they map files into memory by name only.
            renamed = path.suffix == ".safetensors"
            with torch.serialization.safe_globals(_PLAIN_DATA), warnings.catch_warnings(), path.open("rb") as file:
                # About a file that is then refused in one line.
                warnings.filterwarnings("ignore", "Detected pickle protocol")
                mmap = True if in_place and not renamed else None
                content = torch.load(file if renamed else path, map_location="cpu", weights_only=not trust, mmap=mmap)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"checkpoint {source!r} was refused: {_refusal(error, path)}") from error
    except (ImportError, AttributeError) as error:  # with trust, where the code that it asks for is absent
        fix = "read it where that code is, and save the state_dict of the model"
        raise CheckpointError(f"checkpoint {source!r} needs code: {first_line(error, 160)}; {fix}") from error
    except OSError as error:  # a folder without permission, an address that does not answer
        raise CheckpointError(f"checkpoint {source!r} cannot be read: {first_line(error, 160)}") from error
    except Exception as error:  # torch and safetensors raise many kinds for a damaged archive
        fix = f"; delete {path} to download it again" if is_url(source) else ""
        raise CheckpointError(f"checkpoint {source!r} cannot be read: it is damaged, or no checkpoint{fix}") from error
    if isinstance(content, nn.Module):  # TorchScript, or a whole model that is trusted
        content = content.state_dict()
    if not isinstance(content, Mapping):
        raise CheckpointError(f"checkpoint {source!r} holds a {type(content).__name__}, not a mapping of tensors")
    return {key: value.state_dict() if isinstance(value, nn.Module) else value for key, value in content.items()}


def _read_torchscript(path: Path, source: str, trust: bool) -> nn.Module:
    """The module of a TorchScript program.

    Raises:
        CheckpointError: If it is not trusted.
    """
    if not trust:
        raise CheckpointError(
            f"checkpoint {source!r} was refused: it is a TorchScript program; if you know who made it, "
            "--trust-checkpoint loads it and takes its tensors"
        )
    loaded: nn.Module = torch.jit.load(path, map_location="cpu")
    return loaded


def _refusal(error: Exception, path: Path) -> str:
    """Why torch refused a file, and what to do; torch buries the reason under advice to load the file unsafely."""
    foreign = re.search(r"unsupported global:? (?:GLOBAL )?(\S+)", str(error), re.IGNORECASE)
    if not foreign:
        return "damaged, or it holds more than data"
    names = [foreign[1]]
    with suppress(Exception):  # torch raises many kinds for files of the old format
        names += torch.serialization.get_unsafe_globals_in_checkpoint(path)
    trust = "if you know who made it, --trust-checkpoint"
    if any(map(_MODULE_CLASS.match, names)):
        return (
            f"it is a whole pickled model ({foreign[1]}), not its weights: save model.state_dict() where its code is; "
            f"{trust} reads it here, if that code can be imported"
        )
    return f"it refers to {foreign[1]}; {trust} lets it execute what it asks for"


def verify_checkpoint(path: Path, source: str) -> None:
    """Compare the records of a ``torch.save`` file with their checksums, which torch itself does not do.

    Args:
        path: The file; files of other formats are not checked.
        source: Path or URL, for messages.

    Raises:
        CheckpointError: If a record does not match its checksum.
    """
    if not zipfile.is_zipfile(path):
        return  # a format older than torch 1.6, or no checkpoint
    with zipfile.ZipFile(path) as archive:
        checksums = any(record.CRC for record in archive.infolist())  # can be switched off when a file is written
        damaged = archive.testzip() if checksums else None
    if damaged is not None:
        raise CheckpointError(f"checkpoint {source!r} is damaged: {damaged!r} in it is not what was written")


def _local_file(source: str) -> Path:
    """The file to read: one in a folder, or a download of what is published."""
    if is_published(source):
        return fetch(source)
    path = Path(source)
    if special := describe_special(path):
        raise CheckpointError(f"checkpoint {source!r} {special}")
    if path.is_dir():
        inside = [path / name for name in FOLDER_FILES if (path / name).is_file()]
        if not inside:
            raise CheckpointError(
                f"checkpoint {source!r} does not exist: the folder has no {' and no '.join(FOLDER_FILES)}"
            )
        return inside[0]
    if not path.is_file():
        raise CheckpointError(f"checkpoint {source!r} does not exist{nearest_published(source)}")
    return path


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins like safetensors: the length of the header, then the header, which is JSON."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def network_tensors(checkpoint: Mapping[str, Any], source: str, averaged: bool = False) -> dict[str, Tensor]:
    """The tensors of the model in a checkpoint.

    Args:
        checkpoint: Content of the file.
        source: Path or URL, for messages.
        averaged: Take the averaged weights (EMA) instead of the raw ones.

    Raises:
        CheckpointError: If averaged weights are asked for and the file has none, or a name has control characters.
    """
    if averaged:
        chosen = [checkpoint[key] for key in _AVERAGED_KEYS if isinstance(checkpoint.get(key), Mapping)]
        if not any(chosen):
            raise CheckpointError(f"checkpoint {source!r} has no averaged weights: leave --ema out")
        # The EMA of our own runs has its number of steps beside the weights.
        checkpoint = {name: value for name, value in next(filter(None, chosen)).items() if name != "steps"}
    for _ in range(_MAX_NESTING):
        inner = _inner_mapping(checkpoint, source)
        if inner is None:
            break
        checkpoint = inner
    tensors = {}
    for name, value in checkpoint.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            plain = _WRAPPER_NAMES.sub("", name)
            if plain in tensors:
                raise CheckpointError(f"checkpoint {source!r} is ambiguous: it has {plain} with and without a wrapper")
            tensors[plain] = value
    if not tensors and any(key in checkpoint for key in _AVERAGED_KEYS):
        raise CheckpointError(
            f"checkpoint {source!r} has averaged weights only: extract them with tools/convert_weights.py IN OUT "
            "--to ours --ema"
        )
    for name in tensors:
        if not name.isprintable():  # names are part of messages of one line
            raise CheckpointError(f"checkpoint {source!r} was refused: a tensor has the unprintable name {name!r}")
    return tensors


def _inner_mapping(checkpoint: Mapping[str, Any], source: str) -> Mapping[str, Any] | None:
    """The part of a checkpoint that holds the tensors; ``None`` if they are not in a part of it.

    A known key goes first. Without one, and without tensors beside it, the only part with tensors is taken.

    Raises:
        CheckpointError: If there are several, such as ``student`` and ``teacher``.
    """
    known = next((checkpoint[key] for key in _RAW_KEYS if isinstance(checkpoint.get(key), Mapping)), None)
    if known is not None or any(isinstance(value, Tensor) and value.ndim for value in checkpoint.values()):
        return known
    parts = [key for key, value in checkpoint.items() if _is_part(key) and _holds_tensors(value, _MAX_NESTING)]
    if len(parts) > 1:
        names = ", ".join(map(repr, parts[:MAX_KEYS_IN_MESSAGE])) + (
            ", ..." if len(parts) > MAX_KEYS_IN_MESSAGE else ""
        )
        raise CheckpointError(
            f"checkpoint {source!r} has tensors under several keys, {names}: save one of them alone, as in "
            f"torch.save(torch.load(FILE)[{parts[0]!r}], NEW_FILE)"
        )
    return checkpoint[parts[0]] if parts else None


def _is_part(key: Any) -> bool:
    """Whether a key may be that of a model's tensors: optimizers have tensors of the same names, averages their own."""
    return isinstance(key, str) and key.isprintable() and "optim" not in key and key not in _AVERAGED_KEYS


def _holds_tensors(value: Any, depth: int) -> bool:
    """Whether a mapping holds tensors by name, at most so many mappings deep."""
    if not isinstance(value, Mapping) or not depth:
        return False
    named = [one for name, one in value.items() if isinstance(name, str)]
    return any(isinstance(one, Tensor) or _holds_tensors(one, depth - 1) for one in named)


def load_backbone_weights(
    network: Backbone, checkpoint: Mapping[str, Any], source: str, averaged: bool = False
) -> LoadReport:
    """Load the weights in a checkpoint into a backbone and log the report.

    The layouts of ConvNeXt are recognised; the names of other networks are translated by their ``rename_weights``.
    Output norms that are not in the file get weight 1 and bias 0; that of the last map gets the norm of the pooled
    vector where it was trained on the map too (DINOv3).

    Args:
        network: The backbone; its ``may_be_missing`` and :data:`backbones.layouts.ENCODER_FAMILIES` tell which tensors
            the file may lack.
        checkpoint: Content of the file, from :func:`read_checkpoint`.
        source: Path or URL, for messages.
        averaged: Load the averaged weights (EMA) instead of the raw ones.

    Raises:
        CheckpointError: If a tensor is missing, has another shape, is of a layer that this network does not have, or is
            not finite.
    """
    matched = _match_names(network, network_tensors(checkpoint, source, averaged), source)
    expected = network.state_dict()
    if matched.norm_of_map and "norm3.weight" in expected:
        for part in ("weight", "bias"):
            matched.tensors[f"norm3.{part}"] = matched.tensors.pop(f"norm.{part}")
            matched.names[f"norm3.{part}"] = matched.names.pop(f"norm.{part}")
    missing = [name for name in expected if name not in matched.tensors]
    adapted = adapt_input_layer(matched.tensors, expected)
    _refuse_another_network(network, matched, expected, missing, source)
    network.load_state_dict({name: value for name, value in matched.tensors.items() if name in expected}, strict=False)
    for name in filter(_OUTPUT_NORM.fullmatch, missing):
        nn.init.constant_(network.get_parameter(name), float(name.endswith(".weight")))
    report = LoadReport(
        source,
        loaded=len(expected) - len(missing),
        total=len(expected),
        missing=tuple(missing),
        unexpected=(*(matched.names[name] for name in matched.tensors if name not in expected), *matched.others),
        layout=matched.layout,
        adapted=adapted,
    )
    print_log(str(report), logger="current", level=logging.INFO)
    if remark := check_constant({name: matched.tensors[name] for name in expected if name not in missing}, source):
        print_log(f"checkpoint {source!r}: {remark}", logger="current", level=logging.WARNING)
    return report


def _refuse_another_network(
    network: Backbone,
    matched: MatchedTensors,
    expected: Mapping[str, Tensor],
    missing: Sequence[str],
    source: str,
) -> None:
    """Raise an error if a tensor is missing, has another shape, or is of a layer that this network does not have.

    The weights of a deeper network fill all layers of a shallower one of the same widths, but not as they were trained.
    """
    lost = [
        name
        for name in missing
        if not network.may_be_missing(name) and (matched.final_norm or not name.startswith("norm."))
    ]
    parts = {name.split(".")[0] for name in expected if not _OUTPUT_NORM.fullmatch(name)}
    extra = [name for name in matched.tensors if name not in expected and name.split(".")[0] in parts]
    for names, verb, initial in ((lost, "lacks", 0.0), (extra, "has", 1.0)):
        if names and len(names) == len(lost) + len(extra) and all(name.endswith(".gamma") for name in names):
            raise CheckpointError(
                f"checkpoint {source!r} {verb} the layer scale of {len(names)} blocks: set "
                f"layer_scale_init_value={initial} in the backbone's config"
            )
    if lost:
        raise CheckpointError(
            f"checkpoint {source!r} lacks {len(lost)} of {len(expected)} tensors: {summarize_names(lost)}"
        )
    if extra:
        raise CheckpointError(
            f"checkpoint {source!r} is of another network: it has {len(extra)} tensors more than the {len(expected)} "
            f"here: {summarize_names(extra)}"
        )
    for name, value in expected.items():
        if name in matched.tensors and matched.tensors[name].shape != value.shape:
            theirs, ours = tuple(matched.tensors[name].shape), tuple(value.shape)
            raise CheckpointError(f"checkpoint {source!r} is of another network: {name} is {theirs}, here {ours}")


def _match_names(network: Backbone, tensors: dict[str, Tensor], source: str) -> MatchedTensors:
    """The tensors of a file under the names of the network."""
    own = network.state_dict()
    if is_convnext(own):
        return to_ours(tensors, source)
    # A baseline, which knows its own layouts, or a network that has no other names than ours (a step of the roadmap).
    prefix = max((WRAPPER_PREFIX.match(name)[0] for name in tensors), key=len, default="")  # type: ignore[index]
    inside = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    others = tuple(name for name in tensors if not name.startswith(prefix))
    renamed = network.rename_weights(inside)
    if not any(name in own for name in renamed):
        first = ", ".join(list(tensors)[:2]) or "no tensors at all"
        raise CheckpointError(f"checkpoint {source!r} is of another network; it begins with: {first}")
    names = {name: prefix + name if name in inside else name for name in renamed}
    for name in own.keys() & renamed.keys():
        if own[name].is_floating_point():  # not the integer batch counter of batch normalisation
            check_float_tensor(names[name], renamed[name], source)
            check_finite(names[name], renamed[name], source)
    return MatchedTensors("", renamed, names, others)


def find_head(checkpoint: Mapping[str, Any], source: str, averaged: bool = False) -> tuple[Tensor, Tensor] | None:
    """The linear head in a classifier's checkpoint, of any known layout.

    Args:
        checkpoint: Content of the file, from :func:`read_checkpoint`.
        source: Path or URL, for messages.
        averaged: Take the averaged weights (EMA) instead of the raw ones.

    Returns:
        Weight ``(K, C)`` and bias ``(K,)``, or ``None`` where the file has no single linear head.

    Raises:
        CheckpointError: If the file holds a damaged ConvNeXt or head.
    """
    tensors = network_tensors(checkpoint, source, averaged)
    if found := find_convnext(tensors, source):
        return found.head
    weights = [
        name for name in tensors if _HEAD_WEIGHT.fullmatch(name) and f"{name.removesuffix('weight')}bias" in tensors
    ]
    if len(weights) != 1:
        return None
    names = weights[0], weights[0].removesuffix("weight") + "bias"
    for name in names:
        check_float_tensor(name, tensors[name], source)
        check_finite(name, tensors[name], source)
    weight, bias = (tensors[name] for name in names)
    weight = weight.flatten(1) if weight.ndim == 4 else weight  # a 1x1 convolution in timm's BiT
    return (weight, bias) if weight.ndim == 2 and bias.shape == weight.shape[:1] else None


@dataclass(frozen=True)
class Conversion:
    """Result of :func:`convert_checkpoint`.

    Attributes:
        source: Path or URL that was read.
        averaged: Whether the averaged weights were taken.
        source_layout: Layout that was recognised.
        target: File or folder that was written.
        target_layout: Layout that was written.
        tensors: Number of tensors written.
        classes: Outputs of the head; ``None`` without one.
        others: Names in the file of other parts of a model (heads, necks), which were not written.
        dropped_norms: Norms of dense outputs that the target layout does not have.
        missing: Modules of a complete classifier's backbone that are not in the file.
    """

    source: str
    averaged: bool
    source_layout: str
    target: str
    target_layout: str
    tensors: int
    classes: int | None
    others: tuple[str, ...]
    dropped_norms: tuple[str, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        head = "no head" if self.classes is None else f"head of {self.classes} classes"
        lines = [
            f"read {self.source}: {self.source_layout} layout, {'averaged' if self.averaged else 'raw'} weights",
            f"wrote {self.target}: {self.target_layout} layout, {self.tensors} tensors, {head}",
        ]
        if self.missing:
            lines.append(f"not in the file: {', '.join(self.missing)}")
        if self.dropped_norms:
            lines.append(f"no place in the {self.target_layout} layout: {', '.join(self.dropped_norms)}")
        if self.others:
            parts = Counter(name.removeprefix("module.").partition(".")[0] for name in self.others)
            lines.append("heads left out: " + ", ".join(f"{part} ({count})" for part, count in parts.items()))
        return "\n".join(lines)


def convert_checkpoint(
    source: str, target: str, layout: LayoutName, averaged: bool = False, trust: bool = False
) -> Conversion:
    """Write a ConvNeXt, with its head where there is one, in the layout of another code base.

    Of a detector or segmentor the backbone is taken.

    Args:
        source: Path or URL of a checkpoint of any known layout.
        target: A ``.safetensors`` or ``.pth`` file; for ``hf`` also a folder, with ``config.json``.
        layout: Layout to write: ``ours``, ``timm``, ``torchvision`` or ``hf``.
        averaged: Take the averaged weights (EMA).
        trust: Execute code that the file asks for.

    Raises:
        CheckpointError: If ``source`` holds no whole ConvNeXt, the layout has no such network, or ``target`` cannot be
            written.
    """
    file = _target_file(source, target, layout)
    found = to_ours(network_tensors(read_checkpoint(source, trust), source, averaged), source)
    one_norm = layout in ("timm", "torchvision")  # these have no norms of dense outputs
    tensors = {name: value for name, value in found.tensors.items() if not (one_norm and re.match(r"norm\d\.", name))}
    converted = {name: _compact(value) for name, value in from_ours(tensors, layout).items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as part:
            if file.suffix == ".pth":
                torch.save(converted, part)
            else:
                # transformers 4 refuses a file that does not name the framework.
                safetensors.torch.save_file(converted, part, metadata={"format": "pt"})
        if file.parent == Path(target):
            with atomic_write(file.with_name("config.json")) as part:
                part.write_text(json.dumps(hugging_face_config(tensors), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{target!r} cannot be written: {first_line(error, 160)}") from error
    return Conversion(
        source,
        averaged,
        found.layout,
        target,
        layout,
        tensors=len(converted),
        classes=len(found.head[0]) if found.head else None,
        others=found.others,
        dropped_norms=tuple(dict.fromkeys(name.partition(".")[0] for name in found.tensors if name not in tensors)),
        missing=() if any(name.startswith("norm") for name in tensors) else ("norm",),
    )


def _target_file(source: str, target: str, layout: LayoutName) -> Path:
    """The file for the tensors of a conversion."""
    path = Path(target)
    if path.suffix not in (".safetensors", ".pth"):
        if layout != "hf" or path.is_file():
            folder = ", or a folder for --to hf" if layout != "hf" else ""
            raise CheckpointError(f"cannot write {target!r}: give a name that ends in .safetensors or .pth{folder}")
        path = path / FOLDER_FILES[0]
    elif path.is_dir():
        raise CheckpointError(f"cannot write {target!r}: it is a folder")
    if path.exists() and not is_published(source) and _local_file(source).samefile(path):
        raise CheckpointError(f"cannot write {target!r}: it is the file that is read, choose another name")
    return path


def _compact(value: Tensor) -> Tensor:
    """A contiguous tensor with storage of its own: a file would hold the whole storage of a view."""
    value = value.contiguous()
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()
