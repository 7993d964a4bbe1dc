"""tools/benchmark.py from the command line: what its sub-commands print and write, and their exit codes."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis.benchmark import loading, networks
from analysis.benchmark.timing import MismatchError

ROOT = Path(__file__).resolve().parents[2]
CLASSIFIER = "configs/classification/digits.py"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """Run the tool in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "tools" / "benchmark.py"), run_name="__main__")
    return ended.value.code


def test_network_with_several_batches_printed_written_and_plotted(tool: Any, tmp_path: Path) -> None:
    data, picture = tmp_path / "data.json", tmp_path / "chart.png"
    arguments = ["--batch", "1", "2", "--size", "32", "--rounds", "1", "--threads", "1", "--device", "cpu"]
    ended = tool("benchmark.py", "network", "convnext_atto", *arguments, "--json", str(data), "--plot", str(picture))
    assert ended.code == 0, ended.err
    assert ended.out.count("ours is x faster") == 2
    assert "1 threads" in ended.out
    results = json.loads(data.read_text())
    assert [one["request"]["batch"] for one in results] == [1, 2]
    assert [one["request"]["rounds"] for one in results] == [1, 1]
    assert {side["name"] for side in results[0]["sides"]} == {"ours", "timm", "timm, conv_mlp"}
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_model(tool: Any) -> None:
    ended = tool("benchmark.py", "model", CLASSIFIER, "--rounds", "1", "--device", "cpu")
    assert ended.code == 0, ended.err
    assert ended.out.startswith(f"{CLASSIFIER}, inference, batch 1, ")
    assert "plain PyTorch blocks" in ended.out


def test_checkpointing(tool: Any, tmp_path: Path) -> None:
    data, picture = tmp_path / "data.json", tmp_path / "chart.svg"
    arguments = ["--shares", "0", "--modes", "plain", "--batch", "1", "--size", "32", "--rounds", "1"]
    files = ["--json", str(data), "--plot", str(picture)]
    ended = tool("benchmark.py", "checkpointing", "convnext_atto", *arguments, "--device", "cpu", *files)
    assert ended.code == 0, ended.err
    assert "0% recomputed, plain" in ended.out
    assert sorted(json.loads(data.read_text())) == ["place", "points"]
    assert picture.exists()


def test_scaling_over_processes(tool: Any, tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    arguments = [
        "--processes",
        "2",
        "--batch",
        "1",
        "--size",
        "32",
        "--rounds",
        "2",
        "--device",
        "cpu",
        "--threads",
        "64",
    ]
    ended = tool("benchmark.py", "scaling", "convnext_atto", *arguments, "--json", str(data))
    assert ended.code == 0, ended.err
    assert ended.out.count("oversubscribed") == 2
    one, two = json.loads(data.read_text())["points"]
    assert (one["processes"], one["efficiency"], one["efficiency_quartiles"]) == (1, 1, [1, 1])
    assert (two["processes"], two["oversubscribed"], len(two["seconds"])) == (2, True, 2)
    assert two["efficiency"] == pytest.approx(sum(a / b for a, b in zip(one["seconds"], two["seconds"])) / 2)
    bad = tool("benchmark.py", "scaling", "convnext_atto", "--processes", "0", "--device", "cpu")
    assert (bad.code, bad.err.strip()) == (2, "error: --processes 0: positive numbers are needed")


def test_masked_pre_training(tool: Any, tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    arguments = ["--batch", "2", "--size", "96", "--rounds", "1", "--threads", "1", "--device", "cpu"]
    ended = tool("benchmark.py", "fcmae", "convnextv2_atto", *arguments, "--json", str(data))
    assert ended.code == 0, ended.err
    assert "x faster than dense" in ended.out
    found = json.loads(data.read_text())
    assert 0 < found["largest_difference"] < 1e-4
    assert found["flops_ratio"] < 0.6
    assert [side["name"] for side in found["sides"]] == ["packed", "packed, plain blocks", "dense"]
    assert {"ratio", "memory_ratio"} < set(found)


@pytest.mark.parametrize("workers", [0, 1])
def test_loading(tool: Any, digits: Path, tmp_path: Path, workers: int) -> None:
    written = tmp_path / "data.json"
    options = ["--cfg-options", f"data_root={digits / 'imagenet'}", f"work_dir={tmp_path / 'work'}"]
    arguments = ["--peer", "timm", "--rounds", "2", "--workers", str(workers), "--json", str(written)]
    ended = tool("benchmark.py", "loading", CLASSIFIER, *arguments, *options)
    assert ended.code == 0, ended.err
    assert "ours is x faster" in ended.out
    found = json.loads(written.read_text())
    assert [len(side["seconds"]) for side in found["sides"]] == [2, 2]
    assert {side["name"] for side in found["sides"]} == {"ours", "timm"}
    assert found["workers"] == workers
    assert found["difference"] < loading.LEVEL_TOLERANCE
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["network", "convnext_atto", "--dtype", "fp16", "--device", "cpu"],
            "--dtype fp16: CPUs compute in fp32 or bf16",
        ),
        (["network", "convnext_atto", "--threads", "0"], "--threads 0: a positive number is needed"),
        (["loading", CLASSIFIER, "--workers", "-1"], "--workers -1: 0 or more are needed"),
        (["loading", CLASSIFIER, "--rounds", "0"], "--rounds 0: a positive number is needed"),
        (["checkpointing", "convnext_atto", "--shares", "2", "--device", "cpu"], "--shares 2.0: between 0 and 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_what_cannot_be_measured_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(monkeypatch, *arguments) == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")


def test_only_a_classifier_is_loaded(tool: Any, digits: Path) -> None:
    options = ["--cfg-options", f"data_root={digits / 'coco'}"]
    ended = tool("benchmark.py", "loading", "configs/detection/mask_rcnn_digits.py", *options)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: train_pipeline: one ClassificationTransform")


def test_a_mismatch_has_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], digits: Path
) -> None:
    def differ(*args: Any) -> Any:
        raise MismatchError("our images differ")

    monkeypatch.setattr(networks, "measure_network", differ)
    monkeypatch.setattr(loading, "measure_loading", differ)
    root = f"data_root={digits / 'imagenet'}"
    for arguments in (["network", "convnext_atto"], ["loading", str(ROOT / CLASSIFIER), "--cfg-options", root]):
        assert run(monkeypatch, *arguments) == 1
        assert capsys.readouterr().err == "error: our images differ\n"


@pytest.mark.parametrize(
    ("old", "arguments", "new"),
    [
        ("throughput.py", ["convnext_tiny", "--train"], "network convnext_tiny --train"),
        ("throughput.py", ["--batch", "1", "configs/a b.py"], "model --batch 1 'configs/a b.py'"),
        ("data_speed.py", ["a.py"], "loading a.py"),
        ("detection_speed.py", [], "detection"),
        ("checkpointing.py", ["convnext_tiny"], "checkpointing convnext_tiny"),
    ],
)
def test_the_old_programs_print_the_new_command(program: Any, old: str, arguments: list[str], new: str) -> None:
    ended = program(old, *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.endswith(f"{old} is now: python tools/benchmark.py {new}\n")
