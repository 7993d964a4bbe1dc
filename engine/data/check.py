"""The check of a config's data: what every format shares. What is special to one is beside its data set, in its task.

A task declares a :class:`Checker` for a type of data set with :func:`checks`; it holds for its subclasses too. It lists
the files with what is known of them; these are looked at in several processes, in an order that is spread evenly over
the data, so that any part of the way is a fair sample.
"""

from __future__ import annotations

import difflib
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from multiprocessing import get_context
from typing import Any, Literal

from mmengine.registry import DATASETS, DefaultScope
from PIL import Image
from tqdm import tqdm

from backbones.errors import UserError
from engine.data.findings import Finding, Findings
from engine.data.image_files import Seen, look_at

LABELS = 500  # label images of a split whose values are counted, unless all are asked for
CHUNK = 32  # files that a process looks at before it answers
WORTH_PROCESSES = 600  # files from which on several processes are started; decoding one counts as ten
LARGE, SMALL = 50_000_000, 8  # pixels of an image, and of its shorter side, that are worth a word
OPENCV_MOST = 2**30  # pixels that it decodes
PILLOW_MOST = 2 * (Image.MAX_IMAGE_PIXELS or 2**29)  # the same, where it is not told otherwise
MANY_COPIES = 0.01  # of the validation images in the training data: more is no accident of a large data set
DAMAGE = ("missing", "empty", "truncated", "damaged", "no", "unreadable")
MENDS = {
    "missing": "bring the file, or take its entry out",
    "unreadable": "mend its permissions or the disk",
    "no": "convert it to an image, or take it out",
}
FORMS = {
    ".jpg": ("JPEG", "MPO"),
    ".jpeg": ("JPEG", "MPO"),
    ".png": ("PNG",),
    ".bmp": ("BMP", "DIB"),
    ".webp": ("WEBP",),
    ".tif": ("TIFF",),
    ".tiff": ("TIFF",),
    ".ppm": ("PPM",),
}


@dataclass(frozen=True, slots=True)
class Job:
    """A file to look at.

    Attributes:
        path: The file.
        role: ``image``, or ``labels`` for a label image.
        size: Width and height that the annotations state.
        key: What the checker knows it by, such as the class, or the stem that an image shares with its labels.
    """

    path: str
    role: Literal["image", "labels"] = "image"
    size: tuple[int, int] | None = None
    key: str = ""


class Checker:
    """Checks one split of a data set of any type: that it builds, and the images that it names.

    Args:
        split: ``train``, ``val`` or ``test``.
        dataset: Its config, resolved.
        cfg: The whole config.
    """

    turns = True  # whether its images are read turned by EXIF, as mmcv does and timm does not

    def __init__(self, split: str, dataset: Any, cfg: Any) -> None:
        self.split, self.dataset, self.cfg = split, dataset, cfg
        self.found: list[Finding] = []
        self.notes: list[str] = []
        self.contents: dict[int, str] = {}
        self.paths: dict[str, str] = {}

    def error(self, kind: str, file: str, what: str, mend: str) -> None:
        """Note what makes a training wrong or ends it."""
        self.found.append(Finding("error", kind, self.split, str(file), what, mend))

    def warn(self, kind: str, file: str, what: str, mend: str) -> None:
        """Note what a person should know."""
        self.found.append(Finding("warning", kind, self.split, str(file), what, mend))

    def jobs(self) -> list[Job]:
        """Check what needs no look into images, and list these.

        Raises:
            UserError: If there is nothing that could be checked.
        """
        with DefaultScope.overwrite_default_scope(self.cfg.default_scope):
            built = DATASETS.build(self.dataset)
        jobs = []
        for index in range(len(built)):
            info = built.get_data_info(index)
            if "img_path" in info:
                jobs.append(Job(info["img_path"], key=info["img_path"]))
            if info.get("seg_map_path"):
                jobs.append(Job(info["seg_map_path"], "labels"))
        return jobs

    def counts_values(self, job: Job) -> bool:
        """Whether the values of this file's pixels mean something."""
        return False

    def saw(self, job: Job, seen: Seen) -> None:
        """Judge one file."""
        if seen.problem is not None:
            kind, what = seen.problem
            start = kind.partition(" ")[0]
            self.error(f"{start} {job.role}", job.path, what, MENDS.get(start, "copy it again, or take it out"))
            return
        if job.role == "image":
            self.contents.setdefault(seen.digest, job.path)
            self._judge_size(job, seen)
            self._judge_pixels(job, seen)

    def finish(self, complete: bool) -> None:
        """Judge what only all files together show.

        Args:
            complete: Whether all files were looked at, and all values counted.
        """

    def _judge_size(self, job: Job, seen: Seen) -> None:
        width, height = seen.size
        if job.size is not None and job.size != (seen.upright if self.turns else seen.size):
            stated = f"the annotations say {job.size[0]} x {job.size[1]}"
            turned = seen.orientation != 1 and job.size == seen.size
            real = f"{seen.upright[0]} x {seen.upright[1]}" if self.turns else f"{width} x {height}"
            what = f"is {real}{f' as its EXIF orientation {seen.orientation} turns it' if turned else ''}, {stated}"
            mend = "save it turned and without the EXIF tag" if turned else "mend the annotations, or bring their image"
            self.error("image size", job.path, what, mend)
        megapixels = width * height / 1e6
        if width * height > (OPENCV_MOST if self.turns else PILLOW_MOST):
            self.error(
                "huge image", job.path, f"has {megapixels:,.0f} megapixels, which are refused", "make it smaller"
            )
        elif width * height > LARGE:
            self.warn("huge image", job.path, f"has {megapixels:,.0f} megapixels", "a smaller copy loads faster")
        elif min(width, height) < SMALL:
            self.warn("tiny image", job.path, f"is {width} x {height}", "take it out if it shows nothing")

    def _judge_pixels(self, job: Job, seen: Seen) -> None:
        forms = FORMS.get(os.path.splitext(job.path)[1].lower())
        if seen.bits > 16:
            what = "has 32-bit pixels, whose black and white are not known"
            self.error("32-bit image", job.path, what, "convert it to 8 bits per channel")
        elif seen.bits > 8:
            what = f"has {seen.bits} bits per channel, of which the upper 8 are read: 10 or 12 bits in 16 become dark"
            self.warn("16-bit image", job.path, what, "convert it to 8 bits with the contrast it should have")
        if seen.mode not in ("RGB", "L", "P", "1", "RGBA", "LA", "PA") and seen.bits <= 8:
            what = f"has {seen.mode} colours, converted without their profile"
            self.warn("other colours", job.path, what, "convert it to RGB if its colours matter")
        if seen.transparent:
            what = "has transparent parts, which show whatever colour lies under them"
            self.warn("transparency", job.path, what, "put it on a background")
        if seen.frames > 1 and seen.form != "MPO":
            self.warn("several frames", job.path, "holds several pictures, of which the first is read", "save one")
        if forms and seen.form not in forms:
            self.warn("name of another format", job.path, f"is a {seen.form}", "harmless; other programs may refuse it")
        if seen.orientation != 1 and not self.turns:
            what = f"has EXIF orientation {seen.orientation}, which is not applied: it is seen as stored"
            self.warn("EXIF orientation", job.path, what, "save it turned and without the tag")


