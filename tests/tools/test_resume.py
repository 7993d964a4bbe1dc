"""A training that is resumed for longer, in processes as a person starts them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

CONFIG = Path(__file__).resolve().parents[2] / "configs/classification/digits.py"


def rates(folder: Path) -> list[float]:
    """The logged rates of the last run in a work directory."""
    *_, scalars = sorted(folder.glob("*/vis_data/scalars.json"))
    lines = [json.loads(line) for line in scalars.read_text(encoding="utf-8").splitlines()]
    return [line["lr"] for line in lines if "lr" in line]


def test_a_longer_training_has_the_rates_of_one_that_was_never_stopped(tool: Any, digits: Path, tmp_path: Path) -> None:
    def train(name: str, epochs: int, *flags: str) -> list[float]:
        settings = [f"data_root={digits / 'imagenet'}", "batch.size=4", "default_hooks.logger.interval=1"]
        settings += [f"train_cfg.max_epochs={epochs}", "param_scheduler.1.begin=0"]
        ended = tool("train.py", CONFIG, "--work-dir", tmp_path / name, *flags, "--cfg-options", *settings)
        assert ended.code == 0, ended.err
        jump = r"WARNING - .* as if it had always been this one, at \S+ in step \d+ after \S+; to stay there: --cfg"
        assert bool(re.search(jump, ended.out)) == bool(flags)
        return rates(tmp_path / name)

    whole = train("whole", 2)
    train("parts", 1)
    parts = train("parts", 2, "--resume")
    assert len(set(whole)) > 2
    assert parts == pytest.approx(whole[-len(parts) :], rel=1e-6)
    assert max(parts) < max(whole)  # it falls to the end, and does not climb
    assert parts == sorted(parts, reverse=True)


def test_a_longer_training_can_stay_at_its_last_rate(tool: Any, digits: Path, tmp_path: Path) -> None:
    """As the log says how, where a rate rises because a training that was over is made longer."""

    def train(*flags: Any) -> str:
        settings = (f"data_root={digits / 'imagenet'}", "batch.size=4", "default_hooks.logger.interval=1")
        ended = tool("train.py", CONFIG, "--work-dir", tmp_path / "run", *flags, *settings)
        assert ended.code == 0, ended.err
        return str(ended.out)

    begins = "param_scheduler.1.begin=0"
    train("--cfg-options", "train_cfg.max_epochs=1", begins)
    low = rates(tmp_path / "run")[-1]
    out = train(
        "--resume",
        "--cfg-options",
        "train_cfg.max_epochs=2",
        "param_scheduler=None",
        f"optim_wrapper.optimizer.lr={low}",
    )
    assert "as if it had always" not in out
    assert rates(tmp_path / "run") == pytest.approx([low] * len(rates(tmp_path / "run")))


def test_a_rate_or_a_schedule_that_was_changed_is_the_one_that_runs(tool: Any, digits: Path, tmp_path: Path) -> None:
    """As in public reports of an old rate that a resume brings back; without a schedule nothing else sets it."""

    def train(name: str, epochs: int, *settings: str, resume: bool = True) -> str:
        settings = (f"data_root={digits / 'imagenet'}", "batch.size=4", "default_hooks.logger.interval=1", *settings)
        if resume:
            shutil.copytree(tmp_path / "first", tmp_path / name)
        flags = ["--resume"] if resume else []
        chosen = ["--cfg-options", f"train_cfg.max_epochs={epochs}", *settings]
        ended = tool("train.py", CONFIG, "--work-dir", tmp_path / name, *flags, *chosen)
        assert ended.code == 0, ended.err
        return str(ended.out)

    train("first", 1, "param_scheduler=None", resume=False)
    out = train("rate", 2, "param_scheduler=None", "optim_wrapper.optimizer.lr=1e-5")
    (peak,) = set(rates(tmp_path / "first"))
    assert f"lr {peak:g} -> 1e-05" in out
    assert set(rates(tmp_path / "rate")) == {1e-5}
    same = train("same", 2, "param_scheduler=None")
    assert "differ from the checkpoint's" not in same
    assert set(rates(tmp_path / "same")) == {peak}
    added = train("added", 2, "param_scheduler.1.begin=0")
    assert "as if it had always been this one" in added
    steps = len(rates(tmp_path / "added"))
    whole = train("whole", 2, "param_scheduler.1.begin=0", resume=False)
    assert "differ" not in whole
    assert rates(tmp_path / "added") == pytest.approx(rates(tmp_path / "whole")[-steps:], rel=1e-6)
