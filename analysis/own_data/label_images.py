"""Images and label images: their folders and suffixes, and what the numbers in the labels mean."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from statistics import median
from typing import Any

from analysis.own_data.splits import (
    Findings,
    Request,
    choose_splits,
    common_start,
    hold_out,
    list_text,
    sample_evenly,
    split_of,
)
from backbones.errors import ConfigError, DataError, printable
from backbones.files import open_file
from engine.config.classes import class_names
from engine.data.image_files import IMAGE_SUFFIXES, LABEL_MODES, inspect_image
from engine.data.paths import list_files
from segmentation.data import IGNORE_INDEX

NAME_FILES = ("classes.txt", "labels.txt", "names.txt", "codes.txt", "label_names.txt")
UNLABELLED_NAMES = ("unlabelled", "unlabeled", "void", "ignore", "not labelled")
MIN_PAIRED = 0.5  # of the files of two folders that belong together
MAX_OPENED = 3  # files of a folder that tell whether it holds labels
MAX_READ = 300  # label images whose values are counted
MAX_CLASS_VALUES = 64  # in a label image; a grey photograph has more
CROPS = (128, 192, 256, 320, 384, 448, 512)
SCENE_SIDES = (256, 512)  # of images as they are scaled; the upper end is ADE20K's
MAX_RATIO = 4  # of the longer side to the shorter


@dataclass(frozen=True)
class LabelledFolder:
    """A folder of images, that of their label images, and the suffixes that pair them.

    Attributes:
        images: Folder of the images, in the data folder.
        labels: Folder of the label images.
        image_suffixes: Ends of the names of images, that of most images first.
        label_suffix: End of the names of labels.
        names: Name of each image, by its name without suffix.
        alone: Number of images and labels without partner.
        listed: File with the names without suffix, in the data folder; empty for all that the folders hold.
    """

    images: str
    labels: str
    image_suffixes: tuple[str, ...]
    label_suffix: str
    names: Mapping[str, str]
    alone: int
    listed: str = ""

    @property
    def setting(self) -> dict[str, Any]:
        """What the config says of it."""
        listed = {"ann_file": self.listed} if self.listed else {}
        return {**listed, "data_prefix": {"img_path": self.images, "seg_map_path": self.labels}}

    @property
    def fact(self) -> str:
        """What is found, in words."""
        lost = f", files without partner: {self.alone:,} (check_data names them)" if self.alone else ""
        listed = f" that {self.listed!r} names" if self.listed else ""
        return f"{len(self.names):,} images in {self.images!r}{listed}, labels in {self.labels!r}{lost}"


def find_label_images(request: Request) -> Findings:
    """Find images, labels, and what the numbers in the labels mean.

    Args:
        request: Settings of the command line.

    Raises:
        DataError: If there are no images with label images of one channel.
        ConfigError: If there are other class names than numbers in the labels.
    """
    files = list_files(str(request.data), [])
    lists = _lists(request.data, files)
    found = {pair.images: pair for pair in _merged(_pairs(request.data, files, MIN_PAIRED))}
    if lists and len(found) < 2:  # as in Pascal VOC, where most images have no labels
        pairs = _merged(_pairs(request.data, files, 0.0))
        found = {pair.listed: pair for pair in _listed(pairs, lists)} or found
    if not found:
        raise DataError(
            f"{str(request.data)!r} has no folder of images with one of label images: one channel, the same names but "
            "for the suffix, one suffix for all labels"
        )
    chosen = {split: found[name] for split, name in choose_splits(list(found), request).items()}
    facts: list[str] = []
    lists_of = {}
    if "val" not in chosen:
        parts = _divided(request.data, chosen["train"], request.validation_split, facts)
        lists_of = {f"{split}.txt": list_text(part.names) for split, part in parts.items()}
        chosen = {**parts, **chosen, **parts}
    train = chosen["train"]
    odd = next((pair for pair in chosen.values() if pair.label_suffix != train.label_suffix), None)
    if odd:
        raise DataError(
            f"labels end in {odd.label_suffix!r} in {odd.labels!r} and in {train.label_suffix!r} in {train.labels!r}: "
            "rename one of them"
        )
    settings: dict[str, Any] = {f"_{split}": pair.setting for split, pair in chosen.items()}
    ends = tuple(dict.fromkeys(end for pair in chosen.values() for end in pair.image_suffixes))
    settings["_suffixes"] = {"img_suffix": ends[0] if len(ends) == 1 else ends, "seg_map_suffix": train.label_suffix}
    facts = [*(f"{split}: {pair.fact}" for split, pair in chosen.items()), *facts]
    settings |= _meaning(_stored_values(request.data, list(chosen.values()), facts), request)
    settings |= _sizes(request.data, train)
    return Findings(settings, len(train.names), facts, lists_of)


def _divided(data: Path, pair: LabelledFolder, share: float | None, facts: list[str]) -> dict[str, LabelledFolder]:
    """The parts of a pair of folders for training and validation."""
    if pair.alone:
        facts.append(f"not used: {pair.alone:,} files without partner in {pair.images!r} and {pair.labels!r}")
    stems = dict(zip((image for image, _ in _paths(data, pair)), sorted(pair.names), strict=True))
    held = {stems[path] for path in hold_out([list(stems)], share, facts)}
    return {
        split: replace(pair, names={stem: pair.names[stem] for stem in pair.names if (stem in held) == wanted}, alone=0)
        for split, wanted in (("train", False), ("val", True))
    }


def _lists(data: Path, files: Sequence[str]) -> dict[str, list[str]]:
    """Lines of the text files, by path in the data folder."""
    found = {}
    for path in sorted(files):
        if path.lower().endswith(".txt"):
            try:
                with open_file(path) as file:
                    text = file.read().decode("utf-8-sig", "replace")
            except OSError as error:
                raise DataError(f"{printable(path)}: cannot be read: {error.strerror}") from error
            found[os.path.relpath(path, data)] = [line.strip() for line in text.splitlines() if line.strip()]
    return found


def _listed(pairs: Sequence[LabelledFolder], lists: Mapping[str, Sequence[str]]) -> list[LabelledFolder]:
    """The part of a pair of folders that each list names; without those that are several lists in one."""
    found = []
    for pair in pairs:
        named = {path: set(lines) for path, lines in lists.items() if lines and set(lines) <= pair.names.keys()}
        for path, stems in named.items():
            parts = [other for other in named.values() if other < stems]
            if not parts or set.union(*parts) != stems:
                names = {stem: pair.names[stem] for stem in sorted(stems)}
                found.append(replace(pair, names=names, alone=0, listed=path))
    return found


def _pairs(data: Path, files: Sequence[str], least: float) -> list[LabelledFolder]:
    """Each folder of label images with the folder of images whose names fit best.

    Args:
        data: Folder of the data.
        files: Paths of its files.
        least: Share of the images of a folder that have labels in one that belongs to it.
    """
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)  # names by folder and extension
    for path in files:
        folder, name = os.path.split(os.path.relpath(path, data))
        if name.lower().endswith(IMAGE_SUFFIXES):
            groups[folder, os.path.splitext(name)[1]].append(name)
    labels = {key for key, names in groups.items() if _are_labels(data / key[0], names)}
    images: dict[str, list[list[str]]] = defaultdict(list)  # groups of names by folder
    for key in sorted(groups.keys() - labels):
        images[key[0]].append(groups[key])
    found = []
    for folder, end in sorted(labels):
        names = groups[folder, end]
        fits = [fit for other in images if (fit := _fit(other, images[other], (folder, end), names, least))]
        if fits:
            found.append(max(fits, key=lambda fit: _nearness(fit.images, fit.labels)))
    return found


def _are_labels(folder: Path, names: Sequence[str]) -> bool:
    for name in sample_evenly(sorted(names), MAX_OPENED):
        info = inspect_image(str(folder / name), values=True)
        few = len(info.value_counts or ()) <= MAX_CLASS_VALUES
        if info.problem or info.mode not in LABEL_MODES or info.format == "JPEG" or not few:
            return False
    return True


def _fit(
    folder: str, groups: Sequence[Sequence[str]], label_key: tuple[str, str], labels: Sequence[str], least: float
) -> LabelledFolder | None:
    """The pair of two folders if most of their names are the same but for suffixes, else ``None``.

    Args:
        folder: Folder of images.
        groups: Names of its images, those of each extension by themselves.
        label_key: Folder and extension of the label images.
        labels: Their names.
        least: Share of the images that have labels.
    """
    for label_end in dict.fromkeys((label_key[1], _common_end(labels))):
        stems = {name.removesuffix(label_end) for name in labels}
        fits = sorted(((*_paired(names, stems), len(names)) for names in groups), key=lambda fit: -len(fit[1]))
        found: dict[str, str] = {}
        ends: list[str] = []
        images = 0
        for end, paired, count in fits:
            if paired and not paired.keys() & found.keys():  # not drawings of the same images, in another format
                found |= paired
                ends.append(end)
                images += count
        if found and len(found) >= max(MIN_PAIRED * len(labels), least * images):
            alone = images + len(labels) - 2 * len(found)
            return LabelledFolder(folder, label_key[0], tuple(ends), label_end, found, alone)
    return None


def _paired(names: Sequence[str], stems: Set[str]) -> tuple[str, dict[str, str]]:
    """The end of the names of images, and the names of those that have labels, by stem."""
    ends = dict.fromkeys((os.path.splitext(names[0])[1], _common_end(names)))
    fits = [(end, {stem: name for name in names if (stem := name.removesuffix(end)) in stems}) for end in ends]
    return max(fits, key=lambda fit: len(fit[1]))


def _common_end(names: Sequence[str]) -> str:
    """What all names end with, from a separator on, such as ``_mask.png``."""
    backwards = [name[::-1] for name in names]
    first = min(backwards)
    end = first[: common_start(first, max(backwards))][::-1]
    starts = [end.find(mark) for mark in "_-. " if mark in end]
    return end[min(starts) :] if starts else end


def _nearness(images: str, labels: str) -> tuple[bool, int]:
    one, other = PurePath(images).parts, PurePath(labels).parts
    return split_of(images) == split_of(labels), sum(part in other for part in one)


def _merged(pairs: Sequence[LabelledFolder]) -> list[LabelledFolder]:
    """Pairs of sub-folders of the same name, such as cities, taken as one of the folders above, up to the splits."""
    merged: dict[tuple[str, str, str], LabelledFolder] = {}
    for pair in pairs:
        images, labels, below = PurePath(pair.images), PurePath(pair.labels), PurePath()
        while images.parent.name and labels.parent.name and images.name == labels.name and not split_of(images.name):
            images, labels, below = images.parent, labels.parent, PurePath(images.name) / below
        key = str(images), str(labels), pair.label_suffix
        names = {(below / stem).as_posix(): (below / name).as_posix() for stem, name in pair.names.items()}
        other = merged.get(key, LabelledFolder(key[0], key[1], (), key[2], {}, 0))
        ends = tuple(dict.fromkeys((*other.image_suffixes, *pair.image_suffixes)))
        merged[key] = replace(
            other, image_suffixes=ends, names={**other.names, **names}, alone=other.alone + pair.alone
        )
    if len(merged) < len(pairs) and len(merged) == 1:  # the sub-folders are the splits
        return list(pairs)
    return list(merged.values())


def _paths(data: Path, pair: LabelledFolder) -> list[tuple[str, str]]:
    """Image and labels of each pair."""
    return [
        (str(data / pair.images / pair.names[stem]), str(data / pair.labels / (stem + pair.label_suffix)))
        for stem in sorted(pair.names)
    ]


def _stored_values(data: Path, pairs: Sequence[LabelledFolder], facts: list[str]) -> list[int]:
    """The values of some hundred label images, sorted; a line says how common they are."""
    counts: Counter[int] = Counter()
    paths = [label for pair in pairs for _, label in _paths(data, pair)]
    sample = sample_evenly(paths, MAX_READ)
    for path in sample:
        counts.update(inspect_image(path, values=True).value_counts or {})
    total = max(1, sum(counts.values()))
    shares = ", ".join(f"{value} ({counts[value] / total:.1%})" for value in sorted(counts)[:MAX_CLASS_VALUES])
    facts.append(f"values in {len(sample):,} of {len(paths):,} labels: {shares}")
    return sorted(counts)


def _meaning(values: Sequence[int], request: Request) -> dict[str, Any]:
    """Class names and label settings for the values that are stored."""
    known = [value for value in values if value not in (IGNORE_INDEX, request.unlabelled)]
    if values and values[-1] > IGNORE_INDEX:
        raise DataError(f"labels hold the number {values[-1]}: those of classes are at most 254, 255 is 'not labelled'")
    masks = list(values) == [0, IGNORE_INDEX] and request.unlabelled is None
    names = request.classes or _names_in_file(request.data)
    unlabelled = request.unlabelled
    if names and unlabelled is None and not masks:
        names, unlabelled = _without_unlabelled(names)
        known = [value for value in known if value != unlabelled]
    if masks:
        known = [0, IGNORE_INDEX]
    if not names:
        names = _asked_names(known, request)
    if unlabelled is None and known == list(range(1, len(names) + 1)):
        unlabelled = 0
    elif unlabelled is None and 1 < len(names) == len(known) - 1:
        unlabelled = _asked_number(known, names, request)
        known = [value for value in known if value != unlabelled]
    settings: dict[str, Any] = {"classes": tuple(names), "reduce_zero_label": unlabelled == 0}
    if unlabelled not in (None, 0, IGNORE_INDEX):
        settings["unlabelled"] = unlabelled
    first, last = int(unlabelled == 0), len(names) - 1 + int(unlabelled == 0)
    if all(first <= value <= last for value in known):
        return settings
    if len(known) == len(names):  # any numbers
        return {**settings, "reduce_zero_label": False, "label_values": tuple(known), "unlabelled": unlabelled}
    raise ConfigError(
        f"{len(names)} class names for {len(known)} values in the labels ({', '.join(map(str, known[:20]))}): name all "
        "of them in order by --classes, and the number that means 'not labelled' by --unlabelled"
    )


def _names_in_file(data: Path) -> tuple[str, ...]:
    path = next((data / name for name in NAME_FILES if (data / name).is_file()), None)
    return class_names(str(path)) if path else ()


def _without_unlabelled(names: Sequence[str]) -> tuple[tuple[str, ...], int | None]:
    """Names without a first or last one that means "not labelled", and its number."""
    for index in (0, len(names) - 1):
        if names[index].lower() in UNLABELLED_NAMES:
            return tuple(name for i, name in enumerate(names) if i != index), index
    return tuple(names), None


def _asked_names(values: Sequence[int], request: Request) -> tuple[str, ...]:
    question = f"Which classes are the values {', '.join(map(str, values[:20]))} (names in order, with commas)?"
    answer = request.answer(question, "--classes NAME,NAME... or --classes FILE")
    return tuple(name.strip() for name in answer.split(",") if name.strip())


def _asked_number(values: Sequence[int], names: Sequence[str], request: Request) -> int:
    question = f"{len(names)} names for {len(values)} values: which number means 'not labelled'?"
    answer = request.answer(question, "--unlabelled N")
    if answer not in map(str, values):
        raise ConfigError(f"{answer!r} is no value in the labels: {', '.join(map(str, values[:20]))}")
    return int(answer)


def _sizes(data: Path, train: LabelledFolder) -> dict[str, Any]:
    """Size to which images are scaled, and the crop that the network sees."""
    infos = [inspect_image(image) for image, _ in sample_evenly(_paths(data, train), MAX_READ)]
    sizes = [info.size for info in infos if info.problem is None]
    if not sizes:
        return {}
    short, ratio = median(min(size) for size in sizes), median(max(size) / min(size) for size in sizes)
    side = round(min(max(short, SCENE_SIDES[0]), SCENE_SIDES[1]))
    crop = max(size for size in CROPS if size <= max(side, CROPS[0]))
    return {"_size": (round(side * min(ratio, MAX_RATIO)), side), "_crop": crop}
