"""Rates, averages and the order of events in an update, against the released training code.

The figures of the rates were computed by the released functions, called with the settings of TRAINING.md. Both take the
number of updates in an epoch; it is 40 here, not the thousands of ImageNet.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import DATASETS, MODELS
from timm.data.mixup import Mixup
from torch import Tensor, nn
from torch.utils.data import Dataset

from analysis.schedules import build_schedules, rate_schedulers
from classification.model import ImageClassifier
from engine.config.load import load_config, resolve
from engine.config.world import Launch
from engine.training.build import build_runner
from engine.training.ema import ModelEMAHook
from engine.training.runner import Runner

ROOT = Path(__file__).resolve().parents[2]
STEPS_PER_EPOCH = 40
BATCH, UPDATES, DECAY = 4, 3, 0.9

# Rate of the head at chosen updates, counted from 0, by config.
RATES = {
    # facebookresearch/ConvNeXt: utils.py, lines 428-445 (cosine_scheduler), called by main.py, lines 358-361: the last
    # update of the warm-up is at the peak; engine.py, lines 38-41, takes the value of the update and the group's scale.
    "convnext_tiny_in1k_300e": {
        **{0: 0.0, 1: 5.00625782228e-06, 400: 0.00200250312891, 799: 0.004, 800: 0.004, 801: 0.00399999992134},
        **{6000: 0.00222437296997, 11999: 1.00007866021e-06},
    },
    "convnext_isotropic_base_in1k_300e": {
        **{0: 0.0, 1: 2.00100050025e-06, 1000: 0.00200100050025, 1999: 0.004, 2000: 0.004, 2001: 0.00399999990133},
        **{6000: 0.00261837948025, 11999: 1.00009867137e-06},
    },
    "convnext_base_in22k_90e": {
        **{0: 0.0, 1: 2.01005025126e-05, 100: 0.00201005025126, 199: 0.004, 200: 0.004, 201: 0.00399999914644},
        **{1800: 0.00218499058475, 3599: 1.0008535585e-06},
    },
    "convnext_base_in22k_ft_in1k_224": {0: 5e-05, 1: 4.99999160399e-05, 600: 2.55e-05, 1199: 1.00008396013e-06},
    "convnext_base_in1k_ft_in1k_384": {0: 5e-05, 1: 4.99999160399e-05, 600: 2.55e-05, 1199: 1.00008396013e-06},
    # facebookresearch/ConvNeXt-V2: utils.py, lines 531-543 (adjust_learning_rate), called with fractions of an epoch by
    # engine_finetune.py, line 38: the first update after the warm-up is the first at the peak.
    "convnextv2_atto_fcmae_ft_in1k": {0: 0.0008, 1: 0.000799999996577, 12000: 0.0004005, 23999: 1.00000342266e-06},
    "convnextv2_tiny_fcmae_ft_in1k": {
        **{0: 0.0, 1: 2e-06, 800: 0.0016, 1599: 0.003198, 1600: 0.0032, 1601: 0.00319999992702},
        **{6000: 0.00198328540503, 11999: 1.00007297722e-06},
    },
    "convnextv2_base_fcmae_ft_in1k": {
        **{0: 0.0, 1: 3.125e-06, 400: 0.00125, 799: 0.002496875, 800: 0.0025, 801: 0.00249999939785},
        **{2000: 0.00172866294874, 3999: 1.00060215184e-06},
    },
}


@pytest.mark.parametrize("name", RATES)
def test_rates_are_the_released_ones(name: str) -> None:
    cfg = load_config(ROOT / f"configs/classification/{name}.py", None, Launch()).cfg
    lr, scale = cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.get("paramwise_cfg", {}).get("decay_rate", 1.0) ** 12
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr * one} for one in (1.0, scale)]
    optimizer = torch.optim.SGD(groups)
    epochs = cfg.train_cfg.max_epochs
    steps = epochs * STEPS_PER_EPOCH
    schedulers = build_schedules(rate_schedulers(cfg), optimizer, epochs, steps, STEPS_PER_EPOCH)
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    assert len(rates) == max(RATES[name]) + 1
    peak = max(RATES[name], key=lambda step: RATES[name][step])
    for step, expected in RATES[name].items():
        head, lowest = rates[step]
        # The warm-up starts at 1e-6 of the peak and not at 0: mmengine multiplies one rate to get the next.
        assert head == pytest.approx(expected, rel=1e-9, abs=1e-6 * lr if step < peak else 0), step
        assert lowest == pytest.approx(head * scale, rel=1e-9), step


@DATASETS.register_module()
class WhiteImagesOfTheFidelityTest(Dataset):
    """White images."""

    def __init__(self, metainfo: dict[str, Any]) -> None:
        self.metainfo = dict(metainfo)

    def __len__(self) -> int:
        return BATCH * UPDATES

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"inputs": torch.ones(3, 32, 32, dtype=torch.uint8), "label": index % 2, "img_path": str(index)}


@MODELS.register_module()
class OneWeightOfTheFidelityTest(BaseModel):
    """A weight whose gradient is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor, label: Tensor, img_path: list[str], mode: str = "loss") -> dict[str, Tensor]:
        return {"loss": self.weight * inputs.float().mean()}


