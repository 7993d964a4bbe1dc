"""One method on one backbone: build, loss, backward pass, step and prediction on two small images."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor

from engine.config.backbone_swap import our_levels, swap_backbones, without_downloads
from engine.config.datasets import mappings
from engine.task import Shape, TaskSpec

STEPS = ("config", "build", "loss", "backward", "step", "predict")
SHAPE = (64, 64)
IMAGES = 2
# What detectors state for large images, as the most that a small one has places for, or that a trial has to wait for.
MAX_COUNTS = {"num_queries": 50, "num_proposals": 20, "max_per_img": 20, "nms_pre": 200, "num_points": 500}
MAX_SAMPLES = 16  # proposals of an image that a head on regions learns from
TRIAL_RATE = 1e-3  # learning rate of the one step
MAX_REASON_LENGTH = 200  # characters


@dataclass
class Outcome:
    """How a trial ended.

    Attributes:
        step: The last of :data:`STEPS` that was begun; ``process`` if the process of the trial came to an early end.
        reason: Cause of the failure in one line; empty if the method works.
        trace: Traceback of the failure.
    """

    step: str = STEPS[0]
    reason: str = ""
    trace: str = ""


class TrialError(Exception):
    """A method ran, but not as it should."""


@contextmanager
def _recorded(outcome: Outcome) -> Iterator[None]:
    """Record an error, whatever it is: the code that is tried is not ours."""
    try:
        yield
    except Exception as error:
        outcome.reason = f"{type(error).__name__}: {' '.join(str(error).split())[:MAX_REASON_LENGTH]}"
        outcome.trace = traceback.format_exc()


def _fit_images(model: ConfigDict, shape: Shape) -> None:
    """Let what a config states for large images fit small ones; changed."""
    for node in mappings(model):
        for key, most in MAX_COUNTS.items():
            if isinstance(node.get(key), int):
                node[key] = min(node[key], most)
        if "pos_fraction" in node:
            node["num"] = min(node["num"], MAX_SAMPLES)
        augments = node.get("batch_augments")
        if augments:
            node["batch_augments"] = [dict(step, size=shape) for step in augments if "size" in step] or None
    preprocessor = model.get("data_preprocessor") or {}
    if preprocessor.get("size"):
        preprocessor["size"] = shape


def trial_config(path: Path, folder: str, backbone: str, task: TaskSpec) -> Config:
    """A config of a package with the backbone swapped in, without weights.

    Args:
        path: The config's file.
        folder: Name of its method's folder.
        backbone: Name of a registered backbone.
        task: Task whose ``zoo`` has the package.
    """
    zoo = task.zoo
    assert zoo is not None
    # Not its custom imports: they bring a package of backbones, which are replaced.
    cfg = Config.fromfile(str(path), import_custom_modules=False)
    init_default_scope(zoo.package)
    without_downloads(cfg.model)
    zoo.before_swap(folder, cfg)
    swap_backbones(cfg.model, backbone, zoo.stages.get(folder))
    zoo.after_swap(folder, cfg, our_levels(backbone).channels)
    return cfg


def _batch(task: TaskSpec, folder: str, model: BaseModel, training: bool) -> dict[str, Any]:
    """Images of noise with made-up annotations through the model's data preprocessor: one for a test, as in mmdet's."""
    zoo = task.zoo
    assert zoo is not None
    shape = zoo.shapes.get(folder, SHAPE)
    images = torch.randint(0, 256, (IMAGES if training else 1, 3, *shape), dtype=torch.uint8)
    made = task.dummy_batch(model, images.float(), training)
    data = {"inputs": list(images), "data_samples": made["data_samples"]}
    return model.data_preprocessor(zoo.complete_batch(folder, model, data, training), training)


def _check_finite(name: str, tensors: dict[str, Tensor]) -> None:
    wrong = [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if wrong:
        raise TrialError(f"{name} not finite: {', '.join(wrong[:3])}")


def _train(task: TaskSpec, folder: str, model: BaseModel, outcome: Outcome) -> None:
    """One step of gradient descent, after which the backbone has to be another."""
    outcome.step = "loss"
    losses = model(**_batch(task, folder, model, training=True), mode="loss")
    total, values = model.parse_losses(losses)
    _check_finite("loss", {key: value for key, value in values.items() if "loss" in key})
    outcome.step = "backward"
    total.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    _check_finite("gradient", grads)
    reached = [name for name, grad in grads.items() if "backbone." in name and grad.abs().sum() > 0]
    if not reached:
        raise TrialError("no gradient reaches the backbone")
    outcome.step = "step"
    before = dict(model.named_parameters())[reached[0]].detach().clone()
    torch.optim.SGD([p for p in model.parameters() if p.grad is not None], TRIAL_RATE).step()
    if torch.equal(before, dict(model.named_parameters())[reached[0]]):
        raise TrialError(f"the step leaves {reached[0]} as it was")


def try_method(path: Path, folder: str, backbone: str, task: TaskSpec) -> Outcome:
    """Try the method of a config on a backbone.

    Args:
        path: The config's file.
        folder: Name of its method's folder.
        backbone: Name of a registered backbone.
        task: Task whose ``zoo`` has the package.
    """
    outcome = Outcome()
    with _recorded(outcome):
        return try_model(trial_config(path, folder, backbone, task).model, folder, task)
    return outcome


def try_model(settings: ConfigDict, folder: str, task: TaskSpec) -> Outcome:
    """Try a model on small images, in the scope of its package.

    Args:
        settings: ``model`` of a config, without weights; changed.
        folder: Name of its method's folder.
        task: Task whose ``zoo`` has the package.
    """
    assert task.zoo is not None
    outcome = Outcome(STEPS[1])
    torch.manual_seed(0)
    for count in ("iter", "epoch"):  # a few losses change with the steps of a run
        MessageHub.get_current_instance().update_info(count, 0)
    with _recorded(outcome):
        _fit_images(settings, task.zoo.shapes.get(folder, SHAPE))
        model = MODELS.build(settings)
        model.init_weights()
        model.train()
        _train(task, folder, model, outcome)
        outcome.step = "predict"
        model.eval()
        with torch.no_grad():
            predicted = model(**_batch(task, folder, model, training=False), mode="predict")
        if len(predicted) != 1:
            raise TrialError(f"{len(predicted)} predictions for one image")
    return outcome
