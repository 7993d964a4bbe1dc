"""Confused classes on a page: the matrix of few classes, and the most frequent confusions of any number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.report.gallery import sortable_table
from engine.report.html import confusion_table, note, number

MAX_MATRIX_CLASSES = 30  # more are too wide to read
MAX_CONFUSIONS = 40  # that are listed


def top_confusions(matrix: np.ndarray, most: int = MAX_CONFUSIONS) -> list[tuple[int, int, int, float]]:
    """The most frequent confusions, as true class, predicted class, count, and percent of the true class.

    Args:
        matrix: Counts, (K, K), rows true.
        most: Number of confusions.
    """
    wrong = matrix * ~np.eye(len(matrix), dtype=bool)
    totals = np.maximum(matrix.sum(axis=1), 1)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [tuple(int(part) for part in np.unravel_index(place, matrix.shape)) for place in order]
    return [
        (true, said, int(wrong[true, said]), 100 * wrong[true, said] / totals[true])
        for true, said in pairs
        if wrong[true, said]
    ]


def confusion_section(confusion: Mapping[str, Any], said: str, counted: str, percent: bool = False) -> str:
    """Return the confusions as HTML.

    Args:
        confusion: Mapping with ``classes``, (K,) names, and ``matrix``, (K, K) counts with a row per true class.
        said: Words about the columns.
        counted: Words about the numbers.
        percent: Whether the matrix shows percent of the true class.
    """
    classes, matrix = confusion["classes"], np.array(confusion["matrix"])
    pairs = top_confusions(matrix)
    if percent:
        matrix = np.rint(100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)).astype(int)
    drawn = {"classes": classes, "matrix": matrix.tolist()}
    rows = [[classes[true], classes[one], f"{count:,}", number(share)] for true, one, count, share in pairs]
    listed = sortable_table(["is", said, "number", "percent of what is"], rows)
    if not rows:
        listed = note("No class is confused with another.")
    if len(classes) > MAX_MATRIX_CLASSES:
        return note(f"Most frequent confusions. {counted}.") + listed
    details = f"<details><summary>most frequent confusions</summary>{listed}</details>"
    return confusion_table(drawn, said, counted) + (details if rows else listed)
