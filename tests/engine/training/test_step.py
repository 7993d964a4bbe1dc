"""One optimizer step: its order, and that it computes what mmengine's own ``train_step`` computes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner as MMRunner
from torch import Tensor, nn
from torch.utils.data import Dataset

from backbones.errors import ConfigError
from engine.config.batch import MicroBatches
from engine.config.load import resolve
from engine.config.world import Launch
from engine.nonfinite.guard import NonFiniteGuard
from engine.optim.update import GradientClipper, update_weights
from engine.training.build import build_runner
from engine.training.ema import ModelEMAHook
from engine.training.runner import Runner

IMAGES, BATCH, STEPS = 16, 4, 6


@DATASETS.register_module()
class NoiseOfTheStepTest(Dataset):
    """Images of noise with labels."""

    def __init__(self, metainfo: dict[str, Any]) -> None:
        self.metainfo = dict(metainfo)
        self.images = torch.randn(IMAGES, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"inputs": self.images[index], "label": index % 2}


@MODELS.register_module()
class ModelOfTheStepTest(BaseModel):
    """A classifier with, if asked for, a layer that is never used."""

    def __init__(self, unused: bool = False, weight: float = 1.0) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.unused = nn.Linear(2, 2) if unused else None
        self.weight = weight

    def forward(self, inputs: Tensor, label: Tensor, mode: str = "loss") -> dict[str, Tensor]:
        x = self.norm(self.stem(inputs)).relu().mean((2, 3))
        return {"loss": self.weight * F.cross_entropy(self.head(x), label), "accuracy": x.detach().mean()}


@MODELS.register_module()
class OwnTrainStepOfTheStepTest(ModelOfTheStepTest):
    """A model with a training step of its own."""

    def train_step(self, data: Any, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        return super().train_step(data, optim_wrapper)


def built(work_dir: Path, amp: dict[str, Any] | None = None, **changes: Any) -> Runner:
    cfg = Config(
        dict(
            model=dict(type="ModelOfTheStepTest"),
            classes=("even", "odd"),
            batch=dict(size=BATCH),
            train_dataloader=dict(
                num_workers=0,
                collate_fn=dict(type="default_collate"),
                dataset=dict(type="NoiseOfTheStepTest"),
                sampler=dict(type="InfiniteSampler", shuffle=True),
            ),
            optim_wrapper=dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-2)),
            param_scheduler=[dict(type="PolyLR", end=2 * STEPS, by_epoch=False)],
            train_cfg=dict(type="IterationLoop", max_iters=STEPS),
            default_hooks=dict(checkpoint=dict(type="ResumableCheckpointHook", interval=100, by_epoch=False)),
            custom_hooks=[dict(type="ModelEMAHook", decay=0.7)],
            default_scope="mmengine",
            env_cfg=dict(),
            randomness=dict(seed=0),
            work_dir=str(work_dir),
        )
    )
    cfg.merge_from_dict(changes)
    resolved = resolve(cfg, BATCH, Launch())
    resolved.cfg.optim_wrapper.update(amp or {})  # resolved for a CPU, it would be float32 again
    return build_runner(resolved, Launch())


@pytest.mark.parametrize("accumulated", [False, True])
@pytest.mark.parametrize("clip", [None, dict(max_norm=0.1), dict(type="value", clip_value=1e-3)])
def test_a_step_is_mmengines_bit_by_bit(tmp_path: Path, accumulated: bool, clip: dict[str, Any] | None) -> None:
    changes = {"optim_wrapper.clip_grad": clip, "batch.per_gpu": 2 if accumulated else 4}
    ours = built(tmp_path / "ours", **changes)
    ours.train()

    theirs = built(tmp_path / "theirs", **changes)
    theirs.train_loop.dataloader.batch_sampler.seek_step(0)
    wrapper = MMRunner.build_optim_wrapper(theirs, theirs.optim_wrapper)
    theirs.optim_wrapper = wrapper
    (scheduler,) = theirs.build_param_scheduler(theirs.param_schedulers)
    theirs.model.train()
    theirs.model.init_weights()
    norms = []
    for _, batch in zip(range(STEPS), theirs.train_dataloader):
        for part in batch if isinstance(batch, MicroBatches) else [batch]:
            theirs.model.train_step(part, optim_wrapper=wrapper)
        if clip and "max_norm" in clip:
            norms.append(wrapper.message_hub.get_scalar("train/grad_norm").current())
        scheduler.step()
    assert wrapper.clip_grad_kwargs == ({key: clip[key] for key in clip if key != "type"} if clip else None)
    assert ours.model.state_dict().keys() == theirs.model.state_dict().keys()
    for name, value in ours.model.state_dict().items():
        assert torch.equal(value, theirs.model.state_dict()[name]), name
    history = ours.message_hub.log_scalars.get("train/grad_norm")
    assert (history.data[0].tolist() if history else []) == norms


class Order(Hook):
    """Notes the order of events; runs after all other hooks."""

    priority = "LOWEST"

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    def before_train(self, runner: Runner) -> None:
        runner.optim_wrapper.optimizer.register_step_pre_hook(lambda *_: self.seen.append("update"))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.seen.append("before_train_iter")

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.seen.append("schedule" if runner.optim_wrapper.get_lr()["lr"][0] < 1e-2 else "no schedule")


def test_things_happen_in_the_order_in_which_the_method_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def noted(owner: type, name: str, label: str) -> None:
        method = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **settings: [seen.append(label), method(*args, **settings)][1])

    noted(ModelOfTheStepTest, "forward", "forward")
    noted(OptimWrapper, "backward", "backward")
    noted(OptimWrapper, "zero_grad", "zero_grad")
    noted(NonFiniteGuard, "begin", "begin")
    noted(GradientClipper, "clip", "clip")
    noted(NonFiniteGuard, "check", "check")
    noted(ModelEMAHook, "after_train_iter", "averages")
    runner = built(tmp_path, **{"batch.per_gpu": 2, "train_cfg.max_iters": 1})
    runner.register_hook(Order(seen))
    runner.train()
    parts = ["forward", "backward"] * 2
    after = ["clip", "check", "update", "zero_grad", "averages", "schedule"]
    assert seen == ["before_train_iter", "begin", *parts, *after]


def test_a_train_step_of_the_models_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^OwnTrainStepOfTheStepTest.train_step is its own"):
        built(tmp_path, **{"model.type": "OwnTrainStepOfTheStepTest"}).train()


def test_unused_parameters_are_named_also_where_the_scaler_skips_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, "GradScaler", partial(torch.amp.GradScaler, "cpu"))
    amp = dict(type="AmpOptimWrapper", loss_scale=dict(init_scale=2.0**127))
    runner = built(tmp_path, amp, **{"model.unused": True, "model.weight": 8.0, "train_cfg.max_iters": 2})
    lines: list[str] = []
    monkeypatch.setattr(runner.logger, "warning", lambda line, *args: lines.append(line % args))
    updates: list[bool] = []

    def noted(wrapper: OptimWrapper) -> bool:
        updates.append(update_weights(wrapper))
        return updates[-1]

    monkeypatch.setattr("engine.training.loops.update_weights", noted)
    runner.train()
    assert updates[0] is False
    (line,) = [one for one in lines if "no gradient" in one]
    assert line.startswith("2 parameters get no gradient in the first step: unused.weight, unused.bias")


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scale, updated", [(2.0**10, True), (2.0**127, False)])
def test_an_update_that_the_scaler_skips_is_told(
    monkeypatch: pytest.MonkeyPatch, fused: bool, scale: float, updated: bool
) -> None:
    monkeypatch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, "GradScaler", partial(torch.amp.GradScaler, "cpu"))
    layer = nn.Linear(2, 1)
    before = layer.weight.clone()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=fused)
    wrapper = amp_optimizer_wrapper.AmpOptimWrapper(optimizer=optimizer, loss_scale=dict(init_scale=scale))
    wrapper.backward(layer(torch.full((1, 2), 9.0)).sum())
    assert update_weights(wrapper) is updated
    assert torch.equal(layer.weight, before) is not updated
    assert not optimizer._optimizer_step_pre_hooks


def test_clipping_is_taken_over_once() -> None:
    layer, clipper = nn.Linear(2, 1), GradientClipper()
    wrapper = OptimWrapper(torch.optim.SGD(layer.parameters(), lr=0.1), clip_grad=dict(max_norm=0.5))
    for _ in range(2):
        clipper.take_over(wrapper)
        assert (clipper.settings, wrapper.clip_grad_kwargs) == ({"max_norm": 0.5}, None)
    wrapper.backward(layer(torch.ones(1, 2)).sum())
    assert clipper.clip(wrapper) == pytest.approx(3**0.5)
    assert float(torch.nn.utils.get_total_norm([param.grad for param in layer.parameters()])) == pytest.approx(0.5)
