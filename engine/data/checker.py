"""Checker of one split of a data set: what all formats share, and the registry of the formats' own checkers.

A task registers a subclass of :class:`DatasetChecker` for a type of data set in :data:`DATA_CHECKERS`; it holds for
subclasses of the data set too.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any, Literal

from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope
from PIL import Image

from backbones.channels import stated_channels
from backbones.errors import ConfigError
from engine.config.datasets import inner_datasets
from engine.data.findings import DataFinding
from engine.data.image_files import OPENCV_MAX_PIXELS, ImageInfo, inspect_image
from engine.data.network_input import NetworkInput
from engine.data.orientation import SIDEWAYS_ORIENTATIONS, Size, applies_orientation

LARGE_IMAGE_PIXELS = 50_000_000  # larger images are worth a warning
MIN_IMAGE_SIDE = 8  # pixels; smaller images are worth a warning
# Standard deviations from the mean, and between the values of an image, that tell of mean and std for other values.
MAX_DEVIATIONS, MIN_DEVIATIONS = 50.0, 0.05
PILLOW_MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 2**29)  # Pillow refuses to decode more
DAMAGES = ("missing", "empty", "truncated", "damaged", "no", "unreadable")
DAMAGE_KINDS = tuple(f"{damage} {role}" for damage in DAMAGES for role in ("image", "labels"))
DAMAGE_FIXES = {
    "missing": "bring the file, or remove its entry",
    "unreadable": "fix its permissions or the disk",
    "no": "convert it to an image, or remove it",
    "channels": "save it with the channels of the others, remove it, or set in_channels",
}
FORMATS_BY_SUFFIX = {
    ".jpg": ("JPEG", "MPO"),
    ".jpeg": ("JPEG", "MPO"),
    ".png": ("PNG",),
    ".bmp": ("BMP", "DIB"),
    ".webp": ("WEBP",),
    ".tif": ("TIFF",),
    ".tiff": ("TIFF",),
    ".ppm": ("PPM",),
}
# Kind of warning -> problem, formatted with the ImageInfo, and fix.
PIXEL_WARNINGS = {
    "16-bit image": (
        "has {0.bits} bits per channel, of which the upper 8 are read: 10 or 12 bits in 16 become dark",
        "convert it to 8 bits with the contrast it should have",
    ),
    "other colours": (
        "has {0.mode} colours, converted without their profile",
        "convert it to RGB if its colours matter",
    ),
    "transparency": (
        "has an alpha channel: transparent parts, if any, show whatever colour lies under them",
        "put it on a background",
    ),
    "several frames": ("holds several pictures, of which the first is read", "save one"),
    "name of another format": ("is a {0.format}", "harmless; other programs may refuse it"),
    "EXIF orientation": (
        "has EXIF orientation {0.orientation}, which is not applied: it is seen as stored",
        "save it rotated and without the tag",
    ),
}


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of a data set.

    Attributes:
        path: Path of the file.
        role: ``image``, or ``labels`` for a label image.
        stated_size: Width and height in pixels that the annotations state.
        key: Identifier within the checker, such as the class, or the stem that an image shares with its labels.
    """

    path: str
    role: Literal["image", "labels"] = "image"
    stated_size: tuple[int, int] | None = None
    key: str = ""


