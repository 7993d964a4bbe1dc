"""Train or test what a resolved config describes."""

from __future__ import annotations

import copy
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.dist import barrier, is_main_process
from mmengine.registry import HOOKS

from backbones.errors import CheckpointError, ConfigError
from backbones.files import describe_special
from backbones.published import fetch, is_published, nearest_published
from engine.checkpoint.model_weights import recorded_classes
from engine.checkpoint.preemption import Stop
from engine.config.load import Resolved, load_config
from engine.config.options import parse_options
from engine.config.world import Launch
from engine.data.preflight import check_before_test, check_before_training, check_data_paths
from engine.launch.child import interrupt_on_signals
from engine.planning.plan import Review, TrainingPlan, training_plan
from engine.prediction.result_files import RESULTS, ResultMetric, ResultRequest, result_writer
from engine.prediction.saved import SavedPredictions, score_saved
from engine.prediction.visualize import draw_test_images, without_labels
from engine.report.class_scores import class_lines, collect_class_scores
from engine.report.environment import environment
from engine.report.recorder import command_line, record_run, report_test
from engine.report.run_dir import write_json
from engine.task import task_of
from engine.training.build import build_runner
from engine.training.ema import ModelEMAHook
from engine.training.runner import Runner
from engine.training.work_folder import kept_work_folder

MAX_PICTURES = 8
PICTURES = "pictures"  # folder of a test's drawings


def train(
    resolved: Resolved,
    launch: Launch,
    resume: bool,
    data_check: bool = True,
    trust: bool = False,
    review: Review | None = None,
    make_plan: Callable[[Resolved, Launch], TrainingPlan] = training_plan,
) -> None:
    """Train, from the start or from the last checkpoint in the work directory.

    Args:
        resolved: Resolved config.
        launch: Processes and devices of the job.
        resume: Whether to resume; if not, checkpoints in the work directory may be replaced.
        data_check: Whether to check the data before the first step.
        trust: Whether to execute code that checkpoints ask for (``--trust-checkpoint``).
        review: Source of further facts and of warnings, such as the rates.
        make_plan: Plans the training, and may check more than that, before anything is written.

    Raises:
        UserError: If data is missing, weights cannot be loaded, or the config contradicts itself.
        SystemExit: After a request to stop, with the exit code of a run that was saved.
    """
    cfg = resolved.cfg
    cfg.resume = resume
    with interrupt_on_signals():
        plan = make_plan(resolved, launch)
        check_data_paths(cfg, ("train", "val"))
        _check_weight_file("model.backbone.weights", cfg.model.get("backbone", {}).get("weights"))
        _check_weight_file("load_from", cfg.get("load_from"))
        runner = build_runner(resolved, launch, trust)
        if data_check:
            check_before_training(cfg, runner.logger, cfg.resume)
        plan = _log_plan(plan, runner, review)
    try:
        with record_run(runner, resolved, plan), kept_work_folder(runner):
            runner.train()  # builds the optimizer, loads or resumes, and runs the loop of engine.training.loops
    except Stop as stop:
        runner.logger.info(f"asked to stop: saved at step {runner.iter} of {runner.max_iters}; go on with --resume")
        raise SystemExit(stop.exit_code) from None


def _log_plan(plan: TrainingPlan, runner: Runner, review: Review | None) -> TrainingPlan:
    """Complete the plan by the size of the training data, and log it."""
    loader = runner.train_loop.dataloader
    plan = plan.with_data(len(loader.dataset), len(loader))
    for line in plan.lines()[1:]:  # the first line, the batch, is logged by the builder of the runner
        runner.logger.info(line)
    if review is not None and is_main_process():
        for log, lines in zip((runner.logger.info, runner.logger.warning), review(runner.cfg, plan.schedule)):
            for line in lines:
                log(line)
    return plan


def evaluated_config(
    config: str, options: list[str] | None, work_dir: str | None, checkpoint: str | None, trust: bool
) -> tuple[Resolved, Launch]:
    """Resolve the config with which a checkpoint is evaluated, and whose classes may be recorded in it.

    Args:
        config: Config file.
        options: Overrides as ``key=value``.
        work_dir: Work directory, in place of the config's.
        checkpoint: Path or URL of the checkpoint; ``None`` where there is none.
        trust: Whether to execute code that the checkpoint asks for (``--trust-checkpoint``).
    """
    changes = parse_options(options)
    if work_dir:
        changes["work_dir"] = work_dir
    launch = Launch.from_environment()
    known = partial(recorded_classes, checkpoint, trust) if checkpoint else None
    return load_config(config, changes, launch, training=False, known_classes=known), launch


