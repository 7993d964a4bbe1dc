"""Confused classes on a page: the matrix of few classes, and the most frequent confusions of any number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.report.gallery import sortable_table
from engine.report.html import confusion_table, note, number

MAX_MATRIX_CLASSES = 30  # more are too wide to read
MAX_CONFUSIONS = 40  # that are listed


def count_confusions(classes: Sequence[str], true: np.ndarray, said: np.ndarray) -> dict[str, Any]:
    """Count which classes are taken for which, as JSON takes it.

    Args:
        classes: Names, (K,).
        true: True classes, (N,), int.
        said: Predicted ones, (N,), int.

    Returns:
        ``classes``, and ``matrix``, (K, K) counts with a row per true class; with more than 30 classes ``pairs``: true
        class, predicted one and count of what occurs, the most frequent first.
    """
    cells, counts = np.unique(np.asarray(true, np.int64) * len(classes) + said, return_counts=True)
    pairs = np.stack([*np.divmod(cells, len(classes)), counts], axis=1)
    if len(classes) > MAX_MATRIX_CLASSES:
        return {"classes": list(classes), "pairs": pairs[np.argsort(-counts, kind="stable")].tolist()}
    matrix = np.zeros((len(classes),) * 2, int)
    matrix[pairs[:, 0], pairs[:, 1]] = counts
    return {"classes": list(classes), "matrix": matrix.tolist()}


def top_confusions(confusion: Mapping[str, Any], most: int = MAX_CONFUSIONS) -> list[tuple[int, int, int, float]]:
    """The most frequent confusions, as true class, predicted class, count, and percent of the true class.

    Args:
        confusion: Counts as those of :func:`count_confusions`, with a matrix of any size or pairs.
        most: Number of confusions.
    """
    if "pairs" in confusion:
        true, said, counts = np.array(confusion["pairs"], int).reshape(-1, 3).T
    else:
        matrix = np.array(confusion["matrix"])
        true, said = np.nonzero(matrix)
        counts = matrix[true, said]
    totals = np.bincount(true, counts, len(confusion["classes"]))
    order = [one for one in np.argsort(-counts, kind="stable") if true[one] != said[one]][:most]
    return [
        (int(true[one]), int(said[one]), int(counts[one]), float(100 * counts[one] / totals[true[one]]))
        for one in order
    ]


def confusion_section(confusion: Mapping[str, Any], said: str, counted: str, percent: bool = False) -> str:
    """Return the confusions as HTML.

    Args:
        confusion: Counts as those of :func:`count_confusions`, with a matrix of any size or pairs.
        said: Words about the columns.
        counted: Words about the numbers.
        percent: Whether the matrix shows percent of the true class.
    """
    classes = confusion["classes"]
    rows = [
        [classes[true], classes[one], f"{count:,}", number(share)]
        for true, one, count, share in top_confusions(confusion)
    ]
    listed = sortable_table(["is", said, "number", "percent of what is"], rows)
    if not rows:
        listed = note("No class is confused with another.")
    if len(classes) > MAX_MATRIX_CLASSES:
        return note(f"Most frequent confusions. {counted}.") + listed
    matrix = np.array(confusion["matrix"])
    if percent:
        matrix = np.rint(100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)).astype(int)
    details = f"<details><summary>most frequent confusions</summary>{listed}</details>"
    drawn = confusion_table({"classes": classes, "matrix": matrix.tolist()}, said, counted)
    return drawn + (details if rows else listed)
