"""Objects in COCO's format: the annotation files, their folders of images, categories, masks and sizes."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath, PureWindowsPath
from statistics import median
from typing import Any

from analysis.own_data.splits import (
    MAX_QUOTED,
    Findings,
    Request,
    choose_splits,
    common_start,
    hold_out,
    sample_evenly,
    split_of,
)
from backbones.errors import DataError
from detection.annotations import category_names, read_annotations
from engine.data.image_files import IMAGE_SUFFIXES
from engine.data.paths import list_files

LISTS = ("images", "annotations", "categories")
MAX_LOOKED_UP = 100  # images of an annotation file whose folder is looked up
DETECTION_SIDES, MAX_LONG_SIDE = (320, 800), 1333  # mmdet's customary size is the upper end
OTHER_FORMATS = {".xml": "Pascal VOC", ".txt": "YOLO", ".csv": "a table"}


def find_coco_files(request: Request) -> Findings:
    """Find the annotation files and image folders of a detection data set.

    Args:
        request: Settings of the command line.

    Raises:
        DataError: If there is no annotation file with objects, or its images are not there.
    """
    paths = sorted(os.path.relpath(path, request.data) for path in list_files(str(request.data), []))
    contents = _annotation_files(request.data, paths)
    chosen = choose_splits(list(contents), request)
    folders_of = defaultdict(list)  # of images, by file name
    for path in paths:
        if path.lower().endswith(IMAGE_SUFFIXES):
            folders_of[PurePath(path).name].append(path)
    settings: dict[str, Any] = {}
    facts: list[str] = []
    content_of, parts = {split: contents[file] for split, file in chosen.items()}, {}
    if "val" not in chosen:
        file, whole = chosen["train"], content_of["train"]
        folder, _ = _image_folder(whole["images"], folders_of, "train", file)
        parts = _divided(whole, request.data / folder, request.validation_split, facts)
        chosen, content_of = {"train": file, "val": file, **chosen}, {**parts, **content_of, **parts}
    for split, file in chosen.items():
        content, near = content_of[split], "train" if split in parts else split
        folder, missing = _image_folder(contents[file]["images"], folders_of, near, file)
        settings[f"_{split}"] = {"ann_file": file, "data_prefix": {"img": folder}}
        facts.append(f"{split}: {file!r}, {len(content['images']):,} images in {folder or '.'!r}, {_objects(content)}")
        if split in parts:
            facts.append(f"{split}: objects of the classes: {_fewest(content)}")
        if missing:
            facts.append(f"{split}: some images are not there, such as {missing!r}: check_data names them all")
    train = content_of["train"]
    settings["classes"] = tuple(request.classes or _classes(list(content_of.values()), facts))
    settings["_masks"] = all(_without_mask(content) == 0 for content in content_of.values())
    if sizes := [(one["width"], one["height"]) for one in train["images"] if one.get("width") and one.get("height")]:
        settings["_size"] = _training_size(sizes)
    seen = {one.get("image_id") for one in train["annotations"] if not one.get("iscrowd")}  # the others are left out
    files = {f"{split}.json": json.dumps(part, ensure_ascii=False) for split, part in parts.items()}
    return Findings(settings, len(seen) or len(train["images"]), facts, files)


def _divided(
    content: Mapping[str, Any], folder: Path, share: float | None, facts: list[str]
) -> dict[str, dict[str, Any]]:
    """Training and validation part of an annotation file; images with objects and those without, each by themselves."""
    with_objects = {one.get("image_id") for one in content["annotations"] if not one.get("iscrowd")}
    groups: tuple[set[str], set[str]] = set(), set()
    for one in content["images"]:
        groups[one.get("id") in with_objects].add(str(folder / str(one.get("file_name"))))
    held = hold_out([list(group) for group in groups], share, facts)
    numbers = {one.get("id") for one in content["images"] if str(folder / str(one.get("file_name"))) in held}
    return {
        split: {
            **content,
            "images": [one for one in content["images"] if (one.get("id") in numbers) == wanted],
            "annotations": [one for one in content["annotations"] if (one.get("image_id") in numbers) == wanted],
        }
        for split, wanted in (("train", False), ("val", True))
    }


def _fewest(content: Mapping[str, Any]) -> str:
    """The classes with the fewest objects."""
    counts = Counter(one.get("category_id") for one in content["annotations"])
    named = sorted((counts[number], name) for number, name in category_names(content["categories"]).items())
    few = ", ".join(f"{name} {count:,}" for count, name in named[:MAX_QUOTED])
    return few + (f"; more of {len(named) - MAX_QUOTED} others" if len(named) > MAX_QUOTED else "")


def _annotation_files(data: Path, paths: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Content of the annotation files with objects, by path; those of keypoints only if there are no others."""
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        if not path.lower().endswith(".json"):
            continue
        try:
            content = read_annotations(data / path)
        except (OSError, ValueError):
            continue
        if _is_annotation_file(content):
            found[path] = content
    plain = {path: one for path, one in found.items() if not any("keypoints" in kind for kind in one["categories"])}
    if not found:
        suffixes = Counter(PurePath(path).suffix.lower() for path in paths)
        others = [f"{suffixes[end]} {end} ({name}?)" for end, name in OTHER_FORMATS.items() if suffixes[end]]
        there = f"; there are {', '.join(others)}: convert them to COCO's format" if others else ""
        raise DataError(f"{str(data)!r} has no .json file with images, annotations with boxes, and categories{there}")
    return plain or found


