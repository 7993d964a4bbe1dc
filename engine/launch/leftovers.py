"""Temporary folders of runs: locked while processes use them, cleared by the next start after a kill.

Python and torch create folders and shared memory for what processes pass to each other and remove them when they end,
which a SIGKILL prevents. What is removed here belongs to this user, was created by this project, and is in use by no
process: the lock of a folder is held by the process that created it and by all that it forked.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing.util import get_temp_dir
from pathlib import Path

from backbones.files import COMPILATION_PREFIX, LOCK_FILE, held_folder, hold_folder

# Of the launcher's folders, those of Python's multiprocessing, and those in which the CPU kernels are compiled.
PREFIXES = ("launch_", "pymp-", COMPILATION_PREFIX)
SHARED_MEMORY = Path("/dev/shm")
STOPPED_STATE = "T"  # state of a process after SIGSTOP
_WORKER = "worker-"
# Workers pass tensors on through sockets in the folder of multiprocessing: <folder>/pymp-xxxxxxxx/listener-xxxxxxxx.
_SOCKET_BYTES = 103  # longest path of a socket (macOS; Linux allows 107)
_SOCKET_NAME_BYTES = 32
_SHORT_FOLDER = "/tmp"


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A temporary folder, removed at the end of the context or, after a kill, by :func:`clear_leftovers`.

    Args:
        prefix: One of ``PREFIXES``.
    """
    clear_leftovers()
    try:
        with held_folder(prefix) as folder:
            yield folder
    finally:
        clear_leftovers()


@cache
def share_temporary_folder() -> None:
    """Let this process and its workers use one folder of multiprocessing, which is found again after a kill."""
    clear_leftovers()
    configured = tempfile.tempdir
    tempfile.tempdir = _folders()[-1]
    try:
        folder = Path(get_temp_dir())  # workers inherit it; this process removes it when it exits
    finally:
        tempfile.tempdir = configured
    with suppress(OSError):
        if not (folder / LOCK_FILE).exists():  # that of the process that started this one
            hold_folder(folder)


def process_folder() -> Path | None:
    """The temporary folder of this process, for files that a kill would leave behind; ``None`` if it was removed."""
    share_temporary_folder()
    folder = Path(get_temp_dir())
    return folder if folder.is_dir() else None


def worker_folder(pid: int) -> Path:
    """Folder of a worker of this process, or of this worker; shared memory may be left under the number in its name."""
    folder = Path(get_temp_dir()) / f"{_WORKER}{pid}"
    folder.mkdir(exist_ok=True)
    return folder


def clear_leftovers() -> None:
    """Remove the folders and the shared memory of processes that were killed."""
    for folder in (found for place in _folders() for prefix in PREFIXES for found in Path(place).glob(f"{prefix}*")):
        with suppress(OSError):
            if _is_dead(folder):
                for pid in [place.name.removeprefix(_WORKER) for place in folder.glob(f"{_WORKER}*")]:
                    _clear_shared_memory(int(pid))
                shutil.rmtree(folder)


def _folders() -> list[str]:
    """The temporary folder and, if the paths of sockets in it would be too long, the one that has them."""
    folder = tempfile.gettempdir()
    too_long = len(os.fsencode(folder)) + _SOCKET_NAME_BYTES > _SOCKET_BYTES
    return [folder, _SHORT_FOLDER] if too_long and os.access(_SHORT_FOLDER, os.W_OK) else [folder]


def _is_dead(folder: Path) -> bool:
    """Whether a folder is this project's, of this user, and no process of its run lives.

    Raises:
        OSError: If it is none of this project's.
    """
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid():
        return False
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError, an OSError, while it is held
    finally:
        os.close(descriptor)
    return True


def _clear_shared_memory(pid: int) -> None:
    """Remove the shared memory of tensors that a worker was killed in the middle of passing on."""
    if is_running(pid):
        return  # another process by now
    for place in SHARED_MEMORY.glob(f"torch_{pid}_*"):
        if place.lstat().st_uid == os.getuid():
            place.unlink()


def is_running(pid: int) -> bool:
    """Whether a process exists and has not ended; one that has may be listed until its parent, or init, asks for it."""
    return process_state(pid) not in ("", "Z")


def process_state(pid: int) -> str:
    """Letter of the kernel for what a process does (Linux); an empty one where there is no such process."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return state.rpartition(")")[2].split()[0]