def built(work_dir: Path, model: dict[str, Any], per_gpu: int, optim_wrapper: dict[str, Any]) -> Runner:
    cfg = Config(
        dict(
            model=model,
            classes=("one", "two"),
            batch=dict(size=BATCH, per_gpu=per_gpu),
            train_dataloader=dict(
                num_workers=0,
                collate_fn=dict(type="default_collate"),
                dataset=dict(type="WhiteImagesOfTheFidelityTest"),
                sampler=dict(type="InfiniteSampler", shuffle=True),
            ),
            optim_wrapper=dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.1)),
            param_scheduler=[dict(type="PolyLR", power=1.0, end=11, by_epoch=False)],
            train_cfg=dict(type="IterationLoop", max_iters=UPDATES),
            default_hooks=dict(checkpoint=dict(type="ResumableCheckpointHook", interval=100, by_epoch=False)),
            custom_hooks=[dict(type="ModelEMAHook", decay=DECAY)],
            default_scope="mmengine",
            env_cfg=dict(),
            randomness=dict(seed=0),
            work_dir=str(work_dir),
        )
    )
    resolved = resolve(cfg, BATCH, Launch())
    resolved.cfg.optim_wrapper.update(optim_wrapper)  # resolved for a CPU, it would be float32 again
    return build_runner(resolved, Launch())


class Noted(Hook):
    """Notes the average after each update; runs after all other hooks."""

    priority = "LOWEST"

    def __init__(self) -> None:
        self.averages: list[float] = []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        (ema,) = (hook for hook in runner.hooks if isinstance(hook, ModelEMAHook))
        self.averages.append(float(ema.averages["weight"]))


@pytest.mark.parametrize("per_gpu", [4, 2, 1])
def test_averages_of_three_updates(tmp_path: Path, per_gpu: int) -> None:
    """A weight of 1.0 and rates of 0.1, 0.09 and 0.08 give 0.9, 0.81 and 0.73, however the batch is divided.

    facebookresearch/ConvNeXt: engine.py, lines 68 and 77 (a micro-batch's loss counts by its share), 75 and 83 (one
    average for an update); main.py, lines 311-318: timm's ``ModelEma`` (timm/utils/model_ema.py) copies the model
    before the first update, and its average becomes ``decay * average + (1 - decay) * weight``.
    """
    runner = built(tmp_path, dict(type="OneWeightOfTheFidelityTest"), per_gpu, {})
    noted = Noted()
    runner.register_hook(noted)
    runner.train()
    assert float(runner.model.weight.detach()) == pytest.approx(0.73)
    # 0.9 * 1.0 + 0.1 * 0.9 and so on, by hand
    assert noted.averages == pytest.approx([0.99, 0.972, 0.9478], rel=1e-6)


