"""The measured fit: the search against a pretended limit, and its trials on real samples of every task."""

from __future__ import annotations

from math import log2
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.batch_size_finder import Trial, largest_that_fits, measured_fit, micro_batches
from backbones import UserError
from engine.config.load import load_config
from engine.config.world import Launch

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TASKS = {
    "classification": (CONFIGS / "classification/digits.py", "imagenet"),
    "detection": (CONFIGS / "detection/mask_rcnn_digits.py", "coco"),
    "segmentation": (CONFIGS / "segmentation/upernet_digits.py", "ade"),
    "pretraining": (CONFIGS / "pretraining/fcmae_digits.py", "imagenet"),
}


@pytest.mark.parametrize("share", [1, 2, 12, 96, 97, 4096])
@pytest.mark.parametrize("limit", [0, 1, 3, 8, 95, 5000])
def test_the_largest_divisor_within_the_limit_is_found_in_few_trials(share: int, limit: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= limit

    sizes = micro_batches(share)
    assert largest_that_fits(sizes, fits) == max((size for size in sizes if size <= limit), default=None)
    assert len(tried) == len(set(tried)) <= 2 + log2(len(sizes))
    if share <= limit:
        assert tried == [share]


def test_micro_batches_divide_the_share() -> None:
    assert micro_batches(12) == [1, 2, 3, 4, 6, 12]
    assert micro_batches(12, even=True) == [2, 4, 6, 12]
    assert micro_batches(3, even=True) == []


@pytest.mark.parametrize("task", TASKS)
def test_trials_train_on_samples_of_the_task(task: str, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, data = TASKS[task]
    options = {"data_root": str(digits / data), "model.backbone.weights": "absent.pth", "batch.size": 12}
    resolved = load_config(path, options, Launch())
    before = resolved.cfg.to_dict()
    trial = Trial(resolved.cfg, 2, "cpu")
    model = trial._model
    params = sum(one.numel() for one in model.parameters())
    assert trial._beside.numel() == (2 if task == "classification" else 1) * params
    steps = [0]
    trial._wrapper.optimizer.register_step_post_hook(lambda *_: steps.__setitem__(0, steps[0] + 1))
    plain, seen = model.train_step, []

    def limited(batch: Any, optim_wrapper: Any) -> Any:
        seen.append(len(batch["inputs"]))
        if seen[-1] > 4:
            raise torch.OutOfMemoryError("pretended")
        return plain(batch, optim_wrapper=optim_wrapper)

    monkeypatch.setattr(model, "train_step", limited)
    assert largest_that_fits(micro_batches(12), trial.fits) == 4
    assert seen == [12, *[3] * 4, 6, *[4] * 4]
    assert steps == [4]
    assert all(param.grad is None for param in model.parameters())
    assert resolved.cfg.to_dict() == before


def test_other_errors_than_memory_are_not_taken_for_it(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, data = TASKS["classification"]
    resolved = load_config(path, {"data_root": str(digits / data), "batch.size": 8}, Launch())
    trial = Trial(resolved.cfg, 1, "cpu")
    monkeypatch.setattr(trial._model, "train_step", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trial.fits(4)


def test_without_a_gpu_there_is_nothing_to_measure(digits: Path) -> None:
    path, data = TASKS["classification"]
    resolved = load_config(path, {"data_root": str(digits / data)}, Launch())
    with pytest.raises(UserError, match="give a number"):
        measured_fit(resolved, Launch())


def test_more_processes_than_gpus_are_one_line_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    launch = Launch(processes=4, device="cuda", local_processes=4)
    resolved = load_config(TASKS["classification"][0], {"batch.size": 8}, launch)
    with pytest.raises(UserError, match=r"^4 GPUs asked for on this machine, which has 1: "):
        measured_fit(resolved, launch)
