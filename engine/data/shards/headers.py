"""What the headers of one shard say: name, label and place of each of its images."""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from backbones.errors import DataError, printable
from backbones.files import atomic_write, open_file

MAX_NAME_BYTES = 255  # of an image in its shard, as of a file in a folder
MAX_IMAGE_BYTES = 2**32 - 1
LARGEST_LABEL = 2**31 - 1
Uniqueness = Literal["everywhere", "class", "nowhere"]


@dataclass(frozen=True)
class ShardHeaders:
    """The images of a shard, in the order of the file.

    Attributes:
        names: Name of each, ``S`` in UTF-8.
        labels: Number or name (``S``) of the class of each.
        offsets: First byte of each, see :class:`engine.data.stored_image.StoredImage`.
        sizes: Bytes of each in the file.
        codings: :class:`engine.data.stored_image.Coding` of each.
        classes: Names of the numbered classes, if the shard has them.
        unique: Range in which a name stands for one image: all shards (``everywhere``), its ``class``, or
            ``nowhere``.
    """

    names: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    codings: np.ndarray
    classes: tuple[str, ...] = ()
    unique: Uniqueness = "class"


@dataclass
class HeaderList:
    """The images of a shard while they are listed.

    Attributes:
        path: The shard.
    """

    path: str
    _rows: list[tuple[bytes, int, int, int]] = field(default_factory=list)
    _labels: list[int | str] = field(default_factory=list)

    def add(self, name: str, label: int | str, offset: int, size: int, coding: int) -> None:
        """Add an image; arguments as the attributes of :class:`ShardHeaders`.

        Raises:
            DataError: If name or size are beyond what the table holds.
        """
        encoded = name.encode("utf-8", "surrogateescape")
        refuse_long(encoded, size, self.path)
        self._rows.append((encoded, offset, size, coding))
        self._labels.append(label)

    def finish(self, unique: Uniqueness = "class") -> ShardHeaders:
        """The listed images as arrays.

        Raises:
            DataError: If labels are of two types, or a number is negative.
        """
        kinds = {type(label) for label in self._labels}
        if len(kinds) > 1:
            raise DataError(f"{printable(self.path)}: some labels are numbers, others are names of classes")
        labels = [
            label if isinstance(label, int) else label.encode("utf-8", "surrogateescape") for label in self._labels
        ]
        names, offsets, sizes, codings = zip(*self._rows) if self._rows else ((), (), (), ())
        numbers = np.array(labels, dtype=np.int64 if kinds != {str} else np.bytes_)
        refuse_negative(numbers, self.path)
        return ShardHeaders(
            np.array(names, dtype=np.bytes_),
            numbers,
            np.array(offsets, dtype=np.uint64),
            np.array(sizes, dtype=np.uint32),
            np.array(codings, dtype=np.uint16),
            unique=unique,
        )


def refuse_negative(labels: np.ndarray, path: str) -> None:
    """Raise an error for a label below 0.

    Raises:
        DataError: Names shard and label.
    """
    if labels.dtype.kind == "i" and len(labels) and (low := int(labels.min())) < 0:
        raise DataError(f"{printable(path)}: label {low} is no number of a class: they begin with 0")


def refuse_long(name: bytes, size: int, path: str) -> None:
    """Raise an error for an image whose name or size is beyond what the table holds.

    Raises:
        DataError: Names shard and image.
    """
    if len(name) > MAX_NAME_BYTES or size > MAX_IMAGE_BYTES:
        what = f"a name of {len(name)} bytes" if len(name) > MAX_NAME_BYTES else f"{size:,} bytes"
        shown = name.decode("utf-8", "surrogateescape")[:60]
        raise DataError(f"{printable(path)}: image {shown!r} has {what}, which is too much")


def write_headers(file: Path, headers: ShardHeaders) -> None:
    """Keep the headers of a shard in a file.

    Raises:
        OSError: If it cannot be written.
    """
    said = json.dumps([headers.classes, headers.unique])
    arrays = {name: getattr(headers, name) for name in ("names", "labels", "offsets", "sizes", "codings")}
    with atomic_write(file) as part, part.open("wb") as opened:
        np.savez(opened, said=np.array(said), **arrays)


def read_headers(file: Path) -> ShardHeaders | None:
    """Headers that were kept in a file; ``None`` if it is absent, or not whole."""
    try:
        with open_file(file) as opened, np.load(opened, allow_pickle=False) as kept:
            arrays = {name: kept[name] for name in kept.files}
        classes, unique = json.loads(str(arrays.pop("said")))
        return ShardHeaders(**arrays, classes=tuple(classes), unique=unique)
    except (OSError, ValueError, LookupError, TypeError, EOFError, AttributeError, MemoryError, zipfile.BadZipFile):
        return None


def parse_label(content: bytes, suffix: str, member: str, path: str) -> int | str:
    """Label in a member beside an image.

    Args:
        content: The member.
        suffix: ``cls``, a number or a name as text, or ``json``, a mapping with ``label``.
        member: Name of the member.
        path: The shard.

    Raises:
        DataError: If it holds none.
    """
    label: Any = None
    try:
        text = content.decode().strip()
        label = json.loads(text).get("label") if suffix == "json" else text
        if isinstance(label, str) and re.fullmatch("-?[0-9]+", label):
            label = int(label)
        elif isinstance(label, str):
            label.encode()
    except (ValueError, AttributeError, RecursionError):
        label = None
    if isinstance(label, bool) or not isinstance(label, int | str) or label == "":
        label = None
    if label is None or (isinstance(label, int) and not -LARGEST_LABEL <= label <= LARGEST_LABEL):
        wanted = "a mapping with label, a number or a name" if suffix == "json" else "a number or a name"
        raise DataError(f"{printable(path)}: {member!r} holds no label ({wanted} is needed)")
    return label


def parents(member: str) -> list[str]:
    """Folders of a member of an archive, outer ones first."""
    return [part for part in member.split("/")[:-1] if part not in ("", ".")]


def refuse_outside(member: str, path: str) -> None:
    """Raise an error for the name of a member that leads out of the folder into which an archive would be unpacked.

    Raises:
        DataError: Names shard and member. Nothing is unpacked, but who makes such a shard may have others do it.
    """
    if member.startswith(("/", "\\")) or ".." in member.replace("\\", "/").split("/"):
        raise DataError(f"{printable(path)}: member {member!r} leads out of the archive: make it again")
