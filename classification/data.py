"""Folder data sets, one folder per class as in ImageNet, and the paper's augmentation."""

from __future__ import annotations

import math
import os
import random
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, TRANSFORMS
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision.transforms import ColorJitter, InterpolationMode, functional

from backbones.channels import stated_channels
from backbones.errors import ConfigError, DataError
from backbones.files import read_text_file
from classification import augment
from classification.decode import Crop, read_crop, read_rgb
from classification.hold_out import HoldOut
from classification.stored import StoredSamples, stored_samples
from engine.config.schema import is_whole
from engine.data.image_files import IMAGE_SUFFIXES, image_suffixes, read_bands
from engine.data.paths import is_hidden, list_files
from engine.data.shards import ShardLayout, find_shards

BICUBIC = InterpolationMode.BICUBIC
CROP_ASPECT_RATIOS = (3 / 4, 4 / 3)  # range of width over height of the random crop
LOG_ASPECT_RATIOS = (math.log(CROP_ASPECT_RATIOS[0]), math.log(CROP_ASPECT_RATIOS[1]))
CROP_ATTEMPTS = 10  # until a random crop lies in the image
NUMPY_SIDE = 64  # pixels, up to which NumPy separates channels faster than OpenCV


@DATASETS.register_module()
class FolderDataset(BaseDataset):
    """Images in ``data_root/<split>/<class>/``, at any depth below the class folder and behind links, or in shards.

    Args:
        data_root: Folder of the data set; or of shards, or a list of these, see
            :func:`engine.data.shards.find.find_shards`. The same images give the same samples in the same order.
        split: Sub-folder, such as ``train`` or ``val``; ``.`` for none.
        metainfo: ``classes`` lists the class names; a label is a position in this list.
        pipeline: Configs of the transforms; the first one receives ``img_path`` and ``gt_label``.
        every: Use every n-th image of each class, in sorted order, for studies on a part of the data.
        test_mode: Allow classes without a folder or images, as in a small validation set.
        ann_file: Text file with a line ``<class>/<image>`` for each image to use, in ``data_root`` unless its path is
            absolute; the other images of the folders do not count. All of them without it.
        hold_out: Hold out one in so many images of each class for validation, at random; 0 for none.
        held_out: Whether these are the images held out, not the others.
        hold_out_seed: Seed of the choice.
        shard_cache: Cache of the shards of a store, see :meth:`engine.data.stores.cache.ShardCache.of`.

    Raises:
        ConfigError: If ``every`` is no positive number.
        DataError: If the folders and the classes differ, or a class has no image; in test mode, if none has one or a
            folder is no class. Or if ``ann_file`` names an image that is not there.
    """

    def __init__(
        self,
        data_root: str | Sequence[str],
        split: str,
        metainfo: dict[str, Any],
        pipeline: list[dict[str, Any]],
        every: int = 1,
        test_mode: bool = False,
        ann_file: str = "",
        hold_out: int = 0,
        held_out: bool = False,
        hold_out_seed: int = 0,
        shard_cache: dict[str, Any] | None = None,
    ) -> None:
        if not is_whole(every, 1):
            raise ConfigError(f"dataset.every={every}: 10 takes every tenth image of a class, 1 takes all")
        self.hold_out = HoldOut(hold_out, held_out, hold_out_seed)
        self.split, self.every, self.suffixes = split, every, image_suffixes(stated_channels(pipeline))
        shards = find_shards(data_root, split, shard_cache) if data_root else None
        if shards is not None and ann_file:
            raise ConfigError(f"dataset.ann_file={ann_file!r}: a list of images is for class folders, not for shards")
        self.shards = shards
        settings: dict[str, Any] = {"pipeline": pipeline, "test_mode": test_mode, "serialize_data": shards is None}
        super().__init__(ann_file, metainfo, "" if shards is not None else data_root, **settings)
        self.data_root = data_root

    def load_data_list(self) -> Sequence[dict[str, Any]]:
        """List the images in sorted order, with their labels."""
        if self.shards is not None:
            return stored_samples(self.shards, self.metainfo["classes"], self.every, self.test_mode, self.hold_out)
        root = Path(str(self.data_root)) / self.split
        if not root.is_dir():
            raise DataError(f"no image folder {str(root)!r}: put the classes' folders there, or set data_root")
        classes = self.metainfo["classes"]
        if difference := folder_difference(root, classes, self.test_mode):
            raise DataError(f"{str(root)!r}: {difference}: {folder_fix(root)}")
        samples, folders = [], class_folders(root, classes)
        images_of = {
            name: sorted(list_images(root / name, suffixes=self.suffixes)) for name in classes if name in folders
        }
        if self.ann_file:
            images_of, absent = keep_listed(images_of, self.ann_file, root)
            if absent:
                raise DataError(f"{self.ann_file}: {absent[0]!r} is no image of a class in {str(root)!r}")
        for label, name in enumerate(classes):
            images = self.hold_out.choose(images_of.get(name, []), name)
            if not images and not self.test_mode:
                raise DataError(f"{str(root / name)!r} holds no image ({', '.join(self.suffixes)})")
            samples += [{"img_path": image, "gt_label": label} for image in images[:: self.every]]
        if not samples:
            raise DataError(f"{str(root)!r} holds no image of any class ({', '.join(self.suffixes)})")
        return samples

    def shard_layout(self) -> ShardLayout:
        """Where the images lie, for :class:`engine.data.block_shuffle.BlockShuffleSampler`.

        Raises:
            ConfigError: If they lie in folders.
        """
        self.full_init()
        if not isinstance(self.data_list, StoredSamples):
            raise ConfigError("BlockShuffleSampler is for images in shards; DefaultSampler shuffles those in folders")
        return self.data_list.layout()

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """Path and label of a sample; those in shards are made when they are asked for, and need no copy."""
        if not isinstance(self.data_list, StoredSamples):
            info: dict[str, Any] = super().get_data_info(idx)
            return info
        return {**self.data_list[idx], "sample_idx": int(idx) if idx >= 0 else len(self) + int(idx)}

    def read_ahead(self, indices: Sequence[int]) -> None:
        """Have the system begin to read the images of a batch, where they lie in shards on a disk."""
        if isinstance(self.data_list, StoredSamples):
            self.data_list.read_ahead(indices)

    def get_cat_ids(self, idx: int) -> list[int]:
        """Label of an image in a list, for mmengine's ``ClassBalancedDataset``."""
        return [self.get_data_info(idx)["gt_label"]]


