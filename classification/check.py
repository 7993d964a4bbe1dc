"""Data check of folders of class folders."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from backbones.errors import DataError, nearest
from classification.class_lists import describe_classes
from classification.data import FolderDataset, class_folders, folder_difference, folder_fix, keep_listed, list_images
from classification.decode import read_rgb
from classification.hold_out import HoldOut
from classification.model import MAX_BYTE
from classification.stored import StoredSamples, describe_shards, match_classes, stored_difference
from engine.data.block_shuffle import DEFAULT_OPEN_SHARDS, BlockShuffleSampler, label_mixing
from engine.data.checker import DATA_CHECKERS, PILLOW_MAX_PIXELS, DataFile, DatasetChecker
from engine.data.image_files import ImageInfo, image_suffixes, read_bands
from engine.data.network_input import NetworkInput
from engine.data.orientation import Size
from engine.data.paths import hidden_note, is_hidden
from engine.data.shards import Shards, find_shards, open_table

MAX_LISTED_IMAGES = 500_000  # images in shards of a split, unless all are checked: their paths take 0.3 GB
MAX_FETCHED_SHARDS = 4  # of a store, unless all are checked
MIN_CLASS_IMAGES = 2  # fewer training images of a class are worth a warning


class SquareInput(NetworkInput):
    """The way of images to a classifier: :class:`~classification.data.ClassificationTransform` makes squares."""

    def after_pipeline(self, size: Size, seed: int = 0) -> Size:
        """Width and height after the transforms, whatever those of the image are."""
        sides = [step["size"] for step in self.dataset.pipeline if "size" in step]
        return sides[-1], sides[-1]


def report_unread(checker: DatasetChecker, others: Sequence[str], unreadable: Sequence[OSError]) -> None:
    """Report what :func:`classification.data.list_images` has not read: files without an image suffix, and folders."""
    for error in unreadable:
        checker.error("unreadable folder", str(error.filename), f"cannot be read: {error.strerror}", "grant access")
    for path in others:
        checker.warn("no image by its name", path, "is not read", "convert it to JPEG or PNG, or remove it")


@DATA_CHECKERS.register(FolderDataset)
class FolderChecker(DatasetChecker):
    """Checks a :class:`~classification.data.FolderDataset`: its folders against the classes, and its images."""

    max_pixels = PILLOW_MAX_PIXELS

    @cached_property
    def network_input(self) -> NetworkInput:
        """The way of the images to the network."""
        return SquareInput(self.cfg, self.dataset, self.split == "train", self.blank_annotations)

    def read_size(self, path: str, role: str = "image") -> Size:
        """Width and height of an image file as :class:`~classification.data.ClassificationTransform` reads it."""
        return read_rgb(path).size if self.channels is None else read_bands(path, self.channels).shape[1::-1]

    def pixel_statistics(self) -> tuple[float, float]:
        """Largest mean and deviation by which :class:`~classification.model.ImageClassifier` normalises pixels."""
        settings: dict[str, Any] = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "max_value": MAX_BYTE}
        settings |= self.cfg.model.get("data_preprocessor") or {}
        return max(settings["mean"]) * settings["max_value"], max(settings["std"]) * settings["max_value"]

    def list_files(self) -> list[DataFile]:
        """Compare folders, or the labels of shards, with classes, and list the images."""
        classes = self.dataset.metainfo["classes"]
        self._class_and_path_by_digest: dict[int, tuple[str, str]] = {}
        self._test_mode = self.dataset.get("test_mode", False)
        shards = find_shards(self.dataset.data_root, self.dataset.split, self.dataset.get("shard_cache"))
        if shards is not None:
            return self._list_stored(shards, classes)
        root = Path(self.dataset.data_root) / self.dataset.split
        if not root.is_dir():
            self.error("folder", str(root), "is no folder", "put the classes' folders there, or set data_root")
            return []
        if difference := folder_difference(root, classes, self._test_mode):
            self._report_difference(root, classes, difference)
        if len(classes) == 1 and self.split == "train":
            problem = f"there is one class, {classes[0]!r}: nothing to tell apart"
            self.error("one class", str(root), problem, "put each class into a folder of its own")
        names = sorted(os.listdir(root))
        self._hidden = [os.path.join(root, name) for name in names if is_hidden(name) and name not in classes]
        for path in (os.path.join(root, name) for name in names if not is_hidden(name)):
            if os.path.isfile(path):
                problem = "lies beside the class folders and is not read"
                self.warn("loose file", path, problem, "move it into one of them")
        every = self.dataset.get("every", 1)
        folders = class_folders(root, classes)
        if self._test_mode and folders & set(classes):
            for name in sorted(set(classes) - folders):
                self._warn_unscored(root, name)
        images = {name: self._list_class(root, name) for name in classes if name in folders}
        if listed := self.dataset.get("ann_file"):
            images = self._keep_listed(images, os.path.join(self.dataset.data_root, listed), root)
        images = {name: list(self._hold_out.choose(paths, name)) for name, paths in images.items()}
        for name, paths in images.items():
            self._check_number(root, name, len(paths))
        files = [DataFile(path, key=name) for name, paths in images.items() for path in paths[::every]]
        if known := describe_classes(classes if folders == set(classes) else sorted(folders)):
            self.notes.append(f"the {self.split} data: the class folders of {str(root)!r} are {known}")
        if self._test_mode and folders & set(classes) and not files:
            self.error("no images", str(root), "holds no image of any class", "bring the images")
        self.notes += hidden_note(f"the {self.split} data", self._hidden)
        return files

    @property
    def _hold_out(self) -> HoldOut:
        keys = {"hold_out": "one_in", "held_out": "held", "hold_out_seed": "seed"}
        return HoldOut(**{ours: self.dataset[key] for key, ours in keys.items() if key in self.dataset})

    def _list_stored(self, shards: Shards, classes: Sequence[str]) -> list[DataFile]:
        """Images of shards; of very many a part, spread evenly, unless all are to be checked.

        Raises:
            DataError: If a shard is damaged or contradicts another.
        """
        table, every = open_table(shards), self.dataset.get("every", 1)
        found = match_classes(table, classes)
        if difference := stored_difference(found, classes, self._test_mode):
            self.error("classes", shards.place, difference, "set classes to those of the shards")
        if len(classes) == 1 and self.split == "train":
            problem = f"there is one class, {classes[0]!r}: nothing to tell apart"
            self.error("one class", shards.place, problem, "add images of another class")
        names = [name for name in classes if name in found]
        for name in names:
            self._check_number(Path(shards.place), name, len(found[name]))
        for name in classes if self._test_mode and names else ():
            if name not in found:
                self._warn_unscored(Path(shards.place), name)
        chosen_rows = [self._hold_out.choose(found[name], name)[::every] for name in names]
        images = StoredSamples(table, chosen_rows, range(len(names)))
        chosen, part = self._chosen(images, shards)
        self.notes.append(
            f"the {self.split} data: {len(images):,} images in {describe_shards(shards, table, classes)}{part}"
        )
        self._check_order(images, shards)
        return [DataFile(one["img_path"], key=names[one["gt_label"]]) for one in map(images.__getitem__, chosen)]

    def _chosen(self, images: StoredSamples, shards: Shards) -> tuple[Sequence[int], str]:
        """Images to check, in the order in which to read them, and words about the others."""
        if shards.cache is not None:
            layout = images.layout()
            order = np.argsort(layout.numbers, kind="stable")
            self.in_order = True  # whole shards are fetched
            few = len(layout.shards) if self.full else MAX_FETCHED_SHARDS
            chosen = order[: np.searchsorted(layout.numbers[order], few)].tolist()
            return chosen, f", of which those of {few} shards are checked" if few < len(layout.shards) else ""
        step = 1 if self.full else max(1, math.ceil(len(images) / MAX_LISTED_IMAGES))
        return range(0, len(images), step), f", of which 1 in {step} is checked" if step > 1 else ""

    def _check_order(self, images: StoredSamples, shards: Shards) -> None:
        """Say how well a block shuffle mixes the classes, and refuse an order that fetches a shard for each image."""
        loader = self.cfg[f"{self.split}_dataloader"]
        sampler, layout = loader.get("sampler") or {}, images.layout()
        by_blocks = str(sampler.get("type")).endswith(BlockShuffleSampler.__name__)
        if by_blocks and self.split == "train" and len(images):
            shards_of_block = sampler.get("open_shards", DEFAULT_OPEN_SHARDS)
            batch = int((self.cfg.get("batch") or {}).get("size") or loader.batch_size)
            ours, uniform = label_mixing(layout, images.labels(), shards_of_block, batch)
            text = (
                f"a batch of {batch:,} has {ours:,.1f} classes on average, {uniform:,.1f} if all images were shuffled"
            )
            self.notes.append(f"the {self.split} data: in blocks of {shards_of_block} shards, {text}")
        size = sum(shard.size for shard in layout.shards if shard.cache is not None)
        if shards.cache is not None and not by_blocks and size > shards.cache.size:
            problem = (
                f"the shards have {size:,} bytes, shard_cache {shards.cache.size:,}: images in this order fetch each"
            )
            fix = f"set {self.split}_dataloader.sampler.type=BlockShuffleSampler, or a larger shard_cache.size"
            self.error("order of images", shards.place, f"{problem} shard again and again", fix)

    def _report_difference(self, root: Path, classes: tuple[str, ...], difference: str) -> None:
        folders = sorted(class_folders(root, classes))
        fix = folder_fix(root)
        self.error("classes", str(root), difference, fix)
        if not folders:
            return
        for name in sorted(set(classes) - set(folders)) if not self._test_mode else ():
            near = nearest(name, folders, 1, quoted=True)
            self.error("class without a folder", f"{root}{os.sep}{name}", f"class {name!r} has no folder{near}", fix)
        for name in sorted(set(folders) - set(classes)):
            near = nearest(name, classes, 1, quoted=True)
            self.error("folder without a class", str(root / name), f"folder {name!r} is no class{near}", fix)

    def _list_class(self, root: Path, name: str) -> list[str]:
        others: list[str] = []
        unreadable: list[OSError] = []
        images = sorted(list_images(root / name, others, unreadable, self._hidden, image_suffixes(self.channels)))
        if self.split == "train" or not self.dataset.get("ann_file"):  # else it is the folder of the training data
            report_unread(self, others, unreadable)
        return images

    def _keep_listed(self, images: dict[str, list[str]], ann_file: str, root: Path) -> dict[str, list[str]]:
        try:
            kept, absent = keep_listed(images, ann_file, root)
        except DataError as error:
            self.error("list", ann_file, str(error), "write it in UTF-8, or set ann_file")
            return {}
        for name in absent:
            problem = f"names {name!r}, which is no image of a class in {str(root)!r}"
            self.error("listed image", ann_file, problem, "bring it, or remove the line")
        return kept

    def _check_number(self, root: Path, name: str, images: int) -> None:
        if not images and self._test_mode:
            self._warn_unscored(root, name)
        elif not images:
            self.error("empty class", str(root / name), "holds no image", "bring its images, or remove it from classes")
        elif images < MIN_CLASS_IMAGES and self.split == "train":
            self.warn("small class", str(root / name), f"holds {images} image", "add examples, or drop the class")

    def _warn_unscored(self, root: Path, name: str) -> None:
        problem = f"there is no {self.split} image of class {name!r}: it is not scored"
        self.warn("class without images", f"{root}{os.sep}{name}", problem, "bring some if its score matters")

    def check_file(self, file: DataFile, info: ImageInfo) -> None:
        """Check an image, also for a copy in another class."""
        super().check_file(file, info)
        if info.problem is not None:
            return
        class_name, path = self._class_and_path_by_digest.setdefault(info.digest, (file.key, file.path))
        if class_name != file.key:
            problem = f"has the content of {path}, of class {class_name!r}"
            self.warn("one image in two classes", file.path, problem, "remove one of them")

    def finish(self, complete: bool) -> None:
        """Report where most files were skipped, as a warning for each of them is easily missed."""
        suffixes = Counter(
            os.path.splitext(finding.file)[1] or "no suffix"
            for finding in self.findings
            if finding.kind == "no image by its name"
        )
        for suffix, count in suffixes.items():
            images = len(self.path_by_real_path)
            if count > images:
                problem = f"{count:,} files with {suffix} are not read, {images:,} images are"
                self.error("images not read", str(self.dataset.data_root), problem, "convert them to JPEG or PNG")
