"""From a checkpoint or saved predictions to the errors of a test."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import barrier, is_distributed, is_main_process

from analysis.errors.page import WrittenPage, draw_worst_images, write_error_page
from backbones.errors import ConfigError, DataError, printable
from engine.config.load import Resolved
from engine.config.world import Launch
from engine.prediction.error_analysis import AnalysisRequest, ErrorAnalysis, ErrorFindings
from engine.prediction.saved import TestedImages, score_saved
from engine.report.recorder import command_line
from engine.report.run_dir import finite, write_json
from engine.run import test
from engine.task import TaskSpec, task_of

FOLDER = "analysis"  # in the work directory
PREDICTIONS, NUMBERS = "predictions.zip", "errors.json"


@dataclass(frozen=True)
class ErrorOptions:
    """What is asked for.

    Attributes:
        saved: File of predictions, or a folder with ``predictions.zip``; ``None`` to test a checkpoint.
        averaged: Whether to use the averaged weights of the checkpoint.
        tta: Whether to test at several scales and flipped, as the config says.
        trust: Whether to execute code that the checkpoint asks for (``--trust-checkpoint``).
        full: Whether the page gets all images with errors, at their own size, and searches take all their time.
        data_check: Whether to check the test data before a checkpoint is tested.
    """

    saved: Path | None = None
    averaged: bool = False
    tta: bool = False
    trust: bool = False
    full: bool = False
    data_check: bool = True


def analyze_errors(
    resolved: Resolved, launch: Launch, checkpoint: str | None, options: ErrorOptions
) -> WrittenPage | None:
    """Write ``errors.html`` and ``errors.json`` into ``analysis/`` of the work directory.

    A checkpoint is tested first, by all processes; its predictions stay in ``analysis/predictions.zip``.

    Args:
        resolved: Resolved config.
        launch: Processes and devices of the job.
        checkpoint: Path or URL of the weights of the whole model; ``None`` for saved predictions.
        options: Choices of the user.

    Returns:
        The page; ``None`` in other processes than the main one.

    Raises:
        UserError: If the task has no error analysis, or as for a test and for saved predictions.
    """
    cfg, task = copy.deepcopy(resolved.cfg), task_of(resolved.cfg)  # a test takes out what belongs to training
    if task.error_analysis is None:
        raise ConfigError(f"{task.name} has no error analysis: its TaskSpec states none (error_analysis)")
    folder = Path(cfg.work_dir) / FOLDER
    saved = folder / PREDICTIONS if options.saved is None else saved_file(options.saved)
    if checkpoint is not None:
        folder.mkdir(parents=True, exist_ok=True)
        tested = replace(resolved, cfg=copy.deepcopy(cfg))
        chosen = (options.averaged, options.tta, options.trust, None, options.data_check, saved)
        test(tested, launch, checkpoint, *chosen)
    if not _goes_on_alone():
        return None
    folder.mkdir(parents=True, exist_ok=True)
    analysis, metrics = _look_at_all(cfg, task, saved, options.full)
    findings = analysis.findings()
    about = {
        "source": checkpoint or str(saved),
        "averaged": options.averaged,
        "tta": options.tta,
        "command": command_line(sys.argv, os.environ),
    }
    write_json(folder / NUMBERS, {**about, "metrics": metrics, "errors": _as_json(findings)})
    with closing(TestedImages(cfg, saved)) as images:
        drawn = draw_worst_images(cfg, images, analysis, findings, options.full)
    return write_error_page(folder, task, about, metrics, findings, drawn)


def _goes_on_alone() -> bool:
    """Whether this is the main process; the group of processes ends, as the metrics would wait for the others."""
    main = is_main_process()
    if is_distributed():
        barrier()
        torch.distributed.destroy_process_group()
    return main


def saved_file(place: Path) -> Path:
    """The file of predictions in a place that the user has named.

    Raises:
        DataError: If there is none.
    """
    file = place / PREDICTIONS if place.is_dir() else place
    if not file.exists():
        raise DataError(f"--from-predictions {printable(place)}: there is no file {printable(file)}")
    return file


def _look_at_all(
    cfg: Config, task: TaskSpec, saved: Path, full: bool
) -> tuple[ErrorAnalysis, Mapping[str, float | None]]:
    """The task's analysis after all images, and the scores of the test."""
    assert task.error_analysis is not None
    request = AnalysisRequest(cfg, dict(cfg.test_dataloader.dataset.metainfo), full)
    analysis: ErrorAnalysis = task.error_analysis(request)
    metrics, _ = score_saved(cfg, saved, analysis.add)
    return analysis, {name: finite(value) for name, value in metrics.items()}


def _as_json(findings: ErrorFindings) -> dict[str, Any]:
    images = sorted(findings.images, key=lambda one: (-one.total, one.index))
    listed = [
        {"index": one.index, "caption": one.caption, "kinds": dict(one.kinds), "classes": list(one.classes)}
        for one in images
    ]
    return {**findings.numbers, "images": listed}
