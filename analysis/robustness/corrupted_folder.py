"""Corrupted copies of a folder of images on disk, laid out as ImageNet-C: ``<corruption>/<severity>/<path>``."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from analysis.robustness.corruptions import check_corruption, corrupt, image_seed
from backbones.errors import ConfigError, DataError, MachineError, printable
from backbones.files import atomic_write
from engine.data.image_files import IMAGE_SUFFIXES, OTHER_SUFFIXES, LoadCheckedImage
from engine.data.paths import hidden_note, list_files
from engine.launch.parent import end_with_parent

SETTINGS_FILE = "corrupt.json"
COPY_QUALITY = 85  # hendrycks/robustness, ImageNet-C/create_c/make_imagenet_c.py, line 108
RESIZED_PER_CROP = 256 / 224  # lines 579-583: the shorter side becomes 256, the centre 224 stay


@dataclass(frozen=True)
class CopySettings:
    """Properties that all copies in a folder share.

    Attributes:
        png: Whether files are PNG, without loss, instead of JPEG of quality 85 as the released sets.
        crop: Side of the square cut out before, as the authors did with 224; 0 keeps the whole image.
        seed: Number of the drawing, see :func:`analysis.robustness.corruptions.image_seed`.
    """

    png: bool = False
    crop: int = 0
    seed: int = 0

    def target(self, relative: str) -> str:
        """Path of the copy of an image: that of the image, with another suffix if it is of another format."""
        stem, suffix = os.path.splitext(relative)
        if suffix.lower() in ((".png",) if self.png else (".jpg", ".jpeg")):
            return relative
        return stem + (".png" if self.png else ".jpg")


@dataclass(frozen=True)
class CopyResult:
    """Outcome of :func:`corrupt_folder`.

    Attributes:
        written: Number of files written.
        present: Number of files that were there.
        damaged: Messages about images that could not be read, each of one line.
        notes: Lines about what was passed over.
    """

    written: int
    present: int
    damaged: tuple[str, ...]
    notes: tuple[str, ...]


def corrupt_folder(
    source: Path, target: Path, sets: Sequence[tuple[str, int]], settings: CopySettings, workers: int
) -> CopyResult:
    """Write corrupted copies of all images in a folder, at any depth, and go on where an earlier call ended.

    Args:
        source: Folder of images.
        target: Folder to write, outside of ``source``.
        sets: Names and severities of corruptions.
        settings: Format, crop and seed.
        workers: Number of processes.

    Raises:
        ConfigError: If a name is unknown, or the folder holds copies with other settings.
        DataError: If there is no image, or two would be written to one file.
        MachineError: If a process was killed.
    """
    for name, severity in sets:
        check_corruption(name, severity)
    images, notes = _images_below(source, target, settings)
    _claim(target, settings)
    copy = partial(_copy_image, source, target, tuple(sets), settings)
    counts: Counter[str] = Counter()
    damaged = []
    with tqdm(total=len(images) * len(sets), unit="file", desc="copies", disable=not sys.stderr.isatty()) as bar:
        for written, present, problem in _run(copy, images, workers):
            counts.update(written=written, present=present)
            damaged += [problem] if problem else []
            bar.update(len(sets))
    return CopyResult(counts["written"], counts["present"], tuple(sorted(damaged)), tuple(notes))


def _images_below(source: Path, target: Path, settings: CopySettings) -> tuple[list[str], list[str]]:
    """Paths of the images relative to the folder, in order, and lines about what is passed over."""
    if not source.is_dir():
        raise DataError(f"{printable(source)} is not a folder: give the folder of the images")
    if Path(os.path.realpath(target)).is_relative_to(os.path.realpath(source)):
        raise ConfigError(
            f"{printable(target)} lies in {printable(source)}, whose images are copied: give another folder"
        )
    hidden: list[str] = []
    unreadable: list[OSError] = []
    files = list_files(str(source), hidden, unreadable)
    images = sorted(os.path.relpath(path, source) for path in files if path.lower().endswith(IMAGE_SUFFIXES))
    notes = [f"{printable(error.filename)} cannot be read: {error.strerror}" for error in unreadable]
    notes += hidden_note(str(source), [path for path in hidden if path.lower().endswith(IMAGE_SUFFIXES)])
    if others := sorted(path for path in files if path.lower().endswith(OTHER_SUFFIXES)):
        first = f"{len(others)} images of other formats are not copied, the first is {printable(others[0])}"
        notes.append(f"{first}: convert them to JPEG or PNG")
    if not images:
        raise DataError(f"no image in {printable(source)} ({', '.join(IMAGE_SUFFIXES)})")
    by_target: dict[str, str] = {}
    for image in images:
        other = by_target.setdefault(settings.target(image), image)
        if other != image:
            raise DataError(
                f"{printable(image)} and {printable(other)} would be copied to one file: rename one of them"
            )
    return images, notes


def _claim(target: Path, settings: CopySettings) -> None:
    """Note the settings in a new folder; refuse one with others, whose files would stay among the new ones."""
    stamp = target / SETTINGS_FILE
    if stamp.is_file():
        try:
            former = json.loads(stamp.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            former = None
        if former != asdict(settings):
            raise ConfigError(
                f"{printable(target)} holds copies with {former}, not {asdict(settings)}: give those options or "
                "another folder"
            )
        return
    try:
        target.mkdir(parents=True, exist_ok=True)
        with atomic_write(stamp) as part:
            part.write_text(json.dumps(asdict(settings)) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{printable(target)} cannot be written: {error.strerror}") from error


def _run(copy: partial[tuple[int, int, str]], images: Sequence[str], workers: int) -> Iterator[tuple[int, int, str]]:
    """Results for all images, as they come."""
    if workers < 2:
        yield from map(copy, images)
        return
    # Forked processes need no imports; they live for this call and touch neither GPU nor process group.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("fork"), initializer=end_with_parent)
    try:
        waiting = iter(images)
        running = {pool.submit(copy, image) for image in islice(waiting, 4 * workers)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(copy, image) for image in islice(waiting, len(done))}
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise MachineError("a process was killed, probably for lack of memory: try it with --workers 1") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _copy_image(
    source: Path, target: Path, sets: Sequence[tuple[str, int]], settings: CopySettings, relative: str
) -> tuple[int, int, str]:
    """Write the copies of one image that are absent or older than it: files written, files there, what is damaged."""
    cv2.setNumThreads(1)
    original = source / relative
    absent = []
    for name, severity in sets:
        file = target / name / str(severity) / settings.target(relative)
        if not _is_newer(file, original):
            absent.append((name, severity, file))
    if not absent:
        return 0, len(sets), ""
    try:
        image = _read(original, settings.crop)
    except DataError as error:
        return 0, 0, str(error)
    for name, severity, file in absent:
        seed = image_seed(Path(relative).as_posix(), name, severity, settings.seed)
        copy = Image.fromarray(corrupt(image, name, severity, seed))
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file, durable=False) as part:
            if settings.png:
                copy.save(part, "PNG", compress_level=1)
            else:
                copy.save(part, "JPEG", quality=COPY_QUALITY, optimize=True)
    return len(absent), len(sets) - len(absent), ""


def _is_newer(file: Path, original: Path) -> bool:
    """Whether a copy is whole and no older than its image."""
    try:
        there = file.stat()
        return there.st_size > 0 and there.st_mtime_ns >= original.stat().st_mtime_ns
    except OSError:
        return False


def _read(path: Path, crop: int) -> np.ndarray:
    """RGB image (H, W, 3), upright; with a crop its centre, after the shorter side was resized."""
    image = LoadCheckedImage()({"img_path": str(path)})["img"][..., ::-1]
    if not crop:
        return np.ascontiguousarray(image)
    short = round(crop * RESIZED_PER_CROP)
    height, width = image.shape[:2]
    # As torchvision's Resize: the longer side is cut off to a whole number.
    size = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    resized = Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BILINEAR)
    left, top = (round((side - crop) / 2) for side in size)
    return np.array(resized.crop((left, top, left + crop, top + crop)))
