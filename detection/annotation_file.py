"""Annotation files of any size: listed once, their entries are read where they are when they are asked for.

The annotations of COCO's training images take 5 GB as Python objects, in each process. Here a table says where in the
file each entry is, and of which image and category; it is kept in a file of the user's cache that all processes map,
and verified by size and time of the annotation file. The entries themselves are read from that, and are the same.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import math
import os
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from backbones.errors import DataError
from backbones.files import atomic_write, locked, open_file
from backbones.kernels.autotune import cache_file
from engine.data.mapped import Arrays, mapped_arrays
from engine.data.shards.unpacked import stored_path
from engine.data.stored_image import Coding, ShardState, StoredFile, StoredImage

TABLE_FORMAT = 1
MIN_KEPT_BYTES = 2**24  # the table of a smaller file is made by each process, in a fraction of a second
WINDOW_BYTES = 2**24  # of the file that are in memory while it is listed
MAX_ID = 2**53  # JSON readers disagree about larger numbers
IMAGE_ENTRY = np.dtype([("offset", "<u8"), ("size", "<u4"), ("width", "<f8"), ("height", "<f8")])
OBJECT_ENTRY = np.dtype([("offset", "<u8"), ("size", "<u4"), ("image", "<i4"), ("category", "<i4"), ("flags", "<u4")])
ODD, IS_CROWD = 1, 2  # flags: ids that are absent or no whole numbers; a crowd
BOM = codecs.BOM_UTF8
_SPACE = re.compile(r"[ \t\n\r]*")
_NEXT = re.compile(r"[ \t\n\r]*,")
# Polygons: nine tenths of a file, not needed to list it. No string can have this: its quotes would be escaped.
_POLYGONS = re.compile(r'"segmentation"[ \t\n\r]*:[ \t\n\r]*(\[[-+0-9.eE,\[\] \t\n\r]*\])')


class Entries(Sequence[Any]):
    """Entries of a list in an annotation file, each decoded when it is asked for.

    Args:
        rows: ``offset`` and ``size`` of each in the file, in bytes.
        read: Returns bytes of the file; gets offset and size.
    """

    def __init__(self, rows: np.ndarray, read: Callable[[int, int], bytes]) -> None:
        self.rows, self._read = rows, read
        self._offsets, self._sizes = rows["offset"], rows["size"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        """Entry of an index."""
        offset, size = int(self._offsets[index]), int(self._sizes[index])
        try:
            return json.loads(self._read(offset, size))
        except ValueError as error:
            raise DataError(f"the entry at byte {offset:,} of an annotation file is no JSON: {error}") from error


class AnnotationFile:
    """Content of an annotation file.

    Args:
        path: Annotation file, which may lie in an archive.

    Attributes:
        content_type: Type of the content; ``dict`` in a file of this format.
        images: Entries of ``images``; ``None`` if there is no such list.
        annotations: Entries of ``annotations``; ``None`` if there is no such list.
        categories: Value of ``categories``.
        repeated_ids: Ids that several annotations have, with their number.
        fault: First entry that has no id or does not tell its image or category, in words; empty if all do.
        paths: File names of images that are absolute or have ``..`` in them.

    Raises:
        OSError: If the file cannot be read.
        DataError: If its archive is damaged.
        ValueError: If it is no JSON in UTF-8.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        found = stored_path(self.path)
        if not isinstance(found, StoredFile) and os.path.getsize(found) >= MIN_KEPT_BYTES:
            header, arrays = self._map(found)
        elif isinstance(found, StoredFile) and found.shard.size >= MIN_KEPT_BYTES:
            header, arrays = self._map(_inflated(found))
        else:
            content = found.read() if isinstance(found, StoredFile) else _content(found)
            self._bytes = lambda offset, size: content[offset : offset + size]
            header, arrays = list_entries(io.BytesIO(content))
        images, objects, self._order, self._ends = arrays
        self.content_type: str = header["content_type"]
        self.images = Entries(images, self._bytes) if header["images"] else None
        self.annotations = Entries(objects, self._bytes) if header["annotations"] else None
        self.categories: Any = header["categories"]
        self.repeated_ids: list[tuple[Any, int]] = [(number, count) for number, count in header["repeated_ids"]]
        self.fault: str = header["fault"]
        self.paths: list[str] = header["paths"]
        self._category_values: list[Any] = header["category_values"]
        self._shown = np.array(header["shown"]) if header["shown"] is not None else np.arange(len(images))

    def __reduce__(self) -> tuple[type[AnnotationFile], tuple[str]]:
        return AnnotationFile, (self.path,)

    def __deepcopy__(self, memo: Any) -> AnnotationFile:
        return self  # nothing in it changes

    def _map(self, path: str) -> tuple[Any, Arrays]:
        status = os.stat(path)
        state = ShardState(os.path.abspath(path), status.st_size, status.st_mtime_ns)
        self._bytes = partial(_read_part, state)
        return mapped_arrays(_kept(state.path, ".table"), [TABLE_FORMAT, *state], partial(_list_file, path))

    def refuse_faults(self) -> None:
        """Raise an error for a file that is not of COCO's format.

        Raises:
            DataError: With the first fault.
        """
        problem = self.fault
        if self.images is None or not isinstance(self.categories, list):
            problem = f"has no list {'images' if self.images is None else 'categories'!r}"
        elif self.repeated_ids:
            problem = "annotation id {!r} occurs {} times".format(*self.repeated_ids[0])
        if problem:
            raise DataError(f"{self.path}: {problem}: tools/check_data.py CONFIG finds all of it")

    def sides(self) -> np.ndarray:
        """Width and height of the image of each row, (N, 2)."""
        assert self.images is not None
        return np.stack([self.images.rows["width"], self.images.rows["height"]], 1)

    def image_rows(self) -> np.ndarray:
        """Rows of the images; of several with one id the last one, at the place of the first."""
        return self._shown

    def objects_of(self, image: int) -> list[Any]:
        """Annotations of the image of a row, in the order of the file."""
        if (annotations := self.annotations) is None:
            return []
        first = int(self._ends[image - 1]) if image else 0
        return [annotations[row] for row in self._order[first : int(self._ends[image])].tolist()]

    def rows_with(self, category_ids: Sequence[Any]) -> np.ndarray:
        """Whether each image has an annotation of one of some categories."""
        wanted = [index for index, value in enumerate(self._category_values) if value in category_ids]
        assert self.images is not None
        has = np.zeros(len(self.images), bool)
        if self.annotations is not None:
            rows = self.annotations.rows
            chosen = rows["image"][np.isin(rows["category"], wanted)]
            has[chosen[chosen >= 0]] = True
        return has

    def count_objects(self, crowds: bool = True) -> Counter[Any]:
        """Number of annotations whose ids are whole numbers, by category id.

        Args:
            crowds: Whether crowds count.
        """
        if self.annotations is None:
            return Counter()
        rows = self.annotations.rows
        left_out = ODD if crowds else ODD | IS_CROWD
        values, counts = np.unique(rows["category"][(rows["flags"] & left_out) == 0], return_counts=True)
        return Counter({self._category_values[value]: count for value, count in zip(values.tolist(), counts.tolist())})


