"""Plots of reports: what their legends say does not overlap."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from engine.report.html import CurveLine, plot

LABELS = ("from the trained backbone", "from scratch", "averaged weights (EMA)", "x")


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_entries_of_a_legend_do_not_overlap(count: int) -> None:
    lines = {label: CurveLine("trained", [(0, 1.0), (9, 2.0)]) for label in LABELS[:count]}
    drawn = plot("a", "b", lines)
    entries = [
        (int(x), int(y), label)
        for x, y, label in re.findall(r'<text x="(\d+)" y="(\d+)">([^<]+)</text>', drawn)
        if label in LABELS
    ]
    assert [label for *_, label in entries] == list(LABELS[:count])
    for (x, y, label), (next_x, next_y, _) in pairwise(entries):
        # 7 pixels for a letter are those of DejaVu Sans, the widest of the usual fonts.
        assert next_y > y or next_x >= x + 7 * len(label) + 20
    assert all(x + 7 * len(label) <= 460 for x, _, label in entries)
    top = int(re.search(r'class="axis" d="M54 (\d+)V', drawn)[1])  # type: ignore[index]
    assert top > max(y for _, y, _ in entries)


def test_a_single_line_needs_no_legend() -> None:
    assert LABELS[0] not in plot("a", "b", {LABELS[0]: CurveLine("trained", [(0, 1.0)])})