def _is_annotation_file(content: Any) -> bool:
    lists = [content.get(key) for key in LISTS] if isinstance(content, dict) else [None]
    if not all(isinstance(one, list) and all(isinstance(entry, dict) for entry in one) for one in lists):
        return False
    named = all({"id", "name"} <= entry.keys() for entry in content["categories"])
    return named and any("bbox" in entry for entry in content["annotations"])


def _image_folder(
    images: Sequence[Mapping[str, Any]], folders_of: Mapping[str, Sequence[str]], split: str, file: str
) -> tuple[str, str | None]:
    """The folder that holds most images of an annotation file, and an image that is not there."""
    votes: Counter[str] = Counter()
    names = [str(one.get("file_name")) for one in sample_evenly(images, MAX_LOOKED_UP)]
    for name in names:
        plain = PurePath(name).as_posix()
        for path in folders_of.get(PurePath(name).name, ()):
            if path == plain or path.endswith(f"/{plain}"):
                votes[path[: -len(plain)].rstrip("/")] += 1
    if not votes:
        first = (names or ["none"])[0]
        plain = PureWindowsPath(first).name  # of a path with / too
        fix = (
            f"the folder has {folders_of[plain][0]!r}: write file_name {plain!r}"
            if plain in folders_of
            else "bring them"
        )
        raise DataError(f"{file}: its images are not in the folder, such as {first!r}: {fix}")
    near = os.path.dirname(file)

    def rank(folder: str) -> tuple[int, bool, int, int]:
        together = common_start(PurePath(folder).parts, PurePath(near).parts)
        return votes[folder], split_of(folder) == split, together, -len(folder)

    best = max(votes, key=rank)
    there = {path for paths in folders_of.values() for path in paths}
    missing = [name for name in names if PurePath(best, name).as_posix() not in there]
    return best, missing[0] if missing else None


def _objects(content: Mapping[str, Any]) -> str:
    counts = len(content["annotations"]), len({one.get("image_id") for one in content["annotations"]})
    lacking = _without_mask(content)
    masks = "with masks" if not lacking else "boxes alone" if lacking == counts[0] else f"{lacking:,} without mask"
    return f"{counts[0]:,} objects in {counts[1]:,} of them ({masks})"


def _without_mask(content: Mapping[str, Any]) -> int:
    return sum(not one.get("segmentation") for one in content["annotations"])


def _classes(contents: Sequence[Mapping[str, Any]], facts: list[str]) -> list[str]:
    """Names of the categories in the order of their ids, without one that only holds the others, as Roboflow writes."""
    categories = contents[0]["categories"]
    used = {one.get("category_id") for content in contents for one in content["annotations"]}
    above = {one.get("supercategory") for one in categories}
    names = category_names(categories)
    idle = [number for number in sorted(names) if number not in used and names[number] in above and len(names) > 1]
    facts += [f"category {names[number]!r} has no objects and others below it: left out" for number in idle]
    return [names[number] for number in sorted(names) if number not in idle]


def _training_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Longer and shorter side to which images are scaled: the usual size within mmdet's customary ones."""
    short, ratio = median(min(size) for size in sizes), median(max(size) / min(size) for size in sizes)
    short = min(max(short, DETECTION_SIDES[0]), DETECTION_SIDES[1], MAX_LONG_SIDE / ratio)
    return round(short * ratio), round(short)