def _content(path: str) -> bytes:
    with open_file(path) as file:
        return file.read()


def _read_part(state: ShardState, offset: int, size: int) -> bytes:
    return StoredImage(state, "", offset, size, Coding.STORED).read()


def _kept(path: str, suffix: str) -> Path:
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return cache_file().parent / "annotations" / f"{name}{suffix}"


def _inflated(file: StoredFile) -> str:
    """Copy of a file of an archive in the user's cache, made anew when the archive has changed."""
    source = f"{os.path.abspath(file.shard.path)}/{file}"
    version = hashlib.sha256(f"{file.shard.size} {file.shard.mtime_ns} {file.offset}".encode()).hexdigest()[:16]
    lock = _kept(source, ".lock")
    kept = lock.with_name(f"{lock.stem}-{version}.json")
    with locked(lock):
        if not kept.exists():
            for former in lock.parent.glob(f"{lock.stem}-*.json"):  # of the archive before it changed
                former.unlink()
                _kept(str(former), ".table").unlink(missing_ok=True)
            with atomic_write(kept) as part, part.open("wb") as target, open_file(file.shard.path) as archive:
                inflate = zlib.decompressobj(-zlib.MAX_WBITS) if file.coding == Coding.DEFLATED else None
                for at in range(0, file.size, WINDOW_BYTES):
                    piece = os.pread(archive.fileno(), min(WINDOW_BYTES, file.size - at), file.offset + at)
                    try:
                        target.write(inflate.decompress(piece) if inflate else piece)
                    except zlib.error as error:
                        raise DataError(
                            f"{file.shard.path}: {str(file)!r} is damaged ({error}): fetch it again"
                        ) from error
                target.write(inflate.flush() if inflate else b"")
    return str(kept)


