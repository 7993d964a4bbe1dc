"""Checkpoints that cannot hurt: written aside and in the background, verified when read, the last good one found."""

from __future__ import annotations

import math
import os
import queue
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbones.errors import CheckpointError, UserError
from backbones.files import NO_SPACE_ERRNOS, atomic_write
from backbones.weights import read_checkpoint, verify_checkpoint

# Files of the interval, in epochs or in steps, and those in between.
CHECKPOINT_NAME = re.compile(r"(epoch|iter|step)_(\d+)\.pth")
LAST_CHECKPOINT = "last_checkpoint"  # names the newest file, for people and other programs
RUN_ID_FILE = "run_id"  # tells the training that the folder belongs to now from those before it


def write_checkpoint(content: dict[str, Any], file: Path) -> None:
    """Write a checkpoint; the file is there whole and synced, or what was there before is.

    Args:
        content: Tensors and plain data. torch writes a checksum beside each tensor.
        file: Where.

    Raises:
        UserError: If the disk is full or cannot be written.
    """
    with _one_line(file), atomic_write(file) as place, place.open("wb") as opened:
        torch.save(content, opened)
        opened.flush()
        os.fsync(opened.fileno())


@contextmanager
def _one_line(file: Path) -> Iterator[None]:
    """Inside of this context, what the disk refuses is an error for people."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch wraps what the file says
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise UserError(f"{_why(cause, file)}; the checkpoints before it are as they were") from error


def _why(error: OSError, file: Path) -> str:
    if error.errno not in NO_SPACE_ERRNOS:
        return f"checkpoint {str(file)!r} cannot be written: {error.strerror or error}"
    free = shutil.disk_usage(file.parent).free / 2**20
    return (
        f"checkpoint {str(file)!r} cannot be written: {error.strerror} ({free:.0f} MiB free on this disk): make room "
        "and go on with --resume"
    )


def begin_run(work_dir: Path, run: str) -> None:
    """Let a folder belong to a training; what earlier ones have saved there is nothing to go on from.

    Args:
        work_dir: The folder.
        run: Name of the training, which its checkpoints have as ``meta.run``.

    Raises:
        UserError: If the folder cannot be written.
    """
    file = work_dir / RUN_ID_FILE
    with _one_line(file), atomic_write(file) as place:
        place.write_text(run, encoding="utf-8")


def checkpoints(
    work_dir: Path, say: Callable[[str], None] = lambda line: None, trust: bool = False
) -> Iterator[tuple[int, Path, str | None]]:
    """The checkpoints of a run, those with the most steps first; tensors are not read.

    Args:
        work_dir: Where it saves.
        say: Gets a line if there are others, of trainings that were begun here before.
        trust: Execute code that the files ask for.

    Yields:
        Steps behind it, the file, and what is wrong with it, if that shows already. Files that do not say their steps
        come first, by age.
    """
    found: list[tuple[int, float, Path, str | None]] = []
    earlier = []
    run = (work_dir / RUN_ID_FILE).read_text(encoding="utf-8") if (work_dir / RUN_ID_FILE).is_file() else None
    for file in work_dir.glob("*.pth"):
        if CHECKPOINT_NAME.fullmatch(file.name):
            try:
                meta = read_checkpoint(str(file), trust, in_place=True)["meta"]
                if run is not None and meta.get("run", run) != run:
                    earlier.append(file.name)
                    continue
                found.append((int(meta["iter"]), file.stat().st_mtime, file, None))
            except UserError as error:
                found.append((-1, file.stat().st_mtime, file, str(error)))
            except (AttributeError, KeyError, TypeError, ValueError):
                found.append((-1, file.stat().st_mtime, file, f"checkpoint {str(file)!r} does not say its step"))
    if earlier:
        names = ", ".join(sorted(earlier))
        say(
            f"{names} in {str(work_dir)!r} skipped: saved by an earlier training; to resume from it, delete {RUN_ID_FILE}"
        )
    for position, _, file, wrong in sorted(found, key=lambda one: (one[3] is None, -one[0], -one[1])):
        yield position, file, wrong


def last_good(
    work_dir: Path,
    say: Callable[[str], None] = lambda line: None,
    most: float = math.inf,
    trust: bool = False,
) -> Path | None:
    """The checkpoint to go on from: of the sound ones, that with the most steps behind it.

    Args:
        work_dir: Where a run saves.
        say: Gets a line for each file that is passed over, with what is wrong with it.
        most: Steps that it may have behind it.
        trust: Execute code that the files ask for.

    Returns:
        The file; ``None`` if nothing was saved yet.

    Raises:
        CheckpointError: If there are checkpoints and all of them are damaged.
    """
    damaged = []
    for steps, file, wrong in checkpoints(work_dir, say, trust):
        if steps > most:
            continue
        if wrong is None:
            try:
                verify_checkpoint(file, str(file))
            except UserError as error:
                wrong = str(error)
            else:
                return file
        damaged.append(wrong)
        say(f"{wrong}: passed over")
    if damaged:
        raise CheckpointError(f"--resume: no checkpoint in {str(work_dir)!r} is sound; {damaged[0]}")
    return None


class CheckpointWriter:
    """Writes one checkpoint after another in the background; training waits for the copy of its state alone.

    An error is raised by the next call of any method.
    """

    def __init__(self) -> None:
        # One is being written, one waits: more would pile up copies of the model in memory.
        self._jobs: queue.Queue[tuple[dict[str, Any], Path, Callable[[], None]]] = queue.Queue(maxsize=1)
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def write(self, content: dict[str, Any], file: Path, then: Callable[[], None]) -> None:
        """Copy the state and write it later.

        Args:
            content: Tensors and plain data; all of it may change as soon as this returns.
            file: Where.
            then: Called once the file is safe, in the writer's thread.
        """
        self.check()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
            self._thread.start()
        self._jobs.put((cpu_copy(content), file, then))

    def wait(self) -> None:
        """Return when all is written."""
        self.drain()
        self.check()

    def drain(self) -> None:
        """Return when all is written or has failed, without raising what went wrong."""
        self._jobs.join()

    def check(self) -> None:
        """Raise what went wrong in the background."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _work(self) -> None:
        while True:
            content, file, then = self._jobs.get()
            try:
                write_checkpoint(content, file)
                with _one_line(file):
                    then()
            except BaseException as error:
                self._error = error
            finally:
                del content
                self._jobs.task_done()


def cpu_copy(value: Any, known: dict[Any, Tensor] | None = None) -> Any:
    """A copy on the CPU of all tensors in a tree; what shares memory in it shares memory in the copy.

    Args:
        value: Mappings, lists and tuples of tensors and plain data.
        known: Copies that were made already.
    """
    known = {} if known is None else known
    if isinstance(value, Tensor):
        key = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if key not in known:
            known[key] = value.detach().to("cpu", copy=True)
        return known[key]
    if isinstance(value, dict):
        same = copy(value)  # its class may take other arguments, as that of a schedule's milestones does
        for key, inner in value.items():
            same[key] = cpu_copy(inner, known)
        return same
    if isinstance(value, list | tuple):
        return type(value)(cpu_copy(inner, known) for inner in value)
    return deepcopy(value)
