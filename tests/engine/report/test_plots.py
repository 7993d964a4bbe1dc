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


def test_a_band_lies_under_the_lines_and_within_the_axes() -> None:
    lines = {
        "a": CurveLine("trained", [(0, 1.0), (10, 1.0)], 100, [(0, 0.0, 2.0), (10, 1.0, 4.0)]),
        "b": CurveLine("scratch", [(0, 1.0), (10, 2.0)]),
    }
    drawn = plot("a", "b", lines)
    (band,) = re.findall(r'<polygon class="band" style="fill:var\(--trained\)" points="([^"]*)"/>', drawn)
    assert drawn.index("<polygon") < drawn.index("<polyline")
    points = [tuple(map(float, pair.split(","))) for pair in band.split()]
    assert [x for x, _ in points] == [54.0, 444.0, 444.0, 54.0]  # there along the highest, back along the lowest values
    assert points[3][1] == 246.0  # 0
    assert max(float(y) for y in re.findall(r'text-anchor="end">([\d.]+)<', drawn)) >= 400


def test_a_single_line_needs_no_legend() -> None:
    assert LABELS[0] not in plot("a", "b", {LABELS[0]: CurveLine("trained", [(0, 1.0)])})
