"""Averaged weights beside the raw ones: neither takes the place of the other, also over an interruption."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel, ExponentialMovingAverage
from mmengine.registry import DATASETS, METRICS, MODELS, TRANSFORMS
from torch import Tensor, nn

from backbones import UserError
from backbones.weights import read_checkpoint
from engine.checkpoint.model_weights import load_model_weights
from engine.config.load import resolve
from engine.config.world import Launch
from engine.training.build import build_runner
from engine.training.ema import ModelEMAHook
from engine.training.runner import Runner

DECAY, SAMPLES, BATCH = 0.75, 12, 4
STEPS_PER_EPOCH = SAMPLES // BATCH


@DATASETS.register_module()
class PointsOfTheTest(BaseDataset):
    """Points on a line, and their doubles."""

    def load_data_list(self) -> list[dict[str, Any]]:
        return [{"x": float(i), "y": 2.0 * i} for i in range(SAMPLES)]


@TRANSFORMS.register_module()
class PackPointOfTheTest:
    def __call__(self, point: dict[str, Any]) -> dict[str, Any]:
        return {"inputs": torch.tensor([point["x"] / SAMPLES]), "data_samples": torch.tensor([point["y"] / SAMPLES])}


@MODELS.register_module()
class LineOfTheTest(BaseModel):
    """``y = weight * x`` with a place for a backbone."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1, bias=False)
        self.backbone = MODELS.build(backbone)

    def forward(self, inputs: Tensor, data_samples: Tensor, mode: str = "tensor") -> Any:
        if mode == "loss":
            return {"loss": (self.line(inputs) - data_samples).square().mean()}
        return [{"weight": float(self.line.weight.detach())} for _ in inputs]


