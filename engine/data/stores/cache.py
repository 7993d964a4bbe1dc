"""Whole shards of stores on this machine's disk: a bounded number of bytes, the shard that was opened longest ago goes.

A shard is fetched by one process, under a lock, into a file that has another name until all of it is there and on the
disk, and the store still has the same version. A lock ends with its process, and what a killed one has left is removed.
What is open stays readable when it goes, so that nobody has to agree on anything.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from backbones.errors import ConfigError, DataError, MachineError, printable
from backbones.files import NO_SPACE_ERRNOS, PART_SUFFIX, locked, open_file, try_lock
from backbones.kernels.autotune import cache_file
from engine.data.stores.access import read_range, stored_states

if TYPE_CHECKING:
    from engine.data.stored_image import ShardState

BYTE_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
DEFAULT_CACHE_SIZE = "100GB"
RANGE_BYTES = 16 * 2**20  # asked for at once; what fails is asked for again
LOCK_POLL_SECONDS = 0.1  # between two looks at a lock, or at a cache that others fill
SHARDS_FOLDER, LOCKS_FOLDER = "objects", "locks"


def parse_size(text: object, setting: str) -> int:
    """Number of bytes of a size such as ``256MB``.

    Args:
        text: The size.
        setting: Option or setting that states it.

    Raises:
        ConfigError: If it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)?", str(text).strip().upper())
    if not match:
        raise ConfigError(f"{setting} {text!r}: a number with a unit is needed, such as 256MB or 1GB")
    return round(float(match[1]) * BYTE_UNITS[match[2] or "B"])


