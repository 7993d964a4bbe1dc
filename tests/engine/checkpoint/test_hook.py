"""Which checkpoints a run writes and keeps."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop

import classification  # noqa: F401  (the packages register their tasks)
import detection  # noqa: F401
import segmentation  # noqa: F401
from backbones.errors import UserError
from backbones.weights import read_checkpoint
from engine.checkpoint.hook import ResumableCheckpointHook
from engine.checkpoint.preemption import Signals
from engine.checkpoint.store import last_good
from engine.training.runner import Runner
from tests.programs import PATIENCE

STEPS = 3  # of an epoch


class Run:
    """As much of a runner as the hook asks for."""

    def __init__(self, folder: Path, by_epoch: bool = True, task: str | None = None) -> None:
        self.cfg = Config({"task": task})
        self.work_dir, self.epoch, self.iter = str(folder), 0, 0
        self.run_id = "run"
        self.logger = logging.getLogger("test")
        self.checkpoints = SimpleNamespace(state=self.state)
        self.train_loop = object.__new__(EpochBasedTrainLoop) if by_epoch else SimpleNamespace()

    def state(self, resumable: bool = True) -> dict[str, Any]:
        return {"meta": {"iter": self.iter, "run": self.run_id}, "state_dict": {"step": torch.tensor(self.iter)}}

    def step(self, hook: ResumableCheckpointHook, last: bool = False) -> None:
        self.iter += 1
        ended = self.iter % STEPS == 0
        if not ended:
            hook.save_if_due(self, epoch_ended=False, last=last)
        else:
            self.epoch += 1
            hook.save_if_due(self, epoch_ended=True, last=last)


def begin(run: Run, **settings: Any) -> ResumableCheckpointHook:
    hook = HOOKS.build(dict(type="ResumableCheckpointHook", **settings))
    assert isinstance(hook, ResumableCheckpointHook)
    hook.before_train(run)
    return hook


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.pth"))


def test_the_last_epochs_are_kept(tmp_path: Path) -> None:
    run = Run(tmp_path)
    hook = begin(run, max_keep_ckpts=2)
    for _ in range(4 * STEPS):
        run.step(hook)
    hook.wait()
    assert names(tmp_path) == ["epoch_3.pth", "epoch_4.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == str(tmp_path / "epoch_4.pth")
    assert int(read_checkpoint(str(tmp_path / "epoch_4.pth"))["state_dict"]["step"]) == 4 * STEPS


@pytest.mark.parametrize(
    "save_last, kept", [(True, ["iter_4.pth", "iter_5.pth"]), (False, ["iter_2.pth", "iter_4.pth"])]
)
def test_steps_by_interval_and_the_last(tmp_path: Path, save_last: bool, kept: list[str]) -> None:
    run = Run(tmp_path, by_epoch=False)
    hook = begin(run, interval=2, save_last=save_last)
    for step in range(1, 6):
        run.step(hook, last=step == 5)
    hook.wait()
    assert names(tmp_path)[-2:] == kept


def test_all_are_kept_if_asked_for(tmp_path: Path) -> None:
    run = Run(tmp_path)
    hook = begin(run, max_keep_ckpts=-1, by_epoch=False)
    for _ in range(4):
        run.step(hook)
    hook.wait()
    assert len(names(tmp_path)) == 4


def test_a_file_in_between_goes_when_the_next_is_safe(tmp_path: Path) -> None:
    run = Run(tmp_path)
    hook = begin(run)
    for _ in range(STEPS + 1):
        run.step(hook)
    hook.save_now(run)
    hook.wait()
    assert names(tmp_path) == ["epoch_1.pth", "step_4.pth"]
    hook = begin(run)  # the run is started again
    for _ in range(2):
        run.step(hook)
    hook.wait()
    assert names(tmp_path) == ["epoch_1.pth", "epoch_2.pth"]


def test_a_file_in_between_of_an_earlier_training_stays(tmp_path: Path) -> None:
    """Somebody forgot to say --resume: what is there is not lost by that."""
    run, again = Run(tmp_path), Run(tmp_path)
    hook = begin(run)
    for _ in range(STEPS + 1):
        run.step(hook)
    hook.save_now(run)
    hook.wait()
    again.run_id = "another"
    hook = begin(again)
    again.step(hook)
    hook.save_now(again)
    hook.wait()
    assert names(tmp_path) == ["epoch_1.pth", "step_1.pth", "step_4.pth"]
    assert last_good(tmp_path) == tmp_path / "step_1.pth"


def test_a_step_that_is_reached_again_is_saved_again(tmp_path: Path) -> None:
    run = Run(tmp_path)
    hook = begin(run)
    run.step(hook)
    hook.save_now(run)
    hook.wait()
    hook.before_train(run)  # the run was taken back and has come to the same step
    (tmp_path / "step_1.pth").unlink(missing_ok=True)
    hook.save_now(run)
    hook.wait()
    assert names(tmp_path) == ["step_1.pth"]


def test_what_is_saved_is_not_saved_again(tmp_path: Path) -> None:
    run = Run(tmp_path)
    hook = begin(run)
    for _ in range(STEPS):
        run.step(hook)
    hook.save_now(run)
    hook.wait()
    assert names(tmp_path) == ["epoch_1.pth"]
    hook.after_val_epoch(run, {"top1": 1.0})  # the file does not know of this
    hook.save_now(run)
    hook.wait()
    assert names(tmp_path) == ["best_top1.pth", "epoch_1.pth", "step_3.pth"]
    hook.validated = -1
    hook.save_now(run)  # under the same name
    hook.wait()
    assert names(tmp_path) == ["best_top1.pth", "epoch_1.pth", "step_3.pth"]


def test_an_old_file_stays_until_the_new_one_is_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    hook = begin(run, max_keep_ckpts=1)
    for _ in range(STEPS):
        run.step(hook)
    hook.wait()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    for _ in range(STEPS):
        run.step(hook)
    with pytest.raises(UserError, match="No space left"):
        hook.wait()
    assert names(tmp_path) == ["epoch_1.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == str(tmp_path / "epoch_1.pth")


def test_a_newer_file_than_the_one_gone_on_from_is_left_alone(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for name in ("epoch_1", "epoch_2", "epoch_9"):
        (tmp_path / f"{name}.pth").touch()
    run.epoch, run.iter = 2, 2 * STEPS
    hook = begin(run)
    for _ in range(STEPS):
        run.step(hook)
    hook.wait()
    assert names(tmp_path) == ["epoch_2.pth", "epoch_3.pth", "epoch_9.pth"]


@pytest.mark.parametrize(
    "task, save_best, scores, name, best",
    [
        (
            "segmentation",
            "auto",
            [{"aAcc": 9.0, "mIoU": 1.0}, {"aAcc": 8.0, "mIoU": 3.0}, {"aAcc": 9.5, "mIoU": 2.0}],
            "mIoU",
            2,
        ),
        ("detection", "auto", [{"coco/segm_mAP": 9.0, "coco/bbox_mAP": 1.0}], "coco_bbox_mAP", 1),
        ("detection", "auto", [{"segm_mAP": 9.0, "bbox_mAP": 1.0, "ema/bbox_mAP": 2.0}], "bbox_mAP", 1),
        (None, "auto", [{"fresh": 1.0}, {"fresh": 1.0}], "fresh", 1),
        ("classification", "auto", [{"top1": float("nan")}, {"top1": 1.0}, {"top1": float("nan")}], "top1", 2),
        ("detection", "coco/segm_mAP", [{"coco/bbox_mAP": 1.0, "coco/segm_mAP": 2.0}], "coco_segm_mAP", 1),
        (None, "val_loss", [{"top1": 1.0, "val_loss": 2.0}, {"top1": 2.0, "val_loss": 3.0}], "val_loss", 1),
    ],
)
def test_the_best_is_kept(
    tmp_path: Path, task: str | None, save_best: str, scores: list[Any], name: str, best: int
) -> None:
    run = Run(tmp_path, task=task)
    hook = begin(run, interval=9, save_best=save_best)
    for metrics in scores:
        run.step(hook)
        hook.after_val_epoch(run, metrics)
    hook.wait()
    assert names(tmp_path) == [f"best_{name}.pth"]
    assert int(read_checkpoint(str(tmp_path / f"best_{name}.pth"))["state_dict"]["step"]) == best
    again = begin(run, save_best=save_best)
    again.load_state_dict(hook.state_dict())
    assert again.best == hook.best
    assert again.validated == run.iter


def test_a_score_that_there_is_not(tmp_path: Path) -> None:
    hook = begin(Run(tmp_path), save_best="mAP")
    with pytest.raises(UserError, match="save_best='mAP' is no score of the validation: choose from top1, top5"):
        hook.after_val_epoch(Run(tmp_path), {"top1": 1.0, "top5": 2.0})


@pytest.mark.parametrize(
    "settings",
    [
        {"interval": 0},
        {"interval": "1"},
        {"interval": True},
        {"max_keep_ckpts": 0},
        {"max_keep_ckpts": -2},
        {"minutes": 0},
        {"save_best": ["top1", "loss"]},
        {"save_last": "no"},
        {"by_epoch": "no"},
    ],
)
def test_wrong_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"default_hooks.checkpoint.*{next(iter(settings))}="):
        ResumableCheckpointHook(**settings)


def test_epochs_where_there_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="by_epoch=True: training counts in steps"):
        begin(Run(tmp_path, by_epoch=False), by_epoch=True)


def test_time_that_has_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("engine.checkpoint.hook.time.monotonic", lambda: now[0])
    run = Run(tmp_path)
    hook = begin(run, minutes=10)
    run.step(hook)
    now[0] += 599
    assert not hook.overdue
    now[0] += 2
    assert hook.overdue
    hook.save_now(run)
    assert not hook.overdue
    hook.wait()


def test_what_was_handed_over_is_written_whatever_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    hook = begin(run)
    run.step(hook)
    may_write, save = threading.Event(), torch.save
    monkeypatch.setattr(torch, "save", lambda *args: may_write.wait(PATIENCE) and save(*args))

    def fail(_: Any) -> None:
        hook.save_now(run)
        threading.Timer(0.2, may_write.set).start()
        raise RuntimeError("out of memory")

    monkeypatch.setattr("engine.training.runner.MMRunner.train", fail)
    runner = object.__new__(Runner)
    runner._hooks, runner.signals = [hook], Signals()
    runner._loaders = []
    with pytest.raises(RuntimeError, match="out of memory"):
        runner.train()
    assert names(tmp_path) == ["step_1.pth"]
    runner._hooks = []
    with pytest.raises(UserError, match="checkpoint=None: a training without checkpoints"):
        runner.train()
