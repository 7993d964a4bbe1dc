"""Which files are the shards of a split."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from backbones.errors import DataError
from engine.data.paths import is_hidden
from engine.data.stores import ShardCache, is_store_url, list_store

ShardKind = Literal["tar", "parquet", "zip"]
# Suffixes of files that can be shards; those of compressed ones are refused when they are read, with the way out.
COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
SHARD_SUFFIXES: dict[str, ShardKind] = {
    ".tar": "tar",
    **dict.fromkeys(COMPRESSED_TARS, "tar"),
    ".parquet": "parquet",
    ".zip": "zip",
}
SPLIT_WORDS_OF_SHARDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
WHOLE = (".", "")  # splits that mean all of the data


@dataclass(frozen=True)
class Shards:
    """The shards of a split.

    Attributes:
        kind: Kind of the files.
        paths: The files, sorted by name.
        split: Name of the split, which may be a folder inside of an archive.
        place: Folder or file that the config names, in words.
        cache: Cache of the shards of a store.
    """

    kind: ShardKind
    paths: tuple[str, ...]
    split: str
    place: str
    cache: ShardCache | None = None


def find_shards(
    data_root: str | os.PathLike[str] | Sequence[str], split: str, shard_cache: Mapping[str, Any] | None = None
) -> Shards | None:
    """Find the shards of a split; ``None`` if the data is no shards, such as class folders.

    Args:
        data_root: Folder of shards, whose names tell the split if there are several, or which has a folder of shards
            for each; or one shard; or a list of folders and shards. Each may be the URL of a store.
        split: Such as ``train`` or ``val``; ``.`` for all.
        shard_cache: Settings of :meth:`engine.data.stores.cache.ShardCache.of`, for shards of a store.

    Raises:
        DataError: If there are shards, but none of this split, or of two kinds, or a file of a list is no shard.
        UserError: If a store cannot be listed.
    """
    if isinstance(data_root, str | os.PathLike):
        root = os.fspath(data_root)
        if os.path.isfile(root) or (is_store_url(root) and shard_kind(root)):
            return _one_kind([root], split, root, shard_cache) if shard_kind(root) else None
        found = _of_folder(root, split)
        if not found and is_store_url(root):
            raise DataError(f"data_root: {root!r} does not exist, or holds no shard ({', '.join(SHARD_SUFFIXES)})")
        return _one_kind(found, split, root, shard_cache) if found else None
    if absent := next((one for one in data_root if not is_store_url(one) and not os.path.exists(one)), None):
        raise DataError(f"data_root: {absent!r} does not exist")
    named = [
        (one, _of_folder(one, split) if os.path.isdir(one) or (is_store_url(one) and not shard_kind(one)) else [one])
        for one in data_root
    ]
    if wrong := next((one for one, found in named if not found or not all(map(shard_kind, found))), None):
        raise DataError(f"data_root: {wrong!r} of the list is no shard and holds none ({', '.join(SHARD_SUFFIXES)})")
    paths = _of_split([path for _, found in named for path in found], split, "the list in data_root")
    others = f" and {len(data_root) - 1} more" if len(data_root) > 1 else ""
    return _one_kind(paths, split, f"{os.fspath(data_root[0])}{others}", shard_cache)


def shard_kind(path: str) -> ShardKind | None:
    """Kind of a shard by its name; ``None`` for other files."""
    name = os.path.basename(path).lower()
    return next((kind for suffix, kind in SHARD_SUFFIXES.items() if name.endswith(suffix)), None)


def _of_folder(root: str, split: str) -> list[str]:
    """Shards of a split in a folder, in its sub-folder of this name, or in Hugging Face's ``data``."""
    if split not in WHOLE and (inner := _entries(os.path.join(root, split))) is not None:
        # Beside other folders, which are classes then, they are none.
        return [] if any(folder for _, folder in inner) else _direct(inner)
    if found := _direct(_entries(root) or []):
        return _of_split(found, split, root)
    data = os.path.join(root, "data")
    return _of_split(_direct(_entries(data) or []), split, data)


def _entries(folder: str) -> list[tuple[str, bool]] | None:
    """Path of what lies directly in a folder, and whether it is a folder; ``None`` if there is no such folder."""
    if is_store_url(folder):
        stored = list_store(folder)
        # Of a store that knows no folders each name is the beginning of one, if an empty one.
        return [(one.url, one.folder) for one in stored if not is_hidden(_name(one.url))] if stored else None
    if not os.path.isdir(folder):
        return None
    with os.scandir(folder) as entries:
        return [
            (entry.path, os.path.isdir(entry.path))
            for entry in entries
            # Of links that lead nowhere those with the name of a shard, which is missed when it is opened.
            if not is_hidden(entry.name) and (os.path.exists(entry.path) or shard_kind(entry.name))
        ]


def _direct(entries: Iterable[tuple[str, bool]]) -> list[str]:
    """Shards among the entries of a folder."""
    return sorted(path for path, folder in entries if not folder and shard_kind(path))


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _words(path: str) -> set[str]:
    return set(re.split(r"[^a-z]+", os.path.basename(path).lower()))


def _of_split(paths: list[str], split: str, place: str) -> list[str]:
    """Those of a split, by their names; all, if no name tells a split and there are no others to be told from."""
    if split in WHOLE or not paths:
        return paths
    named = {path: _words(path) for path in paths}
    wanted = SPLIT_WORDS_OF_SHARDS.get(split, (split.lower(),))
    if chosen := [path for path in paths if named[path].intersection(wanted)]:
        return chosen
    others = [
        words for name, words in SPLIT_WORDS_OF_SHARDS.items() if any(named[path].intersection(words) for path in paths)
    ]
    if not others and (len(paths) == 1 or split == "train"):
        return paths
    raise DataError(
        f"{place!r}: none of its {len(paths)} shards is of the split {split!r} ({os.path.basename(paths[0])}...): "
        f"rename them, or put them into a folder {split!r}"
    )


def _one_kind(paths: Iterable[str], split: str, place: str, shard_cache: Mapping[str, Any] | None) -> Shards:
    paths = tuple(sorted(paths))
    kinds = {shard_kind(path): path for path in reversed(paths)}
    if len(kinds) > 1:
        names = " and ".join(sorted(os.path.basename(path) for path in kinds.values()))
        raise DataError(f"{place!r} holds shards of {len(kinds)} kinds ({names}): give each a folder of its own")
    kind = shard_kind(paths[0])
    assert kind is not None
    return Shards(kind, paths, split, place, ShardCache.of(shard_cache) if any(map(is_store_url, paths)) else None)
