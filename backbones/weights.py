"""Weights in, with a receipt: nothing is loaded silently, nothing is left out silently, no code is executed."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from torch import Tensor, nn

from backbones.errors import UserError

_STATISTICS = ("min", "max", "current", "mean")


def _statistic(owner: Any, name: str) -> Any:
    """Stand in for ``getattr``, by which a pickled :class:`HistoryBuffer` refers to its own four methods."""
    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise pickle.UnpicklingError(f"unsupported getattr of {name!r}")
    return getattr(owner, name)


# What mmengine puts into a checkpoint beside tensors: loss histories as numpy arrays. All of it is plain data.
_PLAIN_DATA: list[Any] = [
    HistoryBuffer,
    (_statistic, "builtins.getattr"),
    np.ndarray,
    np.dtype,
    np.ndarray.__reduce__(np.empty(0))[0],  # rebuilds an array; its module differs between NumPy 1 and 2
    np.float64().__reduce__()[0],  # likewise for a number
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "uint8", "bool")),
]
_PREFIXES = re.compile(r"^(module\.)?(model\.)?(backbone\.)?")
_MARKER = "downsample_layers.0.0.weight"


@dataclass(frozen=True)
class Receipt:
    """What a load did.

    Attributes:
        source: Path or URL.
        loaded: Tensors of the network that came from the file.
        total: Tensors of the network.
        fresh: Names of the network's tensors that the file does not have and need not have.
        skipped: Names in the file that this network has no place for (heads, necks).
    """

    source: str
    loaded: int
    total: int
    fresh: tuple[str, ...] = field(default=())
    skipped: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        parts = [f"{self.loaded}/{self.total} backbone tensors loaded from {self.source}"]
        if self.fresh:
            parts.append(f"new: {_summary(self.fresh)}")
        if self.skipped:
            parts.append(f"skipped: {_summary(self.skipped)}")
        return ", ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """The receipt as plain data for reports."""
        return asdict(self)


def read_checkpoint(source: str) -> dict[str, Any]:
    """Read a checkpoint file without executing anything in it.

    Args:
        source: Path, or an ``http(s)``/``file`` URL, which is downloaded once into torch's cache.

    Returns:
        The mapping in the file.

    Raises:
        UserError: If it is absent, unreadable, truncated, not a mapping, or holds objects other than plain data.
    """
    try:
        with torch.serialization.safe_globals(_PLAIN_DATA):
            if re.match(r"(https?|file)://", source):
                content = torch.hub.load_state_dict_from_url(source, map_location="cpu", weights_only=True)
            elif Path(source).is_file():
                content = torch.load(source, map_location="cpu", weights_only=True)
            else:
                raise UserError(f"checkpoint {source!r} does not exist")
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        # torch buries the name under advice to load the file unsafely.
        foreign = re.search(r"unsupported global:? (?:GLOBAL )?(\S+)", str(error), re.IGNORECASE)
        reason = f"it refers to {foreign[1]}" if foreign else "damaged, or it holds more than data"
        raise UserError(f"checkpoint {source!r} was refused: {reason}") from error
    except OSError as error:  # a folder without permission, an address that does not answer
        raise UserError(f"checkpoint {source!r} cannot be read: {_first_line(error)}") from error
    except Exception as error:  # torch raises many kinds for a damaged archive
        raise UserError(f"checkpoint {source!r} cannot be read: it is damaged, or no checkpoint") from error
    if not isinstance(content, Mapping):
        raise UserError(f"checkpoint {source!r} holds a {type(content).__name__}, not a mapping of tensors")
    return dict(content)


def backbone_tensors(checkpoint: Mapping[str, Any], source: str) -> tuple[dict[str, Tensor], list[str]]:
    """Find the backbone in a checkpoint of any known layout.

    Known are the released classifiers (``{"model": ...}``, bare or of a detector with ``backbone.``), and everything
    that this project writes (``{"state_dict": {"backbone....": ..., "head....": ...}}``).

    Args:
        checkpoint: Content of the file.
        source: Its name, for errors.

    Returns:
        The tensors under this project's names, and the names that belong to other parts of the model.

    Raises:
        UserError: If no ConvNeXt is found.
    """
    tensors = {name: value for name, value in _unwrap(checkpoint).items() if isinstance(value, Tensor)}
    markers = [name for name in tensors if name.endswith(_MARKER)]
    if not markers:
        first = ", ".join(list(tensors)[:2]) or "no tensors at all"
        raise UserError(f"checkpoint {source!r} holds no ConvNeXt (no {_MARKER!r}; it begins with: {first})")
    prefix = markers[0][: -len(_MARKER)]
    if not _PREFIXES.fullmatch(prefix):
        raise UserError(f"checkpoint {source!r} keeps its ConvNeXt under the unknown prefix {prefix!r}")
    own = re.compile(r"(downsample_layers|stages|norm[0-3]?)\.")
    found, others = {}, []
    for name, value in tensors.items():
        short = name.removeprefix(prefix)
        if name.startswith(prefix) and own.match(short):
            found[short] = value
        else:
            others.append(name)
    return found, others


def load_backbone_weights(
    network: nn.Module, source: str, may_miss: Callable[[str], bool] = lambda name: False
) -> Receipt:
    """Load a checkpoint into a backbone and log the receipt.

    Args:
        network: The backbone.
        source: Path or URL.
        may_miss: Tells which tensors of the network a file may lack.

    Returns:
        The receipt.

    Raises:
        UserError: If a tensor is missing, or has another shape.
    """
    found, others = backbone_tensors(read_checkpoint(source), source)
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in found]
    lost = [name for name in missing if not may_miss(name)]
    if lost:
        raise UserError(f"checkpoint {source!r} lacks {len(lost)} of {len(wanted)} tensors: {_summary(lost)}")
    for name, value in wanted.items():
        if name in found and found[name].shape != value.shape:
            theirs, ours = tuple(found[name].shape), tuple(value.shape)
            raise UserError(f"checkpoint {source!r} is of another network: {name} is {theirs}, here {ours}")
    network.load_state_dict({name: value for name, value in found.items() if name in wanted}, strict=False)
    receipt = Receipt(
        source,
        loaded=len(wanted) - len(missing),
        total=len(wanted),
        fresh=tuple(missing),
        skipped=(*(name for name in found if name not in wanted), *others),
    )
    print_log(str(receipt), logger="current", level=logging.INFO)
    return receipt


def _unwrap(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Descend to the mapping of tensors: the raw weights, from which the papers fine-tune, before averaged ones."""
    for key in ("state_dict", "model", "module", "model_ema"):
        if isinstance(checkpoint.get(key), Mapping):
            return _unwrap(checkpoint[key])
    return checkpoint


def _summary(names: tuple[str, ...] | list[str]) -> str:
    groups = list(dict.fromkeys(name.rsplit(".", 1)[0] for name in names))
    return ", ".join(groups[:4]) + (f" and {len(groups) - 4} more" if len(groups) > 4 else "")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
