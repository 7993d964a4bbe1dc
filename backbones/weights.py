"""Weights in and out, with a receipt: nothing is loaded or left out silently, no code is executed."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

import numpy as np
import safetensors.torch
import torch
from mmengine.logging import HistoryBuffer, print_log
from torch import Tensor, nn

from backbones.errors import UserError, first_line
from backbones.files import written_whole
from backbones.layouts import (
    PLACE,
    Found,
    LayoutName,
    check_finite,
    check_plain,
    find_convnext,
    from_ours,
    hugging_face_config,
    is_convnext,
    summary,
    to_ours,
)

_STATISTICS = ("min", "max", "current", "mean")


def _statistic(owner: Any, name: str) -> Any:
    """Stand in for ``getattr``, by which a pickled :class:`HistoryBuffer` refers to its own four methods."""
    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise pickle.UnpicklingError(f"unsupported getattr of {name!r}")
    return getattr(owner, name)


# What mmengine and the released code put into a checkpoint beside tensors: loss histories as numpy arrays, the
# arguments of the command. All of it is plain data.
_PLAIN_DATA: list[Any] = [
    HistoryBuffer,
    (_statistic, "builtins.getattr"),
    argparse.Namespace,
    np.ndarray,
    np.dtype,
    np.ndarray.__reduce__(np.empty(0))[0],  # rebuilds an array; its module differs between NumPy 1 and 2
    np.float64().__reduce__()[0],  # likewise for a number
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "uint8", "bool")),
]
_TRUST: ContextVar[bool] = ContextVar("trust", default=False)
# Where files keep the tensors: the raw weights, from which the papers fine-tune, go before averaged ones.
_RAW = ("state_dict", "model", "module", "model_ema")
_AVERAGED = ("ema_state_dict", "model_ema", "state_dict_ema")
_DEEPEST = 4
# A folder of Hugging Face transformers has one of these.
_IN_FOLDER = ("model.safetensors", "pytorch_model.bin")
# Heads of classifiers that are no ConvNeXt: ours and ViT, Swin and RegNet, ResNet, EfficientNet.
_HEAD = re.compile(r"(module\.)?(model\.)?(head|head\.fc|fc|classifier)\.weight")


@dataclass(frozen=True)
class LoadReport:
    """What a load did.

    Attributes:
        source: Path or URL.
        loaded: Tensors of the network that came from the file.
        total: Tensors of the network.
        fresh: Names of the network's tensors that the file does not have and need not have.
        skipped: Names in the file that this network has no place for (heads, necks).
        layout: The layout that was recognised; empty where the file has the network's own names.
    """

    source: str
    loaded: int
    total: int
    fresh: tuple[str, ...] = field(default=())
    skipped: tuple[str, ...] = field(default=())
    layout: str = ""

    def __str__(self) -> str:
        parts = [f"{self.loaded}/{self.total} backbone tensors loaded from {self.source}"]
        if self.layout:
            parts[0] += f" ({self.layout} layout)"
        if self.fresh:
            parts.append(f"new: {summary(self.fresh)}")
        if self.skipped:
            parts.append(f"skipped: {summary(self.skipped)}")
        return ", ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """The receipt as plain data for reports."""
        return asdict(self)


def trust_checkpoints(trust: bool = True) -> None:
    """From now on :func:`read_checkpoint` executes whatever a file asks for; by ``--trust-checkpoint``."""
    _TRUST.set(trust)


def read_checkpoint(source: str, in_place: bool = False) -> dict[str, Any]:
    """Read a checkpoint file without executing anything in it.

    Args:
        source: Path of a ``torch.save`` or safetensors file (told apart by content), a folder that Hugging Face's
            ``save_pretrained`` wrote, or an ``http(s)``/``file`` URL, which is downloaded once into torch's cache.
        in_place: Leave the tensors of a ``torch.save`` file on the disk until they are used, unverified: for a look
            at what is beside them.

    Returns:
        The mapping in the file.

    Raises:
        UserError: If it is absent, unreadable, truncated, not a mapping, if a tensor is not what was written (by the
            checksums in the file), or if it holds objects other than plain data.
    """
    try:
        path = _local(source)
        if _is_safetensors(path):
            content: Any = safetensors.torch.load_file(path)
        else:
            if not in_place:
                verify_checkpoint(path, source)
            with torch.serialization.safe_globals(_PLAIN_DATA), warnings.catch_warnings():
                # About a file that is then refused in one line.
                warnings.filterwarnings("ignore", "Detected pickle protocol")
                mapped = True if in_place else None
                content = torch.load(path, map_location="cpu", weights_only=not _TRUST.get(), mmap=mapped)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        # torch buries the name under advice to load the file unsafely.
        foreign = re.search(r"unsupported global:? (?:GLOBAL )?(\S+)", str(error), re.IGNORECASE)
        reason = f"it refers to {foreign[1]}" if foreign else "damaged, or it holds more than data"
        mend = "; if you know who made it, --trust-checkpoint lets it execute what it asks for" if foreign else ""
        raise UserError(f"checkpoint {source!r} was refused: {reason}{mend}") from error
    except OSError as error:  # a folder without permission, an address that does not answer
        raise UserError(f"checkpoint {source!r} cannot be read: {first_line(error, 160)}") from error
    except Exception as error:  # torch and safetensors raise many kinds for a damaged archive
        mend = f"; delete {path} to download it again" if _is_url(source) else ""
        raise UserError(f"checkpoint {source!r} cannot be read: it is damaged, or no checkpoint{mend}") from error
    if not isinstance(content, Mapping):
        raise UserError(f"checkpoint {source!r} holds a {type(content).__name__}, not a mapping of tensors")
    return dict(content)


def verify_checkpoint(path: Path, source: str) -> None:
    """Compare the records of a ``torch.save`` file with their checksums, which torch itself does not.

    Args:
        path: The file. One of another format passes: what reads it will tell.
        source: Its name, for the error.

    Raises:
        UserError: If a record is not what was written.
    """
    if not zipfile.is_zipfile(path):
        return  # a format of before torch 1.6, or nothing that can be read
    with zipfile.ZipFile(path) as archive:
        checksums = any(record.CRC for record in archive.infolist())  # can be switched off when a file is written
        damaged = archive.testzip() if checksums else None
    if damaged is not None:
        raise UserError(f"checkpoint {source!r} is damaged: {damaged!r} in it is not what was written")


def _is_url(source: str) -> bool:
    return re.match(r"(https?|file)://", source) is not None


def _local(source: str) -> Path:
    """The file to read: that of a folder or, after a download, of a URL."""
    if _is_url(source):
        # All files of Hugging Face have one name: the address tells them apart.
        mark = hashlib.sha256(source.encode()).hexdigest()[:8]
        path = Path(torch.hub.get_dir(), "checkpoints", f"{mark}-{PurePosixPath(urlparse(source).path).name}")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(source, str(path))
        return path
    path = Path(source)
    if path.is_dir():
        inside = [path / name for name in _IN_FOLDER if (path / name).is_file()]
        if not inside:
            raise UserError(f"checkpoint {source!r} does not exist: the folder has no {' and no '.join(_IN_FOLDER)}")
        return inside[0]
    if not path.is_file():
        raise UserError(f"checkpoint {source!r} does not exist")
    return path


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: the length of a header, then the header, which is JSON."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def network_tensors(checkpoint: Mapping[str, Any], source: str, averaged: bool = False) -> dict[str, Tensor]:
    """Take the tensors of the model out of a checkpoint.

    Args:
        checkpoint: Content of the file.
        source: Its name, for errors.
        averaged: The averaged weights (EMA) instead of the raw ones.

    Raises:
        UserError: If averaged weights are asked for and the file has none, or a name has control characters.
    """
    if averaged:
        chosen = [checkpoint[key] for key in _AVERAGED if isinstance(checkpoint.get(key), Mapping)]
        if not any(chosen):
            raise UserError(f"checkpoint {source!r} has no averaged weights: leave --ema out")
        # The averager of our own runs counts its steps beside the weights.
        checkpoint = {name: value for name, value in next(filter(None, chosen)).items() if name != "steps"}
    for _ in range(_DEEPEST):
        inner = next((checkpoint[key] for key in _RAW if isinstance(checkpoint.get(key), Mapping)), None)
        if inner is None:
            break
        checkpoint = inner
    tensors = {name: value for name, value in checkpoint.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors and any(key in checkpoint for key in _AVERAGED):
        raise UserError(
            f"checkpoint {source!r} has averaged weights alone: take them out with tools/convert_weights.py IN OUT "
            "--to ours --ema"
        )
    for name in tensors:
        if not name.isprintable():  # errors are one line on a terminal, and say names
            raise UserError(f"checkpoint {source!r} was refused: a tensor has the unprintable name {name!r}")
    return tensors


def load_backbone_weights(
    network: nn.Module, source: str, may_miss: Callable[[str], bool] = lambda name: False
) -> LoadReport:
    """Load a checkpoint into a backbone and log the receipt.

    The layouts of ConvNeXt are recognised. Another network may have a method ``rename_weights(tensors)``, which brings
    a file's names under its own; without it, a file has to have the network's own names.

    Args:
        network: The backbone.
        source: Path or URL.
        may_miss: Tells which tensors of the network a file may lack.

    Returns:
        The receipt.

    Raises:
        UserError: If a tensor is missing, has another shape, or is not finite.
    """
    found = _find(network, network_tensors(read_checkpoint(source), source), source)
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in found.tensors]
    lost = [n for n in missing if not may_miss(n) and (found.final_norm or not n.startswith("norm."))]
    if lost:
        raise UserError(f"checkpoint {source!r} lacks {len(lost)} of {len(wanted)} tensors: {summary(lost)}")
    for name, value in wanted.items():
        if name in found.tensors and found.tensors[name].shape != value.shape:
            theirs, ours = tuple(found.tensors[name].shape), tuple(value.shape)
            raise UserError(f"checkpoint {source!r} is of another network: {name} is {theirs}, here {ours}")
    network.load_state_dict({name: value for name, value in found.tensors.items() if name in wanted}, strict=False)
    receipt = LoadReport(
        source,
        loaded=len(wanted) - len(missing),
        total=len(wanted),
        fresh=tuple(missing),
        skipped=(*(found.names[name] for name in found.tensors if name not in wanted), *found.others),
        layout=found.layout,
    )
    print_log(str(receipt), logger="current", level=logging.INFO)
    return receipt


def _find(network: nn.Module, tensors: dict[str, Tensor], source: str) -> Found:
    """A file's tensors under the network's names."""
    own = network.state_dict()
    rename = getattr(network, "rename_weights", None)
    if rename is None and is_convnext(own):
        return to_ours(tensors, source)
    # A baseline, which knows its own layouts, or a network that has no other names than ours (a step of the roadmap).
    place = max((PLACE.match(name)[0] for name in tensors), key=len, default="")  # type: ignore[index]
    inside = {name.removeprefix(place): value for name, value in tensors.items() if name.startswith(place)}
    others = tuple(name for name in tensors if not name.startswith(place))
    renamed: dict[str, Tensor] = rename(inside) if rename else inside
    if not any(name in own for name in renamed):
        first = ", ".join(list(tensors)[:2]) or "no tensors at all"
        raise UserError(f"checkpoint {source!r} is of another network; it begins with: {first}")
    names = {name: place + name if name in inside else name for name in renamed}
    for name in own.keys() & renamed.keys():
        if own[name].is_floating_point():  # batch normalisation counts its batches
            check_plain(names[name], renamed[name], source)
            check_finite(names[name], renamed[name], source)
    return Found("", renamed, names, others)


def read_head(source: str) -> tuple[Tensor, Tensor] | None:
    """The linear head of a classifier's checkpoint, of any known layout.

    Args:
        source: Path or URL.

    Returns:
        Weight ``(K, C)`` and bias ``(K,)``, or ``None`` where the file has no single linear head.

    Raises:
        UserError: If the file cannot be read, or holds a damaged ConvNeXt or head.
    """
    tensors = network_tensors(read_checkpoint(source), source)
    if found := find_convnext(tensors, source):
        return found.head
    weights = [name for name in tensors if _HEAD.fullmatch(name) and f"{name.removesuffix('weight')}bias" in tensors]
    if len(weights) != 1:
        return None
    names = weights[0], weights[0].removesuffix("weight") + "bias"
    for name in names:
        check_plain(name, tensors[name], source)
        check_finite(name, tensors[name], source)
    weight, bias = (tensors[name] for name in names)
    weight = weight.flatten(1) if weight.ndim == 4 else weight  # a 1x1 convolution in timm's BiT
    return (weight, bias) if weight.ndim == 2 and bias.shape == weight.shape[:1] else None


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        source: Path or URL that was read.
        averaged: Whether its averaged weights were taken.
        found: Layout that was recognised.
        target: File or folder that was written.
        layout: Layout that was asked for.
        tensors: Tensors written.
        classes: Outputs of the head; ``None`` without one.
        left_out: Names in the file of other parts of a model: heads, necks.
        homeless: Norms of dense outputs that the layout has no place for.
        absent: Tensors that a whole classifier's backbone has and the file has not.
    """

    source: str
    averaged: bool
    found: str
    target: str
    layout: str
    tensors: int
    classes: int | None
    left_out: tuple[str, ...]
    homeless: tuple[str, ...]
    absent: tuple[str, ...]

    def __str__(self) -> str:
        head = "no head" if self.classes is None else f"head of {self.classes} classes"
        lines = [
            f"read {self.source}: {self.found} layout, {'averaged' if self.averaged else 'raw'} weights",
            f"wrote {self.target}: {self.layout} layout, {self.tensors} tensors, {head}",
        ]
        if self.absent:
            lines.append(f"not in the file: {', '.join(self.absent)}")
        if self.homeless:
            lines.append(f"no place in the {self.layout} layout: {', '.join(self.homeless)}")
        if self.left_out:
            parts = Counter(name.removeprefix("module.").partition(".")[0] for name in self.left_out)
            lines.append("heads left out: " + ", ".join(f"{part} ({count})" for part, count in parts.items()))
        return "\n".join(lines)


