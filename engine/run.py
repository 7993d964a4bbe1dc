"""Train or test what a resolved config describes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmengine.config import ConfigDict
from mmengine.dist import is_main_process

from backbones.errors import UserError
from engine.fit import measured_fit
from engine.picture import draw_test_images
from engine.plan import training_plan
from engine.preflight import check_data_folders
from engine.resolve import Launch, Resolved, load_config
from engine.runner import build_runner

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
    check_data_folders(resolved.cfg, ("train",))
    return {"batch.per_gpu": measured_fit(resolved, launch)}


def train(resolved: Resolved, launch: Launch, resume: bool) -> None:
    """Train, from the start or from the last checkpoint in the work directory.

    Raises:
        UserError: If data is absent, weights cannot be loaded, or the config contradicts itself.
    """
    cfg = resolved.cfg
    check_data_folders(cfg, ("train", "val"))
    _check_file("model.backbone.weights", cfg.model.get("backbone", {}).get("weights"))
    _check_file("load_from", cfg.get("load_from"))
    if resume and cfg.get("load_from"):
        # mmengine would take load_from for the checkpoint to go on from; it is what the run began with.
        resume = (Path(cfg.work_dir) / "last_checkpoint").is_file()
        cfg.load_from = None if resume else cfg.load_from
    cfg.resume = resume
    plan = training_plan(resolved, launch)
    runner = build_runner(resolved, launch)
    loader = runner.train_loop.dataloader
    # The first line, the batch, is the runner's own.
    for line in plan.with_data(len(loader.dataset), len(loader)).lines()[1:]:
        runner.logger.info(line)
    runner.train()


def test(
    resolved: Resolved, launch: Launch, checkpoint: str, averaged: bool = False, tta: bool = False
) -> dict[str, float]:
    """Evaluate a checkpoint on the test data; write ``test.json`` and some pictures to the work directory.

    Args:
        resolved: The config.
        launch: Where it runs.
        checkpoint: Path or URL of the weights of the whole model, of this project or released.
        averaged: Use the averaged weights in it.
        tta: Test at several scales and flipped, where the config says how.

    Returns:
        The metrics.

    Raises:
        UserError: If data is absent, the checkpoint does not fit, or the config has no test-time augmentation.
    """
    cfg = resolved.cfg
    check_data_folders(cfg, ("test",))
    _check_file("checkpoint", checkpoint)
    _without_training(cfg)
    if tta:
        _use_tta(cfg)
    cfg.load_from = checkpoint
    runner = build_runner(resolved, launch)
    runner.averaged = averaged
    metrics = {name: float(value) for name, value in runner.test().items()}
    if is_main_process():
        name = "test" + ("_ema" if averaged else "") + ("_tta" if tta else "")
        result = {"checkpoint": checkpoint, "averaged": averaged, "tta": tta, "metrics": metrics}
        result["receipts"] = runner.receipts
        (Path(cfg.work_dir) / f"{name}.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
        if not tta:
            draw_test_images(runner, Path(cfg.work_dir) / "pictures", PICTURES)
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
    cfg.custom_hooks = [hook for hook in cfg.get("custom_hooks", []) if hook["type"] != "KeepEMA"]


def _use_tta(cfg: ConfigDict) -> None:
    if not cfg.get("tta_pipeline") or not cfg.get("tta_model"):
        raise UserError("--tta: the config has no tta_pipeline and tta_model")
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
