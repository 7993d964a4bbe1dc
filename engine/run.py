"""Train or test what a resolved config describes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from mmengine.config import ConfigDict
from mmengine.dist import is_main_process

from backbones.errors import UserError
from engine.checkpoint.preemption import Stop, leaving_at_once
from engine.config.load import Resolved, load_config
from engine.config.world import Launch
from engine.data.preflight import check_before_training, check_data_paths
from engine.planning.plan import TrainingPlan, training_plan
from engine.report.environment import environment
from engine.report.recorder import command_line, recorded, report_test
from engine.report.run_dir import write_json
from engine.training.batch_size_finder import measured_fit
from engine.training.build import build_runner
from engine.training.runner import Runner
from engine.visualize import draw_test_images

PICTURES = 8


def chosen_batch(
    text: str, config: str, options: dict[str, Any], launch: Launch, measure: bool = True
) -> dict[str, Any]:
    """The option that ``--per-gpu-batch`` stands for.

    Args:
        text: A number, or ``auto`` to measure it.
        config: The config file.
        options: The other options, under dotted keys.
        launch: Where it runs.
        measure: Whether anything may be started.

    Raises:
        UserError: If it is neither, or cannot be measured.
    """
    if "batch.per_gpu" in options:
        raise UserError("--per-gpu-batch and --cfg-options batch.per_gpu say the same: give one of them")
    if text.isdecimal():
        return {"batch.per_gpu": int(text)}
    if text != "auto":
        raise UserError(f"--per-gpu-batch {text!r}: a number of images, or auto")
    if not measure:
        raise UserError("--per-gpu-batch auto trains on the GPU to find out, which a dry run does not: give a number")
    resolved = load_config(config, {**options, "batch.per_gpu": None}, launch)
    check_data_paths(resolved.cfg, ("train",))
    return {"batch.per_gpu": measured_fit(resolved, launch)}


def train(resolved: Resolved, launch: Launch, resume: bool, data_check: bool = True, trust: bool = False) -> None:
    """Train, from the start or from the last checkpoint in the work directory.

    Raises:
        UserError: If data is absent, weights cannot be loaded, or the config contradicts itself.
    """
    # A process that torchrun starts again goes on where the last one was.
    resume = resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    with leaving_at_once(None if resume else Path(resolved.cfg.work_dir)):
        runner, plan = _prepared(resolved, launch, resume, data_check, trust)
    try:
        with recorded(runner, resolved, plan):
            runner.train()
    except Stop as stop:
        runner.logger.info(f"asked to stop: saved at step {runner.iter} of {runner.max_iters}; go on with --resume")
        raise SystemExit(stop.exit_code) from None


def _prepared(
    resolved: Resolved, launch: Launch, resume: bool, data_check: bool, trust: bool
) -> tuple[Runner, TrainingPlan]:
    """All that can go wrong before the first step."""
    cfg = resolved.cfg
    cfg.resume = resume
    check_data_paths(cfg, ("train", "val"))
    _check_file("model.backbone.weights", cfg.model.get("backbone", {}).get("weights"))
    _check_file("load_from", cfg.get("load_from"))
    plan = training_plan(resolved, launch)
    runner = build_runner(resolved, launch, trust)
    if data_check:
        check_before_training(cfg, runner.logger, resume)
    loader = runner.train_loop.dataloader
    # The first line, the batch, is the runner's own.
    plan = plan.with_data(len(loader.dataset), len(loader))
    for line in plan.lines()[1:]:
        runner.logger.info(line)
    return runner, plan


def test(
    resolved: Resolved,
    launch: Launch,
    checkpoint: str,
    averaged: bool = False,
    tta: bool = False,
    trust: bool = False,
) -> dict[str, float]:
    """Evaluate a checkpoint on the test data; write ``test.json`` and some pictures to the work directory.

    Args:
        resolved: The config.
        launch: Where it runs.
        checkpoint: Path or URL of the weights of the whole model, of this project or released.
        averaged: Use the averaged weights in it.
        tta: Test at several scales and flipped, where the config says how.
        trust: Execute code that the checkpoint asks for (``--trust-checkpoint``).

    Returns:
        The metrics.

    Raises:
        UserError: If data is absent, the checkpoint does not fit, or the config has no test-time augmentation.
    """
    cfg = resolved.cfg
    check_data_paths(cfg, ("test",))
    _check_file("checkpoint", checkpoint)
    _without_training(cfg)
    if tta:
        _use_tta(cfg)
    cfg.load_from = checkpoint
    runner = build_runner(resolved, launch, trust)
    runner.averaged = averaged
    metrics = {name: float(value) for name, value in runner.test().items()}
    if is_main_process():
        name = "test" + ("_ema" if averaged else "") + ("_tta" if tta else "")
        result = {"checkpoint": checkpoint, "averaged": averaged, "tta": tta, "metrics": metrics}
        result |= {"receipts": runner.load_reports, "command": command_line(sys.argv, os.environ)}
        result["environment"] = environment()
        write_json(Path(cfg.work_dir) / f"{name}.json", result)
        if not tta:
            draw_test_images(runner, Path(cfg.work_dir) / "pictures", PICTURES)
    report_test(runner)
    return metrics


def _check_file(what: str, source: str | None) -> None:
    """Say early that a file is absent, before data and model are built."""
    if source and "://" not in source and not Path(source).exists():
        raise UserError(f"{what} {source!r} does not exist")


def _without_training(cfg: ConfigDict) -> None:
    """Testing needs neither the training data nor the weights that training began with."""
    for key in ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler"):
        cfg[key] = None
    for key in ("val_dataloader", "val_cfg", "val_evaluator"):
        cfg[key] = None
    if "backbone" in cfg.model:
        cfg.model.backbone.pop("weights", None)
    cfg.custom_hooks = [hook for hook in cfg.get("custom_hooks", []) if hook["type"] != "ModelEMAHook"]


def _use_tta(cfg: ConfigDict) -> None:
    if not cfg.get("tta_pipeline") or not cfg.get("tta_model"):
        raise UserError("--tta: the config has no tta_pipeline and tta_model")
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