class Events:
    """Notes the order of events in a training.

    Attributes:
        seen: Names of the events, and the rate before each update.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[str | float] = []
        self._patch = patch

    def note(self, owner: Any, name: str, label: str) -> None:
        """Note every call of a method or function."""
        called = getattr(owner, name)

        def noted(*args: Any, **settings: Any) -> Any:
            self.seen.append(label)
            return called(*args, **settings)

        self._patch.setattr(owner, name, noted)


class Watch(Hook):
    """Watches the parts of a runner that exist only once the training begins."""

    priority = "LOWEST"

    def __init__(self, events: Events) -> None:
        self._events = events

    def before_train(self, runner: Any) -> None:
        wrapper = runner.optim_wrapper
        self._events.note(wrapper, "clip_func", "clip")
        wrapper.optimizer.register_step_pre_hook(lambda *_: self._events.seen.append("update"))

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self._events.seen.append(round(runner.optim_wrapper.get_lr()["lr"][0], 9))


def test_events_of_two_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixing is drawn for each micro-batch; gradients are unscaled, then clipped; the average comes last.

    facebookresearch/ConvNeXt: engine.py, line 41 (rate), 49 (mixing), 53-54 (forward), 68-71 (backward, and at the end
    of an update the lines 391-401 of utils.py: unscaling, clipping by the norm of all gradients, update, scale), 73
    (gradients to zero), 75 (average). engine_finetune.py of facebookresearch/ConvNeXt-V2, lines 37-70, is the same.
    """
    scaler = partial(torch.amp.GradScaler, "cpu", init_scale=16.0)
    monkeypatch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, "GradScaler", lambda **_: scaler())
    events = Events(monkeypatch)
    events.note(Mixup, "__call__", "mix")
    events.note(ImageClassifier, "forward", "forward")
    events.note(amp_optimizer_wrapper.AmpOptimWrapper, "backward", "backward")
    events.note(torch.amp.GradScaler, "unscale_", "unscale")
    events.note(torch.amp.GradScaler, "update", "scale")
    events.note(amp_optimizer_wrapper.AmpOptimWrapper, "zero_grad", "zero")
    events.note(ModelEMAHook, "after_train_iter", "average")
    backbone = dict(type="convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))
    model = dict(
        type="ImageClassifier", backbone=backbone, num_classes="from_classes", data_preprocessor=dict(mixup=0.8)
    )
    amp = dict(type="AmpOptimWrapper", dtype="bfloat16", clip_grad=dict(max_norm=1.0))
    runner = built(tmp_path, model, 2, amp)
    runner.register_hook(Watch(events))
    runner.train()
    parts = ["mix", "forward", "backward"] * 2
    after = ["unscale", "clip", "update", "scale", "zero", "average"]
    assert events.seen == [one for rate in (0.1, 0.09, 0.08) for one in (rate, *parts, *after)]


def test_gradients_are_clipped_by_their_true_norm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 2-norm of the unscaled gradients: utils.py of facebookresearch/ConvNeXt, lines 395-396."""
    monkeypatch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, "GradScaler", partial(torch.amp.GradScaler, "cpu"))
    amp = dict(type="AmpOptimWrapper", dtype="bfloat16", loss_scale=dict(init_scale=1024.0))
    clip = dict(clip_grad=dict(max_norm=0.5))
    runner = built(tmp_path, dict(type="OneWeightOfTheFidelityTest"), 2, amp | clip)
    runner.train()
    norms = runner.message_hub.get_scalar("train/grad_norm").data[0].tolist()
    assert norms == pytest.approx([1.0] * UPDATES)
    # half of the gradient of 1 at rates of 0.1, 0.09 and 0.08
    assert float(runner.model.weight.detach()) == pytest.approx(1 - 0.5 * 0.27, rel=1e-4)
