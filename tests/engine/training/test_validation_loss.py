"""The loss of a validation is that of the training on held-out images, and leaves no trace in the training."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.utils.data import DataLoader

from backbones.errors import ConfigError
from engine.distributed.agreement import Agreement
from engine.task import TASK_SPECS, TaskSpec
from engine.training.validation_loss import ValidationLoss, separate_state, set_loss_mode

TASK = "task of the test"


class Head(nn.Module):
    """A head that computes otherwise in a test, and that counts its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.register_buffer("batches", torch.zeros(()))
        self.norm, self.dropout = nn.BatchNorm1d(1), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        self.batches += 1
        noise = 0 * (torch.rand(()) + random.random() + np.random.rand())
        return self.dropout(self.norm(x)) * (1 if self.training else 100) + noise


class Model(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.backbone, self.head = nn.Sequential(nn.Dropout(0.5)), Head()

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Any:
        if inputs.max() > 99:
            raise RuntimeError("too large\nby far")
        return {"loss": (self.weight * self.head(self.backbone(inputs))).mean(), "acc": torch.zeros(())}


def loss_inputs(model: Any, batch: Mapping[str, Any], pipeline: Sequence[Any]) -> dict[str, Any] | None:
    kept = batch["inputs"][batch["inputs"] != 0][:, None]
    return {"inputs": kept, "mode": "loss"} if len(kept) else None


def a_loss(
    monkeypatch: pytest.MonkeyPatch, values: Sequence[float], batch: int = 1, most: int = 100, **runner: Any
) -> tuple[ValidationLoss, Any]:
    monkeypatch.setitem(TASK_SPECS, TASK, TaskSpec(TASK, loss_inputs=loss_inputs))
    model = Model().eval()
    one = SimpleNamespace(
        model=model,
        cfg=Config({"task": TASK}),
        **{"rank": 0, "world_size": 1, "sharded": False, **runner},
        logger=logging.getLogger("loss"),
        agreement=Agreement(),
        optim_wrapper=OptimWrapper(torch.optim.SGD(model.parameters(), 0.1)),
    )
    data: Any = [torch.tensor([float(value)]) for value in values]
    return ValidationLoss(one, DataLoader(data, batch_size=batch), most), one


def validate(loss: ValidationLoss, runner: Any, values: Sequence[float], batch: int = 1) -> dict[str, float]:
    loss.begin()
    for idx, begin in enumerate(range(0, len(values), batch)):
        inputs = torch.tensor(values[begin : begin + batch])[:, None].float()
        loss.after_val_iter(runner, idx, {"inputs": inputs})
    return loss.finish()


def test_the_mean_is_of_all_images_where_they_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [1, 2, 3, 4, 10]
    loss, runner = a_loss(monkeypatch, values, batch=2)
    assert validate(loss, runner, values, batch=2)["val_loss"] == pytest.approx(4, rel=1e-4)
    assert loss.images == 5
    assert loss.score_names == ("val_loss",)


@pytest.mark.parametrize(("batch", "most", "chosen"), [(1, 4, 4), (2, 4, 4), (2, 5, 4), (3, 2, 3), (1, 8, 5)])
def test_of_many_images_at_most_so_many_are_chosen_evenly(
    monkeypatch: pytest.MonkeyPatch, batch: int, most: int, chosen: int
) -> None:
    values = list(range(1, 11))
    loss, runner = a_loss(monkeypatch, values, batch, most)
    validate(loss, runner, values, batch)
    assert loss.images == chosen


def test_images_that_a_sampler_repeats_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, runner = a_loss(monkeypatch, [1, 2, 3], rank=1, world_size=2)  # images 1 and, again, 0
    assert validate(loss, runner, [2, 1])["val_loss"] == pytest.approx(2, rel=1e-4)
    assert loss.images == 1


def test_images_without_truth_have_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, runner = a_loss(monkeypatch, [0, 0, 0, 4], batch=2)
    assert validate(loss, runner, [0, 0, 0, 4], batch=2)["val_loss"] == pytest.approx(4, rel=1e-4)
    assert loss.images == 1


@pytest.mark.parametrize("sharded", [False, True])
def test_processes_of_a_sharded_model_compute_a_batch_together_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, sharded: bool
) -> None:
    loss, runner = a_loss(monkeypatch, [1, 2, 3], world_size=2, sharded=sharded)
    monkeypatch.setattr(runner.agreement, "gather", lambda value: [value, value and value is not True])
    loss.begin()
    loss.after_val_iter(runner, 0, {"inputs": torch.ones(1, 1)})
    assert loss._count == (0 if sharded else 1)