def class_folders(root: Path, classes: Sequence[str]) -> set[str]:
    """Names of the folders directly under ``root``, without hidden folders and dangling or circular symbolic links.

    Args:
        root: Folder of a split.
        classes: Class names of the config; the folder of a class may be hidden.
    """
    names = (name for name in os.listdir(root) if name in classes or not is_hidden(name))
    return {name for name in names if os.path.isdir(os.path.join(root, name))}


def folder_difference(root: Path, classes: Sequence[str], test_mode: bool = False) -> str | None:
    """Description of the difference between class folders and classes, ``None`` if there is none.

    Args:
        root: Folder of a split.
        classes: Class names of the config.
        test_mode: Allow classes without a folder, as long as there is one of another class.
    """
    folders = class_folders(root, classes)
    absent, unknown = sorted(set(classes) - folders), sorted(folders - set(classes))
    if test_mode and len(absent) < len(classes):
        absent = []
    if not absent and not unknown:
        return None
    counts = f"{len(folders)} class folders, {len(classes)} classes in the config"
    return f"{counts}; " + (f"no folder {absent[0]!r}" if absent else f"folder {unknown[0]!r} is not in classes")


def folder_fix(root: Path) -> str:
    """What to do about class folders that are not the classes; without any, images can still be predicted on.

    Args:
        root: Folder of a split.
    """
    if class_folders(root, ()) or not any(name.lower().endswith(IMAGE_SUFFIXES) for name in os.listdir(root)):
        return "set classes to the folders' names"
    return (
        "its images have no labels to compare with: predict them by tools/predict.py CONFIG CHECKPOINT "
        f"{shlex.quote(str(root))} --format csv, or put them into class folders"
    )


def list_images(
    folder: Path,
    others: list[str] | None = None,
    unreadable: list[OSError] | None = None,
    hidden: list[str] | None = None,
    suffixes: tuple[str, ...] = IMAGE_SUFFIXES,
) -> list[str]:
    """Paths of the images in a folder, at any depth and behind links, unsorted, without hidden files and folders.

    Args:
        folder: Folder to search.
        others: List that receives the paths of files without an image suffix.
        unreadable: List that receives the errors of folders that cannot be read.
        hidden: List that receives the paths of hidden files and folders.
        suffixes: Suffixes of images, in lower case.
    """
    files = list_files(str(folder), [] if hidden is None else hidden, unreadable)
    if others is not None:
        others += [path for path in files if not path.lower().endswith(suffixes)]
    return [path for path in files if path.lower().endswith(suffixes)]


