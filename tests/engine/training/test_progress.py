"""The first line of a slow training, and what the launcher is told during a test."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from mmengine.hooks import LoggerHook

from engine.launch.heartbeat import Phase
from engine.training import progress
from engine.training.progress import FirstLineHook, TestPositionHook


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


def test_the_scores_of_a_test_may_take_longer_than_a_batch_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Phase] = []
    monkeypatch.setattr(progress.HEARTBEAT, "enter", lambda phase, place="": told.append(phase))
    hook, runner = TestPositionHook(), SimpleNamespace(test_dataloader=range(2))
    for batch in range(2):
        hook.before_test_iter(runner, batch)
        hook.after_test_iter(runner, batch)
    hook.after_test_epoch(runner)
    assert told == [Phase.VALIDATION, Phase.DATA, Phase.VALIDATION, Phase.VALIDATION, Phase.SAVING]
