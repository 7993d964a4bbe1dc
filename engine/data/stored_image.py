"""An image inside of a shard: its path in words, and where its bytes are.

The path is text as any other, such as ``train-0001.tar/n01440764_10026.jpg``: messages, reports and samplers need no
case of their own. What reads the image finds the place in its attributes.
"""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from contextlib import suppress
from enum import IntEnum
from functools import lru_cache
from typing import Any, BinaryIO, NamedTuple

from backbones.errors import DataError, first_line, printable
from backbones.files import open_file
from engine.data.parquet_pages import PageColumn, page_column, read_page, value_of
from engine.data.stores.cache import ShardCache

MAX_OPEN_SHARDS = 128  # of a process; the limit of open files is often 1,024
IMAGE_COLUMN = "image.bytes"  # of parquet files
PAGES_KEPT = 2  # of parquet files, decompressed, in a process
PAGE_BYTES = 2**20  # of a page of parquet files, as a rule


class Coding(IntEnum):
    """Form in which the bytes of an image lie in a shard."""

    STORED = 0
    DEFLATED = 1  # compressed member of a zip file
    PAGE = 2  # value in a compressed page of a parquet file


class ShardState(NamedTuple):
    """A shard as it was when its headers were read.

    Attributes:
        path: Path of the file, or URL of an object in a store.
        size: Bytes.
        mtime_ns: Time of its last change, in nanoseconds; of an object the version that the store tells.
        cache: Cache of an object; ``None`` for a file.
    """

    path: str
    size: int
    mtime_ns: int
    cache: ShardCache | None = None


class StoredImage(str):
    """Path of an image inside of a shard.

    Args:
        shard: The shard.
        name: Name of the image in it.
        offset: First byte; of a compressed page, where it is in one.
        size: Number of bytes in the file; or its number among the values of the page.
        coding: Form of the bytes.
    """

    shard: ShardState
    offset: int
    size: int
    coding: Coding

    def __new__(cls, shard: ShardState, name: str, offset: int, size: int, coding: int) -> StoredImage:
        image = super().__new__(cls, f"{shard.path}/{name}")
        image.shard, image.offset, image.size, image.coding = shard, offset, size, Coding(coding)
        return image

    def __getnewargs__(self) -> tuple[ShardState, str, int, int, int]:  # type: ignore[override]
        """Arguments from which pickle makes the path again in another process."""
        return self.shard, self[len(self.shard.path) + 1 :], self.offset, self.size, int(self.coding)

    def __deepcopy__(self, memo: Any) -> StoredImage:
        return self  # as of any text

    def read(self) -> bytes:
        """Bytes of the image.

        Raises:
            OSError: If the shard cannot be read, or its bytes cannot be decompressed.
            DataError: If the shard has changed since its headers were read.
            MachineError: If it cannot be fetched from its store.
        """
        if self.coding == Coding.PAGE:
            return _page_value(self.shard, self.offset, self.size)
        content = os.pread(_OPEN_SHARDS.get(self.shard).fileno(), self.size, self.offset)
        if self.coding == Coding.STORED:
            return content
        try:
            return zlib.decompress(content, wbits=-zlib.MAX_WBITS)
        except zlib.error as error:
            raise OSError(f"cannot be decompressed: {error}") from error


class StoredFile(StoredImage):
    """File in an archive, under the path that it would have if the archive were unpacked.

    Args:
        shard: The archive.
        path: Path of the file.
        offset: First byte.
        size: Number of bytes in the archive.
        coding: Form of the bytes.
    """

    def __new__(cls, shard: ShardState, path: str, offset: int, size: int, coding: int) -> StoredFile:
        file = str.__new__(cls, path)
        file.shard, file.offset, file.size, file.coding = shard, offset, size, Coding(coding)
        return file

    def __getnewargs__(self) -> tuple[ShardState, str, int, int, int]:  # type: ignore[override]
        """Arguments from which pickle makes the path again in another process."""
        return self.shard, str(self), self.offset, self.size, int(self.coding)


