"""tools/throughput.py from the command line: what it prints and writes, and its exit codes."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis.benchmark import networks as throughput
from analysis.benchmark.networks import MismatchError

PROGRAM = Path(__file__).resolve().parents[2] / "tools" / "throughput.py"


def test_batches_and_sizes_printed_written_and_drawn(tool: Any, tmp_path: Path) -> None:
    data, picture = tmp_path / "data.json", tmp_path / "chart.png"
    arguments = ["--batch", "1", "2", "--size", "32", "--rounds", "1", "--threads", "1", "--device", "cpu"]
    ended = tool("throughput.py", "convnext_atto", *arguments, "--json", str(data), "--plot", str(picture))
    assert ended.code == 0, ended.err
    assert ended.out.count("ours is x faster") == 2
    assert "1 threads" in ended.out
    results = json.loads(data.read_text())
    assert [one["request"]["batch"] for one in results] == [1, 2]
    assert {side["name"] for side in results[0]["sides"]} == {"ours", "timm", "timm, conv_mlp"}
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_measured_is_one_line(tool: Any) -> None:
    ended = tool("throughput.py", "convnext_atto", "--dtype", "fp16", "--device", "cpu")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error: --dtype fp16: CPUs compute in fp32 or bf16\n"


def test_a_mismatch_has_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def differ(*args: Any) -> Any:
        raise MismatchError("timm computes something else")

    monkeypatch.setattr(throughput, "measure", differ)
    monkeypatch.setattr(sys, "argv", ["throughput.py", "convnext_atto"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(PROGRAM), run_name="__main__")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: timm computes something else\n"