def _list_file(path: str) -> tuple[Any, Arrays]:
    with open_file(path) as file:
        return list_entries(file)


class _Window:
    """Part of a JSON file as text of one character for each byte: places in it are places in the file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._check = file, codecs.getincrementaldecoder("utf-8")()
        self.text, self.at, self._base, self._rest, self._ended = "", 0, 0, "", False
        self._more()
        if self.text.startswith(BOM.decode("latin-1")):
            self.at = len(BOM)

    @property
    def place(self) -> int:
        """Place in the file."""
        return self._base + self.at

    def _more(self) -> None:
        content = self._file.read(max(WINDOW_BYTES, len(self.text) - self.at))  # twice as much, if that was too little
        self._ended = not content
        self._check.decode(content, final=self._ended)
        piece = self._rest + content.decode("latin-1")
        end = len(piece) if self._ended else piece.rfind("}") + 1  # polygons before it are whole
        self._rest = piece[end:]
        text = self.text[self.at :] + _POLYGONS.sub(_blanks, piece[:end])
        self._base, self.text, self.at = self._base + self.at, text, 0

    def peek(self) -> str:
        """Next character that is no space; empty at the end."""
        while True:
            found = _SPACE.match(self.text, self.at)
            assert found is not None
            self.at = found.end()
            if self.at < len(self.text) or self._ended:
                return self.text[self.at : self.at + 1]
            self._more()

    def take(self, wanted: str) -> str:
        """Read one of some characters."""
        found = self.peek()
        if not found or found not in wanted:
            shown = f"{found!r}" if found else "the end of the file"
            raise ValueError(f"{' or '.join(wanted)} is expected at byte {self.place:,}, not {shown}")
        self.at += 1
        return found

    def value(self, decode: Callable[[str, int], tuple[Any, int]]) -> Any:
        """Read a value."""
        self.peek()
        while True:
            try:
                value, end = decode(self.text, self.at)
                if end < len(self.text) or self._ended:
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                if self._ended:
                    raise ValueError(f"{error.msg} at byte {self._base + error.pos:,}") from error
            self._more()


def _blanks(found: re.Match[str]) -> str:
    """The same number of characters without the polygons."""
    return f'"segmentation":0{" " * (len(found[0]) - 16)}'


class _Listing:
    """The entries of an annotation file while they are listed."""

    def __init__(self) -> None:
        columns = IMAGE_ENTRY.names or ()
        self.images: dict[str, array[Any]] = {name: array(code) for name, code in zip(columns, "QQdd")}
        self.objects: dict[str, array[Any]] = {
            name: array(code) for name, code in zip(("offset", "size", "category", "flags"), "QQqq")
        }
        self.image_ids: list[Any] = []
        self.object_images: list[Any] = []
        self.ids: list[Any] = []  # of annotations
        self.category_index: dict[Any, int] = {}
        self.paths: list[str] = []
        self.fault = ""

    def add_image(self, offset: int, size: int, entry: Any) -> None:
        """Add an entry of ``images``."""
        fields = entry if isinstance(entry, dict) else {}
        sides = [fields.get(name) for name in ("width", "height")]
        name, number = fields.get("file_name"), fields.get("id")
        if number is None or not isinstance(name, str) or not all(isinstance(side, int | float) for side in sides):
            self.fault = self.fault or f"the image at byte {offset:,} has no id, file_name, width or height"
            sides = [0, 0]
        if isinstance(name, str) and (".." in name or os.path.isabs(name)):
            self.paths.append(_as_utf8(name))
        self.image_ids.append(_hashable(number))
        for column, value in zip(self.images.values(), (offset, size, *map(_as_float, sides))):
            column.append(value)

    def add_object(self, offset: int, size: int, entry: Any) -> None:
        """Add an entry of ``annotations``."""
        fields = entry if isinstance(entry, dict) else {}
        number, image, category = fields.get("id"), fields.get("image_id"), fields.get("category_id")
        flags = IS_CROWD if fields.get("iscrowd") else 0
        if not (_is_plain(number) and _is_plain(image) and _is_plain(category)):
            flags |= ODD
            number, image, category = map(_hashable, (number, image, category))
            if number is None or image is None or category is None:
                self.fault = self.fault or f"the annotation at byte {offset:,} has no id, image_id or category_id"
        if number is not None:
            self.ids.append(number)
        self.object_images.append(image)
        columns = self.objects
        columns["offset"].append(offset)
        columns["size"].append(size)
        columns["category"].append(self.category_index.setdefault(category, len(self.category_index)))
        columns["flags"].append(flags)

    def arrays(self) -> tuple[np.ndarray | None, Arrays]:
        """Rows of images by their ids if ids repeat; entries, and annotations by image."""
        rows = dict(zip(self.image_ids, range(len(self.image_ids))))  # the last one of several
        shown = None if len(rows) == len(self.image_ids) else np.array(list(rows.values()))
        images, objects = (
            np.empty(len(columns["offset"]), dtype)
            for columns, dtype in ((self.images, IMAGE_ENTRY), (self.objects, OBJECT_ENTRY))
        )
        for target, columns in ((images, self.images), (objects, self.objects)):
            for name, values in columns.items():
                target[name] = np.frombuffer(values, values.typecode) if len(values) else 0
        objects["image"] = [rows.get(one, -1) for one in self.object_images]
        known = np.flatnonzero(objects["image"] >= 0)
        order = known[np.argsort(objects["image"][known], kind="stable")].astype(np.int32)
        ends = np.cumsum(np.bincount(objects["image"][known], minlength=len(images)), dtype=np.int64)
        return shown, [images, objects, order, ends]


def _as_utf8(name: str) -> str:
    """A name that was read with one character for each byte; as it is if it was written in escapes."""
    try:
        return name.encode("latin-1").decode()
    except UnicodeError:
        return name


def _is_plain(value: Any) -> bool:
    """Whether an id is a whole number that all readers agree about."""
    return type(value) is int and -MAX_ID <= value <= MAX_ID


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _hashable(value: Any) -> Any:
    """An id as a key; text for what can be none."""
    return repr(value) if isinstance(value, list | dict) else value


def list_entries(file: BinaryIO) -> tuple[Any, Arrays]:
    """List the entries of an annotation file, of which a part is in memory at a time.

    Args:
        file: The file, at its beginning.

    Returns:
        Header, as JSON gives it back, and arrays: images, annotations, annotations by image, their ends.

    Raises:
        ValueError: If it is no JSON in UTF-8.
    """
    window, decode = _Window(file), json.JSONDecoder().raw_decode
    listing, content_type = _Listing(), "dict"
    present: dict[str, bool] = {"images": False, "annotations": False}
    place = (0, 0)  # of the categories
    if window.peek() != "{":
        content_type = type(window.value(decode)).__name__
    else:
        for key in _keys(window, decode):
            if key in present and window.peek() == "[" and not present[key]:
                present[key] = True
                add = listing.add_image if key == "images" else listing.add_object
                for entry in _entries(window, decode):
                    add(*entry)
            else:
                window.peek()
                start = window.place
                window.value(decode)
                place = (start, window.place) if key == "categories" else place
    if window.peek():
        raise ValueError(f"Extra data at byte {window.place:,}")
    file.seek(place[0])
    categories = json.loads(file.read(place[1] - place[0])) if any(place) else None
    shown, arrays = listing.arrays()
    header = {"content_type": content_type, **present, "categories": categories, "fault": listing.fault}
    header |= {"paths": listing.paths, "category_values": list(listing.category_index)}
    header["shown"] = None if shown is None else shown.tolist()
    unique = len(set(listing.ids)) == len(listing.ids)
    header["repeated_ids"] = [] if unique else [pair for pair in Counter(listing.ids).items() if pair[1] > 1]
    return header, arrays


def _keys(window: _Window, decode: Callable[[str, int], tuple[Any, int]]) -> Iterator[Any]:
    """Keys of a mapping; whoever gets one reads its value."""
    window.take("{")
    if window.peek() == "}":
        window.take("}")
        return
    while True:
        window.take('"')
        window.at -= 1
        key = window.value(decode)
        window.take(":")
        yield key
        if window.take(",}") == "}":
            return


def _entries(window: _Window, decode: Callable[[str, int], tuple[Any, int]]) -> Iterator[tuple[int, int, Any]]:
    """Place, size and value of each element of a list."""
    window.take("[")
    if window.peek() == "]":
        window.take("]")
        return
    while True:
        window.peek()
        start = window.place
        value = window.value(decode)
        yield start, window.place - start, value
        # Between most elements: a comma, and the next one, of which a part is here.
        if (found := _NEXT.match(window.text, window.at)) is not None:
            window.at = found.end()
        elif window.take(",]") == "]":
            return