def refuse_changed(shard: ShardState, size: int, mtime_ns: int) -> None:
    """Raise an error if a shard is not what it was.

    Raises:
        DataError: If its size or time differs.
    """
    if (size, mtime_ns) != (shard.size, shard.mtime_ns):
        raise DataError(f"{printable(shard.path)}: has changed since its images were listed: start again")


def open_shard(shard: ShardState) -> BinaryIO:
    """Open a shard for reading; one of a store is fetched first where it is not here.

    Raises:
        OSError: If it cannot be opened.
        DataError: If it is not what it was when its headers were read.
        MachineError: If it cannot be fetched from its store.
    """
    if shard.cache is not None:
        return shard.cache.open(shard)
    file = open_file(shard.path)
    status = os.fstat(file.fileno())
    refuse_changed(shard, status.st_size, status.st_mtime_ns)
    return file


def begin_reading(shard: ShardState, offset: int, size: int, coding: int) -> None:
    """Have the system begin to read an image into its memory, and do not wait for it.

    A disk serves many reads in the time of one. Nothing happens where the shard lies in a store or cannot be opened:
    whoever reads the image says so.

    Args:
        shard: The shard.
        offset: First byte, also of a page, see :class:`StoredImage`.
        size: Number of bytes in the file.
        coding: Form of the bytes.
    """
    if shard.cache is not None:
        return
    with suppress(OSError, DataError):
        size = PAGE_BYTES if coding == Coding.PAGE else size
        os.posix_fadvise(_OPEN_SHARDS.get(shard).fileno(), offset, size, os.POSIX_FADV_WILLNEED)


class _OpenShards:
    """Files kept open, the latest used ones; closed once nobody reads from them."""

    def __init__(self) -> None:
        self._files: OrderedDict[ShardState, BinaryIO] = OrderedDict()
        self._columns: dict[ShardState, PageColumn] = {}

    def get(self, shard: ShardState) -> BinaryIO:
        """The open file of a shard. A forked process may use it too: reads state their place."""
        file = self._files.get(shard)
        if file is None:
            self._files[shard] = file = open_shard(shard)
            if shard.cache is not None:
                self._drop_removed()
            while len(self._files) > MAX_OPEN_SHARDS:
                self._close(next(iter(self._files)))
        else:
            self._files.move_to_end(shard)
        return file

    def image_column(self, shard: ShardState) -> PageColumn:
        """How the images of a parquet file are stored."""
        from pyarrow.parquet import ParquetFile

        file = self.get(shard)
        if shard not in self._columns:  # by the open file: its name may be gone
            with ParquetFile(f"/dev/fd/{file.fileno()}") as opened:
                self._columns[shard] = page_column(opened, IMAGE_COLUMN)[1]
        return self._columns[shard]

    def _close(self, shard: ShardState) -> None:
        del self._files[shard]
        self._columns.pop(shard, None)

    def _drop_removed(self) -> None:
        """Close what has gone from a cache: it still takes its room on the disk."""
        gone = [shard for shard, file in self._files.items() if not os.fstat(file.fileno()).st_nlink]
        for shard in gone:
            self._close(shard)


_OPEN_SHARDS = _OpenShards()


def _page_value(shard: ShardState, place: int, number: int) -> bytes:
    from pyarrow import ArrowException

    try:
        return value_of(_page(shard, place), number)
    except (ArrowException, ValueError) as error:
        raise OSError(f"a page of the shard cannot be read: {first_line(error)}") from error


@lru_cache(maxsize=PAGES_KEPT)
def _page(shard: ShardState, place: int) -> tuple[bytes, list[int]]:
    """A page of the column ``image.bytes``."""
    return read_page(_OPEN_SHARDS.get(shard).fileno(), _OPEN_SHARDS.image_column(shard), place)
