"""Speed of loading a classifier's training images: our data set beside timm's and torchvision's, in turns.

All sides read the same files in the same order and return batches of uint8 images; conversion to float, normalisation,
erasing and mixing happen on the device and are left out. Before any time is taken, our images are compared with timm's
under the same random states: a different augmentation is not compared in speed.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, FUNCTIONS, DefaultScope
from PIL import Image, ImageOps, features
from timm.data import auto_augment
from timm.data.dataset import ImageDataset
from timm.data.loader import fast_collate
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torchvision import transforms
from torchvision.datasets.folder import pil_loader
from torchvision.transforms import InterpolationMode, v2

from analysis.benchmark.peers import OUR_SIDE
from analysis.benchmark.storage import forget, forget_names, image_folder, storage_data, stored_settings, streams
from analysis.benchmark.timing import MismatchError, Speedup, rates, take_turns
from backbones.errors import ConfigError
from backbones.kernels.cpu.dispatch import cpu_name
from engine.checkpoint.rng import seed_of, seeded
from engine.data.fault_tolerance import FaultTolerantDataset
from engine.data.image_files import read_image_bytes
from engine.data.sampling import SeededIndex

LOADING_PEERS = ("timm", "torchvision")
STORAGE = "storage"
FOLDER_BYTES, TAR_BYTES = "folder, bytes alone", "tar, bytes alone"  # sides that do not decode
LOADING_BATCH = 64
BATCHES_PER_WORKER = 2  # in a turn, so that one is decoded while another is handed over
COLD_BATCHES = 32  # in a turn of files that are not in memory
COMPARED_IMAGES = 32
# Mean difference of our images from timm's, in levels of 255. Rounding, which later operations may amplify, stays far
# below 1; another operation or crop changes an image by tens.
LEVEL_TOLERANCE = 2.0
MEASURED_FILES = 256  # at most, for the mean size of an image
_ROW = "{:30} {:>16} {:>17} {:>20}"


@dataclass(frozen=True)
class LoadingResult:
    """Speed of loading a data set.

    Attributes:
        images: Number of training images.
        megapixels: Mean size of an image.
        kilobytes: Mean size of a file.
        workers: Number of worker processes, 0 for none.
        difference: Mean difference of our images from timm's, in levels of 255.
        place: Device, versions and date, in words.
        seconds: Seconds per image and worker of each library and variant in each round, ours first: CPU time of the
            process, or elapsed time with workers.
        cold: Whether files were not in the page cache before each turn; the time is elapsed time then.
        cold_names: Whether their names and inodes were not in memory either.
    """

    images: int
    megapixels: float
    kilobytes: float
    workers: int
    difference: float
    place: dict[str, str]
    seconds: dict[str, tuple[float, ...]]
    cold: bool = False
    cold_names: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The result as plain data."""
        rows = []
        for name, taken in self.seconds.items():
            rate, between = rates(taken)
            rows.append(
                {"name": name, "seconds": taken}
                | {"images_per_second_and_core": rate, "images_per_second_and_core_quartiles": list(between)}
                | Speedup.between(self.seconds[OUR_SIDE], taken).as_dict()
            )
        return {key: value for key, value in vars(self).items() if key != "seconds"} | {"sides": rows}

    def as_text(self) -> str:
        """The result as a table for people."""
        how = f"{self.workers} worker processes, elapsed time" if self.workers else "one process, its CPU time"
        if self.cold:
            names = "nor their names and inodes" if self.cold_names else "their names and inodes stay in memory"
            how = f"one process, elapsed time, files not in the page cache before each turn, {names}"
        lines = [
            f"{self.images:,} training images of {self.megapixels:.2f} megapixels and {self.kilobytes:.0f} kB "
            f"in the mean, {how}, {len(self.seconds[OUR_SIDE])} rounds in turns",
            *(f"  {key}: {value}" for key, value in self.place.items()),
            f"  mean difference from timm's images: {self.difference:.2f} of 255 levels",
            "",
            _ROW.format("", "img/s per core", "quartiles", "ours is x faster").rstrip(),
        ]
        for name, taken in self.seconds.items():
            rate, (low, high) = rates(taken)
            speedup = "" if name == OUR_SIDE else str(Speedup.between(self.seconds[OUR_SIDE], taken))
            lines.append(_ROW.format(name, f"{rate:.0f}", f"{low:.0f}-{high:.0f}", speedup).rstrip())
        if self.cold:
            alone = Speedup.between(self.seconds[TAR_BYTES], self.seconds[FOLDER_BYTES])
            lines.append(f"bytes alone, without decoding: tar is {alone} times as fast as the folder")
        return "\n".join(lines)


