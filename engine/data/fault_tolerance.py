"""A training that outlives damaged images: another image takes the place of each, and all of them are counted.

A worker appends a line to a file for each image that it could not read; the main process of a rank reads the new lines
after each step. This works alike for forked and spawned workers, cannot block either side, and leaves the list behind
if the run is killed.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from backbones.errors import DataError, first_line, printable
from engine.checkpoint.rng import kept_random_state, seed_cpu
from engine.data.image_files import DamagedImageError

REPLACED_IMAGES_FILE = "replaced_images.jsonl"
MIN_REPLACEABLE_IMAGES = 10  # damaged files that never end a run
MAX_REPLACED_FRACTION = 0.01  # of the data set, where that is more
MAX_CONSECUTIVE_FAILURES = 20  # more unreadable images in a row mean that the disk fails, not the images
PROCESS_ERRNOS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # the process is out of files or memory: not the image


def max_replaced_images(dataset_size: int) -> int:
    """Number of damaged files above which a training ends: 10, or 1 % where that is more, but no more than half."""
    return min(max(MIN_REPLACEABLE_IMAGES, round(MAX_REPLACED_FRACTION * dataset_size)), dataset_size // 2)


class FaultTolerantDataset:
    """A data set that replaces unreadable images and makes each sample reproducible from its index alone.

    If an index has an attribute ``seed``, as :class:`engine.data.sampling.SeededIndex` has, all random numbers of the
    sample start from it, whatever was drawn before and in whichever worker. Other attributes are the data set's own.

    Args:
        dataset: Data set to read from, with the ``get_data_info`` of mmengine's ``BaseDataset``.
        work_dir: Folder for the list of replaced images.
    """

    def __init__(self, dataset: Any, work_dir: str | Path) -> None:
        self.dataset = dataset
        rank = get_rank()
        # One file for each process of a job: lines that several machines append to one file may mix.
        name = REPLACED_IMAGES_FILE if not rank else REPLACED_IMAGES_FILE.replace(".", f"_rank{rank}.")
        self.replaced_file = Path(work_dir) / name
        self._in_batch = False

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name in ("dataset", "__setstate__"):  # looked up by pickle before the attributes are set
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, index: int) -> Any:
        """Sample of an index, or of a random other one if its image cannot be read.

        Raises:
            DataError: If the labels are wrong, or one image after the other cannot be read.
        """
        if self._in_batch or not hasattr(index, "seed"):
            return self._sample(index)
        with kept_random_state():
            return self._sample(index)

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Samples of a batch, which torch's loaders ask for at once.

        The random state is kept once for all of them: for a small image this takes longer than reading it.

        Raises:
            DataError: As of a single sample.
        """
        if announce := getattr(self.dataset, "read_ahead", None):
            announce(indices)
        if not all(hasattr(index, "seed") for index in indices):
            return [self[index] for index in indices]
        with kept_random_state():
            self._in_batch = True
            try:  # each by __getitem__, which a worker notes (engine.data.worker_watch)
                return [self[index] for index in indices]
            finally:
                self._in_batch = False

    def _sample(self, index: int) -> Any:
        """Sample of an index; leaves the random state as it was used."""
        seed = getattr(index, "seed", None)
        current, substitutes = int(index), None
        for _ in range(MAX_CONSECUTIVE_FAILURES):
            try:
                if seed is not None:
                    seed_cpu(seed)
                return self.dataset[current]
            except (DamagedImageError, OSError, cv2.error) as error:
                if getattr(error, "errno", None) in PROCESS_ERRNOS:
                    raise
                path, reason = self._describe(error, current)
                self._report(path, reason)
            if substitutes is None:
                substitutes = np.random.default_rng([seed or 0, int(index)])
            current = int(substitutes.integers(len(self.dataset)))
        raise DataError(
            f"{MAX_CONSECUTIVE_FAILURES} images in a row cannot be read, the last is {printable(path)}: {reason}; "
            f"listed in {self.replaced_file}"
        )

    def _describe(self, error: Exception, index: int) -> tuple[str, str]:
        """Path of the image that an error is about, and the reason in one line."""
        if isinstance(error, DamagedImageError) and error.path:
            return error.path, error.reason
        path = getattr(error, "filename", None) or self.dataset.get_data_info(index).get("img_path", f"sample {index}")
        return str(path), f"cannot be read: {first_line(error)}"

    def _report(self, path: str, reason: str) -> None:
        # A full disk is no reason to stop here; a single appending write of one line does not mix with others.
        with suppress(OSError), open(self.replaced_file, "ab", buffering=0) as file:
            file.write(json.dumps({"file": path, "reason": reason}).encode() + b"\n")


class ReplacedImagesHook(Hook):
    """Logs each replaced image once, with the count, and ends the run if there are too many.

    It does nothing where the training data is not a :class:`FaultTolerantDataset`.
    """

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self._dataset: FaultTolerantDataset | None = None
        self._position = 0
        self._replaced: set[str] = set()

    def before_train(self, runner: Runner) -> None:
        """Skip what an earlier start of the training has written to the file, and remove what another has."""
        dataset = runner.train_dataloader.dataset
        self._dataset = dataset if isinstance(dataset, FaultTolerantDataset) else None
        if self._dataset is not None and not runner.is_resuming:
            with suppress(OSError):
                self._dataset.replaced_file.unlink()
        if self._dataset is not None and self._dataset.replaced_file.exists():
            self._position = self._dataset.replaced_file.stat().st_size

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Log and count what the workers of this process have reported since the previous step.

        Raises:
            DataError: If more files are damaged than may be replaced.
        """
        if self._dataset is None:
            return
        for entry in self._read_new_entries(self._dataset.replaced_file):
            if entry["file"] not in self._replaced:
                self._replaced.add(entry["file"])
                # Formatted here: mmengine's logger drops a second warning of one template.
                runner.logger.warning(
                    f"{printable(entry['file'])} {entry['reason']}: another image takes its place "
                    f"({len(self._replaced)} so far)"
                )
        if len(self._replaced) > max_replaced_images(len(self._dataset)):
            raise DataError(
                f"{len(self._replaced)} of {len(self._dataset):,} training images cannot be read, listed in "
                f"{self._dataset.replaced_file}: fix the data; tools/check_data.py CONFIG finds all of them"
            )

    def _read_new_entries(self, path: Path) -> list[dict[str, str]]:
        try:
            if os.stat(path).st_size <= self._position:
                return []
            with open(path, "rb") as file:
                file.seek(self._position)
                complete, newline, _ = file.read().rpartition(b"\n")
        except OSError:
            return []
        self._position += len(complete) + len(newline)
        return [json.loads(line) for line in complete.splitlines()]