def test(
    resolved: Resolved,
    launch: Launch,
    checkpoint: str,
    averaged: bool = False,
    tta: bool = False,
    trust: bool = False,
    result_format: str | None = None,
    data_check: bool = True,
    saved: Path | None = None,
) -> dict[str, float]:
    """Evaluate a checkpoint on the test data; write ``test.json`` and some pictures to the work directory.

    Args:
        resolved: Resolved config.
        launch: Processes and devices of the job.
        checkpoint: Path or URL of the weights of the whole model, of this project or released.
        averaged: Whether to use the averaged weights in it.
        tta: Whether to test at several scales and flipped, as the config says.
        trust: Whether to execute code that the checkpoint asks for (``--trust-checkpoint``).
        result_format: Format in which the predictions are also written, to ``results/``; ``None`` for none.
        data_check: Whether to check the test data first.
        saved: File to which the predictions are saved, for :func:`rescore`; ``None`` for none.

    Returns:
        Metrics by name.

    Raises:
        UserError: If data is missing, the checkpoint does not fit, or the config has no test-time augmentation.
    """
    cfg = resolved.cfg
    folder, name = Path(cfg.work_dir), "test" + ("_ema" if averaged else "") + ("_tta" if tta else "")
    written = [f"{name}.json", *([] if tta else [PICTURES])]
    runner = _test_runner(resolved, launch, checkpoint, averaged, tta, trust, data_check)
    if result_format:
        written.append(name.replace("test", RESULTS))
        request = ResultRequest(cfg, folder / written[-1], test_data=True)
        runner.test_loop.evaluator.metrics.append(ResultMetric(result_writer(result_format, request)))
    with ExitStack() as cleanup:
        if saved is not None:
            predictions = SavedPredictions(cfg, saved)
            cleanup.callback(predictions.discard_partial)
            runner.test_loop.evaluator.metrics.append(predictions)
        metrics = {name: float(value) for name, value in runner.test().items()}
    if is_main_process():
        _write_test(runner, {"checkpoint": checkpoint, "averaged": averaged, "tta": tta, "metrics": metrics}, written)
    report_test(runner)
    return metrics


def _test_runner(
    resolved: Resolved, launch: Launch, checkpoint: str, averaged: bool, tta: bool, trust: bool, data_check: bool
) -> Runner:
    """Runner of a test, after the checks; arguments as those of :func:`test`."""
    cfg = resolved.cfg
    check_data_paths(cfg, ("test",))
    _check_weight_file("checkpoint", checkpoint)
    _without_training(cfg)
    checked = copy.deepcopy(cfg)  # a pipeline of test-time augmentation hides how labels are loaded
    if tta:
        use_tta(cfg)
    cfg.load_from = checkpoint
    runner = build_runner(resolved, launch, trust)
    if data_check:
        check_before_test(checked, runner.logger)
    runner.averaged = averaged
    return runner


def write_submission(
    resolved: Resolved, launch: Launch, checkpoint: str, averaged: bool = False, tta: bool = False, trust: bool = False
) -> list[Path]:
    """Predict a test set, which needs no annotations, and write what its evaluation server takes.

    Args:
        resolved: Resolved config.
        launch: Processes and devices of the job.
        checkpoint: Path or URL of the weights of the whole model.
        averaged: Whether to use the averaged weights in it.
        tta: Whether to test at several scales and flipped, as the config says.
        trust: Whether to execute code that the checkpoint asks for (``--trust-checkpoint``).

    Returns:
        The files to upload; none in other processes than the main one.

    Raises:
        UserError: If data is missing, the checkpoint does not fit, or no server takes results of the task.
    """
    cfg, task = resolved.cfg, task_of(resolved.cfg)
    if task.submission is None:
        raise ConfigError(f"--format-only: there are no files for a server of {task.name}; --format writes others")
    dataset = cfg.test_dataloader.dataset
    task.submission.list_images(dataset)
    for node, key in ((dataset, "pipeline"), (cfg, "tta_pipeline")):
        if node.get(key):
            node[key] = without_labels(node[key])
    runner = _test_runner(resolved, launch, checkpoint, averaged, tta, trust, data_check=False)
    folder = Path(cfg.work_dir) / ("submission" + ("_ema" if averaged else "") + ("_tta" if tta else ""))
    if is_main_process():
        shutil.rmtree(folder, ignore_errors=True)
    barrier()
    request = ResultRequest(cfg, folder, test_data=True, submission=True)
    runner.test_loop.evaluator.metrics[:] = [ResultMetric(result_writer(task.submission.result_format, request))]
    runner.test()
    return task.submission.pack(folder, Path(cfg.work_dir).name, cfg) if is_main_process() else []


