"""Speed of the corruptions of ImageNet-C on one core, beside the package imagecorruptions-imaug, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from analysis.benchmark.peers import OUR_SIDE
from analysis.benchmark.timing import MismatchError, Speedup, rates, take_turns, warm_up
from analysis.robustness.corruptions import check_corruption, corrupt
from analysis.robustness.scores import SEVERITIES
from backbones.errors import DataError, MachineError, printable
from backbones.kernels.cpu.dispatch import cpu_name
from engine.data.image_files import IMAGE_SUFFIXES

CORRUPTION_PEER = "imagecorruptions-imaug"
SLOWEST_CORRUPTIONS = (
    *("glass_blur", "motion_blur", "zoom_blur", "snow"),
    *("elastic_transform_in_place", "elastic_transform"),
)
MEASURED_IMAGES = 8
# The peer has one elastic transform, that of detection. ImageNet-C's moves the image too and is another process.
_PEER_NAMES = {"elastic_transform_in_place": "elastic_transform"}
_OTHER_PROCESS = ("elastic_transform",)
DISTANCE_TOLERANCE = 0.25  # of the mean distance from the clean images, which is random
_ROW = "{:28} {:>14} {:>14} {:>20}"


@dataclass(frozen=True)
class CorruptionSpeeds:
    """Speed of corruptions on one core.

    Attributes:
        place: Processor and versions, in words.
        images: Number of images of a round, each at five severities.
        size: Side of the images in pixels.
        seconds: CPU seconds of one image in each round, by corruption and side.
    """

    place: dict[str, str]
    images: int
    size: int
    seconds: dict[str, dict[str, tuple[float, ...]]]

    def as_dict(self) -> dict[str, Any]:
        """The result as plain data."""
        rows = []
        for name, sides in self.seconds.items():
            speedup = Speedup.between(sides[OUR_SIDE], sides[CORRUPTION_PEER])
            rows.append({"name": name, "seconds": sides} | speedup.as_dict())
        return {"place": self.place, "images": self.images, "size": self.size, "corruptions": rows}

    def as_text(self) -> str:
        """The result as a table for people: images per second of CPU time."""
        lines = [
            f"{self.images} images of {self.size}x{self.size} at five severities, one core, CPU time",
            *(f"  {key}: {value}" for key, value in self.place.items()),
            "",
            _ROW.format("", "ours img/s", "theirs img/s", "ours is x faster"),
        ]
        for name, sides in self.seconds.items():
            ours, theirs = (rates(sides[side])[0] for side in (OUR_SIDE, CORRUPTION_PEER))
            speedup = str(Speedup.between(sides[OUR_SIDE], sides[CORRUPTION_PEER]))
            lines.append(_ROW.format(name, f"{ours:.0f}", f"{theirs:.0f}", speedup))
        if set(_OTHER_PROCESS) & set(self.seconds):
            lines.append(f"{', '.join(_OTHER_PROCESS)}: theirs is that of detection, with less work")
        return "\n".join(lines)


def measure_corruptions(folder: Path, names: Sequence[str], size: int, rounds: int) -> CorruptionSpeeds:
    """Time corruptions on the first images of a folder.

    Args:
        folder: Folder of photographs.
        names: Names of corruptions of ImageNet-C.
        size: Side in pixels to which the images are cropped and resized.
        rounds: Number of turns.

    Raises:
        MachineError: If the other package is not installed.
        DataError: If there is no image.
        MismatchError: If both sides change the images by different amounts.
    """
    for name in names:
        check_corruption(name, 1)
    try:
        peer = import_module("imagecorruptions")
    except ImportError as error:
        raise MachineError(f"pip install {CORRUPTION_PEER}: {error}") from error
    images = _pictures(folder, size)
    cv2.setNumThreads(1)
    seconds = {}
    for name in names:
        sides: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
            OUR_SIDE: partial(_ours, name),
            CORRUPTION_PEER: partial(_peer, peer, _PEER_NAMES.get(name, name)),
        }
        if name not in _OTHER_PROCESS:
            _compare(name, images, sides)
        steps = {side: partial(_all, images, function) for side, function in sides.items()}
        for step in steps.values():
            warm_up(step)
        taken = take_turns(steps, rounds, clock=time.process_time)
        count = len(images) * len(SEVERITIES)
        seconds[name] = {side: tuple(one / count for one in times) for side, times in taken.items()}
    place = {
        "processor": cpu_name(),
        "versions": f"numpy {np.__version__}, {CORRUPTION_PEER} {version(CORRUPTION_PEER)}",
    }
    return CorruptionSpeeds(place, len(images), size, seconds)


def _pictures(folder: Path, size: int) -> list[np.ndarray]:
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise DataError(f"no image in {printable(folder)}: give a folder of photographs")
    chosen = paths[:: max(len(paths) // MEASURED_IMAGES, 1)][:MEASURED_IMAGES]
    return [np.array(ImageOps.fit(Image.open(path).convert("RGB"), (size, size))) for path in chosen]


def _ours(name: str, image: np.ndarray, severity: int) -> np.ndarray:
    return corrupt(image, name, severity, 0)


def _peer(peer: Any, name: str, image: np.ndarray, severity: int) -> np.ndarray:
    return np.asarray(peer.corrupt(image, severity=severity, corruption_name=name))


def _all(images: Sequence[np.ndarray], function: Callable[[np.ndarray, int], np.ndarray]) -> None:
    for severity in SEVERITIES:
        for image in images:
            function(image, severity)


def _compare(
    name: str, images: Sequence[np.ndarray], sides: dict[str, Callable[[np.ndarray, int], np.ndarray]]
) -> None:
    """Refuse sides whose mean distance from the clean images differs."""
    ours, theirs = (
        float(np.mean([np.abs(function(image, 3).astype(float) - image).mean() for image in images]))
        for function in sides.values()
    )
    if abs(ours - theirs) > DISTANCE_TOLERANCE * theirs:
        raise MismatchError(f"{name} changes an image by {ours:.1f} levels, {CORRUPTION_PEER} by {theirs:.1f}")
