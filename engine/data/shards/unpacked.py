"""Files of a data set that lie in a zip or tar as it was downloaded, found where they would be if it were unpacked.

``data/coco/train2017/1.jpg`` is read from ``data/coco/train2017.zip``, where there is no such folder. The archive is
listed once, as shards are, and its files are read in place. They have the paths that they would have as files: whatever
is reported, compared or written by path is the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from backbones.errors import DataError, printable
from backbones.files import open_file
from engine.data.paths import list_files
from engine.data.shards.archives import ALL_FILES
from engine.data.shards.find import Shards, shard_kind
from engine.data.shards.table import ClassRows, ShardTable, open_table
from engine.data.stored_image import StoredFile

MAX_NAMED_FOLDERS = 4  # of an archive, in a message


@dataclass(frozen=True)
class ArchivePlace:
    """A path inside of an archive, of a file, a folder, or of nothing.

    Attributes:
        table: Table of all files of the archive, by folder.
        path: Path as if the archive were unpacked.
        inside: Path in the archive; empty for all of it.
    """

    table: ShardTable
    path: str
    inside: str

    @property
    def archive(self) -> str:
        """Path of the archive."""
        return self.table.shards[0].path

    def exists(self) -> bool:
        """Whether the archive has a file or folder there."""
        return self.file() is not None or any(True for _ in self._parts())

    def file(self, name: str = "") -> StoredFile | None:
        """The file at this path or, by a name relative to it, below it; ``None`` if there is none."""
        member = os.path.normpath(os.path.join(self.inside, name))
        part = self._by_folder.get(os.path.dirname(member))
        row = None if part is None else self.table.find(part, member)
        return None if row is None else self._stored(row, os.path.join(self.path, name) if name else self.path)

    def files(self) -> Iterator[tuple[str, StoredFile]]:
        """Name relative to this path, and file, of each file at any depth below it."""
        for part in self._parts():
            for row in range(part.first, part.first + part.images):
                member = self.table.name(row)
                name = member[len(self.inside) + 1 :] if self.inside else member
                yield name, self._stored(row, os.path.join(self.path, name))

    def describe(self) -> str:
        """What the archive has instead of this path."""
        tops = sorted({str(one.label).partition("/")[0] or "files without a folder" for one in self.table.classes})
        more = "..." if len(tops) > MAX_NAMED_FOLDERS else ""
        return f"{printable(self.archive)} has no {self.inside!r}: it has {', '.join(tops[:MAX_NAMED_FOLDERS])}{more}"

    @cached_property
    def _by_folder(self) -> dict[int | str, ClassRows]:
        return {one.label: one for one in self.table.classes}

    def _parts(self) -> Iterator[ClassRows]:
        below = f"{self.inside}/" if self.inside else ""
        return (one for one in self.table.classes if one.label == self.inside or str(one.label).startswith(below))

    def _stored(self, row: int, path: str) -> StoredFile:
        image = self.table.image(row)
        return StoredFile(image.shard, path, image.offset, image.size, image.coding)


def find_archive(path: str | os.PathLike[str]) -> ArchivePlace | None:
    """Place, in an archive, of a path that does not exist; ``None`` if it exists, or there is no archive for it.

    The archive is a part of the path (``ade.zip/images``), or lies where it would be unpacked, with a name that begins
    with that of the folder or file which is not there (``annotations_trainval2017.zip`` beside ``annotations``).
    A folder around all of the archive's content may be left out, or stand for the archive.

    Raises:
        DataError: If an archive that may have it is damaged, or has names that lead out of it.
    """
    path = os.fspath(path)
    existing, missing = os.path.normpath(path), list[str]()
    while existing and not os.path.exists(existing):
        existing, name = os.path.split(existing)
        missing.insert(0, name)
        if not name:  # the root, of a path that can be none
            return None
    if os.path.isfile(existing):
        return _inside(existing, path, missing) if shard_kind(existing) in ("tar", "zip") else None
    if not missing:
        return None
    places = [_beside(one, path, missing) for one in _archives(existing or ".", missing[0])]
    return next((one for one in places if one.exists()), next(iter(places), None))


def _archives(folder: str, wanted: str) -> list[str]:
    """Archives in a folder whose names begin with a word; that of this very name first."""
    try:
        names = [name for name in os.listdir(folder) if name.startswith(wanted) and shard_kind(name) in ("tar", "zip")]
    except OSError:
        return []
    names.sort(key=lambda name: (name.partition(".")[0] != wanted, name))
    return [os.path.join(folder, name) for name in names if os.path.isfile(os.path.join(folder, name))]


def _listed(archive: str) -> ShardTable:
    kind = shard_kind(archive)
    assert kind is not None
    return open_table(Shards(kind, (archive,), ALL_FILES, archive))


def _beside(archive: str, path: str, missing: list[str]) -> ArchivePlace:
    """Place in an archive that would be unpacked in its folder, or, without a folder of its name, into one."""
    place = ArchivePlace(_listed(archive), path, "/".join(missing))
    top = ArchivePlace(place.table, path, missing[0])
    return place if top.exists() else ArchivePlace(place.table, path, "/".join(missing[1:]))


def _inside(archive: str, path: str, missing: list[str]) -> ArchivePlace:
    """Place in an archive that is a part of the path."""
    table = _listed(archive)
    place = ArchivePlace(table, path, "/".join(missing))
    tops = {str(one.label).partition("/")[0] for one in table.classes}
    if (place.exists() and missing) or len(tops) > 1 or "" in tops:
        return place
    return ArchivePlace(table, path, "/".join([*tops, *missing]))


def stored_path(path: str) -> str:
    """The path itself if there is such a file, else that of the file in an archive; the path if neither is there."""
    if os.path.exists(path) or (place := find_archive(path)) is None:
        return path
    return place.file() or path


def named_files(folder: str, hidden: list[str], unreadable: list[OSError] | None = None) -> dict[str, str] | None:
    """Paths of the files in a folder, at any depth, by their names relative to it; ``None`` if there is no such folder.

    Args:
        folder: Folder, which may be in an archive.
        hidden: List that receives the paths of hidden files and folders, which are skipped.
        unreadable: List that receives the errors of folders that cannot be read.

    Raises:
        DataError: If the archive is damaged.
    """
    if os.path.isdir(folder):
        return {os.path.relpath(path, folder): path for path in list_files(folder, hidden, unreadable)}
    place = find_archive(folder)
    return dict(place.files()) if place is not None and place.exists() else None


def read_data_file(path: str | os.PathLike[str]) -> bytes:
    """Content of a file, or of one in an archive.

    Raises:
        OSError: If it cannot be read.
        DataError: If the archive is damaged or has changed.
    """
    found = stored_path(os.fspath(path))
    if isinstance(found, StoredFile):
        return found.read()
    with open_file(found) as file:
        return file.read()


def data_file(path: str | os.PathLike[str]) -> Path:
    """The file or folder that a path is read from: itself, or the archive that has it."""
    place = find_archive(path)
    return Path(path) if place is None or not place.exists() else Path(place.archive)


def refuse_absent(path: str | os.PathLike[str]) -> None:
    """Raise an error for a path that should be in an archive, and is not.

    Raises:
        DataError: With what the archive has.
    """
    place = find_archive(path)
    if place is not None and not place.exists():
        raise DataError(place.describe())