class NextBatches:
    """Batches of seeded indices; each iteration continues where the last one ended, and wraps around at the end.

    Args:
        images: Number of images of the data set.
        batches: Number of batches of one iteration.
    """

    def __init__(self, images: int, batches: int) -> None:
        self.order = np.random.default_rng(0).permutation(images)
        self.batches, self.position = batches, 0

    def __iter__(self) -> Iterator[list[SeededIndex]]:
        """Yield the next ``batches`` batches."""
        for _ in range(self.batches):
            positions = range(self.position, self.position + LOADING_BATCH)
            self.position += LOADING_BATCH
            yield [SeededIndex(int(self.order[i % len(self.order)]), seed_of(0, i)) for i in positions]


class ImageBytes:
    """The files of the images of a data set, neither decoded nor augmented.

    Args:
        dataset: Our data set.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitems__(self, indices: Sequence[int]) -> list[bytes]:
        self.dataset.read_ahead(indices)
        return [read_image_bytes(self.dataset.get_data_info(index)["img_path"]) for index in indices]


class OpenedFiles:
    """A reader for timm's data set: the files of our data set, opened."""

    def __init__(self, dataset: BaseDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        info = self.dataset.get_data_info(int(index))
        return open(info["img_path"], "rb"), info["gt_label"]


class PillowFiles:
    """The files of our data set, read as torchvision reads them and transformed to uint8 tensors (3, H, W)."""

    def __init__(self, dataset: BaseDataset, transform: Callable[[Image.Image], Tensor]) -> None:
        self.dataset, self.transform = dataset, transform

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        info = self.dataset.get_data_info(int(index))
        return self.transform(pil_loader(info["img_path"])), info["gt_label"]


def measure_loading(cfg: Config, peers: Sequence[str], workers: int, rounds: int, cold: bool = False) -> LoadingResult:
    """Compare our images with timm's, then time all sides.

    Args:
        cfg: Resolved config of a classifier.
        peers: Names out of ``LOADING_PEERS``, or ``storage``: the same images in shards, and libraries that read these.
        workers: Number of worker processes, 0 to read in this process.
        rounds: Number of turns of each side.
        cold: Whether the files leave the page cache before each turn.

    Raises:
        ConfigError: If the config does not train a classifier on images in folders.
        MismatchError: If our images are not timm's.
    """
    settings = training_settings(cfg)
    threads, cv_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        with tempfile.TemporaryDirectory() as folder, DefaultScope.overwrite_default_scope(cfg.default_scope):
            dataset = DATASETS.build(cfg.train_dataloader.dataset)
            difference = compare_augmentation(dataset, settings)
            collate = cfg.train_dataloader.collate_fn
            ours = (FaultTolerantDataset(dataset, folder), FUNCTIONS.get(collate.get("collate", collate["type"])))
            sides = {OUR_SIDE: ours, **peer_data(dataset, settings, peers)}
            batches = max(workers * BATCHES_PER_WORKER, 1)
            if cold:  # fewer would show what readers have in memory from the turn before
                batches = min(COLD_BATCHES, max(len(dataset) // LOADING_BATCH, 1))
            steps = {name: reading_step(*side, len(dataset), batches, workers) for name, side in sides.items()}
            files: dict[str, list[str]] = {}
            if STORAGE in peers:
                steps |= storage_steps(cfg, dataset, ours[1], settings, Path(folder), batches)
                if cold:
                    tar = DATASETS.build(stored_settings(cfg, Path(folder, "wds")))
                    for name, data in ((FOLDER_BYTES, dataset), (TAR_BYTES, tar)):
                        steps[name] = reading_step(ImageBytes(data), len, len(data), batches, 0)
                files = side_files(dataset, Path(folder), steps)
            for one in steps.values():
                one()
            # What other processes do meanwhile costs time, but not a core's own.
            clock = time.perf_counter if workers or cold else time.process_time
            taken = cold_turns(steps, files, rounds) if cold else take_turns(steps, rounds, clock=clock)
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(cv_threads)
    per_image = max(workers, 1) / (batches * LOADING_BATCH)
    found = {name: tuple(one * per_image for one in seconds) for name, seconds in taken.items()}
    sizes, names = _mean_size(dataset), cold and forget_names()
    return LoadingResult(len(dataset), *sizes, workers, difference, loading_environment(), found, cold, names)


def training_settings(cfg: Config) -> dict[str, Any]:
    """Arguments of the training pipeline's ``ClassificationTransform``.

    Raises:
        ConfigError: If the pipeline is another one.
    """
    pipeline = cfg.get("train_dataloader", {}).get("dataset", {}).get("pipeline", [])
    if [one.get("type") for one in pipeline] != ["ClassificationTransform"] or not pipeline[0].get("training"):
        raise ConfigError("train_pipeline: one ClassificationTransform with training=True is what can be measured here")
    return {key: value for key, value in pipeline[0].items() if key not in ("type", "training", "crop_ratio")}


def reading_step(
    data: Any, collate: Callable[..., Any], images: int, batches: int, workers: int
) -> Callable[[], object]:
    """A step that reads the next batches of a data set of so many images, in the same order for all sides."""
    order: Any = NextBatches(images, batches)
    loader: DataLoader = DataLoader(
        data, batch_sampler=order, num_workers=workers, collate_fn=collate, persistent_workers=workers > 0
    )
    return lambda: deque(loader, maxlen=0)


def peer_data(dataset: BaseDataset, settings: dict[str, Any], peers: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """Data set and collate function of each peer and variant, by name."""
    found: dict[str, tuple[Any, Any]] = {}
    if "timm" in peers:
        timm_data = ImageDataset("", reader=OpenedFiles(dataset), transform=timm_transform(**settings))
        found["timm"] = (timm_data, fast_collate)
    if "torchvision" in peers:
        for name, on_tensors in (("torchvision", False), ("torchvision, v2 on tensors", True)):
            found[name] = (PillowFiles(dataset, torchvision_transform(on_tensors, **settings)), default_collate)
    return found


def timm_transform(
    size: int,
    rand_augment: str | None = None,
    scale: tuple[float, float] = (0.08, 1.0),
    flip: float = 0.5,
    color_jitter: float = 0.0,
) -> Any:
    """timm's own transform with the settings of ours, returning uint8 images as for its prefetcher."""
    transform: Any = create_transform(
        size,
        is_training=True,
        use_prefetcher=True,
        auto_augment=rand_augment,
        color_jitter=0.0,
        interpolation="bicubic",
        scale=scale,
        hflip=flip,
    )
    for op in (op for one in transform.transforms for op in getattr(one, "ops", ())):
        if op.aug_fn is auto_augment.posterize:
            op.aug_fn = _posterize
    if color_jitter:
        transform.transforms.insert(-1, transforms.ColorJitter(*[color_jitter] * 3))  # left out beside RandAugment
    return transform


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """timm's operation; with Pillow 12 or newer it raises an error where no bit is left."""
    return ImageOps.posterize(image, bits) if bits else image.point([0] * 256 * len(image.getbands()))


def torchvision_transform(
    on_tensors: bool,
    size: int,
    rand_augment: str | None = None,
    scale: tuple[float, float] = (0.08, 1.0),
    flip: float = 0.5,
    color_jitter: float = 0.0,
) -> Callable[[Image.Image], Tensor]:
    """The transform of torchvision's reference training, returning uint8 images.

    Its RandAugment applies both operations always, timm's each in half of the images.
    """
    make: Any = v2 if on_tensors else transforms
    steps = [
        make.RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC, antialias=True),
        make.RandomHorizontalFlip(flip),
        *([make.RandAugment(magnitude=9, interpolation=InterpolationMode.BILINEAR)] if rand_augment else []),
        *([make.ColorJitter(*[color_jitter] * 3)] if color_jitter else []),
    ]
    convert = [make.PILToTensor()]
    whole: Callable[[Image.Image], Tensor] = make.Compose(convert + steps if on_tensors else steps + convert)
    return whole


def storage_steps(
    cfg: Config,
    dataset: BaseDataset,
    collate: Callable[..., Any],
    settings: dict[str, Any],
    folder: Path,
    batches: int,
) -> dict[str, Callable[[], object]]:
    """Steps that read as many batches from shards and by the libraries that read these.

    Args:
        cfg: Resolved config of a classifier.
        dataset: Its training data, class folders.
        collate: Collate function of our sides.
        settings: Arguments of the transform.
        folder: Folder for the shards.
        batches: Number of batches of a step.
    """
    transform = timm_transform(**settings)
    sides = {name: (FaultTolerantDataset(data, folder), collate) for name, data in storage_data(cfg, folder).items()}
    sides["torchvision, ImageFolder"] = (image_folder(cfg, transform), fast_collate)
    steps = {name: reading_step(*side, len(dataset), batches, 0) for name, side in sides.items()}
    for name, stream in streams(folder, dataset, transform, fast_collate, LOADING_BATCH).items():
        steps[name] = _next_of(stream, batches)
    return steps


def _next_of(stream: Iterator[Any], batches: int) -> Callable[[], object]:
    return lambda: deque(islice(stream, batches), maxlen=0)


def side_files(dataset: BaseDataset, folder: Path, sides: Iterable[str]) -> dict[str, list[str]]:
    """Files that each side reads.

    Args:
        dataset: Our data set of class folders.
        folder: Folder of the shards.
        sides: Names of the sides.
    """
    images = [str(dataset.get_data_info(index)["img_path"]) for index in range(len(dataset))]
    shards = {
        "ours, tar": "wds",
        TAR_BYTES: "wds",
        "ours, parquet": "parquet",
        "webdataset": "wds",
        "litdata": "litdata",
    }
    found = {name: folder / shards[name] for name in sides if name in shards}
    return {name: [str(one) for one in found[name].iterdir()] if name in found else images for name in sides}


def cold_turns(
    steps: Mapping[str, Callable[[], object]], files: Mapping[str, Sequence[str]], rounds: int
) -> dict[str, tuple[float, ...]]:
    """Elapsed seconds of one step of each side in each round, its files not in memory, see :func:`forget_names`.

    Args:
        steps: Steps by name.
        files: Files that each of them reads.
        rounds: Number of turns of each.
    """
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            forget(files[name])
            forget_names()
            begin = time.perf_counter()
            step()
            taken[name].append(time.perf_counter() - begin)
    return {name: tuple(seconds) for name, seconds in taken.items()}


def compare_augmentation(dataset: BaseDataset, settings: dict[str, Any]) -> float:
    """Mean difference of our images from timm's under the same random states, in levels of 255.

    Raises:
        MismatchError: If the augmentation differs.
    """
    theirs = timm_transform(**settings)
    differences = []
    for i in range(min(COMPARED_IMAGES, len(dataset))):
        index, seed = i * len(dataset) // COMPARED_IMAGES % len(dataset), seed_of(1, i)
        with seeded(seed):
            ours = dataset[index]["inputs"]
        with seeded(seed):
            other = theirs(pil_loader(dataset.get_data_info(index)["img_path"]))
        differences.append(float((ours.int() - other.int()).abs().float().mean()))
    difference = statistics.mean(differences)
    if difference > LEVEL_TOLERANCE:
        raise MismatchError(
            f"our images differ from timm's by {difference:.1f} levels in the mean "
            f"(allowed: {LEVEL_TOLERANCE}); nothing was measured"
        )
    return difference


def _mean_size(dataset: BaseDataset) -> tuple[float, float]:
    """Mean megapixels and kilobytes of an image, over a sample of the files."""
    pixels, size = [], []
    for index in NextBatches(len(dataset), 1).order[:MEASURED_FILES]:
        path = dataset.get_data_info(int(index))["img_path"]
        with open(path, "rb") as file, Image.open(file) as image:
            pixels.append(image.width * image.height)
            size.append(file.seek(0, 2))
    return statistics.mean(pixels) / 1e6, statistics.mean(size) / 1e3


def loading_environment() -> dict[str, str]:
    """Device, versions and date, in words."""
    packages = ("torch", "torchvision", "timm", "Pillow")
    return {
        "device": f"{cpu_name()}, one thread per process",
        "versions": ", ".join(f"{package} {version(package)}" for package in packages)
        + f", OpenCV {cv2.__version__}, Pillow's libjpeg-turbo {features.version_feature('libjpeg_turbo')}",
        "date": date.today().isoformat(),
    }