def convert_checkpoint(source: str, target: str, layout: LayoutName, averaged: bool = False) -> Conversion:
    """Write a ConvNeXt, with its head where there is one, in the layout of another code base.

    Of a detector or segmentor the backbone is taken.

    Args:
        source: Path or URL of a checkpoint of any known layout.
        target: A ``.safetensors`` or ``.pth`` file; for ``hf`` also a folder, which gets ``config.json`` too.
        layout: ``ours``, ``timm``, ``torchvision`` or ``hf``.
        averaged: Take the averaged weights (EMA).

    Raises:
        UserError: If ``source`` holds no whole ConvNeXt, the layout has no such network, or ``target`` is impossible.
    """
    file = _target_file(source, target, layout)
    found = to_ours(network_tensors(read_checkpoint(source), source, averaged), source)
    lone = layout in ("timm", "torchvision")  # networks with one norm at the end
    tensors = {name: value for name, value in found.tensors.items() if not (lone and re.match(r"norm\d\.", name))}
    converted = {name: _compact(value) for name, value in from_ours(tensors, layout).items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as place:
            if file.suffix == ".pth":
                torch.save(converted, place)
            else:
                # transformers 4 refuses a file that does not say which framework wrote it.
                safetensors.torch.save_file(converted, place, metadata={"format": "pt"})
        if file.parent == Path(target):
            with written_whole(file.with_name("config.json")) as place:
                place.write_text(json.dumps(hugging_face_config(tensors), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{target!r} cannot be written: {first_line(error, 160)}") from error
    return Conversion(
        source,
        averaged,
        found.layout,
        target,
        layout,
        tensors=len(converted),
        classes=len(found.head[0]) if found.head else None,
        left_out=found.others,
        homeless=tuple(dict.fromkeys(name.partition(".")[0] for name in found.tensors if name not in tensors)),
        absent=() if any(name.startswith("norm") for name in tensors) else ("norm",),
    )


def _target_file(source: str, target: str, layout: LayoutName) -> Path:
    """The file of tensors that a conversion writes."""
    path = Path(target)
    if path.suffix not in (".safetensors", ".pth"):
        if layout != "hf" or path.is_file():
            folder = ", or a folder for --to hf" if layout != "hf" else ""
            raise UserError(f"cannot write {target!r}: give a name that ends in .safetensors or .pth{folder}")
        path = path / _IN_FOLDER[0]
    elif path.is_dir():
        raise UserError(f"cannot write {target!r}: it is a folder")
    if path.exists() and not _is_url(source) and _local(source).samefile(path):
        raise UserError(f"cannot write {target!r}: it is the file that is read, choose another name")
    return path


def _compact(value: Tensor) -> Tensor:
    """The same numbers with a memory of their own: a file would take the whole memory behind a view."""
    value = value.contiguous()
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()
