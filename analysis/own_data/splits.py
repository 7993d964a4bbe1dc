"""Which part of a folder is for training, validation and test: by names, by what was stated, else by asking."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path, PurePath
from typing import Any

from backbones.errors import DataError

SPLITS = {"train": "training", "val": "validation", "test": "a test"}
# Beginnings of a word in the name of a folder or file: train2017, trainannot, Validierung, dev, _test.
SPLIT_WORDS = {"train": r"tra?in|trn", "val": r"val|dev", "test": r"test|tst"}
MAX_QUOTED = 6


@dataclass(frozen=True)
class Request:
    """What the command line says about a new experiment.

    Attributes:
        data: Folder of the data.
        splits: Folder or annotation file of each split that was stated, by its name: train, val or test.
        classes: Class names in order, if stated.
        unlabelled: Stored value that means "not labelled", if stated.
        settings: Values of the example's settings that were stated, by name, such as ``_batch``.
        ask: Asks a question on the terminal and returns the answer; ``None`` where there is none.
    """

    data: Path
    splits: Mapping[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    unlabelled: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
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
    """

    settings: dict[str, Any]
    images: int
    facts: list[str]


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
        One for ``train`` and ``val``, and for ``test`` if there is one. Without validation data the test is both.

    Raises:
        DataError: If one is not there, or it cannot be told which it is.
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
        if split in chosen or (split == "test" and len(fits) != 1):
            continue
        if split == "val" and not fits and not unnamed and "test" not in chosen:
            fits = [one for one in rest if split_of(one) == "test"]
        fits = fits or [one for one in unnamed if one not in chosen.values() and split != "test"]
        if not fits:
            others = f" beside {chosen['train']!r}" if "train" in chosen else f" among {listed(found)}"
            raise DataError(
                f"no data for {SPLITS[split]}{others}: put a part of the images (a fifth, say) into one of its own, "
                f"or name it by --{split}"
            )
        chosen[split] = fits[0] if len(fits) == 1 else _ask_which(split, fits, request)
    return chosen


def _ask_which(split: str, fits: Sequence[str], request: Request) -> str:
    answer = request.answer(f"Which is for {SPLITS[split]}: {listed(fits)}?", f"--{split}")
    if answer not in fits:
        raise DataError(f"{answer!r} is none of {listed(fits)}")
    return answer


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
