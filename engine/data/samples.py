"""A training data set that goes on where an image is damaged: another one takes its place, and both are counted.

A worker appends a line to a file for each image that it could not read; the main process of a rank reads what its
workers have added, after each step. That works alike for forked and spawned workers, cannot block either side, and
leaves the list behind if the run is killed.
"""

from __future__ import annotations

import errno
import json
import os
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from backbones.errors import UserError, first_line, printable
from engine.checkpoint.rng import seeded
from engine.data.image_files import DamagedImage

REPLACED = "replaced_images.jsonl"
MOST, MOST_SHARE = 10, 0.01  # files, or share of the data set if that is more, that are replaced before a run ends
IN_A_ROW = 20  # images that cannot be read one after the other: it is the disk, not the images
NOT_THE_IMAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # the process is out of files or memory
ADVICE = "tools/check_data.py CONFIG finds all of them"


def most_replaced(images: int) -> int:
    """How many files of a data set may be damaged before a training ends: 10, or 1 % where that is more."""
    return max(MOST, round(MOST_SHARE * images))


class FaultTolerantDataset:
    """A data set of which no single image ends a run, and whose samples follow from their draws alone.

    ``samples[draw]`` takes an index. If it has an attribute ``seed``, as :class:`engine.data.sampling.SeededIndex`
    does, all that is random in the sample begins at this seed, whatever was drawn before and in whichever worker.
    Everything else is the data set's own.

    Args:
        dataset: A data set with ``pipeline``, such as mmengine's ``BaseDataset``.
        work_dir: Folder for the list of replaced images.
    """

    def __init__(self, dataset: Any, work_dir: str | Path) -> None:
        self.dataset = dataset
        rank = get_rank()
        # One file for each process of a job: lines that several machines append to one file may mix.
        name = REPLACED if not rank else REPLACED.replace(".", f"_rank{rank}.")
        self.replaced = Path(work_dir) / name

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name in ("dataset", "__setstate__"):  # not there yet while it is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, draw: int) -> Any:
        """The sample of a draw, or a sound one in its place.

        Raises:
            UserError: If the labels are wrong, or one image after the other cannot be read.
        """
        seed = getattr(draw, "seed", None)
        index, others = int(draw), None
        for _ in range(IN_A_ROW):
            try:
                with _at(seed):
                    return self.dataset[index]
            except (DamagedImage, OSError, cv2.error) as error:
                if getattr(error, "errno", None) in NOT_THE_IMAGE:
                    raise
                path, reason = self._blame(error, index)
                self._report(path, reason)
            if others is None:
                others = np.random.default_rng([seed or 0, int(draw)])
            index = int(others.integers(len(self.dataset)))
        raise UserError(
            f"{IN_A_ROW} images in a row cannot be read, the last is {printable(path)}: {reason}; listed in "
            f"{self.replaced}"
        )

    def _blame(self, error: Exception, index: int) -> tuple[str, str]:
        if isinstance(error, DamagedImage) and error.path:
            return error.path, error.reason
        named = getattr(error, "filename", None) or self.dataset.get_data_info(index).get("img_path", f"sample {index}")
        return str(named), f"cannot be read: {first_line(error)}"

    def _report(self, path: str, reason: str) -> None:
        line = json.dumps({"file": path, "reason": reason}) + "\n"
        # A full disk is no reason to stop here; a single write of a line that is appended does not mix with others.
        with suppress(OSError), open(self.replaced, "ab", buffering=0) as file:
            file.write(line.encode())


def _at(seed: int | None) -> AbstractContextManager[None]:
    return nullcontext() if seed is None else seeded(seed)


@HOOKS.register_module()
class CountReplaced(Hook):
    """Logs each image that was replaced, once, with the count; too many end the run.

    It does nothing where the training data is not a :class:`FaultTolerantDataset`.
    """

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self._samples: FaultTolerantDataset | None = None
        self._read = 0
        self._files: set[str] = set()

    def before_train(self, runner: Any) -> None:
        """Begin behind what an earlier run has left in the file."""
        dataset = runner.train_dataloader.dataset
        self._samples = dataset if isinstance(dataset, FaultTolerantDataset) else None
        if self._samples is not None and self._samples.replaced.exists():
            self._read = self._samples.replaced.stat().st_size

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Count what the workers of this process have reported since.

        Raises:
            UserError: If more files are damaged than the data set can spare.
        """
        if self._samples is None:
            return
        for entry in self._news(self._samples.replaced):
            if entry["file"] not in self._files:
                self._files.add(entry["file"])
                # Formatted here: mmengine's logger takes warnings of one template for repetitions.
                runner.logger.warning(
                    f"{printable(entry['file'])} {entry['reason']}: another image takes its place "
                    f"({len(self._files)} so far)"
                )
        if len(self._files) > most_replaced(len(self._samples)):
            raise UserError(
                f"{len(self._files)} of {len(self._samples):,} training images cannot be read, listed in "
                f"{self._samples.replaced}: mend the data; {ADVICE}"
            )

    def _news(self, path: Path) -> list[dict[str, str]]:
        try:
            if os.stat(path).st_size <= self._read:
                return []
            with open(path, "rb") as file:
                file.seek(self._read)
                whole, newline, _ = file.read().rpartition(b"\n")
        except OSError:
            return []
        self._read += len(whole) + len(newline)
        return [json.loads(line) for line in whole.splitlines()]
