"""Files that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART = ".part"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """A place to write; after the context, and not before, the file has its name and is safe on the disk.

    After an error, or a power failure, what was there under the name before is there still.

    Args:
        file: The file; what it replaces stays until the new one is complete.
    """
    place = file.with_name(f".{file.name}.{os.getpid()}{PART}")
    try:
        yield place
        _sync(place)
        place.replace(file)
        _sync(file.parent)
    finally:
        place.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Remove what processes left that were killed while they wrote."""
    for place in folder.glob(f".*.*{PART}"):
        place.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have a file's content, or the names in a folder, on the disk before anything else happens."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # not all file systems can do that for a folder
            raise
    finally:
        os.close(number)
