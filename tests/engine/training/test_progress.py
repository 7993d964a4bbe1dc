"""The first line of a slow training, and what the launcher is told during a test and a validation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.hooks import LoggerHook
from mmengine.runner import TestLoop

from engine.distributed.agreement import StopRequest
from engine.launch.heartbeat import Phase
from engine.training import progress, validation
from engine.training.progress import AnnouncedTestLoop, FirstLineHook
from engine.training.validation import ValidationLoop


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
