"""tools/tables.py: the three styles, and the exit code that a wrong count has."""

from __future__ import annotations

import dataclasses
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis.paper import compare as tables
from analysis.paper.printed import TABLES

PROGRAM = Path(__file__).resolve().parents[2] / "tools" / "tables.py"


def test_the_styles(tool: Any) -> None:
    text, markdown, data = (tool("tables.py", "2.2", *style) for style in ([], ["--markdown"], ["--json"]))
    assert (text.code, markdown.code, data.code) == (0, 0, 0), text.err
    assert text.out.startswith("Table 2.2: Isotropic ConvNeXt and ViT")
    assert "| ConvNeXt-B (iso.) | 224² | 87 | 87.08 | 16.9 | 16.91 |" in markdown.out
    (table,) = json.loads(data.out)
    assert [row["network"] for row in table["rows"]][1] == "convnext_isotropic_small"
    assert all(row["agrees"] for row in table["rows"])


def test_an_unknown_table_is_one_line(tool: Any) -> None:
    ended = tool("tables.py", "9.9")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: no table '9.9': choose from 2.1")


def test_a_count_that_is_off_has_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = TABLES["2.2"]
    wrong = dataclasses.replace(table.rows[1], params="23")
    monkeypatch.setitem(tables.TABLES, "2.2", dataclasses.replace(table, rows=(wrong,)))
    monkeypatch.setattr(sys, "argv", ["tables.py", "2.2"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(PROGRAM), run_name="__main__")
    assert ended.value.code == 1
    output = capsys.readouterr()
    assert "22.31 OFF" in output.out
    assert output.err == "error: 1 count is off: ConvNeXt-S (iso.) of Table 2.2\n"
