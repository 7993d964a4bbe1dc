"""Several seeds by one command: once for real, and the bookkeeping with stand-ins for trainings."""

from __future__ import annotations

import json
import os
import signal
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.sweep.repeat import repeat, summarize_seeds, summary_lines
from backbones.errors import ConfigError, MachineError
from tests.analysis.sweep.conftest import DIGITS, LR

RATE = f"{LR}=0.01"


@pytest.fixture
def run(sweep: Any) -> Callable[..., dict[str, Any]]:
    def call(*options: str, seeds: tuple[int, ...] = (0, 1, 2), gpus: int = 1, per_gpu: str | None = None) -> Any:
        return repeat(DIGITS, seeds, sweep.work_dir, options or (RATE,), gpus, per_gpu)

    return call


def test_mean_deviation_and_interval(run: Any, sweep: Any) -> None:
    result = run()
    assert result == json.loads((sweep.work_dir / "repeat.json").read_text())
    top1 = result["metrics"]["top1"]["last"]
    assert top1["values"] == pytest.approx([10.0, 10.01, 10.02])
    assert top1["mean"] == pytest.approx(10.01)
    assert top1["std"] == pytest.approx(statistics.stdev([10.0, 10.01, 10.02]))
    half = 4.302653 * 0.01 / 3**0.5  # t of 2 degrees of freedom at 97.5 %
    assert top1["interval"] == pytest.approx([10.01 - half, 10.01 + half])
    folders = [str(sweep.work_dir / f"trials/0000/seed_{seed}") for seed in (0, 1, 2)]
    assert [(one["seed"], one["folder"]) for one in result["runs"]] == list(zip((0, 1, 2), folders))
    lines = summary_lines(result)
    assert lines[0] == f"3 runs of {DIGITS}, seeds 0, 1, 2"
    assert lines[2].split() == ["top1", "10.0100", "±", "0.0100", "9.9852", "to", "10.0348", "10.0100", "±", "0.0100"]


def test_one_run_has_no_deviation(run: Any) -> None:
    result = run(seeds=(1,))
    assert result["metrics"]["top1"]["last"] == {"mean": 10.01, "std": None, "interval": None, "values": [10.01]}
    assert summary_lines(result)[2].split() == ["top1", "10.01", "–", "10.01"]


def test_further_seeds_join_those_that_are_finished(run: Any, sweep: Any) -> None:
    first = run(seeds=(0, 1))
    assert run(seeds=(0, 1)) == first
    assert len(sweep.ledger()) == 2
    assert len(run(RATE, "batch.per_gpu=16", seeds=(1, 2), gpus=2)["runs"]) == 2  # how a step is spread changes nothing
    assert [name for name, *_ in sweep.ledger()] == [f"0000/seed_{seed}" for seed in (0, 1, 2)]
    assert run(seeds=(0,))["metrics"]["top1"]["last"]["values"] == [10.0]


def test_a_failing_seed_keeps_nobody_from_finishing_and_is_tried_again(
    run: Any, sweep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = sweep.command
    fail = ["bash", "-c", "echo 'error: the loss is nan in step 1'; exit 3"]
    monkeypatch.setattr(
        "analysis.sweep.controller.command_of", lambda study, one, *rest: fail if one.seed == 1 else made(study, one, 1)
    )
    with pytest.raises(MachineError, match=r"^seed 1 \(the loss is nan in step 1\) failed.*2 of 3 are finished"):
        run()
    kept = json.loads((sweep.work_dir / "repeat.json").read_text())
    assert [one["seed"] for one in kept["runs"]] == [0, 2]
    monkeypatch.setattr("analysis.sweep.controller.command_of", made)
    assert [one["seed"] for one in run()["runs"]] == [0, 1, 2]
    assert [name for name, *_ in sweep.ledger()] == [f"0000/seed_{seed}" for seed in (0, 2, 1)]


def test_an_interrupted_command_goes_on(
    run: Any, sweep: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    first, made = sweep.work_dir / "trials/0000/seed_0", sweep.command
    told = f"until [ -e {first}/epoch_1.pth ]; do sleep 0.02; done; kill -TERM {os.getpid()}"

    def command(study: Any, training: Any, *rest: Any) -> list[str]:
        return ["bash", "-c", f'({told}) & exec "$@"', "bash", *made(study, training, 1)]

    monkeypatch.setenv("STAND_IN_WAITS_FOR", str(sweep.folder / "nothing"))
    monkeypatch.setattr("analysis.sweep.controller.command_of", command)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert signal.getsignal(signal.SIGTERM) is before
    assert "everything is saved: go on with the same command\n" in capfd.readouterr().out
    monkeypatch.setattr("analysis.sweep.controller.command_of", made)
    monkeypatch.delenv("STAND_IN_WAITS_FOR")
    assert [one["seed"] for one in run()["runs"]] == [0, 1, 2]
    assert [name for name, *_ in sweep.ledger()] == [f"0000/seed_{seed}" for seed in (0, 0, 1, 2)]


def test_other_settings_want_another_folder(run: Any, sweep: Any) -> None:
    run(seeds=(0,))
    with pytest.raises(ConfigError, match="options changed since the study began"):
        run(f"{LR}=0.1", seeds=(0,))
    assert len(sweep.ledger()) == 1


@pytest.mark.parametrize(
    "options, more, message",
    [
        ([], dict(seeds=(1, 1)), "each once"),
        (["randomness.seed=3"], {}, "randomness.seed is set for each training: use seeds"),
        (["work_dir=x"], {}, "use --work-dir"),
        (["modle.backbone.type=x"], {}, "no 'modle.backbone'"),
    ],
)
def test_mistakes_are_told_once_and_before(
    run: Any, sweep: Any, options: list[str], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(*options, **more)
    assert sweep.ledger() == []


def test_a_metric_that_a_run_lacks_is_left_out(tmp_path: Path) -> None:
    for seed, names in enumerate((("top1", "top5"), ("top1",))):
        vis = tmp_path / str(seed) / "start" / "vis_data"
        vis.mkdir(parents=True)
        (vis / "scalars.json").write_text(json.dumps({"step": 1} | dict.fromkeys(names, 1.0)))
    assert list(summarize_seeds("c.py", [], {0: tmp_path / "0", 1: tmp_path / "1"})["metrics"]) == ["top1"]


def test_two_seeds_of_the_digits(tool: Any, digits: Path, tmp_path: Path) -> None:
    length = ("train_cfg.max_epochs=1", "param_scheduler.1.begin=0", "batch.size=8", "train_dataloader.num_workers=0")
    options = ("--cfg-options", f"data_root={digits / 'imagenet'}", "val_dataloader.num_workers=0", *length)
    arguments = ("repeat.py", DIGITS, "--seeds", 3, 4, "--work-dir", tmp_path / "runs", *options)
    ended = tool(*arguments)
    assert ended.code == 0, ended.err
    result = json.loads((tmp_path / "runs/repeat.json").read_text())
    assert [run["seed"] for run in result["runs"]] == [3, 4]
    values = result["metrics"]["val_loss"]["last"]["values"]
    assert values[0] != values[1]
    assert {"top1", "top5", "val_loss", "ema/top1"} <= set(result["metrics"])
    assert f"2 runs of {DIGITS}, seeds 3, 4" in ended.out
    assert (tmp_path / "runs/study.html").is_file()
    for seed in (3, 4):
        assert (tmp_path / f"runs/trials/0000/seed_{seed}/epoch_1.pth").is_file()
    again = tool(*arguments)
    assert again.code == 0
    assert "started in" not in again.out
    assert again.out.splitlines()[-2] == ended.out.splitlines()[-2]
