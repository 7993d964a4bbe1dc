"""Files: complete or absent whatever happens while they are written, only files when read, or of this user alone."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

PART_SUFFIX = ".part"
MAX_PART_STEM = 200  # bytes of a file's name in that of its partial file; file systems take 255 in all
COMPILATION_PREFIX = "convnext-"  # of temporary folders in which kernels are compiled
LOCK_FILE = "convnext-dense.lock"  # in temporary folders: held while a process uses one
OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
NO_SPACE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_write(file: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to; it is synced and renamed to ``file`` at the end of the context.

    After an error or a power failure, the former file of this name is still there. Nobody can guess the temporary name
    and put a link there that leads to another file.

    Args:
        file: The file to write; an existing one is replaced.
        durable: Whether to wait for the disk. Without, the file may be empty after a power failure.

    Raises:
        OSError: If it cannot be written; a path without a name, such as ``.``, is a folder.
    """
    if not file.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    stem = file.name.encode(errors="surrogateescape")[:MAX_PART_STEM].decode(errors="ignore")
    part = file.with_name(f".{stem}.{secrets.token_hex(8)}{PART_SUFFIX}")
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    try:
        yield part
        if durable:
            _sync(part)
        part.replace(file)
        if durable:
            _sync(file.parent)
    finally:
        part.unlink(missing_ok=True)


def describe_special(path: str | Path) -> str | None:
    """What stands where a file or folder is expected, if it is neither: pipe, socket, device, links in a circle.

    To open a pipe may wait for ever, and to read a device may never end.

    Args:
        path: Path; one of nothing, of a file or of a folder is nothing special.

    Returns:
        The rest of a sentence that starts with the path.
    """
    try:
        return _special_mode(os.stat(path).st_mode)
    except OSError as error:
        return "is a symbolic link that leads back to itself" if error.errno == errno.ELOOP else None
    except ValueError:  # a name that cannot be a file's
        return None


def open_file(path: str | Path) -> BinaryIO:
    """Open a regular file for reading, in binary; nothing else is waited for or read.

    Raises:
        OSError: If it cannot be opened; ``strerror`` says so of what is no file.
    """
    if text := describe_special(path):
        raise OSError(errno.EINVAL, text.replace("is", "it is", 1), str(path))
    opened: BinaryIO = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: SIM115
    if text := _special_mode(os.fstat(opened.fileno()).st_mode):  # put there meanwhile
        opened.close()
        raise OSError(errno.EINVAL, text.replace("is", "it is", 1), str(path))
    return opened


def read_text_file(path: str | Path, encoding: str = "utf-8-sig") -> str:
    """Text of a regular file, by default in UTF-8 with or without a byte order mark.

    Raises:
        OSError: If it cannot be read.
        UnicodeError: If it is in another encoding.
    """
    with open_file(path) as file:
        return io.TextIOWrapper(file, encoding).read()


def _special_mode(mode: int) -> str | None:
    kinds = {stat.S_IFIFO: "pipe (FIFO)", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
    kind = kinds.get(stat.S_IFMT(mode))
    return f"is a {kind}, not a file" if kind else None


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock that other processes wait for; it is released when the process ends, however it ends.

    Args:
        file: Empty file that stands for the lock, created with its folder and left there.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with _open_lock(file) as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        yield


def try_lock(file: Path) -> IO[str] | None:
    """Take a lock that is not waited for; ``None`` if another process has it.

    Args:
        file: Empty file that stands for the lock, created in its folder and left there.

    Returns:
        The open file: the lock is released when it, and every copy that a child process inherited, is closed.
    """
    holder = _open_lock(file)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder.close()
        return None
    return holder


def _open_lock(file: Path) -> IO[str]:
    """Open a lock for reading and writing, which does not wait where it is a pipe."""
    return open(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "w")


@contextmanager
def held_folder(prefix: str) -> Iterator[Path]:
    """A temporary folder that is removed at the end of the context; after a kill its lock tells that nobody uses it.

    Args:
        prefix: Beginning of its name, one of those that :mod:`engine.launch.leftovers` clears.
    """
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as name, ExitStack() as stack:
        with suppress(OSError):  # a file system without locks: what a kill leaves there stays
            stack.callback(os.close, hold_folder(Path(name)))
        yield Path(name)


def hold_folder(folder: Path) -> int:
    """Lock a new folder; the lock has its name, ``LOCK_FILE``, only once it is held.

    Returns:
        A file descriptor: the lock is held until it, and every copy that a forked process has, is closed.
    """
    draft = folder / f"{LOCK_FILE}{PART_SUFFIX}"
    descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    draft.rename(folder / LOCK_FILE)
    return descriptor


def remove_partial_files(folder: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote."""
    for part in folder.glob(f".*.*{PART_SUFFIX}"):
        part.unlink(missing_ok=True)


class SharedFolderError(PermissionError):
    """A folder for files of this user alone belongs to another one, or others may write to it."""


def check_private_folder(folder: Path) -> None:
    """Raise an error unless a folder belongs to this user and nobody else may write to it.

    Raises:
        SharedFolderError: Its ``strerror`` has the fix.
        OSError: If there is no such folder.
    """
    state = folder.stat()
    if state.st_uid != os.getuid():
        raise SharedFolderError(errno.EPERM, "it belongs to another user", str(folder))
    if state.st_mode & OTHERS_MAY_WRITE:
        raise SharedFolderError(errno.EPERM, f"others may write to it: chmod go-w {folder}", str(folder))


def read_private(file: Path, max_bytes: int) -> bytes:
    """The content of a file that no other user can have written; links are not followed.

    Owner and permissions are those of the file that is read, whatever happens to its name meanwhile.

    Raises:
        OSError: If there is no such file, or it is no regular one, of another user, writable by others, or larger.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as opened:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & OTHERS_MAY_WRITE:
            raise PermissionError(errno.EPERM, "is no file of this user alone", str(file))
        content = opened.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"is larger than {max_bytes:,} bytes", str(file))
    return content


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