def test_a_head_waits_for_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, runner = a_loss(monkeypatch, [1])
    asked: list[bool] = []
    runner.model.head.register_forward_hook(lambda *_: asked.append(dist.is_initialized()))
    with monkeypatch.context() as patch:
        patch.setattr(dist, "is_initialized", lambda: True)
        loss.begin()
        loss.after_val_iter(runner, 0, {"inputs": torch.ones(1, 1)})
        asked.append(dist.is_initialized())
    assert asked == [False, True]


def test_a_head_that_fails_on_a_sharded_model_ends_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, runner = a_loss(monkeypatch, [100], sharded=True)
    with pytest.raises(ConfigError, match=r"^the loss of a validation: too large: set val_cfg\.loss_images=0$"):
        validate(loss, runner, [100])


@pytest.mark.parametrize("sharded", [False, True])
def test_nothing_of_the_training_changes(monkeypatch: pytest.MonkeyPatch, sharded: bool) -> None:
    loss, runner = a_loss(monkeypatch, [1, 2], sharded=sharded)
    model: Any = runner.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.random.fork_rng():
        state = random.getstate()
        expected = (random.random(), np.random.get_state()[1].tolist(), torch.rand(3).tolist())
        random.setstate(state)
    validate(loss, runner, [1, 2])
    assert (random.random(), np.random.get_state()[1].tolist(), torch.rand(3).tolist()) == expected
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.head.seen == 0
    assert model.weight.grad is None
    assert not any(module.training for module in model.modules())


def test_the_loss_is_that_of_the_weights_that_the_model_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, runner = a_loss(monkeypatch, [1])
    first = validate(loss, runner, [1])["val_loss"]
    with torch.no_grad():
        runner.model.weight.mul_(3)
    assert validate(loss, runner, [1])["val_loss"] == pytest.approx(3 * first)


def test_a_head_without_such_a_loss_ends_no_training(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loss, runner = a_loss(monkeypatch, [1, 100])
    assert validate(loss, runner, [1, 100]) == {}
    assert [record.message for record in caplog.records] == ["validations have no loss: RuntimeError: too large"]
    assert loss.score_names == ()
    assert validate(loss, runner, [1, 1]) == {}
    assert len(caplog.records) == 1


def test_no_images_are_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, runner = a_loss(monkeypatch, [1], most=0)
    assert validate(loss, runner, [1]) == {}
    assert loss.score_names == ()
    with pytest.raises(ConfigError, match=r"val_cfg\.loss_images=-1: a whole number of images is needed, 0 for no"):
        a_loss(monkeypatch, [1], most=-1)


def test_within_a_separate_state_all_but_the_parameters_is_a_copy() -> None:
    model: Any = Model()
    model.head.thresholds, model.head.sharing = (shared := [0.5]), shared
    model.backbone.compile()
    statistics, compiled = model.head.norm.running_mean, model.backbone._compiled_call_impl
    before = [dict(vars(module)) for module in model.modules()]
    with suppress(KeyboardInterrupt), separate_state(model):
        model.head.thresholds.append(0.6)
        assert model.head.sharing == [0.5, 0.6]
        model.head.norm.running_mean.add_(1)
        model.head.added = 1
        assert model.weight is before[0]["_parameters"]["weight"]
        assert model.backbone._compiled_call_impl is None
        model.eval()
        raise KeyboardInterrupt
    assert [dict(vars(module)) for module in model.modules()] == before
    assert shared == [0.5]
    assert model.head.norm.running_mean is statistics
    assert statistics.item() == 0
    assert model.backbone._compiled_call_impl is compiled is not None


def test_heads_compute_as_in_training_and_the_backbone_and_normalisation_as_in_a_test() -> None:
    model: Any = Model()
    set_loss_mode(model)
    training = {name for name, module in model.named_modules() if module.training}
    assert training == {"", "head", "data_preprocessor"}
