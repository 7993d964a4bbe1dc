"""Shards of class folders: the same images give the same bytes, and a call that was stopped is gone on with.

Which images go into which shard follows from their names and sizes alone, before any is read. Each shard is written
under another name, read again, and renamed: one that has its name is whole.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from backbones.errors import ConfigError, DataError, MachineError, printable
from backbones.files import NO_SPACE_ERRNOS, atomic_write, remove_partial_files
from backbones.packages import is_absent, missing_package_error
from classification.data import class_folders, list_images
from classification.decode import read_rgb
from engine.data.image_files import read_image_bytes
from engine.data.shards import find_shards, open_table
from engine.data.shards.archives import TAR_BLOCK, read_tar
from engine.data.shards.parquet import read_parquet
from engine.data.stored_image import ShardState, StoredImage
from engine.launch.pool import in_processes
from engine.report.run_dir import read_json

MIN_SHARD_BYTES = 10_000
SHARD_PLAN_FILE = "shards.json"
SHARD_SPLITS = ("train", "val", "test")
ROW_GROUP = 16  # images of a row group, which other readers of parquet files decode together
WEBDATASET_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # by which readers know images
SHARD_ORDER_SEED = 0  # of the order in the shards, so that each holds images of many classes


@dataclass(frozen=True)
class ShardSettings:
    """How shards are made.

    Attributes:
        to: ``wds`` or ``parquet``.
        size: Bytes of a shard, if no image is shrunk.
        resize_short: Length in pixels to which a longer short side is shrunk; ``None`` keeps the files as they are.
        quality: Quality of JPEGs that were shrunk.

    Raises:
        ConfigError: If a number is out of its range.
        MachineError: If pyarrow is needed and not installed.
    """

    to: str = "wds"
    size: int = 256 * 10**6
    resize_short: int | None = None
    quality: int = 95

    def __post_init__(self) -> None:
        if self.size < MIN_SHARD_BYTES:
            raise ConfigError(f"--size {self.size} bytes: {MIN_SHARD_BYTES:,} or more are needed, such as 256MB")
        if self.resize_short is not None and self.resize_short < 1:
            raise ConfigError(f"--resize-short {self.resize_short}: a number of pixels is needed, such as 256")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"--quality {self.quality}: a number from 1 to 100 is needed")
        if self.to == "parquet" and is_absent("pyarrow"):
            raise missing_package_error("pyarrow", "--to parquet")


@dataclass(frozen=True)
class MadeShards:
    """Numbers of what was made of a split.

    Attributes:
        images: Images.
        classes: Classes.
        shards: Shards.
    """

    images: int
    classes: int
    shards: int


@dataclass(frozen=True)
class _Job:
    """A shard to write."""

    file: Path
    root: Path
    images: tuple[tuple[str, int], ...]  # path below the root, and label
    classes: tuple[str, ...]
    settings: ShardSettings


def make_shards(
    source: Path, target: Path, settings: ShardSettings, workers: int | None = None
) -> dict[str, MadeShards]:
    """Make shards of all splits of class folders, and the table of each.

    Args:
        source: Folder with a folder of class folders for each split, or of class folders alone.
        target: Folder for the shards.
        settings: Settings of the shards.
        workers: Number of processes; by default one for each core that this process may use.

    Returns:
        What was made, by split.

    Raises:
        DataError: If there is no image, one cannot be read, or what was written is not what it should be.
        ConfigError: If the target holds something else, or lies in the source.
        MachineError: If there is no room.
    """
    splits = _splits(source)
    place = Path(os.path.realpath(target))  # resolve would raise where links lead in a circle
    if Path(os.path.realpath(source)) in (place, *place.parents):
        raise ConfigError(f"{str(target)!r} lies in {str(source)!r}: give a folder outside of the class folders")
    jobs = {split: _jobs(root, target, split, settings) for split, root in splits.items()}
    _begin(target, settings, [job for some in jobs.values() for job in some])
    try:
        _write_all([job for some in jobs.values() for job in some if not job.file.exists()], workers)
    except OSError as error:
        fix = (
            "make room and call it again, it goes on" if error.errno in NO_SPACE_ERRNOS else "call it again, it goes on"
        )
        raise MachineError(f"{str(target)!r}: shards cannot be written ({error.strerror}): {fix}") from error
    made = {}
    for split, some in jobs.items():
        shards = find_shards(target, split)
        images = sum(len(job.images) for job in some)
        if shards is None or len(table := open_table(shards)) != images:
            raise DataError(
                f"{str(target)!r}: not {images:,} {split} images were found in the shards: remove it, try again"
            )
        made[split] = MadeShards(images, len(table.classes), len(some))
    return made


def _splits(source: Path) -> dict[str, Path]:
    if not source.is_dir():
        raise DataError(f"{str(source)!r} is no folder of class folders")
    found = {one: source / one for one in SHARD_SPLITS if (source / one).is_dir() and class_folders(source / one, ())}
    return found or {"train": source}


def _jobs(root: Path, target: Path, split: str, settings: ShardSettings) -> list[_Job]:
    """Divide the images of a split over shards: in a fixed random order, until a shard is full."""
    classes = tuple(sorted(class_folders(root, ())))
    images = [
        (os.path.relpath(path, root), label)
        for label, name in enumerate(classes)
        for path in sorted(list_images(root / name))
    ]
    if not images:
        raise DataError(f"{str(root)!r} holds no class folder with images")
    parts: list[list[tuple[str, int]]] = []
    room = 0
    for index in np.random.default_rng(SHARD_ORDER_SEED).permutation(len(images)).tolist():
        size = (root / images[index][0]).stat().st_size
        size = -(-size // TAR_BLOCK) * TAR_BLOCK + 3 * TAR_BLOCK if settings.to == "wds" else size  # label, two headers
        if not parts or room < size:
            parts.append([])
            room = settings.size
        parts[-1].append(images[index])
        room -= size
    suffix = "tar" if settings.to == "wds" else "parquet"
    width = max(4, len(str(len(parts) - 1)))
    files = [target / f"{split}-{number:0{width}d}.{suffix}" for number in range(len(parts))]
    return [_Job(file, root, tuple(part), classes, settings) for file, part in zip(files, parts, strict=True)]


def _begin(target: Path, settings: ShardSettings, jobs: Sequence[_Job]) -> None:
    """Begin in an empty folder, or go on in one that the same call began."""
    digest = hashlib.sha256()
    for job in jobs:
        digest.update(json.dumps([job.file.name, job.images, job.classes]).encode())
    plan = {"settings": asdict(settings), "shards": len(jobs), "digest": digest.hexdigest()}
    file = target / SHARD_PLAN_FILE
    try:
        target.mkdir(parents=True, exist_ok=True)
        if file.exists() and read_json(file) == plan:
            remove_partial_files(target)
            return
        if next(target.iterdir(), None) is not None:
            what = "shards of other images or settings" if file.exists() else "something else"
            raise ConfigError(f"{str(target)!r} holds {what}: give an empty folder, or remove it")
        with atomic_write(file) as part:
            part.write_text(json.dumps(plan, indent=1) + "\n")
    except OSError as error:
        raise MachineError(f"{str(target)!r} cannot be written: {error.strerror}") from error


def _write_all(jobs: Sequence[_Job], workers: int | None) -> None:
    count = min(workers or len(os.sched_getaffinity(0)), len(jobs))
    with tqdm(total=len(jobs), unit="shard", desc="shards", disable=not sys.stderr.isatty()) as bar:
        for _ in in_processes(_write, jobs, count, "wrote shards"):
            bar.update()


def _write(job: _Job) -> None:
    """Write a shard, and read it again."""
    with atomic_write(job.file) as part:
        digests = (_write_tar if job.settings.to == "wds" else _write_parquet)(part, job)
        _verify(part, job, digests)


def _contents(job: _Job) -> Iterator[tuple[str, int, bytes]]:
    """Name below the class folders, label and bytes of each image."""
    for name, label in job.images:
        path, short = str(job.root / name), job.settings.resize_short
        content = read_image_bytes(path)
        if short is not None and min((image := read_rgb(path)).size) > short:
            stem, suffix = os.path.splitext(name)
            # Pictures without loss stay so; a TIFF or WebP becomes a JPEG.
            suffix = suffix if suffix.lower() in (".jpg", ".jpeg", ".png") else ".jpg"
            content, name = _shrunk(image, short, job.settings.quality, suffix), f"{stem}{suffix}"
        yield name, label, content


def _shrunk(image: Image.Image, short: int, quality: int, suffix: str) -> bytes:
    """An image file with its short side at a number of pixels."""
    scale = short / min(image.size)
    width, height = (max(short, round(side * scale)) for side in image.size)
    content = io.BytesIO()
    kind = "PNG" if suffix.lower() == ".png" else "JPEG"
    image.resize((width, height), Image.Resampling.LANCZOS).save(content, kind, quality=quality)
    return content.getvalue()


def _sample_names(name: str, taken: set[str]) -> tuple[str, str]:
    """Name of an image as WebDataset wants it, with one dot and a key of its own, and that of its label."""
    folder, base = os.path.split(name)
    key, suffix = os.path.splitext(base)
    if "." in key or os.path.join(folder, key) in taken:
        key = base.replace(".", "_")
    suffix = suffix.lower() if suffix.lower() in WEBDATASET_SUFFIXES else ".jpg"  # decoders look at the content
    key = os.path.join(folder, key)
    taken.add(key)
    return f"{key}{suffix}", f"{key}.cls"


def _write_tar(part: Path, job: _Job) -> list[bytes]:
    """Write the samples of a shard; returns a digest of each image."""
    digests, taken = [], set[str]()
    with tarfile.open(part, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, label, content in _contents(job):
            for member, data in zip(_sample_names(name, taken), (content, str(label).encode()), strict=True):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
            archive.members.clear()  # type: ignore[attr-defined]  # would be kept
            digests.append(_digest(content))
    return digests


def _write_parquet(part: Path, job: _Job) -> list[bytes]:
    """Write the rows of a shard; returns a digest of each image."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    features = {"image": {"_type": "Image"}, "label": {"names": job.classes, "_type": "ClassLabel"}}
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("image", image), ("label", pyarrow.int64())])
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    digests: list[bytes] = []
    contents = _contents(job)
    with ParquetWriter(part, schema, compression="none", use_dictionary=False) as writer:
        while rows := list(islice(contents, ROW_GROUP)):
            images = [{"bytes": content, "path": name} for name, _, content in rows]
            labels = [label for _, label, _ in rows]
            writer.write_table(pyarrow.table({"image": images, "label": labels}, schema=schema))
            digests += [_digest(content) for _, _, content in rows]
    return digests


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _verify(part: Path, job: _Job, digests: Sequence[bytes]) -> None:
    """Compare what was written with what should have been.

    Raises:
        DataError: If they differ.
    """
    with part.open("rb") as file:
        os.fsync(file.fileno())
    path, status = str(part), part.stat()
    state = ShardState(path, status.st_size, status.st_mtime_ns)
    found = read_tar(path, "") if job.settings.to == "wds" else read_parquet(path)
    places = zip(found.offsets.tolist(), found.sizes.tolist(), found.codings.tolist(), strict=True)
    contents = (StoredImage(state, "", *place).read() for place in places)
    if found.labels.tolist() != [label for _, label in job.images] or list(map(_digest, contents)) != list(digests):
        raise DataError(
            f"{printable(job.file)}: was written, but other bytes are read: the disk or its driver is faulty"
        )
