"""Atomic writing: a file is complete or absent, whatever happens while it is written."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART_SUFFIX = ".part"
NO_SPACE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_write(file: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to; it is synced and renamed to ``file`` at the end of the context.

    After an error or a power failure, the former file of this name is still there.

    Args:
        file: The file to write; an existing one is replaced.
        durable: Whether to wait for the disk. Without, the file may be empty after a power failure.
    """
    part = file.with_name(f".{file.name}.{os.getpid()}{PART_SUFFIX}")
    try:
        yield part
        if durable:
            _sync(part)
        part.replace(file)
        if durable:
            _sync(file.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock that other processes wait for; it is released when the process ends, however it ends.

    Args:
        file: Empty file that stands for the lock, created with its folder and left there.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        yield


def remove_partial_files(folder: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote."""
    for part in folder.glob(f".*.*{PART_SUFFIX}"):
        part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # not all file systems can sync a folder
            raise
    finally:
        os.close(descriptor)
