"""Table 2.12 measured here: the pairs, the turns, the printed line. No time is asserted."""

from __future__ import annotations

from typing import Any

import pytest

from analysis.benchmark import paper_table
from analysis.benchmark.paper_table import compared_rows, measure_paper_table
from analysis.paper.printed import TABLES


def test_table_2_12_pairs_each_convnext_with_its_swin(monkeypatch: pytest.MonkeyPatch, clock: Any) -> None:
    found = [tuple(row.label for row in rows) for rows in compared_rows()]
    assert found[0] == ("Swin-T", "ConvNeXt-T")
    assert found[-1] == ("ConvNeXt-XL",)
    assert sum(map(len, found)) == len(TABLES["2.12"].rows)
    assert all(len({row.shape for row in rows}) == 1 for rows in compared_rows())
    cost = {"Swin-T": 3.0, "ConvNeXt-T": 2.0, "ConvNeXt-XL": 8.0}
    monkeypatch.setattr(
        paper_table, "compared_rows", lambda: iter([(*TABLES["2.12"].rows[:2],), TABLES["2.12"].rows[-1:]])
    )
    monkeypatch.setattr(
        paper_table, "_inference_step", lambda row, device, batch: clock.work(row.label, cost[row.label])
    )
    swin, tiny, largest = measure_paper_table("cpu", 6, rounds=2, clock=clock)
    assert clock.log[2:6] == ["Swin-T", "ConvNeXt-T"] * 2
    assert (swin.rate, swin.over_swin, tiny.rate, tiny.over_swin) == (2.0, None, 3.0, 1.5)
    assert (largest.over_swin, largest.side, largest.paper) == (None, 384, "147.4")
    assert "1943.5" in tiny.as_text()
    assert "paper, on an A100" in paper_table.paper_table_header("cpu", 6)[-1]
