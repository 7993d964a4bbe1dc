"""The workers of a run end with it, whatever ends it."""

from __future__ import annotations

import time
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from demo.dataset import make_digits
from engine.checkpoint.preemption import Stop
from engine.config.load import Resolved, load_config
from engine.config.world import Launch
from engine.distributed.agreement import StopRequest
from engine.run import test as run_test
from engine.run import train
from engine.training.loops import EpochLoop
from tests.programs import PATIENCE

CONFIG = Path(__file__).resolve().parents[3] / "configs/classification/digits.py"
SMALL = {"model.backbone.depths": [1, 1, 1, 1], "model.backbone.dims": [8, 8, 8, 16]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "digits"
    make_digits(root, train_images=20, val_images=10, train_scenes=1, val_scenes=1)
    return root / "imagenet"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[BaseProcess]:
    """This process and all of its descendants."""
    found: list[BaseProcess] = []
    start = BaseProcess.start
    monkeypatch.setattr(BaseProcess, "start", lambda process: found.append(process) or start(process))
    return found


def run(data: Path, work_dir: Path) -> Resolved:
    settings = {"data_root": str(data), "work_dir": str(work_dir), "batch.size": 10, "train_cfg.max_epochs": 1}
    settings |= {f"{split}_dataloader.num_workers": 1 for split in ("train", "val", "test")}
    settings |= {"train_pipeline.0.size": 32, "test_pipeline.0.size": 32, "custom_hooks": [], "param_scheduler": []}
    return load_config(CONFIG, settings | SMALL | {"visualizer.vis_backends": []})


def assert_ended(workers: list[BaseProcess], count: int) -> None:
    assert len(workers) == count
    for worker in workers:
        assert wait([worker.sentinel], timeout=PATIENCE)


def test_workers_end_after_a_training_and_a_test(data: Path, tmp_path: Path, started: list[BaseProcess]) -> None:
    train(run(data, tmp_path), Launch(), resume=False, data_check=False)
    assert_ended(started, 2)
    run_test(run(data, tmp_path), Launch(), str(tmp_path / "epoch_1.pth"))
    assert_ended(started, 3)


def test_runs_of_one_second_have_their_own_logs(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, second = time.strftime, "20260101_000000"
    monkeypatch.setattr(time, "strftime", lambda form, *of: second if form == "%Y%m%d_%H%M%S" else shown(form, *of))
    logs = []
    for name in ("first", "second"):
        train(run(data, tmp_path / name), Launch(), resume=False, data_check=False)
        (log,) = (tmp_path / name).glob(f"{second}/*.log")
        logs.append(log)
    assert [log.read_text().count("Epoch(train) [1][2/2]") for log in logs] == [1, 1]


@pytest.mark.parametrize(
    "error, seen",
    [(ValueError("bad"), ValueError), (Stop(StopRequest.LEAVE), SystemExit), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_workers_end_after_what_ends_a_training_early(
    data: Path,
    tmp_path: Path,
    started: list[BaseProcess],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    seen: type[BaseException],
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(EpochLoop, "_save_or_stop", fail)
    with pytest.raises(seen):
        train(run(data, tmp_path), Launch(), resume=False, data_check=False)
    assert_ended(started, 1)
