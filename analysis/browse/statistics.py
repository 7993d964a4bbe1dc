"""What the images of a split are like: classes, sizes of objects and images, and what is odd about them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import numpy as np

from analysis.browse.draws import Draw, NetworkInputs
from backbones.errors import ConfigError, nearest
from engine.data.image_files import inspect_image
from engine.prediction.visualize import spread_evenly
from engine.task import Shape

MAX_COUNTED_IMAGES = 20_000  # whose entries are looked at
MAX_COUNTED_LABELS = 300  # images whose labels are loaded to count classes
MAX_MEASURED_IMAGES = 100  # that are read and augmented for the sizes of objects, and whose headers are read
MIN_SAMPLES = 10  # of a class
MIN_OBJECT_SIDE = 8.0  # pixels, square root of an object's area
MIN_KEPT = 0.1  # share of an image that a crop leaves
MAX_NAMED = 5  # in a warning


@dataclass(frozen=True)
class ClassCounts:
    """How often each class is there.

    Attributes:
        counts: Number by index of the class.
        of_image: Classes of each image that was looked at, by its index.
        total: Number of images of the split.
        counted: Word for what is counted.
    """

    counts: Mapping[int, int]
    of_image: Mapping[int, frozenset[int]]
    total: int
    counted: str

    @property
    def complete(self) -> bool:
        """Whether all images were looked at."""
        return len(self.of_image) == self.total


def count_classes(source: NetworkInputs) -> ClassCounts:
    """Count the classes of the images of a split, of many those that are spread evenly over them."""
    spec = source.spec
    counts: Counter[int] = Counter()
    of_image = {}
    if source.classes and spec.classes is not None:
        for index in spread_evenly(len(source), MAX_COUNTED_LABELS if spec.counts_labels else MAX_COUNTED_IMAGES):
            found = [
                int(one) for one in spec.classes(source.labels(index) if spec.counts_labels else source.entry(index))
            ]
            counts.update(found)
            of_image[index] = frozenset(found)
    return ClassCounts(counts, of_image, len(source), spec.counted)


def choose_images(source: NetworkInputs, found: ClassCounts, count: int, classes: Sequence[str]) -> list[int]:
    """Indices of images that are spread evenly over a split, or over those of its images with one of some classes.

    Raises:
        ConfigError: If there is no such class, or no image with it.
    """
    names = list(source.classes)
    for name in classes:
        if name not in names:
            raise ConfigError(f"--classes: {name!r} is none of the {len(names)} classes{nearest(name, names)}")
    if not classes:
        return spread_evenly(len(source), count)
    wanted = {names.index(name) for name in classes}
    having = [index for index, present in found.of_image.items() if present & wanted]
    if not having:
        looked = "" if found.complete else f" {len(found.of_image):,} of the"
        raise ConfigError(f"--classes: none of{looked} {found.total:,} images has {' or '.join(map(repr, classes))}")
    return [having[place] for place in spread_evenly(len(having), count)]


def measure_objects(source: NetworkInputs, draws: Iterable[Draw]) -> np.ndarray:
    """Square roots of the areas of objects in the network's input, in pixels, of shown and further images."""
    if source.spec.object_sizes is None:
        return np.zeros(0)
    further = [source.draws([index], 0)[0] for index in spread_evenly(len(source), MAX_MEASURED_IMAGES)]
    return np.sqrt(np.concatenate([one.objects for one in [*draws, *further]] or [np.zeros((0, 2))]).prod(1))


def image_sizes(source: NetworkInputs) -> list[Shape]:
    """Height and width of images of the split, from their entries or headers."""
    sizes = []
    for index in spread_evenly(len(source), MAX_MEASURED_IMAGES):
        entry = source.entry(index)
        width, height = entry.get("width"), entry.get("height")
        if not (width and height):
            info = inspect_image(str(entry["img_path"]), channels=source.channels)
            width, height = info.upright_size
        if width and height:
            sizes.append((int(height), int(width)))
    return sizes


def oddities(source: NetworkInputs, found: ClassCounts, draws: Sequence[Draw], objects: np.ndarray) -> list[str]:
    """A line for each thing that is odd about a split."""
    lines = []
    if small := int((objects < MIN_OBJECT_SIDE).sum()):
        lines.append(
            f"{small:,} of {len(objects):,} objects that were measured are under {MIN_OBJECT_SIDE:g} px after resizing "
            "(square root of the area of the box): larger images or crops would help"
        )
    rare = [index for index in range(len(source.classes)) if found.counts.get(index, 0) < MIN_SAMPLES]
    if rare and found.complete:
        rare.sort(key=lambda index: found.counts.get(index, 0))
        named = [f"{source.classes[index]} ({found.counts.get(index, 0)})" for index in rare[:MAX_NAMED]]
        more = f" and {len(rare) - MAX_NAMED:,} more" if len(rare) > MAX_NAMED else ""
        lines.append(
            f"{len(rare):,} of {len(source.classes):,} classes have fewer than {MIN_SAMPLES} {found.counted}: "
            f"{', '.join(named)}{more}"
        )
    kept = [one.kept for one in draws if one.kept is not None]
    if cropped := sum(share <= MIN_KEPT for share in kept):
        lines.append(
            f"{cropped:,} of {len(kept):,} draws have 90 % of the image or more cropped away, the least leaves "
            f"{100 * min(kept):.1f} %"
        )
    return lines


def octaves(objects: np.ndarray) -> dict[tuple[int, int], int]:
    """Numbers of objects by size: under 8 pixels, from 8 to 16, and so on."""
    if not len(objects):
        return {}
    top = max(3, math.floor(math.log2(max(float(objects.max()), 1.0))))
    edges = [0, *(2**power for power in range(3, top + 2))]
    return {(low, high): int(((objects >= low) & (objects < high)).sum()) for low, high in pairwise(edges)}


def size_facts(sizes: Sequence[Shape], draws: Sequence[Draw]) -> dict[str, str]:
    """Sizes of images beside those of the network's input, in words by their names."""
    if not sizes:
        return {}
    by_area = sorted(sizes, key=lambda one: one[0] * one[1])
    inputs = Counter(one.size for one in draws)
    shorter = median(min(size) for size in inputs.elements()) if inputs else 0
    smaller = sum(min(one) < shorter for one in sizes)
    kept = [one.kept for one in draws if one.kept is not None]
    least, middle, most = (_size(by_area[place]) for place in (0, len(sizes) // 2, -1))
    facts = {
        "images, width x height": f"{least} to {most}, {middle} in the middle",
        "input of the network": ", ".join(_size(size) for size, _ in inputs.most_common(MAX_NAMED))
        + (f" and {len(inputs) - MAX_NAMED} more sizes" if len(inputs) > MAX_NAMED else ""),
        "smaller than the input": f"{smaller:,} of {len(sizes):,} images have a shorter side below {shorter:g} px",
    }
    if kept:
        low, middle_share, high = (round(100 * share(kept)) for share in (min, median, max))
        facts["left by the crop"] = f"{low} to {high} % of the image, {middle_share} % in the middle"
    return facts


def _size(size: Shape) -> str:
    return f"{size[1]} x {size[0]}"
