"""A run that was stopped, in any way and at any moment, ends bit by bit as one that was not."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from backbones.weights import read_checkpoint
from engine.checkpoint.store import last_good
from engine.launch.exit_codes import EXIT_INTERRUPTED, EXIT_SAVED

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# A config is a program: this one ends or signals its own process, when its environment says so.
DEATH = """
import os, signal, threading
import torch
if "DIE_WRITING" in os.environ:
    import engine.checkpoint.store
    def _half(content, file, left=[int(os.environ["DIE_WRITING"])], whole=torch.save, **settings):
        left[0] -= not settings  # torch pickles tensors for other processes by the same function, with settings
        if left[0] or settings:
            return whole(content, file, **settings)
        file.write(b"PK" + bytes(100_000))
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    engine.checkpoint.store.torch.save = _half
def _register():
    from mmengine.hooks import Hook
    from mmengine.registry import HOOKS

    if "Ask" in HOOKS:
        return

    @HOOKS.register_module()
    class Ask(Hook):
        def ask(self, now):
            if now and os.environ.get("RANK", "0") == os.environ.get("ASK_RANK", "0"):
                os.kill(os.getpid(), getattr(signal, os.environ["ASK_BY"]))

        def before_train(self, runner):
            if "DIE_AFTER" in os.environ:
                threading.Timer(float(os.environ["DIE_AFTER"]), os.kill, (os.getpid(), signal.SIGKILL)).start()

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            self.ask(str(runner.iter + 1) == os.environ.get("ASK_AT"))

        def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            self.ask(os.environ.get("ASK_AT") == "val")

_register()
custom_hooks = [dict(type="Ask"), dict(type="ModelEMAHook", decay=0.9)]
"""
TASKS = {
    "classifier": """
_base_ = {configs!r} + "/classification/digits.py"
data_root = {data!r} + "/imagenet"
batch = dict(size=8)
model = dict(data_preprocessor=dict(mixup=0.8, cutmix=1.0), backbone=dict(drop_path_rate=0.5))
train_cfg = dict(max_epochs=3)
param_scheduler = [dict(type="CosineAnnealingLR", T_max=3, by_epoch=True, convert_to_iter_based=True)]
""",
    "detector": """
_base_ = {configs!r} + "/detection/mask_rcnn_digits.py"
data_root = {data!r} + "/coco"
batch = dict(size=2)
model = dict(backbone=dict(drop_path_rate=0.5))
train_cfg = dict(max_epochs=2)
param_scheduler = [dict(type="MultiStepLR", milestones=[1], by_epoch=True, convert_to_iter_based=True)]
""",
    "autoencoder": """
_base_ = {configs!r} + "/pretraining/fcmae_digits.py"
data_root = {data!r} + "/imagenet"
batch = dict(size=8, per_gpu=2)
model = dict(decoder_dim=32, backbone=dict(drop_path_rate=0.5))
train_cfg = dict(max_epochs=3)
param_scheduler = [dict(type="CosineAnnealingLR", T_max=3, by_epoch=True, convert_to_iter_based=True)]
""",
    "panoptic": """
_base_ = {configs!r} + "/detection/mask2former_panoptic_digits.py"
data_root = {data!r} + "/coco"
batch = dict(size=2, per_gpu=2)
model = dict(
    backbone=dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), drop_path_rate=0.5),
    panoptic_head=dict(pixel_decoder=dict(encoder=dict(num_layers=1)), transformer_decoder=dict(num_layers=1)),
    train_cfg=dict(num_points=256),
)
train_cfg = dict(max_epochs=1, val_interval=1)
param_scheduler = [dict(type="MultiStepLR", milestones=[4], by_epoch=False)]
""",
    "segmentor": """