def keep_listed(
    images: Mapping[str, Sequence[str]], ann_file: str, root: Path
) -> tuple[dict[str, list[str]], list[str]]:
    """The images that a list names, and its lines that name none.

    Args:
        images: Paths of the images by class.
        ann_file: Text file with a line ``<class>/<image>`` for each image.
        root: Folder of the class folders.

    Raises:
        DataError: If there is no such file, or it is no text in UTF-8.
    """
    if not Path(ann_file).is_file():
        raise DataError(f"{ann_file!r} is no file with a line <class>/<image> for each image")
    try:
        lines = {line.strip() for line in read_text_file(ann_file).splitlines()} - {""}
    except UnicodeError as error:
        raise DataError(f"{ann_file!r} is no text in UTF-8") from error
    kept = {
        name: [path for path in paths if Path(path).relative_to(root).as_posix() in lines]
        for name, paths in images.items()
    }
    found = {Path(path).relative_to(root).as_posix() for paths in kept.values() for path in paths}
    return kept, sorted(lines - found)


@TRANSFORMS.register_module()
class ClassificationTransform:
    """Load ``img_path`` as ``inputs``, a uint8 tensor ``(3, size, size)`` that the model normalises on its device.

    With a number of ``channels`` it is a float32 tensor ``(channels, size, size)`` with the values of the file.

    Args:
        size: Side of the network's input in pixels.
        training: Whether to use random resized crop, flip and RandAugment in place of the centre crop.
        rand_augment: timm's policy string; ``rand-m9-mstd0.5-inc1`` is (9, 0.5) in Table 5 of the paper.
        crop_ratio: Fraction of the resized image that the crop keeps (0.875 at 224). With 1.0 nothing is cut off:
            the image is resized to the square, whatever its shape, as the released code does at 384.
        scale: Range of the random crop's area, as fractions of the image.
        flip: Probability of a horizontal flip.
        color_jitter: Strength of random changes of brightness, contrast and saturation, after RandAugment; 0 for none.
        channels: Number of channels; ``None`` for colours, which RandAugment and the jitter need.

    Raises:
        ConfigError: If a number is out of range, or colours are changed where there are none.
    """

    def __init__(
        self,
        size: int,
        training: bool = False,
        rand_augment: str | None = None,
        crop_ratio: float = 0.875,
        scale: tuple[float, float] = (0.08, 1.0),
        flip: float = 0.5,
        color_jitter: float = 0.0,
        channels: int | None = None,
    ) -> None:
        if channels is not None and (rand_augment or color_jitter):
            raise ConfigError("ClassificationTransform.channels: rand_augment and color_jitter are for colours")
        for name, value, valid, expected in (
            ("size", size, is_whole(size, 1), "a whole number from 1 up"),
            ("crop_ratio", crop_ratio, 0 < crop_ratio <= 1, "a fraction above 0, 1 at most"),
            ("scale", scale, len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1, "two fractions of the area, in order"),
            ("flip", flip, 0 <= flip <= 1, "a probability"),
            ("color_jitter", color_jitter, 0 <= color_jitter < math.inf, "a number from 0 up"),
        ):
            if not valid:
                raise ConfigError(f"ClassificationTransform.{name}={value!r}: {expected} is needed")
        self.load: Callable[[str], Tensor]
        if channels is not None:
            self.load = BandsCrop(size, channels, training, crop_ratio, scale, flip)
        elif training:
            self.load = AugmentedCrop(size, rand_augment, scale, flip, color_jitter)
        else:
            self.load = CenterCrop(size, crop_ratio)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Load, transform and pack one image.

        Raises:
            DamagedImageError: If the file cannot be decoded.
        """
        pixels = self.load(sample["img_path"])
        return {"inputs": pixels, "label": sample.get("gt_label", -1), "img_path": sample["img_path"]}


class CenterCrop:
    """Loads the centre crop of an image file with Pillow's resampling, as for the paper's numbers.

    Args:
        size: Side of the output in pixels.
        crop_ratio: Fraction of the resized image that is kept.
    """

    def __init__(self, size: int, crop_ratio: float) -> None:
        self.transform = create_transform(
            input_size=size,
            use_prefetcher=True,  # ends with uint8 tensors
            interpolation="bicubic",
            crop_pct=crop_ratio,
            crop_mode="squash" if crop_ratio == 1.0 else "center",
        )

    def __call__(self, path: str) -> Tensor:
        """Load an image file as ``(3, size, size)``, uint8."""
        pixels: Tensor = self.transform(read_rgb(path))
        return pixels


def random_crop(picture: Tensor, scale: tuple[float, float]) -> Crop:
    """Random crop of an image ``(C, H, W)``, of at least one pixel, where timm's may be empty.

    The random numbers and the crop are those of timm's ``RandomResizedCropAndInterpolation.get_params``, which takes
    as long as reading a small image.
    """
    _, rows, columns = picture.shape
    for _ in range(CROP_ATTEMPTS):
        area = random.uniform(*scale) * (rows * columns)
        aspect = math.exp(random.uniform(*LOG_ASPECT_RATIOS))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if width <= columns and height <= rows:
            top, left = random.randint(0, rows - height), random.randint(0, columns - width)
            break
    else:  # the largest part of such a shape in the middle
        low, high = CROP_ASPECT_RATIOS
        width, height = min(columns, round(rows * high)), min(rows, round(columns / low))
        top, left = (rows - height) // 2, (columns - width) // 2
    height, width = max(height, 1), max(width, 1)
    return min(top, rows - height), min(left, columns - width), height, width


class BandsCrop:
    """Loads a crop of an image of any number of channels: a random one, flipped at random, or the centre.

    Args:
        size: Side of the output in pixels.
        channels: Number of channels.
        training: Whether the crop is random.
        crop_ratio: Fraction of the resized image that the centre crop keeps; 1.0 resizes the whole image to the square.
        scale: Range of the random crop's area, as fractions of the image.
        flip: Probability of a horizontal flip.
    """

    def __init__(
        self, size: int, channels: int, training: bool, crop_ratio: float, scale: tuple[float, float], flip: float
    ) -> None:
        self.size, self.channels, self.training = size, channels, training
        self.crop_ratio, self.scale, self.flip = crop_ratio, scale, flip

    def __call__(self, path: str) -> Tensor:
        """Load an image file as ``(channels, size, size)``, float32."""
        image = read_bands(path, self.channels)
        pixels = torch.from_numpy(image.reshape(*image.shape[:2], self.channels)).permute(2, 0, 1).float()
        if self.training:
            crop = functional.resized_crop(pixels, *random_crop(pixels, self.scale), self.square, BICUBIC)
            return functional.hflip(crop) if torch.rand(1) < self.flip else crop
        if self.crop_ratio == 1.0:
            return functional.resize(pixels, self.square, BICUBIC)
        resized = functional.resize(pixels, [math.floor(self.size / self.crop_ratio)], BICUBIC)
        return functional.center_crop(resized, self.square)

    @property
    def square(self) -> list[int]:
        """Height and width of the output."""
        return [self.size, self.size]


class AugmentedCrop:
    """Loads a random crop of an image file, flipped and augmented with the same random choices as in timm's loader.

    Args:
        size: Side of the output in pixels.
        rand_augment: timm's policy string, ``None`` for no RandAugment.
        scale: Range of the crop's area, as fractions of the image.
        flip: Probability of a horizontal flip.
        color_jitter: Strength of the colour jitter, 0 for none.
    """

    def __init__(
        self,
        size: int,
        rand_augment: str | None,
        scale: tuple[float, float],
        flip: float,
        color_jitter: float,
    ) -> None:
        self.size, self.scale, self.flip = size, scale, flip
        self.augment = augment.rand_augment(rand_augment) if rand_augment else None
        self.jitter = augment.PillowOp(ColorJitter(*[color_jitter] * 3)) if color_jitter else None

    def choose_crop(self, picture: Tensor) -> Crop:
        """Random crop of an image ``(3, H, W)``."""
        return random_crop(picture, self.scale)

    def __call__(self, path: str) -> Tensor:
        """Load an image file as ``(3, size, size)``, uint8, contiguous, which is fast to collate."""
        picture = read_crop(path, self.choose_crop, self.size)
        if self.flip and torch.rand(1) < self.flip:
            picture = cv2.flip(picture, 1)
        for change in (self.augment, self.jitter):
            picture = change(picture) if change else picture
        if self.size <= NUMPY_SIDE:
            return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
        planes = np.empty((3, self.size, self.size), np.uint8)
        cv2.split(picture, list(planes))
        return torch.from_numpy(planes)