@dataclass(frozen=True)
class ShardCache:
    """Shards of stores on disk; all processes that name the same folder share it.

    Attributes:
        folder: Folder of the cache.
        size: Bytes that it may take, with what is being fetched.
    """

    folder: str
    size: int

    @classmethod
    def of(cls, settings: Mapping[str, Any] | None) -> ShardCache:
        """The cache of a config's ``shard_cache``: ``size``, such as ``500GB``, and ``folder``.

        Raises:
            ConfigError: If a setting is unknown or none.
        """
        settings = settings or {}
        if not isinstance(settings, Mapping) or (unknown := sorted(settings.keys() - {"size", "folder"})):
            what = "is no mapping" if not isinstance(settings, Mapping) else f"has no setting {unknown[0]!r}"
            raise ConfigError(f"shard_cache {what}: choose from size, such as '500GB', and folder")
        folder = settings.get("folder") or cache_file().parent / "shards"
        return cls(os.path.abspath(folder), parse_size(settings.get("size", DEFAULT_CACHE_SIZE), "shard_cache.size"))

    def open(self, shard: ShardState) -> BinaryIO:
        """Open a shard; it is fetched first, or waited for, if it is not here.

        Raises:
            DataError: If the store has another version by now, or the shard is larger than the cache.
            MachineError: If it cannot be fetched, or there is no room for it.
        """
        opened = self._fetch(shard, wait=True)
        assert opened is not None
        return opened

    def prefetch(self, shard: ShardState) -> None:
        """Fetch a shard, unless it is here or another process fetches it.

        Raises:
            UserError: As of :meth:`open`.
        """
        if (opened := self._fetch(shard, wait=False)) is not None:
            opened.close()

    def holds(self, shard: ShardState) -> bool:
        """Whether a shard is here."""
        return self._file(shard).exists()

    def _file(self, shard: ShardState) -> Path:
        """Place of a version of a shard."""
        name = hashlib.sha256(repr(tuple(shard)[:3]).encode()).hexdigest()[:24]
        return Path(self.folder, SHARDS_FOLDER, f"{name}-{os.path.basename(shard.path)[-80:]}")

    def _fetch(self, shard: ShardState, wait: bool) -> BinaryIO | None:
        file = self._file(shard)
        lock = Path(self.folder, LOCKS_FOLDER, f"{file.name[:24]}.lock")
        try:
            if (opened := _open_whole(file, shard.size)) is not None:
                return opened
            for folder in (lock.parent, file.parent):
                folder.mkdir(parents=True, exist_ok=True)
            while (holder := try_lock(lock)) is None:
                if not wait:
                    return None
                _wait_for(lock)
                if (opened := _open_whole(file, shard.size)) is not None:
                    return opened
            with holder:
                return _open_whole(file, shard.size) or self._download(shard, file, holder)
        except OSError as error:
            fix = (
                "make room, or set a smaller shard_cache.size"
                if error.errno in NO_SPACE_ERRNOS
                else "set shard_cache.folder to a folder of your own"
            )
            text = f"the cache of shards cannot be written ({error.strerror or error}): {fix}"
            raise MachineError(f"{self.folder!r}: {text}") from error

    def _download(self, shard: ShardState, file: Path, holder: IO[str]) -> BinaryIO:
        """Fetch a shard under its lock, and open it."""
        if shard.size > self.size:
            sizes = f"{shard.size:,} bytes, the cache {self.size:,}"
            raise ConfigError(f"{printable(shard.path)}: has {sizes}: set a larger shard_cache.size")
        holder.truncate(0)
        holder.write(f"{os.getpid()} fetches {shard.path}\n")
        holder.flush()
        part = file.with_name(file.name + PART_SUFFIX)
        with ExitStack() as stack:
            stack.callback(part.unlink, missing_ok=True)
            part.unlink(missing_ok=True)
            # For this user alone: what is trained on is not for others to write.
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            opened = stack.enter_context(open(descriptor, "rb"))
            self._make_room(descriptor, shard.size)
            _refuse_version(shard)
            place = 0
            while place < shard.size:
                content = read_range(shard.path, place, min(place + RANGE_BYTES, shard.size))
                if len(content) > min(RANGE_BYTES, shard.size - place) and len(content) != shard.size:
                    raise DataError(f"{printable(shard.path)}: {len(content):,} bytes came, not {shard.size:,}")
                if len(content) == shard.size:  # perhaps all of it, from a server that knows no ranges
                    place = 0
                place += os.pwrite(descriptor, content, place)
            _refuse_version(shard)
            os.fsync(descriptor)
            part.replace(file)
            stack.pop_all()
        return opened

    def _make_room(self, descriptor: int, size: int) -> None:
        """Take the room of a shard on the disk, and remove others until it fits."""
        while True:
            with locked(Path(self.folder, LOCKS_FOLDER, "room")):
                whole, taken = self._contents()
                while whole and taken + size > self.size:
                    taken -= _remove(whole.pop(0))
                if taken + size <= self.size:
                    while True:
                        try:
                            os.posix_fallocate(descriptor, 0, max(size, 1))
                            os.ftruncate(descriptor, size)
                            return
                        except OSError as error:
                            if error.errno not in NO_SPACE_ERRNOS or not whole:
                                raise
                            _remove(whole.pop(0))
            time.sleep(LOCK_POLL_SECONDS)  # others are fetching: what they fetch can go when it is here

    def _contents(self) -> tuple[list[Path], int]:
        """Whole shards, the one that was opened longest ago first, and the bytes that all files take."""
        whole: list[tuple[int, Path]] = []
        taken = 0
        for file in Path(self.folder, SHARDS_FOLDER).iterdir():
            with suppress(FileNotFoundError):
                status = file.stat()
                if file.suffix != PART_SUFFIX:
                    whole.append((status.st_mtime_ns, file))
                elif (holder := try_lock(Path(self.folder, LOCKS_FOLDER, f"{file.name[:24]}.lock"))) is not None:
                    with holder:  # of a process that was killed
                        file.unlink()
                    continue
                taken += status.st_size
        return [file for _, file in sorted(whole)], taken


def _open_whole(file: Path, size: int) -> BinaryIO | None:
    """Open a shard that is here; ``None`` if it is not."""
    try:
        opened = open_file(file)
    except FileNotFoundError:
        return None
    if os.fstat(opened.fileno()).st_size != size:  # a fault of the disk
        opened.close()
        file.unlink(missing_ok=True)
        return None
    with suppress(OSError):
        os.utime(file)  # it goes later than what is not used
    return opened


def _wait_for(lock: Path) -> None:
    """Wait a moment for a process that fetches. The bytes read show the watch over workers that this one waits."""
    time.sleep(LOCK_POLL_SECONDS)
    with suppress(OSError):
        lock.read_bytes()


def _remove(file: Path) -> int:
    """Remove a shard; returns its bytes."""
    try:
        size = file.stat().st_size
        file.unlink()
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return 0
    return size


def _refuse_version(shard: ShardState) -> None:
    """Raise an error if a store has another version of a shard than was listed.

    Raises:
        DataError: If size or tag differs.
    """
    (now,) = stored_states([shard.path])
    if (now.size, now.version) != (shard.size, shard.mtime_ns):
        raise DataError(f"{printable(shard.path)}: has changed since its images were listed: start again")
