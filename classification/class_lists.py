"""The lists of ImageNet's classes in use, by WordNet id, and which row of a head of one is which class of ImageNet-1K.

The lists are those that timm brings (timm/data/_info). What "22K" means differs: the usual list of 21,841 lacks one of
the 1,000 classes (n04399382, a teddy bear), others have it, or two more; winter 2021 has 19,167, in no list of timm.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo

from backbones.errors import ConfigError
from backbones.files import read_text_file

# By number of classes: timm's name of the list, and what it is.
CLASS_LISTS = {
    1000: ("imagenet-1k", "ImageNet-1K"),
    11221: ("imagenet-21k-miil", "ImageNet-21K-P"),
    11821: ("imagenet-12k", "ImageNet-12K of timm"),
    21841: ("imagenet-22k", "ImageNet-22K"),
    21842: ("imagenet-22k-ms", "ImageNet-22K with the 1,000 classes of ImageNet-1K first"),
    21843: ("imagenet-21k-goog", "ImageNet-21K with n03931044 and n09859684"),
}
WINTER_2021 = 19167
BY_WORDNET_ID = "wordnet"  # as head_mapping: rows by the lists above
WORDNET_ID = re.compile(r"n\d{8}")
NEW_ROW = "new"  # in a text file of rows; null in JSON
TEDDY = 850  # class of ImageNet-1K that 22K lacks: a widespread map file gives it the row of another class


@cache
def class_list(count: int) -> tuple[str, ...]:
    """WordNet ids of the list of so many classes, in the order of its labels.

    Raises:
        ConfigError: If no list is known that has so many.
    """
    if count not in CLASS_LISTS:
        known = ", ".join(f"{one:,}" for one in CLASS_LISTS)
        raise ConfigError(f"no list of {count:,} classes of ImageNet is known, of {known} there are")
    return tuple(ImageNetInfo(CLASS_LISTS[count][0]).label_names())


def describe_classes(names: Sequence[str]) -> str | None:
    """Which list of ImageNet class names are, in words; ``None`` if they are none.

    Args:
        names: Class names, in the order of their labels.
    """
    count, ids = len(names), set(names)
    if count == WINTER_2021 and ids <= set(class_list(21843)):
        title = "ImageNet-21K of winter 2021"
    elif count in CLASS_LISTS and ids == set(class_list(count)):
        title = CLASS_LISTS[count][1]
    else:
        return None
    listed = class_list(count) if count in CLASS_LISTS else tuple(sorted(names))
    order = "" if tuple(names) == listed else ", in another order than the usual one"
    lacking = [name for name in class_list(1000) if name not in ids]
    without = f", without {len(lacking)} of the 1,000 classes ({', '.join(lacking[:3])})" if lacking else ""
    return f"{title}, {count:,} classes{without}{order}"


def rows_of_imagenet_1k(old: int) -> list[int | None]:
    """Row of each class of ImageNet-1K in a head of ``old`` classes; ``None`` for a class that it lacks.

    Raises:
        ConfigError: If no list is known that has so many classes.
    """
    return _rows_by_id(class_list(old))


def _rows_by_id(names: Sequence[str]) -> list[int | None]:
    place = {name: row for row, name in enumerate(names)}
    return [place.get(name) for name in class_list(1000)]


def checked_rows(mapping: str | Path | Sequence[int | None], count: int, old: int) -> list[int | None]:
    """Rows of a head with ``old`` classes, one for each of ``count`` classes; ``None`` for a new row.

    Args:
        mapping: The rows; a file of them, or of the WordNet ids of the old head's classes; or ``wordnet`` for those of
            ImageNet-1K by the list of ``old`` classes.
        count: Number of classes.
        old: Number of classes of the old head.

    Raises:
        ConfigError: If the file cannot be read, or the rows are not ``count`` distinct rows of the old head.
    """
    rows: list[Any] = []
    if mapping != BY_WORDNET_ID:
        rows = _read_rows(mapping) if isinstance(mapping, str | Path) else list(mapping)
    by_id = bool(rows) and all(isinstance(row, str) and WORDNET_ID.fullmatch(row) for row in rows)
    if by_id and (len(set(rows)) != old or len(rows) != old):
        found = f"{len(rows):,} WordNet ids, {len(set(rows)):,} different ones"
        raise ConfigError(f"head_mapping {str(mapping)!r} has {found}: one for each of the head's {old:,} is needed")
    if mapping == BY_WORDNET_ID or by_id:
        if count != len(class_list(1000)):
            text = f"head_mapping={str(mapping)!r} is for the 1,000 classes of ImageNet-1K, not for {count:,}"
            raise ConfigError(text)
        return _rows_by_id(rows) if by_id else rows_of_imagenet_1k(old)
    wrong = [row for row in rows if row is not None and (not isinstance(row, int) or isinstance(row, bool))]
    if wrong:
        raise ConfigError(f"head_mapping: {wrong[0]!r} is no row number")
    if len(rows) != count:
        raise ConfigError(f"head_mapping has {len(rows)} rows for {count} classes: one for each, in their order")
    outside = [row for row in rows if row is not None and not 0 <= row < old]
    if outside:
        raise ConfigError(f"head_mapping: row {outside[0]} is not in the old head, which has 0 to {old - 1}")
    if count == len(class_list(1000)) and old > count and rows.count(rows[TEDDY]) == 2:
        rows[TEDDY] = None
    stated = [row for row in rows if row is not None]
    if len(set(stated)) < len(stated):
        twice = next(row for row in stated if stated.count(row) > 1)
        fix = f"{NEW_ROW} (null in JSON) stands for a new row"
        raise ConfigError(f"head_mapping: row {twice} stands twice, so two classes would be one; {fix}")
    return rows


def _read_rows(path: str | Path) -> list[Any]:
    try:
        text = read_text_file(path)
        if text.lstrip().startswith("["):
            return list(json.loads(text))
        lines = text.split()
        if any(WORDNET_ID.fullmatch(line) for line in lines):
            return list(lines)
        return [None if line == NEW_ROW else int(line) for line in lines]
    except OSError as error:
        raise ConfigError(f"head_mapping {str(path)!r} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"head_mapping {str(path)!r} is neither a JSON list nor one row number per line") from error
