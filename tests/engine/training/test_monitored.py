"""A score that early stopping, a schedule or the best weights follow is one that the validation gives, or an error."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mmengine.logging import HistoryBuffer

from analysis.start_check import check_parts
from backbones.errors import ConfigError
from classification.metric import ClassificationMetric
from detection.coco_metric import FastCocoMetric
from engine.cli import run_tool
from engine.config.load import load_config
from engine.config.world import Launch
from engine.training.ema import ModelEMAHook
from engine.training.validation import (
    ResumableEarlyStoppingHook,
    check_monitored,
    drop_stale_scores,
    expected_scores,
    score_records,
)
from segmentation.metric import ClassIoUMetric
from tests.bad_inputs.builders import CONFIG


def runner(*metrics: Any, hooks: Any = (), schedules: Any = (), best: str | None = "auto") -> Any:
    loop = SimpleNamespace(evaluator=SimpleNamespace(metrics=metrics)) if metrics else None
    saving = SimpleNamespace(save_best=best)
    return SimpleNamespace(hooks=hooks, param_schedulers=list(schedules), checkpoint_hook=saving, val_loop=loop)


def test_the_metrics_of_the_tasks_say_their_scores() -> None:
    assert expected_scores(runner()) == []
    assert expected_scores(runner(ClassificationMetric(), ClassIoUMetric())) == [
        *("top1", "top5", "val_loss", "aAcc", "mIoU", "mAcc")
    ]
    boxes = expected_scores(runner(FastCocoMetric("none.json", metric=("bbox",))))
    assert boxes is not None
    assert boxes[:2] == ["bbox_mAP", "bbox_mAP_50"]
    averaged = expected_scores(runner(ClassIoUMetric(prefix="room"), hooks=[ModelEMAHook(0.9)]))
    assert averaged == ["room/aAcc", "room/mIoU", "room/mAcc", "ema/room/aAcc", "ema/room/mIoU", "ema/room/mAcc"]
    assert expected_scores(runner(ClassificationMetric(), SimpleNamespace(prefix=None))) is None


@pytest.mark.parametrize(
    ("followers", "place"),
    [
        ({"hooks": [ResumableEarlyStoppingHook("accuracy", rule="greater")]}, r"EarlyStoppingHook\.monitor='accuracy'"),
        ({"schedules": [SimpleNamespace(), SimpleNamespace(monitor="loss")]}, r"\.monitor='loss'"),
        ({"best": "mIoU"}, r"save_best='mIoU'"),
    ],
    ids=["early stopping", "schedule", "best"],
)
def test_a_score_that_no_metric_gives_is_an_error_before_the_first_step(followers: Any, place: str) -> None:
    one = runner(ClassificationMetric(), **followers)
    with pytest.raises(ConfigError, match=f"{place} is no score of the validation: choose from top1, top5, val_loss"):
        check_monitored(one, expected_scores(one))
    without = runner(**followers)
    with pytest.raises(ConfigError, match=f"{place} is no score of the validation: there is no validation"):
        check_monitored(without, expected_scores(without))
    check_monitored(one, None)  # a foreign metric says at the first validation
    check_monitored(one, ["accuracy", "loss", "mIoU"])


def test_early_stopping_goes_on_counting_after_a_resume() -> None:
    (hook, resumed, other, anew) = (ResumableEarlyStoppingHook(name) for name in ("mIoU", "mIoU", "mAcc", "mIoU"))
    one = SimpleNamespace(train_loop=SimpleNamespace(stop_training=False), is_resuming=True)
    for score in (30.0, 20.0, 10.0):
        hook.after_val_epoch(one, {"mIoU": score})
    checkpoint: dict[str, Any] = {}
    for saved in (hook, other):
        saved.before_save_checkpoint(one, checkpoint)
    assert checkpoint == {"early_stopping": {"mIoU": [30.0, 2], "mAcc": [float("-inf"), 0]}}
    resumed.after_load_checkpoint(one, checkpoint)
    assert (resumed.best_score, resumed.wait_count) == (30.0, 2)
    resumed.after_load_checkpoint(one, {})
    assert (resumed.best_score, resumed.wait_count) == (30.0, 2)
    anew.after_load_checkpoint(SimpleNamespace(is_resuming=False), checkpoint)  # load_from
    assert (anew.best_score, anew.wait_count) == (float("-inf"), 0)


def test_early_stopping_says_why_and_how_to_go_on() -> None:
    said: list[str] = []
    logger = SimpleNamespace(info=said.append)
    one = SimpleNamespace(train_loop=SimpleNamespace(stop_training=False), logger=logger)
    hook = ResumableEarlyStoppingHook("mIoU", patience=2)
    for score in (30.0, 20.0, 10.0):
        assert not said
        hook.after_val_epoch(one, {"mIoU": score})
    assert said[-1] == (
        "early stopping: mIoU was best at 30, 2 validations ago; --resume with a patience of more than 2 goes on"
    )


@pytest.mark.parametrize(
    ("monitor", "scores", "stops"),
    [
        ("bbox_mAP", (0.30, 0.31, 0.32, 0.33), False),  # in fractions: a point is 0.01
        ("ema/coco/segm_mAP_50", (0.30, 0.31, 0.32, 0.33), False),
        ("bbox_mAP", (0.30, 0.3004, 0.3008), True),
        ("top1", (30.0, 30.04, 30.08), True),
        ("top1", (30.0, 30.2, 30.4, 30.6), False),
        ("val_loss", (0.30, 0.29, 0.28, 0.27), False),
        ("val_loss", (0.30, 0.31, 0.32, 0.33), True),
    ],
)
def test_the_least_progress_that_counts_is_in_the_unit_of_the_score(monitor: str, scores: Any, stops: bool) -> None:
    logger = SimpleNamespace(info=lambda text: None)
    one = SimpleNamespace(train_loop=SimpleNamespace(stop_training=False), logger=logger)
    hook = ResumableEarlyStoppingHook(monitor, patience=2)
    for score in scores:
        hook.after_val_epoch(one, {monitor: score})
    assert one.train_loop.stop_training is stops
    assert bool(hook.reason) is stops


def test_a_stated_least_progress_holds() -> None:
    assert ResumableEarlyStoppingHook("bbox_mAP", min_delta=0.05).min_delta == 0.05
    assert ResumableEarlyStoppingHook("val_loss", min_delta=0.05).min_delta == -0.05


def test_another_end_than_by_patience_is_not_explained_by_it() -> None:
    said: list[str] = []
    one = SimpleNamespace(train_loop=SimpleNamespace(stop_training=False), logger=SimpleNamespace(info=said.append))
    ResumableEarlyStoppingHook("mIoU", patience=2, stopping_threshold=20.0, rule="greater").after_val_epoch(
        one, {"mIoU": 30.0}
    )
    assert one.train_loop.stop_training
    assert not any("patience" in line for line in said)


def test_top5_of_few_classes_is_no_score_to_follow(tmp_path: Path) -> None:
    """A dry run says so too, which has no data."""
    for classes, fits in (("abcdef", True), ("abcde", False)):
        options = {"classes": list(classes), "default_hooks.checkpoint.save_best": "top5", "work_dir": str(tmp_path)}
        cfg = load_config(CONFIG["classifier"], options, Launch()).cfg
        with nullcontext() if fits else pytest.raises(ConfigError, match="choose from top1, val_loss"):
            check_parts(cfg)


def test_warnings_of_a_wrong_config_come_through(recwarn: pytest.WarningsRecorder) -> None:
    """Those of mmengine, mmdet and mmseg about their own code do not."""

    def warn() -> None:
        for text in (
            "Skip early stopping process",
            "\n`reduce_zero_label` will be deprecated, if",
            "Default ``avg_non_ignore`` is",
        ):
            warnings.warn_explicit(text, UserWarning, "early_stopping_hook.py", 1, module="mmengine.hooks.some")

    run_tool(warn)
    assert [str(one.message) for one in recwarn] == ["Skip early stopping process"]


def test_scores_of_a_metric_that_a_resume_removes_are_dropped() -> None:
    """Those that this validation gave, or whose records grew during it, such as times, stay with all their values."""
    scalars = {name: HistoryBuffer([0.5, 0.6], [1, 1]) for name in ("val/top1", "val/top5", "val/time", "train/loss")}
    before = score_records(scalars)
    scalars["val/time"].update(0.1)
    scalars["val/own"] = HistoryBuffer([1.0], [1])
    drop_stale_scores(scalars, before, {"top1": 0.7})
    assert list(scalars) == ["val/top1", "val/time", "train/loss", "val/own"]
    assert [len(one.data[0]) for one in scalars.values()] == [2, 3, 2, 1]
