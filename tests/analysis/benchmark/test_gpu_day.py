"""The day on a GPU, with parts that need none: limits, results, bars, and what a second call does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis.benchmark import gpu_day
from analysis.benchmark.gpu_day import (
    DAY_LOG,
    DAY_RESULTS,
    Bar,
    Part,
    judge_network,
    judge_training,
    part_line,
    planned_parts,
    run_gpu_day,
)
from backbones.errors import ConfigError
from engine.report.run_dir import write_json

WRITE = "import json, sys; open(sys.argv[1] + '/result.json', 'w').write(json.dumps({'speed': 2.0})); print('said')"


def part(name: str, program: str, seconds: float = 60.0, **settings: Any) -> Part:
    return Part(name, (sys.executable, "-c", program, "{out}"), seconds, **{"needs": (), **settings})


def test_every_end_of_a_part_is_recorded_and_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_day, "MIN_SECONDS", 0.5)
    parts = [
        part("crashes", "import os; os.kill(os.getpid(), 11)"),
        part("refuses", "raise SystemExit(2)"),
        part("hangs, and more", "import time; time.sleep(600)", seconds=1.0),
        part("absent", WRITE, needs=("no_such_module_at_all",)),
        part("measures", WRITE, judge=lambda result: {"speed": Bar(result["speed"], 1.5, True)}),
    ]
    run_gpu_day(tmp_path / "out", parts=parts)
    found = json.loads((tmp_path / "out" / DAY_RESULTS).read_text())
    ends = [record["end"] for record in found["parts"].values()]
    assert ends[:2] == ["failed with exit code -11", "failed with exit code 2"]
    assert ends[2:4] == ["ended after its 1 s", "skipped, no_such_module_at_all absent"]
    measured = found["parts"]["measures"]
    assert (measured["end"], measured["code"], measured["result"]) == ("done", 0, {"speed": 2.0})
    assert measured["bars"] == {"speed": {"value": 2.0, "bar": 1.5, "met": True}}
    assert "out/measures" in measured["command"]
    assert "said" in (tmp_path / "out" / DAY_LOG).read_text()
    assert {"gpu", "commit", "python", "began"} <= found["environment"].keys()


def test_what_the_time_does_not_reach_is_done_by_a_second_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [part("first", WRITE), part("second", WRITE)]
    found = run_gpu_day(tmp_path, ["first"], parts=parts)
    assert list(found["parts"]) == ["first"]
    assert run_gpu_day(tmp_path, budget=1.0, parts=parts)["parts"]["second"] == {"end": "skipped, no time left"}
    (tmp_path / "first/result.json").unlink()
    found = run_gpu_day(tmp_path, parts=parts)
    assert found["parts"]["second"]["end"] == "done"
    assert not (tmp_path / "first/result.json").exists()
    assert "first: done before" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no part 'secnd'; nearest: second"):
        run_gpu_day(tmp_path, ["secnd"], parts=parts)


def test_a_network_is_judged_by_its_fastest_peer_and_the_smallest_memory() -> None:
    ours = {"name": "ours", "seconds": [1.0], "peak_memory_bytes": 90}
    peers = [
        {"name": "a", "seconds": [1.6], "ours_is_times_faster": 1.6, "peak_memory_bytes": 80},
        {"name": "b", "seconds": [1.45], "ours_is_times_faster": 1.45, "peak_memory_bytes": 100},
        {"name": "c", "seconds": [], "failure": "no memory"},
    ]
    training, inference = (judge_network([{"sides": [ours, *peers]}], train) for train in (True, False))
    assert training["times as fast as the fastest peer"] == Bar(1.45, 1.4, True)
    assert inference["times as fast as the fastest peer"] == Bar(1.45, 1.5, False)
    assert training["peak memory over the smallest of the peers"] == Bar(90 / 80, 1.0, False)
    assert judge_network([{"sides": [ours, peers[2]]}], False) == {}
    record = {"end": "done", "seconds": 1.0, "bars": {"speed": vars(inference["times as fast as the fastest peer"])}}
    assert part_line("one", record).endswith("speed: 1.45, aimed at 1.5: MISSED")


def test_a_training_is_judged_by_its_memory(tmp_path: Path) -> None:
    write_json(tmp_path / "out/train/plan.json", {"memory": dict.fromkeys(
        ("parameters", "gradients", "moments", "averages", "buckets", "activations"), 100
    )})  # fmt: skip
    write_json(tmp_path / "out/train/starts.json", {"starts": [{"outcome": "finished", "gpu_memory_bytes": 700}]})
    found = run_gpu_day(tmp_path / "out", parts=[part("train", "", judge=judge_training)])["parts"]["train"]
    assert found["result"] == {"outcome": "finished", "measured": 700, "estimated": 600}
    assert found["bars"]["estimated memory over the measured one"]["met"]
    assert judge_training({"measured": 1000, "estimated": 600})["estimated memory over the measured one"].met is False
    assert judge_training({"measured": None, "estimated": 600}) == {}


def test_the_plan_begins_with_what_is_worth_most_and_names_each_part_once() -> None:
    names = [one.name for one in planned_parts()]
    assert names[0] == "kernels"
    assert len(set(names)) == len(names)
    assert names.index("digits") < names.index("training, bf16")
    for one in planned_parts():
        assert not any("CONFIG" in word for word in one.command)
        assert all(Path(word).exists() for word in one.command if word.startswith("/"))


def test_the_script_finds_python_and_installs_the_wheels(tmp_path: Path) -> None:
    root = Path(gpu_day.__file__).resolve().parents[2]
    env = {**os.environ, "PYTHON": sys.executable, "WHEELS": str(tmp_path / "none")}
    command = ["bash", str(root / "tools/gpu_day.sh"), str(tmp_path / "out"), "--list"]
    told = subprocess.run(command, env=env, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("kernels (90 s at most)")
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels/broken-1.0-py3-none-any.whl").write_bytes(b"no wheel")
    told = subprocess.run(command, env={**env, "WHEELS": str(tmp_path / "wheels")}, capture_output=True, text=True)
    assert told.returncode != 0  # pip says which one
    assert "broken" in told.stderr
    told = subprocess.run(command, env={**env, "PYTHON": "/bin/false"}, capture_output=True, text=True)
    assert (told.returncode, told.stderr) == (2, "error: /bin/false has no torch: name another with PYTHON=...\n")
    assert not (tmp_path / "out").exists()
