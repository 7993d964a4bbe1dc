"""Which part of a folder is for training, validation and test: by names, by what was stated, else by asking."""

from __future__ import annotations

import os
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path, PurePath
from typing import Any

from backbones.errors import ConfigError, DataError
from engine.data.image_files import inspect_image

SPLITS = {"train": "training", "val": "validation", "test": "a test"}
# Beginnings of a word in the name of a folder or file: train2017, trainannot, Validierung, dev, _test.
SPLIT_WORDS = {"train": r"tra?in|trn", "val": r"val|dev", "test": r"test|tst"}
MAX_QUOTED = 6
HELD_OUT = 0.2  # of the images, where nothing is stated; the customary fifth
MIN_SERIES = 3  # numbered names that look like series, and images in each on average
SPLIT_SEED = 0  # of the draw of the images that are held out


@dataclass(frozen=True)
class Request:
    """What the command line says about a new experiment.

    Attributes:
        data: Folder of the data.
        splits: Folder or annotation file of each split that was stated, by its name: train, val or test.
        classes: Class names in order, if stated.
        unlabelled: Stored value that means "not labelled", if stated.
        settings: Values of the example's settings that were stated, by name, such as ``_batch``.
        validation_split: Share of the training images to hold out for validation, if stated.
        ask: Asks a question on the terminal and returns the answer; ``None`` where there is none.
    """

    data: Path
    splits: Mapping[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    unlabelled: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    validation_split: float | None = None
    ask: Callable[[str], str] | None = None

    def answer(self, question: str, option: str) -> str:
        """The answer to a question.

        Args:
            question: Sentence with a question mark.
            option: Option of the command line that says the same.

        Raises:
            DataError: If there is nobody to ask, or no answer.
        """
        try:
            answer = self.ask(f"{question} ").strip() if self.ask else ""
        except EOFError:
            answer = ""
        if not answer:
            raise DataError(f"{question} Say it by {option}")
        return answer


@dataclass(frozen=True)
class Findings:
    """What was found in a folder.

    Attributes:
        settings: Values for the settings of the task's example, by name.
        images: Number of training images.
        facts: Findings in words, one line each.
        files: Text of the annotation file of each split of a set that had to be divided, by its name: ``train.txt``.
    """

    settings: dict[str, Any]
    images: int
    facts: list[str]
    files: Mapping[str, str] = field(default_factory=dict)


def split_of(name: str) -> str | None:
    """The split that a path speaks of, by the words of its parts, the last part first; ``None`` for none."""
    for part in reversed(PurePath(name).parts):
        words = [word for word in re.split(r"[^a-z]+", part.lower()) if word]
        for split, beginning in SPLIT_WORDS.items():
            if any(re.match(beginning, word) for word in words):
                return split
    return None


def choose_splits(found: Sequence[str], request: Request) -> dict[str, str]:
    """Choose which of several folders or files is which split.

    Args:
        found: Their paths in the data folder.
        request: Settings of the command line, and the one to ask.

    Returns:
        One for ``train`` and ``val``, and for ``test`` if there is one. Without validation data the test is both;
        without a test too, or if a share of the training images is stated, there is no ``val``: it is to be held out.

    Raises:
        DataError: If one is not there, or it cannot be told which it is.
        ConfigError: If a share is stated and there is validation data.
    """
    chosen: dict[str, str] = {}
    for split, stated in request.splits.items():
        fits = [one for one in found if one == PurePath(stated).as_posix()]
        fits = fits or [one for one in found if stated in PurePath(one).parts]
        if len(fits) != 1:
            raise DataError(f"--{split} {stated}: the data has {listed(fits or found)}; name one of them")
        if fits[0] == chosen.get("train"):
            raise DataError(f"--{split} {stated}: is the training data; images that were trained on tell nothing")
        chosen[split] = fits[0]
    rest = [one for one in found if one not in chosen.values()]
    unnamed = [one for one in rest if split_of(one) is None]
    for split in SPLITS:
        fits = [one for one in rest if split_of(one) == split and one not in chosen.values()]
        if split == "val" and request.validation_split is not None:
            if there := [chosen["val"]] if "val" in chosen else fits:
                raise ConfigError(f"--validation-split: the data has {listed(there)} for validation; leave it out")
            continue
        if split in chosen or (split == "test" and len(fits) != 1):
            continue
        if split == "val" and not fits and not unnamed and "test" not in chosen:
            fits = [one for one in rest if split_of(one) == "test"]
        fits = fits or [one for one in unnamed if one not in chosen.values() and split != "test"]
        if split == "train" and not fits:
            raise DataError(f"no data for training among {listed(found)}: name it by --train")
        if not fits:
            continue
        chosen[split] = fits[0] if len(fits) == 1 else _ask_which(split, fits, request)
    return chosen


def _ask_which(split: str, fits: Sequence[str], request: Request) -> str:
    answer = request.answer(f"Which is for {SPLITS[split]}: {listed(fits)}?", f"--{split}")
    if answer not in fits:
        raise DataError(f"{answer!r} is none of {listed(fits)}")
    return answer


def hold_out(groups: Iterable[Sequence[str]], share: float | None, facts: list[str]) -> set[str]:
    """Draw the images that are held out of training, the same of the same images every time.

    Copies of an image stay together, and an image that is in two groups goes where the first one of them says.

    Args:
        groups: Paths of images, those of each class by themselves.
        share: Share of each group; at least one image of two, and never all. ``None`` for a fifth.
        facts: List that receives a line where names look like those of series, such as the frames of videos.

    Returns:
        Paths of the images for validation.

    Raises:
        DataError: If there are too few images.
    """
    groups = [sorted(group) for group in groups]
    first = _first_of_copies([path for group in groups for path in group])
    held: set[str] = set()
    for group in groups:
        originals = [path for path in group if first[path] == path]
        count = min(max(1, round((share or HELD_OUT) * len(originals))), len(originals) - 1)
        held |= set(random.Random(SPLIT_SEED).sample(originals, max(count, 0)))
    if not held:
        raise DataError(f"{len(first)} images: too few to hold out a part of them for validation: name data by --val")
    facts += next(filter(None, (_series(group, held) for group in groups)), [])
    return {path for path in first if first[path] in held}


def _series(paths: Sequence[str], held: Set[str]) -> list[str]:
    """A line about names that differ in the number at their end alone, if there are several such series."""
    series: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        series[re.sub(r"[\W_]*\d+\W*$", "", os.path.splitext(path)[0])].append(path)
    if not MIN_SERIES <= len(series) <= len(paths) / MIN_SERIES:
        return []
    for members in series.values():
        parts = {path in held: os.path.basename(path) for path in members}
        if len(parts) == 2:
            return [
                f"note: if {parts[False]!r} (train) and {parts[True]!r} (val) are of one series, such as frames of a "
                "video, scores are too high: then put whole series into folders 'train' and 'val'"
            ]
    return []


def _first_of_copies(paths: Sequence[str]) -> dict[str, str]:
    """The first file with the same content, by path; only files of one size are read."""
    by_size: dict[int, list[str]] = defaultdict(list)
    for path in paths:
        by_size[os.path.getsize(path) if os.path.exists(path) else -1].append(path)
    first: dict[str, str] = {}
    for size, found in by_size.items():
        known: dict[Any, str] = {}
        for path in found:
            content = inspect_image(path).digest if len(found) > 1 and size > 0 else path
            first[path] = known.setdefault(content or path, path)
    return first


def list_text(names: Iterable[str]) -> str:
    """Text of a file with a name per line.

    Raises:
        DataError: If a name has a line break, or a blank at its beginning or end, which readers of such files drop.
    """
    names = sorted(names)
    if odd := next((name for name in names if name.strip() != name or len(name.splitlines()) != 1), None):
        raise DataError(f"the name {odd!r} cannot stand in a list of names: rename it")
    return "".join(f"{name}\n" for name in names)


def listed(names: Sequence[str]) -> str:
    """Names in quotes, the first six of many."""
    more = f" and {len(names) - MAX_QUOTED} more" if len(names) > MAX_QUOTED else ""
    return ", ".join(map(repr, names[:MAX_QUOTED])) + more


def common_start(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Number of items at the beginning of two sequences that are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def sample_evenly(items: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` items, evenly spaced."""
    return list(items) if len(items) <= count else [items[i * len(items) // count] for i in range(count)]