_CHECKERS: dict[type, type[Checker]] = {object: Checker}


def checks(dataset_type: type) -> Callable[[type[Checker]], type[Checker]]:
    """Declare the checker of a type of data set and of its subclasses."""

    def declare(checker: type[Checker]) -> type[Checker]:
        _CHECKERS[dataset_type] = checker
        return checker

    return declare


def checkers_of(cfg: Any, splits: Sequence[str]) -> list[Checker]:
    """The checkers of the splits of a resolved config; a split that is the same data as one before is left out."""
    found: list[Checker] = []
    for split in splits:
        loader = cfg.get(f"{split}_dataloader")
        if not loader or (split != "train" and any(one.dataset == loader.dataset for one in found)):
            continue
        with DATASETS.switch_scope_and_registry(cfg.get("default_scope")) as registry:
            dataset_type = registry.get(loader.dataset.type)
        if dataset_type is None:
            raise UserError(f"{split}_dataloader.dataset.type={loader.dataset.type!r} is no type of data set")
        checker = next(_CHECKERS[base] for base in dataset_type.__mro__ if base in _CHECKERS)
        found.append(checker(split, loader.dataset, cfg))
    return found


def check_data(
    cfg: Any,
    splits: Sequence[str],
    full: bool = False,
    seconds: float | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> Findings:
    """Check the data of a resolved config.

    Args:
        cfg: The config.
        splits: Any of ``train``, ``val``, ``test``.
        full: Decode every image and count the values of all labels; otherwise headers, and the values of a sample.
        seconds: End the look into files after that long; ``None`` for no limit.
        workers: Processes; by default one for each core that this process may use.
        progress: Show a bar while a terminal looks on.

    Returns:
        What was found.

    Raises:
        UserError: If it cannot be checked at all.
    """
    started = time.monotonic()
    # Training data is the largest: last, so that a limit of time cuts off that.
    checkers = checkers_of(cfg, sorted(splits, key=lambda split: split == "train"))
    work: list[_Work] = []
    listed: dict[str, int] = {}
    for number, checker in enumerate(checkers):
        try:
            jobs = checker.jobs()
        except UserError as error:
            checker.error("data set", str(checker.dataset.get("data_root") or ""), str(error), "mend this first")
            continue
        checker.paths = {real_path(job.path): job.path for job in jobs if job.role == "image"}
        work += _spread_work(number, checker, jobs, full)
        for job in jobs:
            listed[_group(checker, job)] = listed.get(_group(checker, job), 0) + 1
    limit = None if seconds is None else started + seconds
    looked = dict.fromkeys(listed, 0)
    counted = dict.fromkeys(range(len(checkers)), True)
    bar = tqdm(total=len(work), unit="file", desc="data", disable=not (progress and sys.stderr.isatty()))
    with bar:
        for item, seen in _look_at_all(work, workers or len(os.sched_getaffinity(0)), limit):
            checker = checkers[item.checker]
            checker.saw(item.job, seen)
            looked[_group(checker, item.job)] += 1
            counted[item.checker] &= item.values or not checker.counts_values(item.job)
            bar.update()
    for number, checker in enumerate(checkers):
        whole = all(looked[group] == listed[group] for group in listed if group.startswith(f"{checker.split} "))
        checker.finish(whole and counted[number])
    items = [finding for checker in checkers for finding in checker.found] + _shared(checkers)
    parts = {what: (looked[what], listed[what]) for what in listed}
    notes = tuple(note for checker in checkers for note in checker.notes)
    return Findings(items, parts, time.monotonic() - started, notes)


@dataclass(frozen=True, slots=True)
class _Work:
    checker: int
    job: Job
    decode: bool
    values: bool


def _group(checker: Checker, job: Job) -> str:
    return f"{checker.split} {'images' if job.role == 'image' else job.role}"


def spread(count: int) -> Iterator[int]:
    """All numbers below ``count``, in an order of which any beginning is spread evenly."""
    step = max(1, round(count * (math.sqrt(5) - 1) / 2))
    while math.gcd(step, count) > 1:
        step += 1
    return (number * step % count for number in range(count))


def _spread_work(number: int, checker: Checker, jobs: list[Job], full: bool) -> Iterator[_Work]:
    sample = len(jobs) if full else LABELS
    for job in (jobs[i] for i in spread(len(jobs))):
        counts = checker.counts_values(job)
        yield _Work(number, job, full, counts and sample > 0)
        sample -= counts


def _look_at_all(work: list[_Work], workers: int, limit: float | None) -> Iterator[tuple[_Work, Seen]]:
    """Look at files until the time is over; several processes where that pays."""
    effort = sum(10 if item.decode or item.values else 1 for item in work)
    if workers < 2 or effort < WORTH_PROCESSES:
        for item in work:
            if limit is not None and time.monotonic() > limit:
                return
            yield item, look_at(item.job.path, item.decode, item.values)
        return
    # Forked processes have the imports behind them; they live for this call and touch neither GPU nor process group.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("fork"))
    try:
        chunks = (work[at : at + CHUNK] for at in range(0, len(work), CHUNK))
        running: deque[tuple[list[_Work], Future[list[Seen]]]] = deque()
        running.extend((chunk, pool.submit(_look_at_chunk, chunk)) for chunk in islice(chunks, 4 * workers))
        while running:
            chunk, future = running.popleft()
            yield from zip(chunk, future.result(), strict=True)
            if limit is not None and time.monotonic() > limit:
                return
            running.extend((more, pool.submit(_look_at_chunk, more)) for more in islice(chunks, 1))
    except BrokenProcessPool as error:
        raise UserError(
            "a process of the data check was killed, for want of memory? try it with --workers 1"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _look_at_chunk(chunk: Sequence[_Work]) -> list[Seen]:
    return [look_at(item.job.path, item.decode, item.values) for item in chunk]


def _shared(checkers: list[Checker]) -> list[Finding]:
    """Images that are in the training data and in another split."""
    items = []
    for train in (one for one in checkers if one.split == "train"):
        for other in (one for one in checkers if one.split != "train"):
            items += _shared_by(train, other)
    return items


def _shared_by(train: Checker, other: Checker) -> list[Finding]:
    mend = f"take it out of one of them: scores of {other.split} data that was trained on are too high"
    same = train.paths.keys() & other.paths.keys()
    items = [
        Finding("error", f"{other.split} in train", other.split, other.paths[path], "is in the training data too", mend)
        for path in sorted(same)
    ]
    named = {other.paths[path] for path in same}
    copies = [digest for digest in train.contents.keys() & other.contents.keys() if other.contents[digest] not in named]
    level = "error" if len(copies) > MANY_COPIES * len(other.contents) else "warning"
    for digest in sorted(copies, key=lambda one: other.contents[one]):
        what = f"has the content of {train.contents[digest]}, which is in the training data"
        items.append(Finding(level, f"{other.split} in train", other.split, other.contents[digest], what, mend))  # type: ignore[arg-type]
    return items


@lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def real_path(path: str) -> str:
    """A path by which files of different splits can be compared; links to folders are followed."""
    folder, name = os.path.split(path)
    return os.path.join(_real_folder(folder), name)


def escapes(folder: str, name: str) -> bool:
    """Whether a file name of an annotation file leads out of the folder it belongs to."""
    if ".." not in name and not os.path.isabs(name):
        return False
    root, inside = os.path.abspath(folder or "."), os.path.abspath(os.path.join(folder, name))
    return not inside.startswith(root.rstrip(os.sep) + os.sep)


def nearest(name: str, names: Sequence[str]) -> str:
    """``; nearest: X`` where there is a name like this one."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"; nearest: {near[0]!r}" if near else ""
