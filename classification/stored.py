"""Images in shards as samples of a classifier: which class of the config each label of the shards is."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from backbones.errors import DataError, nearest
from classification.class_lists import describe_classes
from classification.hold_out import HoldOut
from engine.data.shards import ShardLayout, Shards, ShardTable, open_table
from engine.data.stores import is_store_url

# The class in the name of an image: a WordNet id, as of ImageNet's training images, or a folder.
CLASS_IN_NAME = re.compile(r"(?:.*/)?(n\d{8})_|([^/]+)/")


class StoredSamples(Sequence[dict[str, Any]]):
    """Samples of some classes, in their order and within a class by name, as of class folders.

    Args:
        table: Table of the shards.
        rows: Rows of each class, ranges or arrays of numbers.
        labels: Label of each class.
    """

    def __init__(self, table: ShardTable, rows: Sequence[Sequence[int]], labels: Sequence[int]) -> None:
        self.table, self._labels = table, np.array(labels, np.int64)
        self._ends = np.cumsum([len(one) for one in rows], dtype=np.int64)
        # As arrays, which forked workers share; of rows chosen at random each is kept.
        ranges = [one for one in rows if isinstance(one, range)]
        self._ranges = np.array([(one.start, one.step) for one in ranges], np.int64).reshape(-1, 2)
        self._chosen = None if len(ranges) == len(rows) else np.concatenate(list(map(np.asarray, rows)))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def layout(self) -> ShardLayout:
        """The shards, and the one of each sample."""
        return ShardLayout(self.table.shards, self.table.shard_numbers(self._all_rows()))

    def labels(self) -> np.ndarray:
        """Label of each sample."""
        return np.repeat(self._labels, np.diff(self._ends, prepend=0))

    def __getitem__(self, index: Any) -> Any:
        """Sample of an index: the path of its image and its label."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row, part = self._place(index)
        return {"img_path": self.table.image(row), "gt_label": int(self._labels[part])}

    def read_ahead(self, indices: Iterable[int]) -> None:
        """Have the system begin to read images, all of them at once."""
        self.table.read_ahead([self._place(index)[0] for index in indices])

    def _all_rows(self) -> np.ndarray:
        """Row of each sample."""
        if self._chosen is not None:
            return self._chosen
        sizes = np.diff(self._ends, prepend=0)
        first, step = self._ranges.T
        places = np.arange(len(self)) - np.repeat(self._ends - sizes, sizes)
        return np.asarray(np.repeat(first, sizes) + np.repeat(step, sizes) * places)

    def _place(self, index: int) -> tuple[int, int]:
        """Row of a sample in the table, and number of its class."""
        position = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= position < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        part = bisect_right(self._ends, position)
        if self._chosen is not None:
            return int(self._chosen[position]), part
        first, step = self._ranges[part].tolist()
        return first + step * (position - int(self._ends[part - 1] if part else 0)), part


def stored_names(shards: Shards) -> list[str]:
    """Names of the classes in shards, in the order of their labels.

    Raises:
        DataError: If their labels are numbers, and nothing tells the names.
    """
    table = open_table(shards)
    if names := table.class_names or sorted(_told_names(table)):
        return list(names)
    raise DataError(
        f"classes: the labels in {shards.place!r} are numbers from {table.classes[0].label} to "
        f"{table.classes[-1].label}, without names: state classes"
    )


def stored_samples(
    shards: Shards, classes: Sequence[str], every: int = 1, test_mode: bool = False, hold_out: HoldOut | None = None
) -> StoredSamples:
    """Samples of shards.

    Args:
        shards: The shards of a split.
        classes: Class names of the config.
        every: Use every n-th image of each class.
        test_mode: Allow classes without images.
        hold_out: Choice of a part of each class, before ``every``.

    Raises:
        DataError: If labels and classes differ.
    """
    table = open_table(shards)
    found = match_classes(table, classes)
    if difference := stored_difference(found, classes, test_mode):
        raise DataError(f"{shards.place!r}: {difference}: set classes to those of the shards")
    present = [(label, found[name]) for label, name in enumerate(classes) if name in found]
    hold_out = hold_out or HoldOut()
    chosen = [hold_out.choose(rows, classes[label])[::every] for label, rows in present]
    return StoredSamples(table, chosen, [label for label, _ in present])


def match_classes(table: ShardTable, classes: Sequence[str]) -> dict[str, range]:
    """Rows of each class in shards, by its name.

    Labels that are names are taken as such. A number is a place in the list of names that the shards have; without one,
    where names of images tell classes of which the config has some, it is that class; else a place in ``classes``.
    A number beyond these is its own name, which is no class then.

    Args:
        table: Table of the shards.
        classes: Class names of the config.
    """
    told, numbered = _told_names(table), not isinstance(table.classes[0].label, str)
    if told and not (numbered and (table.class_names or set(told).isdisjoint(classes))):
        names = told
    else:
        listed = table.class_names or tuple(classes)
        numbers = [int(one.label) for one in table.classes]
        names = [listed[number] if number < len(listed) else str(number) for number in numbers]
    return {name: range(one.first, one.first + one.images) for name, one in zip(names, table.classes)}


def stored_difference(found: dict[str, range], classes: Sequence[str], test_mode: bool = False) -> str | None:
    """Description of the difference between the classes in shards and those of the config, ``None`` if there is none.

    Args:
        found: Rows by class.
        classes: Class names of the config.
        test_mode: Allow classes without images, as long as there is one of another class.
    """
    absent = [name for name in classes if name not in found]
    unknown = sorted(found.keys() - set(classes))
    if test_mode and len(absent) < len(classes):
        absent = []
    if not absent and not unknown:
        return None
    what = f"no image of class {absent[0]!r}" if absent else f"label {unknown[0]!r} is not in classes"
    near = nearest((absent or unknown)[0], unknown if absent else classes, 1, quoted=True)
    return f"{len(found):,} classes in the shards, {len(classes):,} in the config; {what}{near}"


def describe_shards(shards: Shards, table: ShardTable, classes: Sequence[str]) -> str:
    """Where shards lie, how many there are, and what tells the classes of their labels."""
    count, told = len(shards.paths), _told_names(table)
    where = shards.place if is_store_url(shards.place) else os.path.abspath(shards.place)
    place = f"{count:,} {shards.kind} {'file' if count == 1 else 'files'} of {where!r}"
    known = describe_classes(table.class_names or told)
    which = f" ({known})" if known else ""
    if isinstance(table.classes[0].label, str) or table.class_names:
        return f"{place}, which name their classes{which}"
    if told and not set(told).isdisjoint(classes):
        return f"{place}, whose images name their classes{which}"
    return f"{place}, whose labels are numbers: 0 is {classes[0]!r}, the first of classes"


def _told_names(table: ShardTable) -> list[str]:
    """Name of the class of each label, where labels are names or names of images tell it; else none."""
    if isinstance(table.classes[0].label, str):
        return [str(one.label) for one in table.classes]
    names = [match[1] or match[2] for one in table.classes if (match := CLASS_IN_NAME.match(one.prefix))]
    return names if len(set(names)) == len(table.classes) else []
