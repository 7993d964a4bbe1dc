"""Arrays in one file with a header, written once by the first process and mapped into the memory of all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from backbones.errors import MachineError
from backbones.files import NO_SPACE_ERRNOS, atomic_write, locked, open_file

Arrays = list[np.ndarray]
MAX_HEADER_BYTES = 2**28


def mapped_arrays(file: Path, key: Any, make: Callable[[], tuple[Any, Arrays]]) -> tuple[Any, Arrays]:
    """Header and arrays that are kept in a file; the first process of all that ask for them makes it, the others wait.

    Args:
        file: The file.
        key: State of their source, as JSON gives it back; they are made anew where the file has another.
        make: Returns header, as JSON gives it back, and one-dimensional arrays.

    Raises:
        MachineError: If the file cannot be written.
    """
    if (found := _read(file, key)) is not None:
        return found
    try:
        with locked(file.with_suffix(".lock")):
            if (found := _read(file, key)) is None:
                write_arrays(file, key, *make())
                found = _read(file, key)
    except OSError as error:
        if error.filename is not None and Path(error.filename).parent != file.parent:
            raise  # of what it is made from
        fix = "make room" if error.errno in NO_SPACE_ERRNOS else "set XDG_CACHE_HOME to your own folder"
        raise MachineError(f"{str(file)!r} cannot be written ({error.strerror}): {fix}") from error
    if found is None:
        raise MachineError(f"{str(file)!r} cannot be read again after it was written: check the disk")
    return found


def write_arrays(file: Path, key: Any, header: Any, arrays: Sequence[np.ndarray]) -> None:
    """Write header and arrays; arguments as of :func:`mapped_arrays`.

    Raises:
        OSError: If the file cannot be written.
    """
    told = [[one.dtype.descr if one.dtype.names else one.dtype.str, len(one)] for one in arrays]
    line = json.dumps({"key": key, "header": header, "arrays": told}).encode()
    with atomic_write(file) as part, part.open("wb") as opened:
        opened.write(line + b" " * (-(len(line) + 1) % 64) + b"\n")
        for one in arrays:
            opened.write(one.tobytes())
            opened.write(bytes(-one.nbytes % 64))


def read_arrays(file: Path) -> tuple[Any, Any, Arrays]:
    """Key, header and arrays of a file, mapped into memory.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no such file, or not whole.
        KeyError: If it is another file with a line in JSON.
        TypeError: The same.
    """
    with open_file(file) as opened:
        told, start = read_header(opened)
        size = os.fstat(opened.fileno()).st_size
    arrays = []
    for kind, length in told["arrays"]:
        dtype = np.dtype([tuple(field) for field in kind] if isinstance(kind, list) else kind)
        # As plain arrays, of which a part is taken in half the time.
        mapped = np.memmap(file, dtype, "r", start, (length,)) if length else np.empty(0, dtype)
        arrays.append(np.asarray(mapped))
        start += length * dtype.itemsize + -(length * dtype.itemsize) % 64
    if start != size:
        raise ValueError("not whole")
    return told["key"], told["header"], arrays


def read_header(opened: BinaryIO) -> tuple[Any, int]:
    """The first line of a file as JSON, and its length in bytes.

    Raises:
        ValueError: If it is none.
    """
    line = opened.readline(MAX_HEADER_BYTES)
    try:
        return json.loads(line), len(line)
    except RecursionError as error:
        raise ValueError("no header") from error


def _read(file: Path, key: Any) -> tuple[Any, Arrays] | None:
    """What the file holds, ``None`` if it is absent, not whole, or of another key."""
    try:
        known, header, arrays = read_arrays(file)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (header, arrays) if known == key else None