def rescore(resolved: Resolved, saved: Path) -> dict[str, float]:
    """Score the predictions that a test has saved, without the network; the scores are those of the test.

    Args:
        resolved: Resolved config.
        saved: File of predictions.

    Returns:
        Metrics by name.

    Raises:
        DataError: If it is no such file, or of other classes or images than the test data's.
    """
    metrics, evaluator = score_saved(resolved.cfg, saved)
    if scores := collect_class_scores(evaluator):
        print(class_lines("scores of the classes", scores, (task_of(resolved.cfg),)))
    return metrics


def _write_test(runner: Runner, result: dict[str, Any], written: list[str]) -> None:
    """Write and print what a test has found.

    Args:
        runner: Runner after the test.
        result: Checkpoint and metrics.
        written: Names in the work directory: of the file of results, the folder of pictures if any, and others.
    """
    folder, class_scores = Path(runner.cfg.work_dir), collect_class_scores(runner.test_loop.evaluator)
    result |= {"class_scores": class_scores} if class_scores else {}
    result |= {"receipts": runner.load_reports, "command": command_line(sys.argv, os.environ)}
    write_json(folder / written[0], result | {"environment": environment()})
    if class_scores:
        print(class_lines("scores of the classes", class_scores, (task_of(runner.cfg),)))
    if PICTURES in written:
        draw_test_images(runner, folder / PICTURES, MAX_PICTURES)
    print(f"in {folder}: {', '.join(written)}")


def _check_weight_file(key: str, source: str | None) -> None:
    """Check early that a file exists, before data and model are built; fetch what is published."""
    if source and is_published(source):
        fetch(source)
    elif source and (special := describe_special(source)):
        raise CheckpointError(f"{key} {source!r} {special}")
    elif source and not Path(source).exists():
        raise CheckpointError(f"{key} {source!r} does not exist{nearest_published(source)}")


def _without_training(cfg: ConfigDict) -> None:
    """Take out of a config what a test does not need: the training, and the weights that it starts with."""
    cfg.resume = False  # the config that a resumed training leaves says True
    training = ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler")
    for key in (*training, "val_dataloader", "val_cfg", "val_evaluator"):
        cfg[key] = None
    if "backbone" in cfg.model:
        cfg.model.backbone.pop("weights", None)
    kept = [hook for hook in cfg.get("custom_hooks", []) if HOOKS.get(hook["type"]) is not ModelEMAHook]
    cfg.custom_hooks = kept
    if cfg.get("test_cfg") is not None and cfg.test_cfg.get("type", "TestLoop") == "TestLoop":
        cfg.test_cfg.type = "AnnouncedTestLoop"


def use_tta(cfg: ConfigDict) -> None:
    """Test with the pipeline and the model of the config's test-time augmentation.

    What ``tta_model.module`` states replaces the model's own settings, such as sliding windows by whole images.

    Args:
        cfg: Resolved config, changed in place.

    Raises:
        ConfigError: If the config has no test-time augmentation.
    """
    if not cfg.get("tta_pipeline") or not cfg.get("tta_model"):
        raise ConfigError("--tta: the config has no tta_pipeline and tta_model")
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    averaging = copy.deepcopy(cfg.tta_model)
    tested = Config({"model": cfg.model})
    tested.merge_from_dict({"model": averaging.pop("module", {})})
    cfg.model = ConfigDict(**averaging, module=tested.model)
