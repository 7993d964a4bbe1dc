"""Images in a folder for each class: the folders of the splits, the classes, the size of the images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from statistics import median

from analysis.own_data.splits import (
    Findings,
    Request,
    choose_splits,
    hold_out,
    list_text,
    listed,
    sample_evenly,
    split_of,
)
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
    images = {
        split: {one: sorted(list_images(request.data / name / one)) for one in classes}
        for split, name in chosen.items()
    }
    if not any(images["train"].values()):
        raise DataError(f"{str(request.data / chosen['train'])!r} holds no image in its class folders")
    facts: list[str] = []
    files: dict[str, str] = {}
    if "val" not in chosen:
        chosen = {"train": chosen["train"], "val": chosen["train"], **chosen}
        held = hold_out(images["train"].values(), request.validation_split, facts)
        images |= {split: _part(images["train"], held, split == "val") for split in ("train", "val")}
        for split in ("train", "val"):
            paths = (Path(path) for found in images[split].values() for path in found)
            files[f"{split}.txt"] = list_text(
                path.relative_to(request.data / chosen["train"]).as_posix() for path in paths
            )
    facts = [*(f"{split}: {name!r}, {_counts(images[split])}" for split, name in chosen.items()), *facts]
    facts += _unused(request.data, list(chosen.values()))
    train = [path for paths in images["train"].values() for path in paths]
    side = _usual_side(train)
    settings = {
        "classes": tuple(classes),
        "_size": next((size for size in INPUT_SIDES if size >= side), INPUT_SIDES[-1]),
        **{f"_{split}": {"split": name} for split, name in chosen.items()},
    }
    return Findings(settings, len(train), facts, files)


def _part(images: Mapping[str, Sequence[str]], held: Set[str], wanted: bool) -> dict[str, list[str]]:
    """The images that are held out, or the others, by class."""
    return {one: [path for path in paths if (path in held) == wanted] for one, paths in images.items()}


def _counts(images: Mapping[str, Sequence[str]]) -> str:
    counts = sorted((len(paths), one) for one, paths in images.items())
    few = ", ".join(f"{one} {count:,}" for count, one in counts[:3])
    return f"{sum(count for count, _ in counts):,} images of {len(counts)} classes (the fewest: {few})"


def _unused(data: Path, chosen: list[str]) -> Iterator[str]:
    """Lines about folders with images beside those of the splits."""
    if chosen[0] == ".":
        return
    for folder in _subfolders((data / chosen[0]).parent):
        name = folder.relative_to(data).as_posix()
        if name not in chosen and (count := len(list_images(folder))):
            advice = f"--test {name!r} tests on them" if _subfolders(folder) else "tools/predict.py predicts them"
            yield f"not used: {name!r}, {count:,} images: {advice}"


def _split_folders(request: Request) -> list[Path]:
    """The folders that hold class folders, one for each split, or one for a set that is not divided."""
    stated = request.data / request.splits.get("train", "")
    if stated != request.data and stated.is_dir():
        return _with_folders(stated.parent)
    level, undivided = [request.data], list[Path]()
    for _ in range(MAX_LEVELS):
        for folder in level:
            splits = _with_folders(folder)
            if any(split_of(one.name) == "train" for one in splits) or _hold_the_same(splits):
                return splits
            if not undivided and sum(bool(list_images(child)) for child in _subfolders(folder)) > 1:
                undivided = [folder]
        level = [child for folder in level for child in _subfolders(folder)]
    if undivided:
        return undivided
    classes = _subfolders(request.data)
    if len(classes) == 1 and list_images(classes[0]):
        raise DataError(
            f"{str(request.data)!r} has images in one folder, {classes[0].name!r}: sort them into folders of their "
            "classes, train/<class>/ and val/<class>/"
        )
    raise DataError(
        f"{str(request.data)!r} has no images in folders of classes, such as cat/1.jpg, or train/cat/1.jpg and "
        "val/cat/2.jpg"
    )


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
