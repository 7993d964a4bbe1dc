"""Several seeds by one command: once for real, and the bookkeeping with pretended trainings."""

from __future__ import annotations

import json
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import analysis.seeds
from analysis.seeds import repeat, summarize_seeds, summary_lines
from backbones import UserError

ROOT = Path(__file__).resolve().parents[2]
DIGITS = str(ROOT / "configs/classification/digits.py")
SCORES = {0: [40.0, 60.0, 50.0], 1: [30.0, 52.0, 56.0], 2: [10.0, 20.0, 59.0]}


class Trainings:
    """Stands in for the program, leaves curves and a checkpoint; some seeds fail or are interrupted."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.failing: set[int] = set()
        self.code = 3  # of those
        self.interrupted: set[int] = set()

    def __call__(self, command: Sequence[str]) -> int:
        self.commands.append(list(command))
        folder, seed = Path(command[command.index("--work-dir") + 1]), int(command[-1].partition("=")[2])
        vis = folder / f"start_{len(self.commands)}" / "vis_data"
        vis.mkdir(parents=True)
        lines: list[dict[str, float]] = []
        for epoch, top1 in enumerate(SCORES[seed], 1):
            lines += [{"lr": 0.1, "loss": 1 / epoch, "step": epoch * 10}]
            lines += [{"top1": top1, "val_loss": 100 - top1, "step": epoch}]
        (vis / "scalars.json").write_text("\n".join(map(json.dumps, lines)))
        (folder / "best_top1.pth").touch()  # of a training that has saved nothing to go on from
        if seed in self.interrupted:
            raise KeyboardInterrupt
        return self.code if seed in self.failing else 0

    def seeds(self) -> list[str]:
        return [command[-1].partition("=")[2] for command in self.commands]


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    stand_in = Trainings()
    monkeypatch.setattr(analysis.seeds, "_train", stand_in)
    return stand_in


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def call(*options: str, seeds: Sequence[int] = (0, 1, 2), gpus: int = 1, per_gpu: str | None = None) -> Any:
        return repeat(DIGITS, seeds, tmp_path, options, gpus, per_gpu)

    return call


def test_mean_and_deviation(trainings: Trainings, run: Any, tmp_path: Path) -> None:
    result = run()
    assert result == json.loads((tmp_path / "repeat.json").read_text())
    top1, loss = result["metrics"]["top1"], result["metrics"]["val_loss"]
    assert top1["last"] == {"mean": 55.0, "std": statistics.stdev([50, 56, 59]), "values": [50.0, 56.0, 59.0]}
    assert top1["best"]["values"] == [60.0, 56.0, 59.0]
    assert loss["best"]["values"] == [40.0, 44.0, 41.0]
    assert [(one["seed"], one["folder"]) for one in result["runs"]] == [
        (i, str(tmp_path / f"seed_{i}")) for i in SCORES
    ]
    lines = summary_lines(result)
    assert lines[0] == f"3 runs of {DIGITS}, seeds 0, 1, 2"
    assert lines[2].split() == ["top1", "55.0000", "±", "4.5826", "58.3333", "±", "2.0817"]


def test_one_run_has_no_deviation(trainings: Trainings, run: Any) -> None:
    result = run(seeds=[1])
    assert result["metrics"]["top1"]["last"] == {"mean": 56.0, "std": None, "values": [56.0]}
    assert summary_lines(result)[2].split() == ["top1", "56", "56"]


def test_the_commands(trainings: Trainings, run: Any, tmp_path: Path) -> None:
    run("batch.size=8", seeds=[2])
    (command,) = trainings.commands
    assert command[1:3] == [str(ROOT / "tools/train.py"), DIGITS]
    place = ["--work-dir", str(tmp_path / "seed_2")]
    assert command[3:] == [*place, "--cfg-options", "batch.size=8", "randomness.seed=2"]
    run("batch.size=8", seeds=[0], gpus=4, per_gpu="auto")
    assert trainings.commands[1][:4] == ["bash", str(ROOT / "tools/dist_train.sh"), DIGITS, "4"]
    assert trainings.commands[1][6:9] == ["--per-gpu-batch", "auto", "--cfg-options"]


def test_finished_seeds_are_not_trained_again(trainings: Trainings, run: Any, capsys: Any) -> None:
    first = run(seeds=[0, 1])
    assert run(seeds=[0, 1]) == first
    assert trainings.seeds() == ["0", "1"]
    assert "seed 1: done before" in capsys.readouterr().out
    run("batch.per_gpu=16", seeds=[1, 2], gpus=2)  # how a step is spread changes nothing
    assert trainings.seeds() == ["0", "1", "2"]


def test_an_interrupted_seed_goes_on(trainings: Trainings, run: Any) -> None:
    trainings.interrupted = {1}
    with pytest.raises(KeyboardInterrupt):
        run()
    trainings.interrupted = set()
    assert [one["seed"] for one in run()["runs"]] == [0, 1, 2]
    assert trainings.seeds() == ["0", "1", "1", "2"]
    assert ["--resume" in command for command in trainings.commands] == [False, False, True, False]


@pytest.mark.parametrize(("code", "how"), [(3, "exit code 3"), (-9, "signal SIGKILL")])
def test_a_failing_seed_keeps_nobody_from_finishing(
    code: int, how: str, trainings: Trainings, run: Any, tmp_path: Path
) -> None:
    trainings.failing, trainings.code = {1}, code
    with pytest.raises(UserError, match=rf"^seed 1 \({how}\) failed.*2 of 3 are finished and kept"):
        run()
    kept = json.loads((tmp_path / "repeat.json").read_text())
    assert [one["seed"] for one in kept["runs"]] == [0, 2]
    trainings.failing = set()
    assert [one["seed"] for one in run()["runs"]] == [0, 1, 2]
    assert trainings.seeds() == ["0", "1", "2", "1"]


def test_other_settings_want_another_folder(trainings: Trainings, run: Any, tmp_path: Path) -> None:
    run(seeds=[0])
    trainings.interrupted = {1}
    with pytest.raises(KeyboardInterrupt):
        run(seeds=[1])
    for seed in (0, 1):  # finished or not
        with pytest.raises(UserError, match=rf"seed_{seed} holds something else, or a run with other settings"):
            run("batch.size=32", seeds=[seed])
    (tmp_path / "seed_5").mkdir()
    (tmp_path / "seed_5/diary.txt").touch()
    with pytest.raises(UserError, match="seed_5 holds something else"):
        run(seeds=[5])
    assert trainings.seeds() == ["0", "1"]


@pytest.mark.parametrize(
    "options, more, message",
    [
        ([], dict(seeds=[1, 1]), "each seed once"),
        ([], dict(gpus=0), "--gpus 0"),
        (["randomness.seed=3"], {}, "use --seeds"),
        (["work_dir=x"], {}, "use --work-dir"),
        (["modle.backbone.type=x"], {}, "no 'modle.backbone'"),
    ],
)
def test_mistakes_are_told_once_and_before(
    trainings: Trainings, run: Any, options: list[str], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(*options, **more)
    assert trainings.commands == []


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
    for seed in (3, 4):
        assert (tmp_path / f"runs/seed_{seed}/epoch_1.pth").is_file()
    again = tool(*arguments)
    assert again.code == 0
    assert "mmengine" not in again.out
    assert again.out.splitlines()[-1] == ended.out.splitlines()[-1]


def test_whatever_ends_the_command_ends_the_training(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    before = signal.getsignal(signal.SIGTERM)

    def end_when_it_runs() -> None:
        while not (note.exists() and note.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_when_it_runs, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        analysis.seeds._train(["bash", "-c", f"echo $$ > {note}; exec sleep 100"])
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)
