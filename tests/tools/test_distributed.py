"""Several processes do what one does: the same losses, the same weights, the same score. CPU processes, over gloo."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from backbones import UserError
from backbones.weights import read_checkpoint
from engine.config.world import Launch
from engine.distributed.processes import start_processes

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# Nothing random but the initial weights and the order of the images, which one seed decides for all processes. Plain
# SGD: unlike AdamW it would show gradients that are summed where they ought to be averaged.
CONFIG = """
_base_ = {base!r}
data_root = {data!r}
model = dict(backbone=dict(drop_path_rate=0.0), data_preprocessor=dict(mixup=0.0, erasing=0.0))
train_pipeline = [dict(type="ClassificationTransform", size=48, crop_ratio=1.0)]
batch = dict(size=8, per_gpu=8)
optim_wrapper = dict(optimizer=dict(_delete_=True, type="SGD", lr=0.02, momentum=0.9, weight_decay=0.05))
train_cfg = dict(max_epochs=2)
default_hooks = dict(logger=dict(interval=1))
"""


@pytest.fixture(scope="module")
def config(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "plain.py"
    base = str(CONFIGS / "classification/digits.py")
    path.write_text(CONFIG.format(base=base, data=str(digits / "imagenet")), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def alone(tool: Any, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work directory of the training by one process."""
    folder = tmp_path_factory.mktemp("alone")
    ended = tool("train.py", config, "--work-dir", folder)
    assert ended.code == 0, ended.err
    assert "1 process x 8 images x 1 accumulation = global batch 8" in ended.out
    return folder


def losses(folder: Path) -> list[float]:
    (path,) = folder.glob("*/vis_data/scalars.json")
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return [entry["loss"] for entry in entries if "lr" in entry]


def tensors(folder: Path, key: str) -> dict[str, torch.Tensor]:
    return {name: value.float() for name, value in read_checkpoint(str(folder / "epoch_2.pth"))[key].items()}


@pytest.mark.parametrize(
    "per_gpu, plan",
    [
        (8, "2 processes x 4 images x 1 accumulation = global batch 8"),
        (2, "2 processes x 2 images x 2 accumulation = global batch 8"),
    ],
)
def test_two_processes_learn_what_one_learns(
    program: Any, config: Path, alone: Path, tmp_path: Path, per_gpu: int, plan: str
) -> None:
    ended = program("dist_train.sh", config, 2, "--work-dir", tmp_path, "--per-gpu-batch", per_gpu)
    assert ended.code == 0, ended.err
    assert plan in ended.out
    assert len(re.findall("length: 2 epochs of 5 steps = 10 steps", ended.out)) == 1
    assert len(losses(tmp_path)) == 10
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-4)
    assert len(set(losses(alone))) == 10
    for key in ("state_dict", "ema_state_dict"):
        theirs, ours = tensors(tmp_path, key), tensors(alone, key)
        assert theirs.keys() == ours.keys()
        for name, value in ours.items():
            torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-4)


def test_two_processes_score_what_one_scores(
    program: Any, tool: Any, config: Path, alone: Path, tmp_path: Path
) -> None:
    """21 images: one process tests 11, the other 10 and one of them twice, which must not count twice."""
    one, two = tmp_path / "one", tmp_path / "two"
    assert tool("test.py", config, alone / "epoch_2.pth", "--work-dir", one).code == 0
    ended = program("dist_test.sh", config, alone / "epoch_2.pth", 2, "--work-dir", two)
    assert ended.code == 0, ended.err
    expected, found = (json.loads((folder / "test.json").read_text())["metrics"] for folder in (one, two))
    assert found == pytest.approx(expected, rel=1e-5)
    assert len(re.findall(r"^top1: ", ended.out, re.MULTILINE)) == 1
    assert len(list((two / "pictures").iterdir())) == 8


def test_two_processes_train_a_segmentor(program: Any, digits: Path, tmp_path: Path) -> None:
    length = ("train_cfg.max_iters=1", "train_cfg.val_interval=1", "default_hooks.logger.interval=1")
    options = (f"data_root={digits / 'ade'}", "batch.size=4", *length)
    config = CONFIGS / "segmentation/upernet_digits.py"
    ended = program("dist_train.sh", config, 2, "--work-dir", tmp_path, "--cfg-options", *options)
    assert ended.code == 0, ended.err
    assert "SyncBN -> BN in 2 places (CPU)" in ended.out
    assert len(losses(tmp_path)) == 1
    assert (tmp_path / "iter_1.pth").is_file()


def test_a_failure_of_the_processes_is_told_in_lines(program: Any, tmp_path: Path) -> None:
    """Which process fails first is left to chance; the launcher's own line is the last."""
    ended = program("dist_train.sh", tmp_path / "absent.py", 2)
    assert ended.code == 2
    *lines, last = ended.err.splitlines()
    assert lines
    for line in lines:
        assert re.fullmatch(r"(\[rank 1\] )?error: config '.*absent.py' does not exist.*", line)
    assert re.fullmatch(
        r"error: rank [01] ended with exit code 2; its last line: config '.*absent.py' does not exist.*", last
    )
    assert "Traceback" not in ended.out + ended.err


KILL_ONCE = """
import os, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class KillOnce(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 7 and (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("1", "0"):
            os.kill(os.getpid(), signal.SIGKILL)
"""
KILLED = """
_base_ = {base!r}
custom_imports = dict(imports=["classification", "kill_once"])
custom_hooks = [dict(type="ProgressBar"), dict(type="ModelEMAHook", decay=0.99), dict(type="KillOnce")]
"""


def test_an_elastic_restart_ends_where_a_run_without_faults_ends(
    program: Any, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kill_once.py").write_text(KILL_ONCE)
    killed = tmp_path / "killed.py"
    killed.write_text(KILLED.format(base=str(config)))
    assert program("dist_train.sh", config, 2, "--work-dir", tmp_path / "whole").code == 0
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("MAX_RESTARTS", "1")
    ended = program("dist_train.sh", killed, 2, "--work-dir", tmp_path / "again")
    assert ended.code == 0, ended.err
    line = "rank 1 ended with signal SIGKILL; its last line: epoch 2, step 3 of 5 (training): starting again (1 of 1)"
    assert line in ended.err.splitlines()
    for key in ("state_dict", "ema_state_dict"):
        theirs, ours = tensors(tmp_path / "again", key), tensors(tmp_path / "whole", key)
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[name], ours[name]) for name in ours)


@pytest.mark.parametrize("present", [0, 1])
def test_more_gpus_than_the_machine_has(monkeypatch: pytest.MonkeyPatch, present: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: present)
    with pytest.raises(UserError, match=f"^4 GPUs asked for on this machine, which has {present}: ") as caught:
        start_processes(Launch(processes=4, device="cuda", local_processes=4))
    assert "\n" not in str(caught.value)
    assert not torch.distributed.is_initialized()
