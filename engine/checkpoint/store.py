"""Files of checkpoints: written atomically and in the background, verified when read, the last valid one found."""

from __future__ import annotations

import hashlib
import math
import os
import queue
import re
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbones.errors import CheckpointError, MachineError
from backbones.files import NO_SPACE_ERRNOS, atomic_write
from backbones.weights import read_checkpoint, verify_checkpoint

# Files saved at the interval, in epochs or in steps, and those saved between (step).
CHECKPOINT_NAME = re.compile(r"(epoch|iter|step)_(\d+)\.pth")
LAST_CHECKPOINT = "last_checkpoint"  # file with the path of the newest checkpoint, for people and other programs
RUN_ID_FILE = "run_id"  # file with the id of the training that the folder belongs to


def write_checkpoint(content: dict[str, Any], file: Path) -> None:
    """Write a checkpoint atomically: afterwards there is the complete, synced file, or the previous one.

    Args:
        content: Tensors and plain data. torch writes a checksum for each tensor.
        file: Path of the checkpoint.

    Raises:
        MachineError: If the disk is full or cannot be written.
    """
    with _disk_errors(file), atomic_write(file) as place, place.open("wb") as opened:
        torch.save(content, opened)
        opened.flush()
        os.fsync(opened.fileno())


@contextmanager
def _disk_errors(file: Path) -> Iterator[None]:
    """Turn errors of the disk inside of this context into a ``MachineError``."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch wraps the error of the file
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        room = ""
        if cause.errno in NO_SPACE_ERRNOS:
            free = shutil.disk_usage(file.parent).free / 2**20
            room = f" ({free:.0f} MiB free on this disk): make room and continue with --resume"
        reason = f"{cause.strerror or cause}{room}"
        raise MachineError(
            f"checkpoint {str(file)!r} cannot be written: {reason}; earlier checkpoints are unchanged"
        ) from error


def begin_run(work_dir: Path, run: str) -> None:
    """Assign a work directory to a training: it does not resume from checkpoints of earlier trainings there.

    Args:
        work_dir: Work directory.
        run: Id of the training, which its checkpoints have as ``meta.run``.

    Raises:
        MachineError: If the folder cannot be written.
    """
    file = work_dir / RUN_ID_FILE
    with _disk_errors(file), atomic_write(file) as place:
        place.write_text(run, encoding="utf-8")


def checkpoints(
    work_dir: Path, say: Callable[[str], None] = lambda line: None, trust: bool = False
) -> Iterator[tuple[int, Path, str | None]]:
    """Find the checkpoints of a run, latest step first; tensors are not read.

    Args:
        work_dir: Work directory of the run.
        say: Receives a line if there are checkpoints of earlier trainings.
        trust: Whether pickled code in the files may be executed.

    Yields:
        Step, file, and the error of a file that is visibly damaged or ``None``. Files without a step come first, newest
        first.
    """
    found: list[tuple[int, float, Path, str | None]] = []
    earlier = []
    run = (work_dir / RUN_ID_FILE).read_text("utf-8", "replace") if (work_dir / RUN_ID_FILE).is_file() else None
    for file in work_dir.glob("*.pth"):
        if CHECKPOINT_NAME.fullmatch(file.name):
            try:
                meta = read_checkpoint(str(file), trust, in_place=True)["meta"]
                if run is not None and meta.get("run", run) != run:
                    earlier.append(file.name)
                    continue
                found.append((int(meta["iter"]), file.lstat().st_mtime, file, None))
            except CheckpointError as error:
                found.append((-1, file.lstat().st_mtime, file, str(error)))
            except (AttributeError, KeyError, TypeError, ValueError):
                found.append((-1, file.lstat().st_mtime, file, f"checkpoint {str(file)!r} has no step in its meta"))
    if earlier:
        names = ", ".join(sorted(earlier))
        say(f"{names} in {str(work_dir)!r}: of an earlier training, skipped; delete {RUN_ID_FILE} to resume from it")
    for position, _, file, wrong in sorted(found, key=lambda one: (one[3] is None, -one[0], -one[1])):
        yield position, file, wrong


def content_mark(path: Path) -> str:
    """A short mark of the content of a checkpoint, from the checksums that its zip file lists; empty without those."""
    try:
        with zipfile.ZipFile(path) as file:
            entries = [(Path(one.filename).name, one.CRC) for one in file.infolist()]
    except (OSError, zipfile.BadZipFile):
        return ""
    return hashlib.blake2b(repr(entries).encode(), digest_size=8).hexdigest()


def last_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint of a training in its work directory; ``None`` if there is none."""
    note = folder / LAST_CHECKPOINT
    # The file holds a full path, of which only the name is right if the folder was moved.
    return folder / Path(note.read_text("utf-8", "replace").strip()).name if note.is_file() else None


