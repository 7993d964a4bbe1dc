"""Images in a folder for each class: the folders of the splits, the classes, the size of the images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median

from analysis.own_data.splits import Findings, Request, choose_splits, listed, sample_evenly, split_of
from backbones.errors import DataError
from classification.data import class_folders, folder_difference, list_images
from engine.data.image_files import inspect_image

MAX_LEVELS = 3  # of the folder that holds the splits, below the data folder
MAX_MEASURED = 200  # images whose size is read
INPUT_SIDES = (64, 96, 128, 160, 192, 224)  # sides of the network's input; small images are not enlarged


def find_class_folders(request: Request) -> Findings:
    """Find the splits and classes of a classification data set.

    Args:
        request: Settings of the command line.

    Raises:
        DataError: If there are no class folders in a folder for each split.
    """
    found = _split_folders(request)
    chosen = choose_splits([folder.relative_to(request.data).as_posix() for folder in found], request)
    folders = sorted(class_folders(request.data / chosen["train"], ()))
    classes = list(request.classes or folders)
    if difference := folder_difference(request.data / chosen["train"], classes):
        raise DataError(f"--classes: {difference} ({chosen['train']!r} has {listed(folders)})")
    facts, images = [], {}
    for split, name in chosen.items():
        paths = {one: sorted(list_images(request.data / name / one)) for one in classes}
        counts = {one: len(found) for one, found in paths.items()}
        images[split] = [path for found in paths.values() for path in found]
        few = ", ".join(f"{one} {count:,}" for one, count in sorted(counts.items(), key=lambda item: item[1])[:3])
        facts.append(f"{split}: {name!r}, {len(images[split]):,} images of {len(classes)} classes (the fewest: {few})")
    facts += _unused(request.data, list(chosen.values()))
    if not images["train"]:
        raise DataError(f"{str(request.data / chosen['train'])!r} holds no image in its class folders")
    side = _usual_side(images["train"])
    settings = {
        "classes": tuple(classes),
        "_size": next((size for size in INPUT_SIDES if size >= side), INPUT_SIDES[-1]),
        **{f"_{split}": {"split": name} for split, name in chosen.items()},
    }
    return Findings(settings, len(images["train"]), facts)


def _unused(data: Path, chosen: list[str]) -> Iterator[str]:
    """Lines about folders with images beside those of the splits."""
    for folder in _subfolders((data / chosen[0]).parent):
        name = folder.relative_to(data).as_posix()
        if name not in chosen and (count := len(list_images(folder))):
            advice = f"--test {name!r} tests on them" if _subfolders(folder) else "tools/predict.py predicts them"
            yield f"not used: {name!r}, {count:,} images: {advice}"


def _split_folders(request: Request) -> list[Path]:
    """The folders that hold class folders, one for each split."""
    if "train" in request.splits and (request.data / request.splits["train"]).is_dir():
        return _with_folders((request.data / request.splits["train"]).parent)
    level = [request.data]
    for _ in range(MAX_LEVELS):
        for folder in level:
            splits = _with_folders(folder)
            if any(split_of(one.name) == "train" for one in splits) or _hold_the_same(splits):
                return splits
        level = [child for folder in level for child in _subfolders(folder)]
    classes = _subfolders(request.data)
    if len(classes) == 1 and list_images(classes[0]):
        raise DataError(
            f"{str(request.data)!r} has images in one folder, {classes[0].name!r}: sort them into folders of their "
            "classes, train/<class>/ and val/<class>/"
        )
    if any(list_images(folder) for folder in classes):
        raise DataError(
            f"{str(request.data)!r} has folders of classes ({listed([one.name for one in classes])}) but none for "
            "training and validation: move them into 'train', and a part of the images of each (a fifth, say) to 'val'"
        )
    raise DataError(f"{str(request.data)!r} has no images in folders <split>/<class>/, such as train/cat/1.jpg")


def _subfolders(folder: Path) -> list[Path]:
    return sorted(folder / name for name in class_folders(folder, ()))


def _with_folders(folder: Path) -> list[Path]:
    return [child for child in _subfolders(folder) if _subfolders(child)]


def _hold_the_same(folders: list[Path]) -> bool:
    """Whether folders have most of their folders' names in common, as splits have their classes."""
    names = [class_folders(folder, ()) for folder in folders]
    return len(names) > 1 and 2 * len(set.intersection(*names)) > min(map(len, names))


def _usual_side(paths: list[str]) -> float:
    """Median of the shorter sides of some images, in pixels."""
    found = [inspect_image(path) for path in sample_evenly(paths, MAX_MEASURED)]
    sides = [min(info.size) for info in found if info.problem is None]
    return median(sides) if sides else INPUT_SIDES[-1]
