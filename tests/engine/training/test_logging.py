"""Handlers of a run's log: what the console shows, and a log file on a full disk."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.logging import MessageHub
from mmengine.registry import LOG_PROCESSORS

from engine.training.logging import TolerantFileHandler, gpu_utilisation, run_settings, set_up_handlers


def built(console: io.StringIO, file: Path | str) -> logging.Logger:
    """A logger as mmengine makes it."""
    logger = logging.Logger("run")
    for handler in (logging.StreamHandler(console), logging.FileHandler(file, "a")):
        handler.setFormatter(logging.Formatter("- %(message)s"))
        logger.addHandler(handler)
    set_up_handlers(logger)
    return logger


def test_dumps_are_for_the_file_and_tables_for_both(tmp_path: Path) -> None:
    console = io.StringIO()
    logger = built(console, tmp_path / "run.log")
    lines = "\n".join("line" for _ in range(40))
    dumps = ["Exp name: run", f"Config:\n{lines}", f"\n---\nSystem environment:\n{lines}"]
    dumps += [f"Hooks will be executed in the following order:\n{lines}"]
    for message in ("a line", *dumps, f"per class results:\n{lines}"):
        logger.info(message)
    assert [handler.encoding for handler in logger.handlers if isinstance(handler, TolerantFileHandler)] == ["utf-8"]
    shown, kept = console.getvalue(), (tmp_path / "run.log").read_text()
    assert shown == f"- a line\n- per class results:\n{lines}\n"
    assert kept == "".join(f"- {message}\n" for message in ("a line", *dumps, f"per class results:\n{lines}"))


def test_a_test_has_its_own_folder_and_all_starts_of_a_training_one_for_their_curves() -> None:
    local, curves = dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")
    settings = {"work_dir": "run", "visualizer": dict(type="Visualizer", vis_backends=[local, curves])}
    training = run_settings(settings | {"train_cfg": {}})
    assert training["work_dir"] == "run"
    placed = {**curves, "save_dir": str(Path("run/tensorboard"))}
    assert training["visualizer"] == dict(type="Visualizer", vis_backends=[local, placed])
    own = dict(type="mmengine.TensorboardVisBackend", save_dir="elsewhere")
    chosen = run_settings({"work_dir": "run", "train_cfg": {}, "visualizer": dict(vis_backends=[own])})
    assert chosen["visualizer"]["vis_backends"] == [own]
    test = run_settings(settings | {"train_cfg": None})
    assert test["work_dir"] == str(Path("run/test"))
    assert test["visualizer"]["vis_backends"] == [local]
    assert "save_dir" not in curves, "the resolved config is dumped after this"
    assert run_settings({"work_dir": "run"})["visualizer"] is None


def test_a_full_disk_prints_no_stack_for_each_line(capsys: pytest.CaptureFixture[str]) -> None:
    console = io.StringIO()
    logger = built(console, "/dev/full")
    assert any(isinstance(handler, TolerantFileHandler) for handler in logger.handlers)
    logger.info("a line")
    assert console.getvalue() == "- a line\n"
    assert capsys.readouterr().err == ""


def test_each_validation_shows_its_own_loss() -> None:
    processor = LOG_PROCESSORS.build({"type": "ScoreLogProcessor", "by_epoch": False})
    hub = MessageHub("own loss of a validation")
    for loss in (4.0, 2.0):
        hub.update_scalar("val/val_loss", loss)
        hub.update_scalar("val/time", loss)
    loop = SimpleNamespace(dataloader=[0, 0], max_epochs=2)
    runner = SimpleNamespace(message_hub=hub, val_loop=loop, train_loop=loop, val_dataloader=[0, 0], iter=2)
    tag, line = processor.get_log_after_epoch(runner, 2, "val")
    assert (tag["val_loss"], tag["time"]) == (2.0, 3.0)
    assert "val_loss: 2.0000" in line
    assert processor.mean_pattern.match("loss")


@pytest.mark.parametrize("answer, logged", [(87, 0.87), (RuntimeError("no driver"), None)])
def test_steps_on_a_gpu_show_its_utilisation(
    monkeypatch: pytest.MonkeyPatch, answer: int | Exception, logged: float | None
) -> None:
    def utilization() -> int:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("torch.cuda.utilization", utilization)
    assert gpu_utilisation() is None  # without a GPU nobody is asked
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    processor = LOG_PROCESSORS.build({"type": "ScoreLogProcessor", "by_epoch": False})
    monkeypatch.setattr(processor, "_get_max_memory", lambda runner: 0)
    hub = MessageHub(f"utilisation {answer}")
    for name in ("lr", "time", "data_time"):
        hub.update_scalar(f"train/{name}", 0.5)
    runner = SimpleNamespace(message_hub=hub, iter=9, max_iters=20, _train_loop=None)
    tag, line = processor.get_log_after_iter(runner, 9, "train")
    assert tag.get("gpu_utilisation") == logged
    assert ("gpu_utilisation: 0.8700" in line) == (logged is not None)