def last_good(
    work_dir: Path,
    say: Callable[[str], None] = lambda line: None,
    max_step: float = math.inf,
    trust: bool = False,
) -> Path | None:
    """Find the checkpoint to resume from: the valid one of the latest step.

    Args:
        work_dir: Work directory of the run.
        say: Receives a line for each file that is skipped, with its error.
        max_step: Latest step that is accepted.
        trust: Execute code that the files ask for.

    Returns:
        The file; ``None`` if there is no checkpoint.

    Raises:
        CheckpointError: If there are checkpoints and all are damaged.
    """
    damaged = []
    for steps, file, wrong in checkpoints(work_dir, say, trust):
        if steps > max_step:
            continue
        if wrong is None:
            try:
                verify_checkpoint(file, str(file))
            except CheckpointError as error:
                wrong = str(error)
            else:
                return file
        damaged.append(wrong)
        say(f"{wrong}: skipped")
    if damaged:
        raise CheckpointError(f"--resume: no checkpoint in {str(work_dir)!r} is valid; {damaged[0]}")
    return None


class CheckpointWriter:
    """Writes checkpoints in a background thread; training waits only for the copy of its state.

    An error in the thread is raised by the next call of any method.
    """

    def __init__(self) -> None:
        # One is written, one waits: each more would be another copy of the model in memory.
        self._jobs: queue.Queue[tuple[dict[str, Any], Path, Callable[[], None]]] = queue.Queue(maxsize=1)
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def write(self, content: dict[str, Any], file: Path, then: Callable[[], None]) -> None:
        """Copy the state and write it later.

        Args:
            content: Tensors and plain data; they may change as soon as this returns.
            file: Path of the checkpoint.
            then: Called in the writer's thread when the file is complete.
        """
        self.check()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
            self._thread.start()
        self._jobs.put((cpu_copy(content), file, then))

    def wait(self) -> None:
        """Wait until all files are written."""
        self.drain()
        self.check()

    def drain(self) -> None:
        """Return when all is written or has failed, without raising what went wrong."""
        self._jobs.join()

    def check(self) -> None:
        """Raise the error of the background thread, if there is one."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _work(self) -> None:
        while True:
            content, file, then = self._jobs.get()
            try:
                try:
                    self._finish(content, file, then)
                except MachineError as error:
                    if not isinstance(error.__cause__, FileNotFoundError):
                        raise
                    with _disk_errors(file):
                        file.parent.mkdir(parents=True, exist_ok=True)  # it was removed or moved meanwhile
                    self._finish(content, file, then)
            except BaseException as error:
                self._error = error
            finally:
                del content
                self._jobs.task_done()

    @staticmethod
    def _finish(content: dict[str, Any], file: Path, then: Callable[[], None]) -> None:
        write_checkpoint(content, file)
        with _disk_errors(file):
            then()


def cpu_copy(value: Any, known: dict[Any, Tensor] | None = None) -> Any:
    """Copy a tree with its tensors to the CPU; tensors that share memory in the tree share it in the copy.

    Args:
        value: Mappings, lists and tuples of tensors and plain data.
        known: Copies so far, by device, address and layout.
    """
    known = {} if known is None else known
    if isinstance(value, Tensor):
        key = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if key not in known:
            known[key] = value.detach().to("cpu", copy=True)
        return known[key]
    if isinstance(value, dict):
        same = copy(value)  # the constructor of its class may take other arguments, as that of Counter does
        for key, inner in value.items():
            same[key] = cpu_copy(inner, known)
        return same
    if isinstance(value, list | tuple):
        return type(value)(cpu_copy(inner, known) for inner in value)
    return deepcopy(value)
