"""Small data sets of handwritten digits in the formats of ImageNet, COCO and ADE20K, drawn by :mod:`demo.drawing`.

Layout under the root::

    imagenet/{train,val}/<class>/*.png                      one digit per 48x48 picture
    coco/{train2017,val2017}/*.jpg                          scenes of several digits, 160x160
    coco/annotations/instances_{train,val}2017.json
    coco/annotations/panoptic_{train,val}2017.json          the same digits, and the photographs as stuff ...
    coco/annotations/panoptic_{train,val}2017/*.png         ... with the ids of the segments as colours
    ade/images/{training,validation}/*.jpg                  the same scenes
    ade/annotations/{training,validation}/*.png             0 ignored, 1 background, 2..11 zero..nine
    digits.json                                             version, seed and counts; written last, with a complete set
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from backbones.errors import ConfigError, MachineError
from backbones.files import read_text_file
from demo.drawing import (
    DIGIT_CLASSES,
    DIGIT_SPLITS,
    DRAWING_VERSION,
    Material,
    compose_image,
    compose_scene,
    load_material,
)
from demo.formats import coco_annotation, label_map, panoptic_annotation
from engine.launch.pool import in_processes, usable_cores

STAMP = "digits.json"
SEGMENTATION_CLASSES = ("background", *DIGIT_CLASSES)
STUFF_ID = 100  # category id of the photographs; those of the digits are 1 to 10

IMAGES_PER_PART, SCENES_PER_PART = 500, 40  # of one process at a time

_GENERATOR = "engine.digits"  # as in the stamps of the first version: data sets with it stay valid
_FIRST_ID = {"train": 1, "val": 500_001}  # COCO image ids are unique over the splits, whatever their sizes


@dataclass(frozen=True)
class _SceneRecord:
    """Entries of one scene in the annotation files of COCO: image, objects, and segments of the panoptic form."""

    image: dict[str, Any]
    objects: list[dict[str, Any]]
    segments: dict[str, Any]


@dataclass(frozen=True)
class _Part:
    """Some of the pictures of a split, drawn and written by one process.

    Attributes:
        root: Folder of the data sets.
        split: "train" or "val".
        indices: Numbers of the pictures.
        seed: Seed of the drawing.
        material: Source digits and photographs of the split.
    """

    root: Path
    split: str
    indices: range
    seed: int
    material: Material


def _parts(root: Path, split: str, count: int, size: int, seed: int, material: Material) -> list[_Part]:
    return [
        _Part(root, split, range(first, min(first + size, count)), seed, material) for first in range(0, count, size)
    ]


def _write_images(part: _Part) -> None:
    """Write pictures of one digit into the folders of their classes."""
    folder = part.root / "imagenet" / part.split
    for index in part.indices:
        label, pixels = compose_image(part.seed, part.split, index, part.material)
        name = f"{part.split}_{index:06d}.png"
        Image.fromarray(pixels).save(folder / DIGIT_CLASSES[label] / name, compress_level=3)


def _write_scenes(part: _Part) -> list[_SceneRecord]:
    """Write scenes and their label images; the entries of the annotation files."""
    coco, panoptic, ade, labels = _scene_folders(part.root, part.split)
    records = []
    for index in part.indices:
        scene = compose_scene(part.seed, part.split, index, part.material)
        image_id = _FIRST_ID[part.split] + index
        height, width = scene.image.shape[:2]
        name, ade_name = f"{image_id:012d}.jpg", f"ADE_{part.split}_{index + 1:08d}"
        Image.fromarray(scene.image).save(coco / name, quality=92)
        shutil.copyfile(coco / name, ade / f"{ade_name}.jpg")
        Image.fromarray(label_map(scene.instances)).save(labels / f"{ade_name}.png")
        image = {"id": image_id, "file_name": name, "width": width, "height": height}
        objects = [coco_annotation(o, image_id, n) for n, o in enumerate(scene.instances, 1)]
        segments, pixels = panoptic_annotation(scene.instances, image_id, STUFF_ID)
        Image.fromarray(pixels).save(panoptic / segments["file_name"])
        records.append(_SceneRecord(image, objects, segments))
    return records


def _scene_folders(root: Path, split: str) -> tuple[Path, Path, Path, Path]:
    """Folders of COCO's images, the panoptic label images, ADE20K's images and its label images."""
    coco, ade, ade_split = root / "coco", root / "ade", {"train": "training", "val": "validation"}[split]
    panoptic = coco / "annotations" / f"panoptic_{split}2017"
    return coco / f"{split}2017", panoptic, ade / "images" / ade_split, ade / "annotations" / ade_split


def _write_annotations(root: Path, split: str, records: Sequence[_SceneRecord]) -> None:
    folder = root / "coco" / "annotations"
    digits = [{"id": number, "name": name, "supercategory": "digit"} for number, name in enumerate(DIGIT_CLASSES, 1)]
    listed: dict[str, Any] = {
        "info": {"description": "Handwritten digits on photographs", "version": str(DRAWING_VERSION)},
        "licenses": [],
        "images": [record.image for record in records],
        "annotations": [entry for record in records for entry in record.objects],
        "categories": digits,
    }
    (folder / f"instances_{split}2017.json").write_text(json.dumps(listed))
    categories = [{**one, "isthing": 1} for one in digits]
    categories.append({"id": STUFF_ID, "name": "background", "supercategory": "photograph", "isthing": 0})
    listed |= {"annotations": [record.segments for record in records], "categories": categories}
    (folder / f"panoptic_{split}2017.json").write_text(json.dumps(listed))


def read_stamp(root: Path) -> dict[str, Any] | None:
    """Generator, version, seed and counts of the data set at ``root``; ``None`` if there is none."""
    try:
        stamp = json.loads(read_text_file(root / STAMP))
    except (OSError, ValueError, RecursionError):
        return None
    return stamp if isinstance(stamp, dict) and stamp.get("generator") == _GENERATOR else None


def make_digits(
    root: Path,
    *,
    seed: int = 0,
    train_images: int = 6000,
    val_images: int = 1000,
    train_scenes: int = 480,
    val_scenes: int = 120,
) -> None:
    """Write the three data sets under ``root``, unless the same ones are there already.

    They appear all at once: the work is done beside the root, in ``<root>.partial``. A data set of other arguments is
    replaced; a folder with other content is an error.

    Args:
        root: Folder to make.
        seed: Seed, not negative, of everything that is drawn and of the division into training and validation.
        train_images: Number of pictures of one digit for training.
        val_images: Number of pictures of one digit for validation.
        train_scenes: Number of scenes for training.
        val_scenes: Number of scenes for validation.

    Raises:
        ConfigError: If the seed is negative or ``root`` holds something else.
        MachineError: If ``root`` cannot be written.
    """
    if seed < 0:
        raise ConfigError(f"seed {seed} is negative: give 0 or more")
    images = {"train": train_images, "val": val_images}
    scenes = {"train": train_scenes, "val": val_scenes}
    stamp = {"generator": _GENERATOR, "version": DRAWING_VERSION, "seed": seed, "images": images, "scenes": scenes}
    root = Path(os.path.realpath(root))  # beside a link's target, not beside the link: renaming needs one file system
    if read_stamp(root) == stamp:
        return
    try:
        if root.exists() and not root.is_dir():
            raise ConfigError(f"{root} is a file: give a folder to make the digits in")
        if root.is_dir() and read_stamp(root) is None and any(root.iterdir()):
            raise ConfigError(f"{root} holds other files: give a new or an empty folder to make the digits in")
        partial = root.with_name(root.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _draw(partial, images, scenes, seed)
        (partial / STAMP).write_text(json.dumps(stamp, indent=2) + "\n")
        _replace(root, partial)
    except OSError as error:
        reason = error.strerror or error
        raise MachineError(f"cannot write the digits to {root} ({reason}): give another folder") from error


def _draw(root: Path, images: Mapping[str, int], scenes: Mapping[str, int], seed: int) -> None:
    """Draw all pictures in the processes that the machine has cores for: each depends on its own number alone."""
    material, workers, doing = load_material(seed), usable_cores(), "drew digits"
    for split in DIGIT_SPLITS:
        folders = [root / "imagenet" / split / name for name in DIGIT_CLASSES]
        for folder in (*folders, *_scene_folders(root, split)):
            folder.mkdir(parents=True)
        parts = _parts(root, split, images[split], IMAGES_PER_PART, seed, material[split])
        list(in_processes(_write_images, parts, min(workers, len(parts)), doing))
        parts = _parts(root, split, scenes[split], SCENES_PER_PART, seed, material[split])
        records = in_processes(_write_scenes, parts, min(workers, len(parts)), doing)
        _write_annotations(root, split, [record for part in records for record in part])


def _replace(root: Path, new: Path) -> None:
    """Replace ``root`` by ``new``; after an interruption ``root`` is complete or missing."""
    stale = root.with_name(root.name + ".stale")
    shutil.rmtree(stale, ignore_errors=True)
    if root.exists():
        root.rename(stale)
    new.rename(root)
    shutil.rmtree(stale, ignore_errors=True)