@METRICS.register_module()
class WeightOfTheTest(BaseMetric):
    """The weight with which the model predicted."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.extend(sample["weight"] for sample in data_samples)

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        assert len(results) == SAMPLES
        assert len(set(results)) == 1
        return {"weight": results[0]}


def config(work_dir: Path, epochs: int, ema: bool = True) -> Config:
    loader = dict(
        batch_size=BATCH,
        num_workers=0,
        collate_fn=dict(type="default_collate"),
        dataset=dict(type="PointsOfTheTest", pipeline=[dict(type="PackPointOfTheTest")]),
    )
    return Config(
        dict(
            model=dict(
                type="LineOfTheTest", backbone=dict(type="convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))
            ),
            classes=("line",),
            batch=dict(size=BATCH),
            train_dataloader=dict(**loader, sampler=dict(type="DefaultSampler", shuffle=True)),
            val_dataloader=dict(**loader, sampler=dict(type="DefaultSampler", shuffle=False)),
            val_evaluator=dict(type="WeightOfTheTest"),
            val_cfg=dict(type="ValidationLoop"),
            optim_wrapper=dict(constructor="LayerDecayConstructor", optimizer=dict(type="SGD", lr=0.2, momentum=0.9)),
            param_scheduler=dict(type="PolyLR", end=9, by_epoch=False),
            train_cfg=dict(type="EpochLoop", max_epochs=epochs),
            default_hooks=dict(
                logger=dict(type="LoggerHook", interval=1),
                checkpoint=dict(type="ResumableCheckpointHook", max_keep_ckpts=-1),
            ),
            custom_hooks=[dict(type="ModelEMAHook", decay=DECAY)] if ema else [],
            default_scope="mmengine",
            env_cfg=dict(),
            randomness=dict(seed=0),
            work_dir=str(work_dir),
            experiment_name=f"{work_dir.name}_{epochs}",
        )
    )


def run(work_dir: Path, epochs: int, resume: bool = False, ema: bool = True) -> Runner:
    cfg = config(work_dir, epochs, ema)
    resolved = resolve(cfg, BATCH, Launch())
    cfg.resume = resume
    runner = build_runner(resolved, Launch())
    runner.train()
    return runner


def averages(runner: Runner) -> ModelEMAHook:
    return next(hook for hook in runner.hooks if isinstance(hook, ModelEMAHook))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return run(tmp_path_factory.mktemp("whole"), 3)


def raw_history(runner: Runner) -> list[float]:
    folder = Path(runner.work_dir)
    paths = [folder / f"epoch_{epoch}.pth" for epoch in (1, 2, 3)]
    return [float(read_checkpoint(str(path))["state_dict"]["line.weight"]) for path in paths]


def test_both_weights_are_evaluated_and_labelled(whole: Runner) -> None:
    scalars = whole.message_hub.log_scalars
    assert scalars["val/weight"].data[0].tolist() == pytest.approx(raw_history(whole))
    averaged = scalars["val/ema/weight"].data[0].tolist()
    for epoch, value in zip((1, 2, 3), averaged, strict=True):
        saved = read_checkpoint(str(Path(whole.work_dir) / f"epoch_{epoch}.pth"))["ema_state_dict"]
        assert value == pytest.approx(float(saved["module.line.weight"]))
    assert averaged != pytest.approx(raw_history(whole), rel=1e-3)


def test_frozen_parameters_have_no_average_and_are_saved_as_they_are(tmp_path: Path) -> None:
    cfg = config(tmp_path, 1)
    cfg.model.backbone.update(frozen_stages=4, out_indices=(3,))
    runner = build_runner(resolve(cfg, BATCH, Launch()), Launch())
    runner.train()
    assert set(averages(runner).averages) == {"line.weight", "backbone.norm3.weight", "backbone.norm3.bias"}
    saved = read_checkpoint(str(tmp_path / "epoch_1.pth"))
    assert set(saved["ema_state_dict"]) == {"steps", *(f"module.{name}" for name in saved["state_dict"])}
    stem = "backbone.downsample_layers.0.0.weight"
    assert torch.equal(saved["ema_state_dict"][f"module.{stem}"], saved["state_dict"][stem])


def test_the_average_is_the_exponential_one(tmp_path: Path) -> None:
    before: list[float] = []
    after: list[float] = []
    cfg = config(tmp_path, 1)
    runner = build_runner(resolve(cfg, BATCH, Launch()), Launch())
    optimizer = runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    for register, seen in (("register_step_pre_hook", before), ("register_step_post_hook", after)):
        note = partial(lambda seen, *_: seen.append(float(runner.model.line.weight.detach())), seen)
        getattr(optimizer.optimizer, register)(note)
    runner.train()
    expected = before[0]  # the initial weight, with which the released code's average begins
    for value in after:
        expected = DECAY * expected + (1 - DECAY) * value
    assert len(after) == STEPS_PER_EPOCH
    assert float(averages(runner).averages["line.weight"]) == pytest.approx(expected)


def test_raw_weights_are_in_place_after_validation(whole: Runner) -> None:
    saved = read_checkpoint(str(Path(whole.work_dir) / "epoch_3.pth"))
    torch.testing.assert_close(whole.model.state_dict(), saved["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(averages(whole).state_dict(), saved["ema_state_dict"], rtol=0, atol=0)
    assert not torch.equal(saved["state_dict"]["line.weight"], saved["ema_state_dict"]["module.line.weight"])


def test_averaging_and_validation_leave_the_training_alone(whole: Runner, tmp_path: Path) -> None:
    without = run(tmp_path / "without", 3, ema=False)
    torch.testing.assert_close(without.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    assert not any(name.startswith("val/ema/") for name in without.message_hub.log_scalars)
    checkpoint = read_checkpoint(str(tmp_path / "without/epoch_3.pth"))
    with pytest.raises(UserError, match="no averaged weights"):
        load_model_weights(without.model, checkpoint, "epoch_3.pth", averaged=True)


def test_an_interrupted_run_goes_on_where_it_was(whole: Runner, tmp_path: Path) -> None:
    run(tmp_path / "resumed", 1)
    resumed = run(tmp_path / "resumed", 3, resume=True)
    assert resumed.iter == whole.iter == 3 * STEPS_PER_EPOCH
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(averages(resumed).state_dict(), averages(whole).state_dict(), rtol=0, atol=0)
    for name, since in (("val/weight", 2), ("val/ema/weight", 2), ("train/lr", 2 * STEPS_PER_EPOCH)):
        ours, theirs = (one.message_hub.log_scalars[name].data[0][-since:].tolist() for one in (resumed, whole))
        assert ours == pytest.approx(theirs), name


def test_a_run_resumed_without_averages_shows_no_scores_of_them(tmp_path: Path) -> None:
    run(tmp_path, 1)
    resumed = run(tmp_path, 2, resume=True, ema=False)
    scalars = resumed.message_hub.log_scalars
    weight = float(read_checkpoint(str(tmp_path / "epoch_2.pth"))["state_dict"]["line.weight"])
    assert scalars["val/weight"].data[0][-1] == pytest.approx(weight)
    assert "val/ema/weight" not in scalars
    log = max(tmp_path.glob("*/*.log")).read_text()
    assert "the averaged weights of the checkpoint end here: custom_hooks have no ModelEMAHook" in log


def test_a_new_run_from_a_checkpoint_starts_new_averages(whole: Runner, tmp_path: Path) -> None:
    cfg = config(tmp_path / "second", 1)
    cfg.load_from = str(Path(whole.work_dir) / "epoch_3.pth")
    runner = build_runner(resolve(cfg, BATCH, Launch()), Launch())
    started: list[float] = []
    runner.register_hook(Started(started))
    runner.train()
    assert int(averages(runner).steps) == STEPS_PER_EPOCH
    assert started == [raw_history(whole)[-1]]


class Started(Hook):
    """Notes the average with which a training begins; runs after all other hooks."""

    priority = "LOWEST"

    def __init__(self, seen: list[float]) -> None:
        self.seen = seen

    def before_train(self, runner: Runner) -> None:
        self.seen.append(float(averages(runner).averages["line.weight"]))


def test_averages_that_a_checkpoint_lacks_begin_with_its_weights(tmp_path: Path) -> None:
    run(tmp_path, 1, ema=False)
    weight = float(read_checkpoint(str(tmp_path / "epoch_1.pth"))["state_dict"]["line.weight"])
    cfg = config(tmp_path, 2)
    resolved = resolve(cfg, BATCH, Launch())
    cfg.resume = True
    runner = build_runner(resolved, Launch())
    started: list[float] = []
    runner.register_hook(Started(started))
    runner.train()
    assert started == [weight]


def shared_layers() -> nn.Sequential:
    """A layer under two names, and buffers, which are not averaged."""
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.BatchNorm1d(3), layer)


def test_averages_are_mmengines_in_value_and_in_name() -> None:
    model, hook = shared_layers(), ModelEMAHook(DECAY)
    theirs = ExponentialMovingAverage(model, momentum=1 - DECAY)
    theirs.steps += 1  # at step 0 mmengine's would begin anew, with the weights after the first step
    runner: Any = SimpleNamespace(model=model, is_resuming=True)
    hook.before_run(runner)
    hook.before_train(runner)
    for _ in range(3):
        model(torch.randn(8, 3))  # moves the buffers
        with torch.no_grad():
            for param in model.parameters():
                param.add_(torch.randn_like(param))
        hook.after_train_iter(runner, 0)
        theirs.update_parameters(model)
    theirs.steps -= 1
    expected = theirs.state_dict()
    assert expected["module.2.weight"] is not model[2].weight
    torch.testing.assert_close(hook.state_dict(), dict(expected), rtol=0, atol=0)
    raw = {name: value.clone() for name, value in model.state_dict().items()}
    with hook.averaged():
        torch.testing.assert_close(dict(model.state_dict()), dict(theirs.module.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(dict(model.state_dict()), raw, rtol=0, atol=0)

    resumed = ModelEMAHook(DECAY)
    resumed.before_run(runner)
    resumed.after_load_checkpoint(runner, {"ema_state_dict": expected})
    torch.testing.assert_close(resumed.state_dict(), dict(expected), rtol=0, atol=0)
    del expected["module.0.bias"]
    with pytest.raises(UserError, match=r"of another model: 0\.bias does not fit"):
        resumed.after_load_checkpoint(runner, {"ema_state_dict": expected})


def test_both_weights_can_be_loaded_for_a_test(whole: Runner) -> None:
    saved = read_checkpoint(str(Path(whole.work_dir) / "epoch_3.pth"))
    for averaged, expected in (
        (False, saved["state_dict"]["line.weight"]),
        (True, saved["ema_state_dict"]["module.line.weight"]),
    ):
        model = MODELS.build(whole.cfg.model)
        load_model_weights(model, saved, "epoch_3.pth", averaged)
        assert torch.equal(model.line.weight, expected)
