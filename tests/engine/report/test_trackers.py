"""Trackers: chosen by a word, begun with the training, gone on in after a resume, and never its end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import VISBACKENDS

from backbones.errors import ConfigError, MachineError
from engine.config.trackers import TRACKERS, set_trackers
from engine.report.run_dir import REPORT
from engine.report.trackers import Tracker, begin_trackers

ROOT = Path(__file__).resolve().parents[3]


class Notes(Tracker):
    """Keeps what it gets."""

    package, fix = "notes", "write smaller"

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir)
        self.got: list[Any] = []
        self.broken = False

    def note(self, *what: Any) -> None:
        if self.broken:
            raise OSError("no ink")
        self.got.append(what)

    def _begin(self, run_id: str, folder: Path, config: Any) -> None:
        self.note("begin", run_id, folder.name, config)

    def _finish(self, folder: Path, files: list[Path], finished: bool) -> None:
        self.note("finish", [str(file.relative_to(folder)) for file in files], finished)

    def _add_image(self, name: str, image: np.ndarray, step: int) -> None:
        self.note(name, image.shape, step)

    def _add_scalars(self, numbers: dict[str, float], step: int) -> None:
        self.note(numbers, step)


@pytest.fixture
def runner(tmp_path: Path) -> Any:
    return SimpleNamespace(run_id="20260101_abc", work_dir=str(tmp_path / "run"), iter=7)


@pytest.mark.parametrize("asked", ["wandb", ["wandbb"], ["wandb", 3], {"wandb": 1}])
def test_unknown_trackers(asked: Any) -> None:
    with pytest.raises(ConfigError, match=r"a list of \"wandb\", \"mlflow\" is needed"):
        set_trackers(Config({"trackers": asked}))


def test_trackers_are_backends_of_the_visualizer() -> None:
    cfg = Config({"trackers": ["wandb", "mlflow"], "visualizer": {"type": "A", "vis_backends": [{"type": "B"}]}})
    for _ in range(2):  # a resolved config may be resolved again
        set_trackers(cfg)
        assert [one["type"] for one in cfg.visualizer.vis_backends] == ["B", "WandbTracker", "MlflowTracker"]
        assert cfg.custom_hooks == [{"type": "ValidationPicturesHook"}]
    bare = Config({"trackers": ["mlflow"]})
    set_trackers(bare)
    assert bare.visualizer == {"type": "Visualizer", "vis_backends": [{"type": "MlflowTracker"}]}
    assert all(issubclass(VISBACKENDS.get(name), Tracker) for name in TRACKERS.values())


def test_a_tracker_gets_what_comes_after_the_beginning(runner: Any, tmp_path: Path) -> None:
    tracker = Notes(str(tmp_path))
    tracker.add_scalars({"loss": 1.0}, 1)
    tracker.finish(tmp_path, True)
    assert tracker.got == []
    tracker.begin(runner, {"a": 1})
    tracker.add_scalars({"loss": np.float32(1.5), "eta": "soon", "step": None}, 8)
    tracker.add_scalars({"top1": 50.0}, 1)  # a validation, by its epoch
    tracker.add_image("a", np.zeros((4, 6, 3), np.uint8), 9)
    (tmp_path / "pictures").mkdir()
    for name in (REPORT, "pictures/1.png", "other.txt"):
        (tmp_path / name).touch()
    tracker.finish(tmp_path, False)
    tracker.add_scalar("late", 1.0, 9)
    begun, *rest = tracker.got
    assert begun == ("begin", "20260101_abc", "run", {"a": 1})
    assert rest == [
        ({"loss": 1.5}, 8),
        ({"top1": 50.0}, 7),
        ("a", (4, 6, 3), 9),
        ("finish", [REPORT, "pictures/1.png"], False),
    ]


def test_a_tracker_that_fails_is_a_warning(runner: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = Notes(str(tmp_path))
    tracker.broken = True
    with pytest.raises(MachineError, match=r"trackers: notes does not begin \(.*no ink.*\): write smaller"):
        tracker.begin(runner, {})
    tracker.broken = False
    tracker.begin(runner, {})
    tracker.broken = True
    tracker.add_scalars({"loss": 1.0}, 8)
    tracker.broken = False
    tracker.add_scalars({"loss": 2.0}, 9)
    tracker.finish(tmp_path, True)
    assert [what[0] for what in tracker.got] == ["begin"]


def test_only_trackers_that_are_asked_for_begin(runner: Any, tmp_path: Path) -> None:
    tracker = Notes(str(tmp_path))
    runner.visualizer = SimpleNamespace(get_backend={"MlflowTracker": tracker}.get)
    assert begin_trackers(runner, {}) == [tracker]
    assert len(tracker.got) == 1


def trained(tool: Any, digits: Path, folder: Path, name: str, epochs: int, *options: str) -> None:
    settings = [f"data_root={digits / 'imagenet'}", "batch.size=8", "default_hooks.logger.interval=1"]
    settings += [f"train_cfg.max_epochs={epochs}", f'trackers=["{name}"]', "train_dataloader.num_workers=0"]
    settings += ["param_scheduler.1.begin=0"]
    config = ROOT / "configs/classification/digits.py"
    ended = tool("train.py", config, "--work-dir", folder, *options, "--cfg-options", *settings, WANDB_MODE="offline")
    assert ended.code == 0, ended.err


def test_a_run_of_mlflow_is_gone_on_in(
    tool: Any, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = tmp_path / "run"
    trained(tool, digits, folder, "mlflow", 1)
    trained(tool, digits, folder, "mlflow", 2, "--resume")
    client = mlflow.MlflowClient((folder / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("convnext-dense")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["model.backbone.type"] == "convnext_atto"
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "loss")]
    assert steps == list(range(1, len(steps) + 1))
    assert max(point.step for point in client.get_metric_history(run.info.run_id, "top1")) == len(steps)
    assert {"config.json", REPORT, "weights.json"} <= {file.path for file in client.list_artifacts(run.info.run_id)}
    assert client.list_artifacts(run.info.run_id, "pictures")


def test_a_run_of_wandb_is_gone_on_in(tool: Any, digits: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    folder = tmp_path / "run"
    trained(tool, digits, folder, "wandb", 1)
    trained(tool, digits, folder, "wandb", 2, "--resume")
    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len({file.name for file in files}) == 1
    assert len(files) == 2
    for file in files:
        assert b"ema/top1" in file.read_bytes()
    assert {REPORT, "weights.json"} <= {path.name for path in folder.glob("wandb/offline-run-*/files/*")}
    assert list(folder.glob("wandb/offline-run-*/files/pictures/*.png"))
