"""Check of a config's data: the files that the splits' checkers list are inspected in several processes.

The order is spread evenly over the data, so that any part of the work is a fair sample. What is checked is in
:mod:`engine.data.checker` and, for one format, beside its data set in the package of its task.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice, product
from multiprocessing import get_context

from mmengine.config import Config
from tqdm import tqdm

from backbones.errors import ConfigError, DataError, MachineError
from engine.data.checker import DataFile, DatasetChecker, build_checkers
from engine.data.findings import DataCheckResult, DataFinding, FindingLevel
from engine.data.image_files import ImageInfo, inspect_image
from engine.data.paths import real_path
from engine.launch.parent import end_with_parent

MAX_LABEL_FILES = 500  # label images of a split whose values are counted, unless all are asked for
FILES_PER_TASK = 32  # files that a process inspects before it returns
MIN_PARALLEL_FILES = 600  # fewer are inspected in this process; a file to decode counts as ten
MAX_COPIED_FRACTION = 0.01  # of a split in the training data; large data sets have a few copies by accident


def check_datasets(
    cfg: Config,
    splits: Sequence[str],
    full: bool = False,
    seconds: float | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> DataCheckResult:
    """Check the data of a resolved config.

    Args:
        cfg: Resolved config.
        splits: Any of ``train``, ``val``, ``test``.
        full: Whether to decode every image and count the values of all labels; otherwise headers, and the values of a
            sample of the labels.
        seconds: Time after which no further file is inspected; ``None`` for no limit.
        workers: Number of processes; by default one for each core that this process may use.
        progress: Whether to show a progress bar in a terminal.

    Raises:
        UserError: If the data cannot be checked at all.
    """
    started = time.monotonic()
    # Training data is the largest: last, so that it is what a time limit cuts off.
    checkers = build_checkers(cfg, sorted(splits, key=lambda split: split == "train"))
    inspections: list[_Inspection] = []
    listed: Counter[str] = Counter()
    for number, checker in enumerate(checkers):
        checker.full = full
        try:
            files = checker.list_files()
        except (ConfigError, DataError) as error:
            checker.error("data set", checker.dataset.get("data_root") or "", str(error), "fix this first")
            continue
        checker.path_by_real_path = {real_path(file.path): file.path for file in files if file.role == "image"}
        inspections += _plan_inspections(number, checker, files, full)
        listed.update(_group(checker, file) for file in files)
    inspected = dict.fromkeys(listed, 0)
    all_values = dict.fromkeys(range(len(checkers)), True)
    limit = None if seconds is None else started + seconds
    with tqdm(
        total=len(inspections), unit="file", desc="data", disable=not (progress and sys.stderr.isatty())
    ) as progress_bar:
        for item, info in _inspect_all(inspections, workers or len(os.sched_getaffinity(0)), limit):
            checker = checkers[item.checker]
            checker.check_file(item.file, info)
            inspected[_group(checker, item.file)] += 1
            all_values[item.checker] &= item.values or not checker.needs_values(item.file)
            progress_bar.update()
    for number, checker in enumerate(checkers):
        groups = [group for group in listed if group.startswith(f"{checker.split} ")]
        checker.finish(all_values[number] and all(inspected[group] == listed[group] for group in groups))
    findings = [finding for checker in checkers for finding in checker.findings]
    for train, other in product(checkers, repeat=2):
        if train.split == "train" and other.split != "train":
            findings += _images_shared_by(train, other)
    counts = {group: (inspected[group], listed[group]) for group in listed}
    notes = tuple(note for checker in checkers for note in checker.notes)
    return DataCheckResult(findings, counts, time.monotonic() - started, notes)


@dataclass(frozen=True, slots=True)
class _Inspection:
    """A file to inspect, with the number of its checker and the arguments of ``inspect_image``."""

    checker: int
    file: DataFile
    decode: bool
    values: bool
    channels: int | None

    def run(self) -> ImageInfo:
        """Inspect the file."""
        return inspect_image(self.file.path, self.decode, self.values, self.channels)


def _group(checker: DatasetChecker, file: DataFile) -> str:
    return f"{checker.split} {'images' if file.role == 'image' else file.role}"


def evenly_spread(count: int) -> Iterator[int]:
    """All numbers from 0 below ``count``, in an order of which any beginning is spread evenly."""
    step = max(1, round(count * (math.sqrt(5) - 1) / 2))
    while math.gcd(step, count) > 1:
        step += 1
    return (number * step % count for number in range(count))


def _plan_inspections(number: int, checker: DatasetChecker, files: list[DataFile], full: bool) -> Iterator[_Inspection]:
    values_left = len(files) if full else MAX_LABEL_FILES
    order = range(len(files)) if checker.in_order else evenly_spread(len(files))
    for file in (files[i] for i in order):
        needs_values = checker.needs_values(file)
        channels = checker.channels if file.role == "image" else None
        decode = full or channels is not None
        yield _Inspection(number, file, decode, needs_values and values_left > 0, channels)
        values_left -= needs_values


def _inspect_all(
    inspections: list[_Inspection], workers: int, limit: float | None
) -> Iterator[tuple[_Inspection, ImageInfo]]:
    """Inspect files until the time is over; in several processes where that pays."""
    if workers < 2 or sum(10 if item.decode or item.values else 1 for item in inspections) < MIN_PARALLEL_FILES:
        for item in inspections:
            if limit is not None and time.monotonic() > limit:
                return
            yield item, item.run()
        return
    # Forked processes need no imports; they live for this call and touch neither GPU nor process group.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("fork"), initializer=end_with_parent)
    try:
        chunks = (inspections[at : at + FILES_PER_TASK] for at in range(0, len(inspections), FILES_PER_TASK))
        running = deque((chunk, pool.submit(_inspect_chunk, chunk)) for chunk in islice(chunks, 4 * workers))
        while running:
            chunk, future = running.popleft()
            yield from zip(chunk, future.result(), strict=True)
            if limit is not None and time.monotonic() > limit:
                return
            running.extend((more, pool.submit(_inspect_chunk, more)) for more in islice(chunks, 1))
    except BrokenProcessPool as error:
        raise MachineError(
            "a process of the data check was killed, probably for lack of memory: try it with --workers 1"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _inspect_chunk(chunk: Sequence[_Inspection]) -> list[ImageInfo]:
    return [item.run() for item in chunk]


def _images_shared_by(train: DatasetChecker, other: DatasetChecker) -> list[DataFinding]:
    """Findings about images that are in the training data and in another split."""
    kind = f"{other.split} in train"
    fix = f"remove it from one of them: scores of {other.split} data that was trained on are too high"
    shared = train.path_by_real_path.keys() & other.path_by_real_path.keys()
    paths = dict.fromkeys(other.path_by_real_path[real] for real in sorted(shared))
    findings = [DataFinding("error", kind, other.split, path, "is in the training data too", fix) for path in paths]
    copies = {
        other.path_by_digest[digest]: train.path_by_digest[digest]
        for digest in train.path_by_digest.keys() & other.path_by_digest.keys()
    }
    copies = {path: original for path, original in sorted(copies.items()) if path not in paths}
    level: FindingLevel = "error" if len(copies) > MAX_COPIED_FRACTION * len(other.path_by_digest) else "warning"
    for path, original in copies.items():
        problem = f"has the content of {original}, which is in the training data"
        findings.append(DataFinding(level, kind, other.split, path, problem, fix))
    return findings