class DatasetChecker:
    """Checks one split of a data set of any type: that it builds, and the images that it names.

    Args:
        split: ``train``, ``val`` or ``test``.
        dataset: Resolved config of the data set.
        cfg: Resolved config of the run.

    Attributes:
        findings: Problems found so far.
        channels: Number of channels that the pipeline reads; ``None`` for colour images.
        full: Whether every image is to be checked.
        in_order: Whether images are read in the order in which they are listed, not spread evenly.
        notes: Facts worth a line that are neither right nor wrong.
        path_by_digest: First image of each content, by :attr:`engine.data.image_files.ImageInfo.digest`.
        path_by_real_path: Images by the path that is comparable between splits.
    """

    max_pixels = OPENCV_MAX_PIXELS  # of an image that its reader does not refuse

    def __init__(self, split: str, dataset: ConfigDict, cfg: Config) -> None:
        self.split, self.dataset, self.cfg = split, dataset, cfg
        self.channels = stated_channels(dataset.get("pipeline"))
        self.findings: list[DataFinding] = []
        self.notes: list[str] = []
        self.full = self.in_order = False
        self.path_by_digest: dict[int, str] = {}
        self.path_by_real_path: dict[str, str] = {}

    def read_size(self, path: str, role: str = "image") -> Size:
        """Width and height of an image file as the data set's pipeline reads it."""
        step = next(iter(self.pipeline_steps(LoadImageFromFile)), {"type": "LoadCheckedImage"})
        with TRANSFORMS.switch_scope_and_registry(self.cfg.get("default_scope")) as registry:
            height, width = registry.build(step).transform({"img_path": path})["img"].shape[:2]
        return width, height

    def pixel_statistics(self) -> tuple[float, float]:
        """Largest mean and deviation by which pixels are normalised, in their units; a deviation of 0 for none."""
        settings = self.cfg.model.get("data_preprocessor") or {}
        return max(settings.get("mean") or (0,)), max(settings.get("std") or (0,))

    @cache  # noqa: B019 - a checker lives as long as its check
    def turns(self, image_format: str, role: str = "image") -> bool:
        """Whether the pipeline turns images of a format by their EXIF orientation."""
        return applies_orientation(partial(self.read_size, role=role), image_format)

    def orientation_left(self, info: ImageInfo, role: str = "image") -> int:
        """EXIF orientation that an inspected image still has after the pipeline has read it, 1 for none."""
        return 1 if info.orientation == 1 or self.turns(info.format, role) else info.orientation

    @cached_property
    def network_input(self) -> NetworkInput:
        """The way of the images to the network."""
        return NetworkInput(self.cfg, self.dataset, self.split == "train", self.blank_annotations)

    def is_used(self, size: Size) -> bool:
        """Whether the data set uses images of a width and height."""
        return True

    def blank_annotations(self, size: Size) -> dict[str, Any]:
        """What the pipeline's transforms need besides a blank picture of a width and height, loaded."""
        return {}

    def size_as_read(self, info: ImageInfo, role: str = "image") -> Size:
        """Width and height of an inspected image as the pipeline reads it."""
        sideways = info.orientation in SIDEWAYS_ORIENTATIONS
        return info.upright_size if sideways and self.turns(info.format, role) else info.size

    def pipeline_steps(self, transform_type: type) -> list[ConfigDict]:
        """Steps of the data set's pipeline that are transforms of a type or of its subclasses."""
        with TRANSFORMS.switch_scope_and_registry(self.cfg.get("default_scope")) as registry:
            steps = self.dataset.get("pipeline", [])
            return [step for step in steps if issubclass(registry.get(step["type"]) or object, transform_type)]

    def error(self, kind: str, file: str, problem: str, fix: str) -> None:
        """Add a finding that makes a training wrong or ends it; arguments as in ``DataFinding``."""
        self.findings.append(DataFinding("error", kind, self.split, str(file), problem, fix))

    def warn(self, kind: str, file: str, problem: str, fix: str) -> None:
        """Add a finding that people should know; arguments as in ``DataFinding``."""
        self.findings.append(DataFinding("warning", kind, self.split, str(file), problem, fix))

    def list_files(self) -> list[DataFile]:
        """Check everything but the images, and list these.

        Raises:
            UserError: If the data set cannot be built.
        """
        with DefaultScope.overwrite_default_scope(self.cfg.default_scope):
            built = DATASETS.build(self.dataset)
        files = []
        for index in range(len(built)):
            info = built.get_data_info(index)
            if "img_path" in info:
                files.append(DataFile(info["img_path"], key=info["img_path"]))
            if info.get("seg_map_path"):
                files.append(DataFile(info["seg_map_path"], "labels"))
        return files

    def needs_values(self, file: DataFile) -> bool:
        """Whether the pixel values of a file are class numbers to be counted."""
        return False

    def check_file(self, file: DataFile, info: ImageInfo) -> None:
        """Check one file of the data set."""
        if info.problem is not None:
            kind, problem = info.problem
            damage = kind.partition(" ")[0]
            fix = DAMAGE_FIXES.get(damage, "copy it again, or remove it")
            self.error(f"{damage} {file.role}", file.path, problem, fix)
            return
        if file.role == "image":
            self.path_by_digest.setdefault(info.digest, file.path)
            self._check_size(file, info)
            self._check_pixels(file, info)

    def image_errors(self, path: str) -> list[DataFinding]:
        """Errors of one image file by itself, which is decoded: damage, or a size that is refused."""
        before = len(self.findings)
        DatasetChecker.check_file(self, DataFile(path), inspect_image(path, True, channels=self.channels))
        return [finding for finding in self.findings[before:] if finding.level == "error"]

    def finish(self, complete: bool) -> None:
        """Check what only all files together show; ``complete`` if all were inspected and all values counted."""

    def check_turned(self, path: str, info: ImageInfo) -> None:
        """Warn of an image that is turned without a change of its size: its annotations may be of the stored one."""
        if info.orientation != self.orientation_left(info) and info.size == info.upright_size:
            problem = f"is turned by its EXIF orientation {info.orientation}; its size does not tell if its annotations"
            self.warn("turned image", path, f"{problem} are", "look at one; save images as annotated, without the tag")

    def _check_size(self, file: DataFile, info: ImageInfo) -> None:
        width, height = info.size
        size_as_read = self.size_as_read(info)
        if file.stated_size is not None and file.stated_size != size_as_read:
            stated = f"the annotations say {file.stated_size[0]} x {file.stated_size[1]}"
            why, fix = orientation_cause(info, size_as_read, file.stated_size)
            fix = fix or "fix the annotations, or bring their image"
            self.error("image size", file.path, f"is {size_as_read[0]} x {size_as_read[1]}{why}, {stated}", fix)
        elif file.stated_size is not None:
            self.check_turned(file.path, info)
        size = f"has {width * height / 1e6:,.0f} megapixels"
        if width * height > self.max_pixels:
            self.error("huge image", file.path, f"{size}, which are refused", "make it smaller")
        elif width * height > LARGE_IMAGE_PIXELS:
            self.warn("huge image", file.path, size, "a smaller copy loads faster")
        elif min(width, height) < MIN_IMAGE_SIDE:
            self.warn("tiny image", file.path, f"is {width} x {height}", "remove it if it shows nothing")
        found = self.network_input.problem(size_as_read) if self.is_used(size_as_read) else None
        if found is not None:
            self.error(found[0], file.path, found[1], "enlarge or remove it, or resize or pad in the pipeline")

    def _check_pixels(self, file: DataFile, info: ImageInfo) -> None:
        if info.bits > 16:
            problem = "has 32-bit pixels, whose black and white are not known"
            self.error("32-bit image", file.path, problem, "convert it to 8 bits per channel")
        if self.channels is not None:
            (mean, std), (low, high) = self.pixel_statistics(), info.values
            if std and ((high - mean) / std > MAX_DEVIATIONS or 0 < (high - low) / std < MIN_DEVIATIONS):
                problem = f"has values from {low:g} to {high:g}, normalised by mean {mean:g} and deviation {std:g}"
                self.warn("other values", file.path, problem, "state mean and std for the values in the files")
        formats = FORMATS_BY_SUFFIX.get(os.path.splitext(file.path)[1].lower(), (info.format,))
        found = {
            "16-bit image": 8 < info.bits <= 16,
            "other colours": info.mode not in ("RGB", "L", "P", "1", "RGBA", "LA", "PA") and info.bits <= 8,
            "transparency": info.transparent,
            "several frames": info.frames > 1 and info.format != "MPO",
            "name of another format": info.format not in ("", *formats),
            "EXIF orientation": self.orientation_left(info) != 1,
        }
        for kind in (kind for kind in found if found[kind]):
            problem, fix = PIXEL_WARNINGS[kind]
            self.warn(kind, file.path, problem.format(info), fix)


