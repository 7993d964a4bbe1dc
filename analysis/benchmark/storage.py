"""The same training images from other storage: our reading of tar and parquet, and libraries that read shards.

What decodes and augments is ours on our sides, and Pillow with timm's transform, of equal augmentation, on the others.
"""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from PIL import Image
from torchvision.datasets import ImageFolder

from backbones.errors import ConfigError, describe_error
from backbones.packages import is_absent
from classification.make_shards import ShardSettings, make_shards
from engine.data.shards.archives import SAMPLE_IMAGES

STORAGE_PEERS = ("webdataset", "litdata")  # packages that are measured where they are installed
SHARD_BYTES = 64 * 10**6
SHUFFLED_IMAGES = 1000  # of webdataset's buffer
DROP_CACHES = Path("/proc/sys/vm/drop_caches")  # Linux, for administrators
NAMES_AND_INODES = "2"  # what is dropped when this is written there


def storage_data(cfg: Config, folder: Path) -> dict[str, Any]:
    """Our data set on tar and, with pyarrow, on parquet shards that are made of the class folders of the training data.

    Args:
        cfg: Resolved config of a classifier.
        folder: Folder for the shards.

    Raises:
        ConfigError: If the training data is no folder of class folders.
    """
    settings = cfg.train_dataloader.dataset
    root = Path(str(settings.data_root), settings.split)
    if not isinstance(settings.data_root, str) or not root.is_dir():
        raise ConfigError(f"data_root={settings.data_root!r}: storage is compared on images in class folders")
    found = {}
    for name, to in (("ours, tar", "wds"), ("ours, parquet", "parquet")):
        if to == "parquet" and is_absent("pyarrow"):
            continue
        make_shards(root, folder / to, ShardSettings(to, SHARD_BYTES))
        found[name] = DATASETS.build(stored_settings(cfg, folder / to))
    return found


def stored_settings(cfg: Config, folder: Path) -> dict[str, Any]:
    """Settings of the training data of a config, from the shards in a folder."""
    settings: dict[str, Any] = copy.deepcopy(cfg.train_dataloader.dataset)
    return settings | {"data_root": str(folder), "split": "train"}


def absent_peers() -> dict[str, str]:
    """Packages that are not measured, as they are not installed or cannot be imported, and why."""
    found = {}
    for name in STORAGE_PEERS:
        try:
            import_module(name)
        except Exception as error:  # whatever a package does when it is imported, or what it imports
            found[name] = "is not installed" if is_absent(name) else f"cannot be imported ({describe_error(error)})"
    return found


def image_folder(cfg: Config, transform: Callable[[Image.Image], Any]) -> Any:
    """torchvision's ``ImageFolder`` of the training data."""
    settings = cfg.train_dataloader.dataset
    return ImageFolder(str(Path(settings.data_root, settings.split)), transform)


def streams(
    folder: Path, dataset: BaseDataset, transform: Callable[[Image.Image], Any], collate: Callable[..., Any], batch: int
) -> dict[str, Iterator[Any]]:
    """Endless streams of batches by the packages that are installed.

    Args:
        folder: Folder in which :func:`storage_data` has made the shards.
        dataset: Our data set of the same images, as files.
        transform: Transform of an image.
        collate: Function that makes a batch of images and labels.
        batch: Images of a batch.
    """
    found: dict[str, Iterator[Any]] = {}
    absent = absent_peers()
    if "webdataset" not in absent:
        from webdataset import WebDataset

        urls = [str(path) for path in sorted((folder / "wds").glob("*.tar"))]
        samples = WebDataset(urls, shardshuffle=len(urls), empty_check=False).shuffle(SHUFFLED_IMAGES)
        found["webdataset"] = _batches(samples, partial(_of_webdataset, transform), collate, batch)
    if "litdata" not in absent:
        from litdata import StreamingDataset, optimize

        infos = [dataset.get_data_info(index) for index in range(len(dataset))]
        images, target = [(info["img_path"], info["gt_label"]) for info in infos], str(folder / "litdata")
        optimize(read_stored, images, target, chunk_bytes=SHARD_BYTES, num_workers=1)
        samples = StreamingDataset(target, shuffle=True)
        found["litdata"] = _batches(samples, partial(_of_litdata, transform), collate, batch)
    return found


def read_stored(image: tuple[str, int]) -> dict[str, Any]:
    """Content and label of an image, as litdata stores them."""
    return {"image": Path(image[0]).read_bytes(), "label": image[1]}


def _batches(samples: Any, convert: Callable[[Any], Any], collate: Callable[..., Any], batch: int) -> Iterator[Any]:
    while True:
        for chosen in batched(map(convert, samples), batch):
            yield collate(chosen)


def _of_webdataset(transform: Callable[[Image.Image], Any], sample: dict[str, Any]) -> tuple[Any, int]:
    content = next(sample[key] for key in SAMPLE_IMAGES if key in sample)
    return transform(_decoded(content)), int(sample["cls"])


def _of_litdata(transform: Callable[[Image.Image], Any], sample: dict[str, Any]) -> tuple[Any, int]:
    return transform(_decoded(sample["image"])), sample["label"]


def _decoded(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


def batched(samples: Iterable[Any], batch: int) -> Iterator[list[Any]]:
    """Lists of so many samples; the last, smaller one is left out."""
    iterator = iter(samples)
    while len(chosen := list(islice(iterator, batch))) == batch:
        yield chosen


def forget(files: Iterable[str]) -> None:
    """Have the system drop files from its page cache, so that they are read from the disk again.

    Args:
        files: Paths; what others write or map meanwhile stays.
    """
    for path in files:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def forget_names() -> bool:
    """Have the system drop the names and inodes of all files that are not open, and say whether this user may."""
    try:
        DROP_CACHES.write_text(NAMES_AND_INODES)
    except OSError:
        return False
    return True
