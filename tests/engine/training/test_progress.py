"""The first line of a slow training, and what the launcher is told during a test and a validation."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.hooks import LoggerHook
from mmengine.runner import TestLoop

from engine.config.load import resolve
from engine.config.world import Launch
from engine.distributed.agreement import StopRequest
from engine.launch.heartbeat import Phase
from engine.planning.plan import training_plan
from engine.report.recorder import record_run
from engine.report.run_dir import read_curves
from engine.training import progress, validation
from engine.training.build import build_runner
from engine.training.progress import AnnouncedTestLoop, FirstLineHook
from engine.training.validation import ValidationLoop
from tests.engine.training.test_ema import BATCH, config


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ([40.0], ["step 1 of 100: 40 s for a step, about 1:06:00 left, without validations"]),
        ([9.0, 4.0, 4.0, 4.0], ["step 3 of 100: 4 s for a step, about 6:28 left, without validations"]),
        ([0.1] * 60, []),  # the regular line comes first
        ([0.1] * 49 + [30.0], []),
    ],
)
def test_a_slow_training_says_early_how_long_it_takes(
    seconds: list[float], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, lines = SimpleNamespace(now=100.0), []
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    logger = SimpleNamespace(info=lines.append)
    runner: Any = SimpleNamespace(hooks=[LoggerHook(interval=50)], logger=logger, iter=0, max_iters=100)
    hook = FirstLineHook()
    hook.before_train(runner)
    for step, taken in enumerate(seconds):
        clock.now += taken
        runner.iter = step
        hook.after_train_iter(runner, step)
    assert lines == said


def short_run(folder: Path, resume: bool = False) -> None:
    """A training of 7 steps that logs every third step and validates after every second one."""
    cfg = config(folder, 1, ema=False)
    cfg.train_cfg = dict(type="IterationLoop", max_iters=7, val_interval=2)
    cfg.default_hooks.logger.interval = 3
    cfg.default_hooks.checkpoint = dict(type="ResumableCheckpointHook", by_epoch=False, interval=2, max_keep_ckpts=-1)
    resolved = resolve(cfg, BATCH, Launch())
    cfg.resume = resume
    runner = build_runner(resolved, Launch())
    with record_run(runner, resolved, training_plan(resolved, Launch())):
        runner.train()


def test_a_validation_has_a_loss_of_the_training_beside_it_whatever_the_interval(tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    short_run(whole)
    curves = read_curves(whole)
    assert [step for step, _ in curves["val/weight"]] == [2, 4, 6, 7]
    assert [step for step, _ in curves["train/loss"]] == [2, 3, 6, 7]  # 3 and 6 by the interval
    shutil.copytree(whole, resumed)
    for step in (6, 7):
        (resumed / f"iter_{step}.pth").unlink()
    (resumed / "last_checkpoint").write_text(str(resumed / "iter_4.pth"))
    short_run(resumed, resume=True)
    again = read_curves(resumed)
    assert all(again[name] == curves[name] for name in ("train/loss", "val/weight"))


def test_the_scores_of_a_test_may_take_longer_than_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has no more batches waits for the others as in the last one."""
    told: list[Any] = []
    monkeypatch.setattr(progress.HEARTBEAT, "enter", lambda phase, place="": told.append(place or phase))
    monkeypatch.setattr(TestLoop, "run_iter", lambda *_: told.append("predicts"))
    agreement = SimpleNamespace(barrier=lambda: told.append("waits"))
    loop = AnnouncedTestLoop.__new__(AnnouncedTestLoop)
    loop.dataloader, loop._runner = range(2), SimpleNamespace(agreement=agreement)
    monkeypatch.setattr(TestLoop, "run", lambda _: [loop.run_iter(batch, None) for batch in range(2)])
    loop.run()
    first, last = ("test, batch 1 of 2", "predicts"), ("test, batch 2 of 2", "predicts", "waits")
    assert told == [*first, Phase.DATA, *last, Phase.VALIDATION, Phase.SAVING]


def test_the_scores_of_a_validation_may_take_longer_than_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(validation.HEARTBEAT, "enter", lambda phase, place="": told.append(place or phase))
    monkeypatch.setattr(ValidationLoop, "run_iter", lambda *_: told.append("predicts"))
    loop = ValidationLoop.__new__(ValidationLoop)
    loop.dataloader = type("Batches", (list,), {"dataset": range(2)})(range(2))
    loop.evaluator = SimpleNamespace(evaluate=lambda _: told.append("scores") or {"top1": 1.0})
    loop.loss = SimpleNamespace(begin=lambda: None, finish=dict)  # type: ignore[assignment]
    agreement = SimpleNamespace(at_step=lambda request: request, barrier=lambda: told.append("waits"))
    signals = SimpleNamespace(stop_request=StopRequest.NOTHING)
    loop._runner = SimpleNamespace(agreement=agreement, signals=signals, model=torch.nn.Identity())
    assert loop._evaluate() == {"top1": 1.0}
    first, last = ("validation, batch 1 of 2", "predicts"), ("validation, batch 2 of 2", "predicts", "waits")
    assert told == [*first, Phase.VALIDATION, *last, Phase.VALIDATION, "scores"]
