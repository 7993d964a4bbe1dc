"""A training that diverges, in the programs as people run them: it ends in a line, whose command reproduces it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from backbones.weights import read_checkpoint

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TASKS = {
    "classification/digits": ("imagenet", 8),
    "detection/mask_rcnn_digits": ("coco", 2),
    "segmentation/upernet_digits": ("ade", 2),
}


def diverge(run: Any, task: str, digits: Path, work_dir: Path) -> tuple[Any, Path]:
    """Train at a rate at which the second or third step has nothing finite any more."""
    data, size = TASKS[task]
    options = (
        f"data_root={digits / data}",
        f"batch.size={size}",
        "batch.lr_rule=none",
        "optim_wrapper.optimizer.lr=1e30",
    )
    workers = ("train_dataloader.num_workers=0", "default_hooks.logger.interval=1")
    ended = run("train.py", CONFIGS / f"{task}.py", "--work-dir", work_dir, "--cfg-options", *options, *workers)
    (folder,) = (work_dir / "nonfinite").iterdir()
    return ended, folder


@pytest.mark.parametrize("task", TASKS)
def test_the_command_of_the_last_line_reproduces_it(
    program: Any, tool: Any, digits: Path, tmp_path: Path, task: str
) -> None:
    ended, folder = diverge(tool, task, digits, tmp_path)
    report = json.loads((folder / "report.json").read_text())
    assert ended.code == 3, ended.err
    *_, last = ended.err.splitlines()
    found = re.fullmatch(r"error: step (\d+) was not finite, first in (\S+) \(.*: python (tools/\S+) (\S+)", last)
    assert found is not None, last
    assert (found[1], found[2], Path(found[4])) == (str(report["step"]), report["cause"]["module"], folder)
    assert "lower the learning rate" in ended.out
    assert "Traceback" not in ended.out + ended.err
    assert Path(report["by_rank"][0]["samples"][0][0]["path"]).is_file()
    assert all(
        bool(value.isfinite().all()) for value in read_checkpoint(str(folder / "weights.pt"))["state_dict"].values()
    )
    run = program if task.startswith("classification") else tool  # once in a fresh process, as a person would
    again = run(Path(found[3]).name, found[4])
    assert again.code == 0, again.err
    assert again.out.splitlines()[-1] == "reproduced"
    assert f"first, in the replay: {report['place']}" in again.out


def test_a_replay_says_when_it_does_not_reproduce_it(tool: Any, digits: Path, tmp_path: Path) -> None:
    _, folder = diverge(tool, "classification/digits", digits, tmp_path)
    file = folder / "weights.pt"
    content = read_checkpoint(str(file))
    content["state_dict"] = {name: value.clamp(-0.1, 0.1) for name, value in content["state_dict"].items()}
    torch.save(content, file)
    ended = tool("replay.py", folder)
    assert ended.code == 1, ended.err
    assert "first, in the replay: none" in ended.out
    assert ended.out.splitlines()[-1].startswith("not reproduced: ")
    for argument, said in (
        ([folder, "--rank", 3], "has nothing of rank 3; there were 1 processes"),
        ([tmp_path], "is no record"),
    ):
        ended = tool("replay.py", *argument)
        assert ended.code == 2
        assert said in ended.err
        assert len(ended.err.splitlines()) == 1


def test_a_record_cannot_have_anything_executed(tool: Any, digits: Path, tmp_path: Path) -> None:
    _, folder = diverge(tool, "classification/digits", digits, tmp_path)
    file = folder / "weights.pt"
    content = read_checkpoint(str(file))
    backbone = {**content["config"]["model"]["backbone"], "type": "os.mkdir", "path": str(tmp_path / "made")}
    for change, said in (
        ({"model": {**content["config"]["model"], "backbone": backbone}}, "it builds 'os.mkdir'"),
        ({"custom_imports": {"imports": ["antigravity"]}}, "the config imports 'antigravity'"),
    ):
        torch.save({**content, "config": {**content["config"], **change}}, file)
        ended = tool("replay.py", folder)
        assert ended.code == 2, ended.err
        assert said in ended.err
    assert not (tmp_path / "made").exists()


def test_anything_but_a_record_is_refused_in_a_line(tool: Any, digits: Path, tmp_path: Path) -> None:
    _, folder = diverge(tool, "classification/digits", digits, tmp_path)
    record = {name: (folder / name).read_bytes() for name in ("report.json", "weights.pt", "rank_0.pt")}
    report = json.loads(record["report.json"])
    for name, content in (
        ("rank_0.pt", record["weights.pt"]),
        ("weights.pt", record["rank_0.pt"]),
        ("report.json", json.dumps(report | {"ranks": {"had_it": ["x"]}, "by_rank": [1]}).encode()),
        ("report.json", json.dumps(report | {"ranks": 3}).encode()),
        ("report.json", json.dumps(report | {"by_rank": {}}).encode()),
    ):
        (folder / name).write_bytes(content)
        ended = tool("replay.py", folder)
        assert ended.code == 2, ended.err
        (line,) = ended.err.splitlines()
        assert "is no record" in line
        (folder / name).write_bytes(record[name])
    (folder / "rank_0.pt").unlink()
    os.mkfifo(folder / "rank_0.pt")
    ended = tool("replay.py", folder)
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)


def test_a_run_that_goes_back_too_often_ends_in_a_line(tool: Any, digits: Path, tmp_path: Path) -> None:
    """At such a rate every way leads to the same end."""
    options = (
        f"data_root={digits / 'imagenet'}",
        "batch.size=8",
        "batch.lr_rule=none",
        "optim_wrapper.optimizer.lr=1e30",
    )
    more = ("env_cfg.nonfinite=roll_back", "train_dataloader.num_workers=1")
    config = CONFIGS / "classification/digits.py"
    ended = tool("train.py", config, "--work-dir", tmp_path, "--cfg-options", *options, *more)
    assert ended.code == 3, ended.err
    assert ended.err.splitlines()[-1].endswith("more such events than env_cfg.nonfinite.max_rollbacks=3")
    assert ended.out.count("going back from step ") == 3