_base_ = {configs!r} + "/segmentation/upernet_digits.py"
data_root = {data!r} + "/ade"
batch = dict(size=2)
model = dict(backbone=dict(drop_path_rate=0.5))
train_cfg = dict(max_iters=10, val_interval=5)
param_scheduler = [dict(type="PolyLR", power=1.0, by_epoch=False)]
""",
}
EVERY_STEP = """
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=1, by_epoch=False))
"""
TASKS["averaged"] = TASKS["segmentor"]
# Beside those above, or in their place.
HOOKS = {
    "autoencoder": 'custom_hooks.append(dict(type="ValidationPicturesHook", count=2))\n',
    "averaged": 'custom_hooks[1] = dict(type="EMAHook", momentum=0.1, update_buffers=True, priority=49)\n',
}
# What is the same for all tasks is tried with the quickest, and the ways to stop with one that accumulates too.
WHOLE_TASKS = [name for name in TASKS if name not in ("panoptic", "averaged")]
ONE_TASK = pytest.mark.parametrize("task", ["classifier"], indirect=True, scope="module")
TWO_TASKS = pytest.mark.parametrize("task", ["classifier", "autoencoder"], indirect=True, scope="module")
NOT_TIME = ("time", "eta", "memory")

Train = Callable[..., Any]


@pytest.fixture(scope="module", params=WHOLE_TASKS)
def task(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def config(task: str, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / f"{task}.py"
    settings = TASKS[task].format(configs=str(CONFIGS), data=str(digits))
    path.write_text(settings + EVERY_STEP + DEATH + HOOKS.get(task, ""), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def train(tool: Any, config: Path) -> Train:
    def run(
        folder: Path, *flags: str, workers: int = 0, seed: str = "0", load_from: str = "None", **settings: str
    ) -> Any:
        options = ["--cfg-options", f"train_dataloader.num_workers={workers}"]
        options += [f"randomness.seed={seed}", f"load_from={load_from}"]
        return tool("train.py", config, "--work-dir", folder, "--no-data-check", *flags, *options, **settings)

    return run


@pytest.fixture(scope="module")
def whole(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    ended = train(folder)
    assert ended.code == 0, ended.err
    return folder


def final(folder: Path) -> dict[str, Any]:
    return read_checkpoint(str(last_good(folder)))


def logged(folder: Path) -> dict[tuple[str, int], Any]:
    """All scalars by name and step; those of a step that was taken twice are of the second time."""
    found = {}
    for file in sorted(folder.glob("*/vis_data/scalars.json")):
        for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            found |= {(name, line["step"]): value for name, value in line.items() if not name.endswith(NOT_TIME)}
    return found


def assert_same(one: Any, two: Any, where: str = "") -> None:
    """Bit by bit, at any depth."""
    assert type(one) is type(two), where
    if isinstance(one, dict):
        kept = [[key for key in part if not str(key).endswith(NOT_TIME)] for part in (one, two)]
        assert kept[0] == kept[1], where  # a validation that was stopped leaves times alone
        for key in kept[0]:
            assert_same(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), where
        for number, pair in enumerate(zip(one, two)):
            assert_same(*pair, f"{where}[{number}]")
    elif isinstance(one, HistoryBuffer):
        assert_same(one.data, two.data, where)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    elif isinstance(one, np.ndarray):
        np.testing.assert_array_equal(one, two, err_msg=where)
    else:
        assert one == two, where


def assert_same_run(one: Path, two: Path) -> None:
    ours, theirs = final(one), final(two)
    for state in (ours, theirs):
        state["meta"] = {key: state["meta"][key] for key in ("epoch", "iter", "seed")}
        info = state["message_hub"]["runtime_info"]
        state["message_hub"]["runtime_info"] = {key: info[key] for key in ("epoch", "iter", "max_iters")}
    assert {"state_dict", "ema_state_dict", "optimizer", "param_schedulers", "resume", "message_hub"} <= set(ours)
    assert_same(ours, theirs)
    assert logged(one) == logged(two)
    best = [next(folder.glob("best_*.pth")) for folder in (one, two)]
    assert best[0].name == best[1].name
    assert_same(*(read_checkpoint(str(file))["state_dict"] for file in best))


def test_two_runs_are_the_same_with_and_without_workers(train: Train, whole: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        ended = train(tmp_path / str(workers), workers=workers)
        assert ended.code == 0, ended.err
        assert_same_run(tmp_path / str(workers), whole)


def test_killed_at_a_step(train: Train, whole: Path, tmp_path: Path) -> None:
    """By a signal that nothing can be done about, in the middle of a step and of an epoch, and while it writes."""
    for number, moment in enumerate(({"DIE_WRITING": "4"}, {"DIE_WRITING": "5"}, {})):
        ended = train(tmp_path, *(["--resume"] if number else []), workers=2 * (number % 2), **moment)
        assert ended.code == (-signal.SIGKILL if moment else 0), ended.err
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize("task", ["panoptic"], indirect=True, scope="module")
def test_a_panoptic_training_killed_at_a_step(train: Train, whole: Path, tmp_path: Path) -> None:
    """Mask2Former draws points and matches queries to segments."""
    assert train(tmp_path, DIE_WRITING="3").code == -signal.SIGKILL
    assert train(tmp_path, "--resume").code == 0
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize("task", ["averaged"], indirect=True, scope="module")
def test_mmengines_averages_killed_at_a_step(train: Train, whole: Path, tmp_path: Path) -> None:
    """RTMDet's configs have mmengine's ``EMAHook``, which saves the averages as the weights."""
    assert train(tmp_path, DIE_WRITING="4").code == -signal.SIGKILL
    assert train(tmp_path, "--resume", ASK_AT="8", ASK_BY="SIGTERM").code == EXIT_SAVED
    assert train(tmp_path, "--resume").code == 0
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize(
    "by, moment, code",
    [
        ("SIGTERM", "3", EXIT_SAVED),
        ("SIGINT", "val", EXIT_INTERRUPTED),
        ("SIGUSR1", "4", EXIT_SAVED),
        ("SIGHUP", "6", EXIT_SAVED),
    ],
)
@TWO_TASKS
def test_asked_to_stop(train: Train, whole: Path, tmp_path: Path, by: str, moment: str, code: int) -> None:
    ended = train(tmp_path, ASK_AT=moment, ASK_BY=by)
    assert ended.code == code, ended.err
    # After the step itself, or, in the validation after step 5, before another one.
    assert f"saved at step {5 if moment == 'val' else moment} of 15; go on with --resume" in ended.out
    assert train(tmp_path, "--resume").code == 0
    assert_same_run(tmp_path, whole)


@ONE_TASK
def test_asked_to_stop_again_before_a_step(train: Train, whole: Path, tmp_path: Path) -> None:
    """After the last step and, resumed, in the validation that is left to do."""
    assert train(tmp_path, ASK_AT="15", ASK_BY="SIGTERM").code == EXIT_SAVED
    assert train(tmp_path, "--resume", ASK_AT="val", ASK_BY="SIGTERM").code == EXIT_SAVED
    assert train(tmp_path, "--resume").code == 0
    assert_same_run(tmp_path, whole)


@ONE_TASK
def test_a_second_training_in_the_folder_of_the_first(train: Train, whole: Path, tmp_path: Path) -> None:
    """It is refused, and what the first one left stays as it is."""
    shutil.copytree(whole, tmp_path / "work")
    before = {path: path.read_bytes() for path in (tmp_path / "work").glob("*.pth")}
    ended = train(tmp_path / "work")
    assert ended.code == 2, ended.out
    assert "holds a training (iter_15.pth): go on with --resume" in ended.err
    assert {path: path.read_bytes() for path in (tmp_path / "work").glob("*.pth")} == before


@ONE_TASK
def test_a_run_keeps_its_seed(train: Train, whole: Path, tmp_path: Path) -> None:
    """A config without one draws another at each start."""
    assert train(tmp_path, ASK_AT="3", ASK_BY="SIGTERM").code == EXIT_SAVED
    assert train(tmp_path, "--resume", seed="None").code == 0
    assert_same_run(tmp_path, whole)


@ONE_TASK
def test_weights_to_begin_with_and_nothing_to_go_on_from(
    train: Train, config: Path, whole: Path, tmp_path: Path
) -> None:
    """As a job does that is started by one command, the first time and after each stop."""
    given = next(whole.glob("best_*.pth"))
    ended = train(tmp_path, "--resume", load_from=str(given), ASK_AT="3", ASK_BY="SIGTERM")
    assert ended.code == EXIT_SAVED, ended.err
    assert "nothing to go on from" in ended.out
    assert f"tensors loaded from {given}" in ended.out
    ended = train(tmp_path, "--resume", load_from=str(given))
    assert ended.code == 0, ended.err
    assert f"tensors loaded from {tmp_path / 'iter_3.pth'}" in ended.out
    assert str(given) not in ended.out


@ONE_TASK
def test_nothing_in_a_checkpoint_is_executed(train: Train, whole: Path, tmp_path: Path) -> None:
    """mmengine's checkpoints have the text of a config, which is a program."""
    content = final(whole)
    content["meta"]["config"] = f"open({str(tmp_path / 'executed')!r}, 'w').close()"
    torch.save(content, tmp_path / "iter_15.pth")
    ended = train(tmp_path, "--resume")
    assert ended.code == 0, ended.err
    assert "resumed epoch: 3, iter: 15" in ended.out
    assert not (tmp_path / "executed").exists()