class DataCheckerRegistry:
    """Checkers by the type of data set that they check; an unknown type has that of its nearest base class."""

    def __init__(self) -> None:
        self._checkers: dict[type, type[DatasetChecker]] = {object: DatasetChecker}

    def register(self, dataset_type: type) -> Callable[[type[DatasetChecker]], type[DatasetChecker]]:
        """Decorator that registers the checker of a type of data set and of its subclasses.

        Raises:
            KeyError: If the type has a checker already.
        """

        def register(checker: type[DatasetChecker]) -> type[DatasetChecker]:
            if dataset_type in self._checkers:
                raise KeyError(f"{dataset_type.__name__} is checked by {self._checkers[dataset_type].__name__} already")
            self._checkers[dataset_type] = checker
            return checker

        return register

    def find(self, dataset_type: type) -> type[DatasetChecker]:
        """Checker of a type of data set."""
        return next(self._checkers[base] for base in dataset_type.__mro__ if base in self._checkers)


DATA_CHECKERS = DataCheckerRegistry()


def build_checkers(cfg: Config, splits: Sequence[str]) -> list[DatasetChecker]:
    """Build the checkers of several splits; a split that is the same data as an earlier one is left out.

    Raises:
        ConfigError: If the type of a data set is not registered.
    """
    checkers: list[DatasetChecker] = []
    for split in splits:
        loader = cfg.get(f"{split}_dataloader")
        for dataset in inner_datasets(loader.dataset) if loader else ():
            if split != "train" and any(other.dataset == dataset for other in checkers):
                continue
            with DATASETS.switch_scope_and_registry(cfg.get("default_scope")) as registry:
                dataset_type = registry.get(dataset.type)
            if dataset_type is None:
                raise ConfigError(f"{split}_dataloader.dataset.type={dataset.type!r} is no type of data set")
            checkers.append(DATA_CHECKERS.find(dataset_type)(split, dataset, cfg))
    return checkers


def orientation_cause(info: ImageInfo, size_as_read: Size, stated: Size) -> tuple[str, str]:
    """Reason and fix where an image is read sideways, not in the stated size; empty if that is not the reason."""
    if size_as_read != stated[::-1] or info.orientation not in SIDEWAYS_ORIENTATIONS:
        return "", ""
    turned = "turns it" if size_as_read == info.upright_size else f"is not applied to a {info.format} file"
    return f" as its EXIF orientation {info.orientation} {turned}", "save it rotated and without the EXIF tag"


def repeated(what: str, names: Iterable[Any]) -> list[str]:
    """A description such as ``image id 7 occurs 2 times`` of each name that occurs more than once."""
    counts = Counter(names).items()
    return [f"{what} {name!r} occurs {count} times".lstrip() for name, count in counts if count > 1]
