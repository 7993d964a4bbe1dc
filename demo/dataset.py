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

STAMP = "digits.json"
SEGMENTATION_CLASSES = ("background", *DIGIT_CLASSES)
STUFF_ID = 100  # category id of the photographs; those of the digits are 1 to 10

_GENERATOR = "engine.digits"  # as in the stamps of the first version: data sets with it stay valid
_FIRST_ID = {"train": 1, "val": 500_001}  # COCO image ids are unique over the splits, whatever their sizes


def _write_images(root: Path, split: str, count: int, seed: int, material: Material) -> None:
    folders = [root / "imagenet" / split / name for name in DIGIT_CLASSES]
    for folder in folders:
        folder.mkdir(parents=True)
    for index in range(count):
        label, pixels = compose_image(seed, split, index, material)
        Image.fromarray(pixels).save(folders[label] / f"{split}_{index:06d}.png", compress_level=3)


def _write_scenes(root: Path, split: str, count: int, seed: int, material: Material) -> None:
    ade_split = {"train": "training", "val": "validation"}[split]
    coco, annotations = root / "coco" / f"{split}2017", root / "coco" / "annotations"
    ade, labels = root / "ade" / "images" / ade_split, root / "ade" / "annotations" / ade_split
    panoptic = annotations / f"panoptic_{split}2017"
    for folder in (coco, panoptic, ade, labels):
        folder.mkdir(parents=True, exist_ok=True)
    segments: list[Any] = []
    listed: dict[str, Any] = {
        "info": {"description": "Handwritten digits on photographs", "version": str(DRAWING_VERSION)},
        "licenses": [],
        "images": [],
        "annotations": [],
        "categories": [
            {"id": number, "name": name, "supercategory": "digit"} for number, name in enumerate(DIGIT_CLASSES, 1)
        ],
    }
    for index in range(count):
        scene, image_id = compose_scene(seed, split, index, material), _FIRST_ID[split] + index
        height, width = scene.image.shape[:2]
        name, ade_name = f"{image_id:012d}.jpg", f"ADE_{split}_{index + 1:08d}"
        Image.fromarray(scene.image).save(coco / name, quality=92)
        shutil.copyfile(coco / name, ade / f"{ade_name}.jpg")
        Image.fromarray(label_map(scene.instances)).save(labels / f"{ade_name}.png")
        listed["images"].append({"id": image_id, "file_name": name, "width": width, "height": height})
        listed["annotations"] += [coco_annotation(o, image_id, n) for n, o in enumerate(scene.instances, 1)]
        entry, pixels = panoptic_annotation(scene.instances, image_id, STUFF_ID)
        Image.fromarray(pixels).save(panoptic / entry["file_name"])
        segments.append(entry)
    (annotations / f"instances_{split}2017.json").write_text(json.dumps(listed))
    categories = [{**one, "isthing": 1} for one in listed["categories"]]
    categories.append({"id": STUFF_ID, "name": "background", "supercategory": "photograph", "isthing": 0})
    listed |= {"annotations": segments, "categories": categories}
    (annotations / f"panoptic_{split}2017.json").write_text(json.dumps(listed))


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
        material = load_material(seed)
        for split in DIGIT_SPLITS:
            _write_images(partial, split, images[split], seed, material[split])
            _write_scenes(partial, split, scenes[split], seed, material[split])
        (partial / STAMP).write_text(json.dumps(stamp, indent=2) + "\n")
        _replace(root, partial)
    except OSError as error:
        reason = error.strerror or error
        raise MachineError(f"cannot write the digits to {root} ({reason}): give another folder") from error


def _replace(root: Path, new: Path) -> None:
    """Replace ``root`` by ``new``; after an interruption ``root`` is complete or missing."""
    stale = root.with_name(root.name + ".stale")
    shutil.rmtree(stale, ignore_errors=True)
    if root.exists():
        root.rename(stale)
    new.rename(root)
    shutil.rmtree(stale, ignore_errors=True)