@ONE_TASK
def test_killed_at_twenty_random_moments(train: Train, whole: Path, tmp_path: Path) -> None:
    """In a run of 15 steps and three validations that saves after every step, of some two seconds on an idle core."""
    for _ in range(20):
        ended = train(tmp_path, "--resume", DIE_AFTER=str(random.uniform(0.05, 1.0)))
        assert ended.code in (0, -signal.SIGKILL), ended.err
    ended = train(tmp_path, "--resume")
    assert ended.code == 0, ended.err
    assert_same_run(tmp_path, whole)


@TWO_TASKS
def test_two_processes(program: Any, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them is asked to stop, or dies; the launcher starts them again where that is allowed."""
    folders = [tmp_path / name for name in ("whole", "asked", "restarted")]

    def train(folder: Path, *flags: str, **settings: str) -> Any:
        with monkeypatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value)
            options = ("--no-data-check", *flags, "--cfg-options", "train_dataloader.num_workers=0")
            return program("dist_train.sh", config, 2, "--work-dir", folder, *options)

    assert train(folders[0]).code == 0
    ended = train(folders[1], ASK_AT="3", ASK_BY="SIGTERM", ASK_RANK="1")
    assert ended.code == EXIT_SAVED, ended.err
    assert train(folders[1], "--resume").code == 0
    ended = train(folders[2], DIE_WRITING="9", MAX_RESTARTS="2")  # of 18 files, best ones included
    assert ended.code == 0, ended.err
    for folder in folders[1:]:
        assert_same_run(folder, folders[0])
