"""The table of all images of a split's shards: made once, kept in a file, mapped into the memory of all who read it.

The file has rows of 13 bytes, the names, and an entry for each class. Images are sorted as in folders, by class and
name, so that a label is a range of rows, and the part that the names of a class share is stored once. No process has
objects of Python for rows or classes: each worker would have its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from backbones.errors import DataError, MachineError, first_line, printable
from backbones.files import NO_SPACE_ERRNOS, locked
from backbones.kernels.autotune import cache_file
from engine.data.mapped import Arrays, read_arrays, write_arrays
from engine.data.shards.archives import read_tar, read_zip
from engine.data.shards.find import Shards
from engine.data.shards.headers import ShardHeaders, read_headers, write_headers
from engine.data.shards.parquet import read_parquet
from engine.data.stored_image import ShardState, StoredImage, begin_reading, open_shard
from engine.data.stores import ShardCache, is_store_url, stored_states
from engine.launch.pool import in_processes

TABLE_VERSION = 2  # of the file
# The first byte has 48 bits: 2**32 * far + near.
TABLE_ROW = np.dtype([("near", "<u4"), ("far", "<u2"), ("size", "<u4"), ("shard", "<u2"), ("coding", "u1")])
MAX_SHARDS = 2**16
HEADERS_VERSION = 2  # of what is kept of a shard of a store


class ClassRows(NamedTuple):
    """The images of a class, rows that follow each other.

    Attributes:
        label: Number or name of the class, as in the shards.
        first: First row.
        images: Number of rows.
        prefix: Beginning of all names.
        width: Bytes of the rest of a name, filled up with zeros.
        names: Place of the first name in the bytes of all names.
    """

    label: int | str
    first: int
    images: int
    prefix: str
    width: int
    names: int


class ClassEntries(Sequence[ClassRows]):
    """The classes of a table, each made when it is asked for.

    Args:
        entries: An entry for each, with the fields of :class:`ClassRows`.
    """

    def __init__(self, entries: np.ndarray) -> None:
        self._entries = entries
        self._firsts = entries["first"]

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, number: Any) -> Any:
        """A class by its number in the order of their labels."""
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        label, first, images, prefix, width, names = self._entries[number].item()
        return ClassRows(_text(label), first, images, _text(prefix), width, names)

    def __iter__(self) -> Iterator[ClassRows]:
        """All classes, in a third of the time that asking for each takes."""
        for label, first, images, prefix, width, names in self._entries.tolist():
            yield ClassRows(_text(label), first, images, _text(prefix), width, names)

    def of_row(self, row: int) -> ClassRows:
        """Class of a row."""
        found: ClassRows = self[bisect_right(self._firsts, row) - 1]
        return found


class ShardLayout(NamedTuple):
    """Where the samples of a data set lie.

    Attributes:
        shards: The shards.
        numbers: Number of the shard of each sample, ``uint16``.
    """

    shards: list[ShardState]
    numbers: np.ndarray


class ShardTable:
    """Places of the images in shards, by row; pickled by the path of its file.

    Args:
        file: File of the table.
        cache: Cache of the shards of a store.

    Attributes:
        shards: The shards.
        classes: Rows of each class, in the order of their labels.
        class_names: Names of numbered classes, where the shards tell them.

    Raises:
        OSError: If there is no such file.
        ValueError: If it is none, or not whole.
        KeyError: The same.
        TypeError: The same.
    """

    def __init__(self, file: Path, cache: ShardCache | None = None) -> None:
        self.file, self.cache = file, cache
        version, header, arrays = read_arrays(file)
        if version != TABLE_VERSION:
            raise ValueError("another version")
        folder = str(file.parent)
        self.shards = [
            ShardState(path, size, version, cache)
            if is_store_url(path)
            else ShardState(os.path.join(folder, path), size, version)
            for path, size, version in header["shards"]
        ]
        self.class_names: tuple[str, ...] = tuple(header["class_names"])
        self._rows, self._names, entries = arrays
        self.classes = ClassEntries(entries)

    def __reduce__(self) -> tuple[type[ShardTable], tuple[Path, ShardCache | None]]:
        return ShardTable, (self.file, self.cache)

    def __len__(self) -> int:
        return len(self._rows)

    def shard_numbers(self, rows: np.ndarray) -> np.ndarray:
        """Number of the shard of each of some rows, ``uint16``."""
        return np.asarray(self._rows["shard"][rows])

    def name(self, row: int) -> str:
        """Name of the image of a row."""
        one = self.classes.of_row(row)
        place = one.names + (row - one.first) * one.width
        return one.prefix + _text(self._names[place : place + one.width].tobytes().rstrip(b"\0"))

    def image(self, row: int) -> StoredImage:
        """Image of a row."""
        near, far, size, shard, coding = self._rows[row].item()
        return StoredImage(self.shards[shard], self.name(row), (far << 32) + near, size, coding)

    def read_ahead(self, rows: Sequence[int]) -> None:
        """Have the system begin to read the images of some rows, where their shards lie on a disk."""
        found = self._rows[rows].tolist()
        places = sorted((shard, (far << 32) + near, size, coding) for near, far, size, shard, coding in found)
        for shard, offset, size, coding in places:
            begin_reading(self.shards[shard], offset, size, coding)

    def find(self, rows: ClassRows, name: str) -> int | None:
        """Row of the image of a class with a name; ``None`` if there is none.

        Args:
            rows: Rows of the class.
            name: Name as of an image of the table.
        """
        low, high = rows.first, rows.first + rows.images
        wanted = name.encode("utf-8", "surrogateescape")
        while low < high:  # they are sorted by their bytes
            middle = (low + high) // 2
            found = self.name(middle).encode("utf-8", "surrogateescape")
            if found == wanted:
                return middle
            low, high = (middle + 1, high) if found < wanted else (low, middle)
        return None


def open_table(shards: Shards, progress: bool = True) -> ShardTable:
    """Table of the images of shards; the first process of all that ask for it makes it, the others wait.

    It lies beside the shards, where these are in one folder and it can be written there, under a lock; otherwise in the
    user's cache. It is made anew when name, size or time of a shard has changed.

    Args:
        shards: The shards.
        progress: Whether to show a progress bar in a terminal while the headers are read.

    Raises:
        DataError: If a shard is damaged or contradicts another.
        MachineError: If the table cannot be written.
    """
    states = shard_states(shards)
    if len(states) >= MAX_SHARDS:
        raise DataError(f"{shards.place!r}: {len(states):,} shards, {MAX_SHARDS - 1:,} at most: make larger ones")
    places = _places(shards)
    if (table := _valid(places, states, shards.cache)) is not None:
        return table
    headers: list[ShardHeaders] = []
    for file in places:
        if file != places[-1] and not _writable(file.parent):
            continue
        try:
            with locked(file.with_suffix(".lock")):
                if (table := _valid(places, states, shards.cache)) is None:
                    headers = headers or _read_all(shards, states, progress)
                    _write(file, states, headers)
                    table = ShardTable(file, shards.cache)
                return table
        except OSError as error:  # such as a full disk, or one without locks
            if file == places[-1]:
                raise _unwritable(file, shards, error) from error
    raise AssertionError("unreachable")


def _unwritable(file: Path, shards: Shards, error: OSError) -> MachineError:
    setting = "XDG_CACHE_HOME" if shards.cache is None else "shard_cache.folder"
    fix = "make room" if error.errno in NO_SPACE_ERRNOS else f"set {setting} to your own folder"
    return MachineError(f"{str(file)!r}: the table of the shards cannot be written ({error.strerror}): {fix}")


def shard_states(shards: Shards) -> list[ShardState]:
    """Size and time, or version in a store, of each shard as it is now.

    Raises:
        UserError: If one is absent, or its store cannot be asked.
    """
    urls = [path for path in shards.paths if is_store_url(path)]
    stored = {url: (one.size, one.version) for url, one in zip(urls, stored_states(urls))}
    return [
        ShardState(path, *stored[path], shards.cache) if path in stored else _file_state(path) for path in shards.paths
    ]


def _file_state(path: str) -> ShardState:
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read: {error.strerror}") from error
    return ShardState(os.path.abspath(path), status.st_size, status.st_mtime_ns)


def _absolute(path: str) -> str:
    return path if is_store_url(path) else os.path.abspath(path)


def _places(shards: Shards) -> list[Path]:
    """Files where the table may be, the best one first."""
    folders = {os.path.dirname(_absolute(path)) for path in shards.paths}
    local = [os.path.basename(path) for path in shards.paths]
    name = hashlib.sha256(json.dumps([TABLE_VERSION, shards.split, local]).encode()).hexdigest()[:16]
    everywhere = hashlib.sha256(json.dumps([name, *map(_absolute, shards.paths)]).encode()).hexdigest()[:16]
    folder = cache_file().parent / "shards" if shards.cache is None else Path(shards.cache.folder)
    cached = folder / f"{everywhere}.table"
    if shards.cache is not None:
        return [cached]
    return [*(Path(one) / f".shards-{name}.table" for one in folders if len(folders) == 1), cached]


def _writable(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK)


def _valid(places: Sequence[Path], states: list[ShardState], cache: ShardCache | None) -> ShardTable | None:
    """The table of the first place that has one of shards as they are."""
    for place in places:
        try:
            table = ShardTable(place, cache)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if [(_absolute(one.path), *one[1:]) for one in table.shards] == [tuple(one) for one in states]:
            return table
    return None


def _read_all(shards: Shards, states: Sequence[ShardState], progress: bool) -> list[ShardHeaders]:
    """Headers of all shards, read by several processes."""
    jobs = [(shards.kind, state, shards.split) for state in states]
    workers = min(len(os.sched_getaffinity(0)), len(jobs))
    shown = tqdm(total=len(jobs), unit="shard", desc="headers", disable=not (progress and sys.stderr.isatty()))
    with shown as bar:
        headers = []
        for one in in_processes(_read, jobs, workers, "read headers of shards"):
            headers.append(one)
            bar.update()
    return headers


def _read(job: tuple[str, ShardState, str]) -> ShardHeaders:
    kind, shard, split = job
    if shard.cache is not None:
        return _read_stored(kind, shard, split)
    try:
        return _read_file(kind, shard.path, split)
    except OSError as error:
        raise DataError(f"{printable(shard.path)}: cannot be read: {error.strerror or first_line(error)}") from error


def _read_file(kind: str, path: str, split: str, copy: str | None = None) -> ShardHeaders:
    if kind == "parquet":
        return read_parquet(path, copy)
    return (read_tar if kind == "tar" else read_zip)(path, split, copy)


def _read_stored(kind: str, shard: ShardState, split: str) -> ShardHeaders:
    """Headers of a shard of a store; they are kept, so that a first reading that was stopped goes on."""
    assert shard.cache is not None
    key = json.dumps([HEADERS_VERSION, split, *shard[:3]])
    kept = Path(shard.cache.folder, "headers", f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz")
    if (headers := read_headers(kept)) is not None:
        return headers
    with open_shard(shard) as file:
        headers = _read_file(kind, shard.path, split, f"/dev/fd/{file.fileno()}")
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_headers(kept, headers)
    return headers


def _write(file: Path, states: Sequence[ShardState], headers: Sequence[ShardHeaders]) -> None:
    """Sort the images of all shards, and write the table."""
    arrays = _sorted(states, headers)
    folder = file.parent
    beside = all(not is_store_url(state.path) and Path(state.path).parent == folder.absolute() for state in states)
    shards = [[os.path.basename(path) if beside else path, *state[:2]] for path, *state in states]
    write_arrays(file, TABLE_VERSION, {"shards": shards, "class_names": _class_names(states, headers)}, arrays)


def _text(name: Any) -> Any:
    """Name of an image or class as text; a number stays one."""
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name


def _class_names(states: Sequence[ShardState], headers: Sequence[ShardHeaders]) -> tuple[str, ...]:
    for state, one in zip(states, headers):
        if one.classes != headers[0].classes:
            raise DataError(f"{printable(state.path)}: names other classes than {os.path.basename(states[0].path)!r}")
    return headers[0].classes


def _sorted(states: Sequence[ShardState], headers: Sequence[ShardHeaders]) -> Arrays:
    """Rows, ends of names, and an entry for each class."""
    kinds = {one.labels.dtype.kind: state for state, one in zip(reversed(states), reversed(headers)) if len(one.labels)}
    if len(kinds) > 1:
        numbers, texts = (os.path.basename(kinds[kind].path) for kind in ("i", "S"))
        raise DataError(f"labels are numbers in {numbers!r}, names of classes in {texts!r}: make the shards alike")
    if not kinds:
        raise DataError(f"{printable(states[0].path)}: holds no image with a label, nor does another of the shards")
    filled = [(number, one) for number, one in enumerate(headers) if len(one.labels)]
    labels = np.concatenate([one.labels for _, one in filled])
    names = np.concatenate([one.names for _, one in filled])
    shard = np.concatenate([np.full(len(one.labels), number, np.uint16) for number, one in filled])
    unique = filled[0][1].unique
    if unique == "everywhere":
        _refuse_twice(states, names, shard)
    order = np.lexsort((names, labels))  # by class, then by name; stable
    labels, names = labels[order], names[order]
    values, firsts = np.unique(labels, return_index=True)
    classes: list[tuple[Any, ...]] = []
    ends_of_names: list[np.ndarray] = []
    place = 0
    for label, first, end in zip(values.tolist(), firsts.tolist(), [*firsts[1:].tolist(), len(labels)]):
        own = names[first:end]
        if unique == "class":
            _refuse_twice(states, own, shard[order[first:end]], f" in class {_text(label)!r}")
        prefix, text = _split_prefix(own)
        classes.append((label, first, end - first, prefix, text.shape[1], place))
        ends_of_names.append(text.reshape(-1))
        place += text.size
    kinds_of_fields = [labels.dtype, "<i8", "<i8", f"S{max(1, *(len(one[3]) for one in classes))}", "<i8", "<i8"]
    entry = np.dtype(list(zip(ClassRows._fields, kinds_of_fields)))
    rows = _rows([one for _, one in filled], shard)[order]
    return [rows, np.concatenate(ends_of_names), np.array(classes, entry)]


def _rows(headers: Sequence[ShardHeaders], shard: np.ndarray) -> np.ndarray:
    """Rows of the images in the order of their shards."""
    rows = np.empty(len(shard), TABLE_ROW)
    offsets = np.concatenate([one.offsets for one in headers])
    rows["near"], rows["far"] = offsets & 0xFFFFFFFF, offsets >> np.uint64(32)
    rows["size"] = np.concatenate([one.sizes for one in headers])
    rows["coding"] = np.concatenate([one.codings for one in headers])
    rows["shard"] = shard
    return rows


def _split_prefix(names: np.ndarray) -> tuple[bytes, np.ndarray]:
    """What sorted names begin with, and the rest of each, ``(names, bytes)``, filled up with zeros."""
    pair = zip(bytes(names[0]), bytes(names[-1]))
    shared = bytes(one for one, _ in takewhile(lambda both: both[0] == both[1], pair))
    while shared and shared[-1] >= 0x80:  # not within a character
        shared = shared[:-1]
    longest = int(np.char.str_len(names).max())
    rest = names.view(np.uint8).reshape(len(names), -1)[:, len(shared) : longest]
    return shared, np.ascontiguousarray(rest)


def _refuse_twice(states: Sequence[ShardState], names: np.ndarray, shard: np.ndarray, where: str = "") -> None:
    """Raise an error if a name stands twice.

    Raises:
        DataError: With the name and its shards.
    """
    order = np.argsort(names, kind="stable")
    same = np.flatnonzero(names[order[1:]] == names[order[:-1]])
    if len(same):
        first, second = order[same[0]], order[same[0] + 1]
        name = bytes(names[first]).decode("utf-8", "replace")
        files = " and ".join(dict.fromkeys(printable(states[shard[i]].path) for i in (first, second)))
        raise DataError(f"{files}: two samples with the key {name!r}{where}: give each a key of its own")
