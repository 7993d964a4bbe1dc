"""A training whose work directory disappears goes on in a new one, or ends in one line."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook, LoggerHook
from mmengine.registry import HOOKS

from backbones.errors import MachineError
from backbones.weights import read_checkpoint
from engine.checkpoint import store
from engine.config.load import load_config
from engine.config.world import Launch
from engine.run import train
from engine.training.work_folder import WorkFolderHook, kept_work_folder

CONFIG = Path(__file__).resolve().parents[3] / "configs/classification/digits.py"
SMALL = {"model.backbone.depths": [1, 1, 1, 1], "model.backbone.dims": [8, 8, 8, 16], "batch.size": 10}
SIZES = {"train_pipeline.0.size": 32, "test_pipeline.0.size": 32, "train_cfg.max_epochs": 2, "param_scheduler": []}


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # a checkpoint that is just being written comes and goes
    shutil.rmtree(folder, ignore_errors=True)


def move(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def run(digits: Path, folder: Path, disturb: Callable[[Path], None] | None = None, at: str = "") -> dict[str, Any]:
    """The last checkpoint of a training with a hook that disturbs it once."""

    class Disturber(Hook):
        priority = "HIGHEST"
        done = disturb is None

    def act(self: Any, runner: Any, *_: Any, **__: Any) -> None:
        if not self.done and runner.iter >= 1:
            self.done = True
            assert disturb is not None
            disturb(folder)

    if at:
        setattr(Disturber, at, act)
    HOOKS.register_module("Disturber", force=True, module=Disturber)
    settings = SMALL | SIZES | {"data_root": str(digits / "imagenet"), "work_dir": str(folder)}
    settings |= {"custom_hooks": [{"type": "Disturber"}], "default_hooks.logger.interval": 1}
    settings |= {f"{split}_dataloader.num_workers": 0 for split in ("train", "val")}
    train(load_config(CONFIG, settings), Launch(), resume=False, data_check=False)
    return read_checkpoint(str(folder / "epoch_2.pth"))


@pytest.mark.parametrize("at", ["before_train_iter", "after_train_iter", "after_val_iter", "after_train_epoch"])
def test_it_goes_on_in_a_new_folder(at: str, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = run(digits, tmp_path / "whole")
    capsys.readouterr()
    disturbed = run(digits, tmp_path / "work", move if at == "after_train_iter" else remove, at)
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, disturbed["state_dict"][name])
    assert capsys.readouterr().out.count("is gone, removed or moved: going on in a new one") == 1
    (log,) = (tmp_path / "work").glob("*/*.log")
    assert "going on in a new one" in log.read_text()
    assert (tmp_path / "work/report.html").is_file()
    assert (tmp_path / "work/run_id").is_file()
    assert (tmp_path / "work" / CONFIG.name).is_file()


def test_it_looks_once_a_second_and_before_files_are_opened(tmp_path: Path) -> None:
    now, looks = [0.0], list[tuple[int, str]]()
    hook = WorkFolderHook(clock=lambda: now[0])
    hook._keep = lambda _: looks.append(place)  # type: ignore[method-assign]
    runner: Any = SimpleNamespace(
        hooks=[hook, LoggerHook(interval=10)], train_dataloader=range(24), val_dataloader=range(9), max_iters=24
    )
    every_seventh = dict(by_epoch=False, val_begin=1, dynamic_milestones=[0], dynamic_intervals=[7, 7])
    runner.val_loop, runner.train_loop = object(), SimpleNamespace(**every_seventh, runner=runner, dataloader=range(24))
    for step in range(24):
        now[0], place, runner.iter = 0.3 * step, (step, "before"), step
        hook.before_train_iter(runner, step)
        place = (step, "after")
        hook.after_train_iter(runner, step)
    logged = [(6, "after"), (9, "after"), (19, "after"), (23, "after")]  # the first one for the validation after it
    assert looks == sorted([*((step, "before") for step in range(0, 24, 4)), *logged])
    looks.clear()
    for step in range(9):  # the metrics of a validation may write files
        place = (step, "val")
        hook.after_val_iter(runner, step)
    hook.after_val_epoch(runner)
    hook.after_train(runner)
    hook.after_run(runner)
    assert looks == [(8, "val")] * 4


def test_an_emptied_folder_is_the_run_s_again(tmp_path: Path) -> None:
    said: list[str] = []
    logger = SimpleNamespace(handlers=[], warning=said.append)
    visualizer = SimpleNamespace(get_backend=lambda _: None)
    runner: Any = SimpleNamespace(work_dir=str(tmp_path), log_dir=str(tmp_path), run_id="mine", logger=logger)
    runner.visualizer, runner.dump_config = visualizer, lambda: None
    WorkFolderHook().after_train(runner)  # the folder of the logs is there, the name of the run is not
    assert len(said) == 1
    assert (tmp_path / "run_id").read_text() == "mine"


def test_storage_that_fails_for_a_moment_is_left_to_who_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> bool:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "is_dir", fail)
    runner: Any = SimpleNamespace(work_dir="work", log_dir="work/log")
    WorkFolderHook().after_train(runner)


def occupy(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("a file in the way")


def encircle(folder: Path) -> None:
    move(folder)
    folder.symlink_to(folder.name)


@pytest.mark.parametrize("disturb", [remove, occupy, encircle])
def test_a_folder_that_cannot_be_made_again_ends_it_in_a_line(
    disturb: Callable[[Path], None], digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if disturb is not remove:
        with pytest.raises(MachineError, match="work was removed or moved while it was in use"):
            run(digits, tmp_path / "work", disturb, "after_train_iter")
        (tmp_path / "work").unlink()
        shutil.rmtree(tmp_path / "elsewhere", ignore_errors=True)
    monkeypatch.setattr(WorkFolderHook, "_keep", lambda *_: None)
    with pytest.raises(MachineError, match="work was removed or moved while it was in use") as caught:
        run(digits, tmp_path / "work", disturb, "after_train_iter")
    assert len(str(caught.value).splitlines()) == 1


def test_another_missing_file_is_another_error(tmp_path: Path) -> None:
    runner: Any = SimpleNamespace(log_dir=str(tmp_path), register_hook=lambda hook: None)
    with pytest.raises(FileNotFoundError), kept_work_folder(runner):
        (tmp_path / "absent").read_text()


def test_another_training_in_its_place_is_left_alone(digits: Path, tmp_path: Path) -> None:
    def replace(folder: Path) -> None:
        move(folder)
        folder.mkdir()
        (folder / "run_id").write_text("another")
        (folder / "starts.json").write_text("{}")

    with pytest.raises(MachineError, match="another training is there now"):
        run(digits, tmp_path / "work", replace, "after_train_iter")
    assert {file.name: file.read_text() for file in (tmp_path / "work").iterdir()} == {
        "run_id": "another",
        "starts.json": "{}",
    }


@pytest.mark.parametrize("moment", ["writing", "noting"])
def test_a_checkpoint_is_written_when_its_folder_goes(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is written, or between it and the note about it."""
    folder, save, moments = tmp_path / "work", torch.save, [moment]
    folder.mkdir()

    def disturb(now: str) -> None:
        if now in moments:
            moments.remove(now)
            remove(folder)

    def disturbed(content: Any, file: Any) -> None:
        save(content, file)
        disturb("writing")

    def note() -> None:
        disturb("noting")
        (folder / "note").touch()

    monkeypatch.setattr(store.torch, "save", disturbed)
    writer = store.CheckpointWriter()
    writer.write({"value": torch.ones(1)}, folder / "iter_1.pth", note)
    writer.wait()
    assert moments == []
    assert sorted(file.name for file in folder.iterdir()) == ["iter_1.pth", "note"]
    assert read_checkpoint(str(folder / "iter_1.pth"))["value"] == 1
