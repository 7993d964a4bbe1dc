"""The record of a training in its work directory: settings and environment of each start, progress, and a report.

All starts of a training share one history, ``starts.json``; ``docs/run_folder.md`` lists the files. Only the main
process writes, and nothing here stops a training: a file that cannot be written is a warning in its log.
"""

from __future__ import annotations

import logging
import os
import resource
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from backbones.errors import MachineError, UserError
from engine.checkpoint.preemption import Stop
from engine.config.datasets import inner_datasets
from engine.config.load import Resolved, ema_settings
from engine.launch.heartbeat import HEARTBEAT
from engine.planning.plan import TrainingPlan
from engine.report.class_scores import CLASS_SCORES
from engine.report.environment import code_diff, environment, plain_value, read_text, without_secrets
from engine.report.run_dir import CONFUSION, DIFF, ENVIRONMENT, PLAN, STARTS, read_json, write_json
from engine.report.trackers import Tracker, begin_trackers
from engine.report.training import write_training_report
from engine.task import task_of

RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped", "failed"
RESUME, LAUNCHER = "--resume", "--launcher"
MAX_CONFIG_CHARACTERS = 2**16  # of a config file that are kept; a dumped config has a tenth of that


class ForeignFolderError(MachineError):
    """The work directory is another training's by now: nothing is to be written to it."""


@contextmanager
def record_run(runner: Runner, resolved: Resolved, plan: TrainingPlan) -> Iterator[None]:
    """Record a start of a training: its beginning at once, its end however this context is left.

    Args:
        runner: Runner that trains inside of the context.
        resolved: Resolved config of the training.
        plan: Plan of the training, with the number of images and steps.
    """
    if not is_main_process():
        yield
        return
    record = RunRecorder(runner, resolved, plan)
    runner.register_hook(record, priority="VERY_LOW")
    try:
        yield
    except ForeignFolderError:
        raise
    except BaseException as error:
        record.end(error)
        raise
    record.end(None)


class RunRecorder(Hook):
    """Records one start; updates the files when training begins, after validations and at the end.

    The arguments are those of :func:`record_run`.
    """

    def __init__(self, runner: Runner, resolved: Resolved, plan: TrainingPlan) -> None:
        self._runner = runner
        self._folder = Path(runner.work_dir)
        self._start: dict[str, Any] = {"folder": runner.timestamp, "outcome": RUNNING, "began": _now()}
        self._earlier: list[Any] = []
        self._seconds_before = HEARTBEAT.seconds()
        self._config = resolved.cfg
        self._trackers: list[Tracker] = []
        with only_warning(self._runner.logger):
            listed = read_json(self._folder / STARTS).get("starts")
            self._earlier = listed if isinstance(listed, list) else []
            self._start |= _beginning(runner, resolved, plan)
            self._save()
            if not (self._folder / PLAN).exists():  # of a training that is there it changes only if this start begins
                write_json(self._folder / PLAN, self._start["plan"])
            write_json(self._folder / ENVIRONMENT, self._start["environment"])
            if self._start["environment"]["code"].get("dirty"):
                place = self._folder / self._start["folder"] / DIFF  # beside the log of this start
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(code_diff(), encoding="utf-8")

    def before_train(self, runner: Runner) -> None:
        """Record the first step and the loaded weights."""
        with only_warning(self._runner.logger):
            write_json(self._folder / PLAN, self._start["plan"])
            if not runner.is_resuming:  # of a training that left no checkpoint
                for name in (CLASS_SCORES, CONFUSION):
                    (self._folder / name).unlink(missing_ok=True)
            if self._earlier or runner.iter:
                _hide_later_curves(runner)
        self._update(from_step=runner.iter, resumed=runner.is_resuming, weights=runner.load_reports)
        if self._config.get("trackers"):
            self._trackers = begin_trackers(runner, plain_value(self._config.to_dict()))

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, float] | None = None) -> None:
        """Update the report, so that a run that is killed later has this one."""
        with only_warning(self._runner.logger):
            scores = getattr(runner.val_loop, "class_scores", {})
            if any(scores.values()):
                write_json(self._folder / CLASS_SCORES, {"step": runner.iter, "scores": scores})
            else:
                (self._folder / CLASS_SCORES).unlink(missing_ok=True)
        images = getattr(getattr(runner.val_loop, "loss", None), "images", 0)
        self._update(to_step=runner.iter, loss_images=images, **self._seconds())

    def end(self, error: BaseException | None) -> None:
        """Record how the training ended, by an exception or regularly (``None``), and write the report."""
        with only_warning(self._runner.logger):
            step, steps = self._runner.iter, self._runner.max_iters
            outcome, reason = outcome_of(error)
            if outcome == FINISHED and step < steps:
                reasons = (getattr(hook, "reason", "") for hook in self._runner.hooks)  # of early stopping
                reason = f"early stopping: {next(filter(None, reasons), 'a hook ended it')}"
            self._start |= {"outcome": outcome, "reason": reason, "ended": _now(), **self._seconds()}
            command = self._start["command"]
            go_on = command if RESUME in shlex.split(command) else f"{command} {RESUME}"
            self._update(to_step=step, of_steps=steps, go_on=go_on, **_peak_memory())
        for tracker in self._trackers:
            tracker.finish(self._folder, error is None)

    def _update(self, **entries: Any) -> None:
        """Add entries to the record of this start, and write it and the report."""
        self._start |= entries
        with only_warning(self._runner.logger):
            self._save()
            write_training_report(self._folder)

    def _seconds(self) -> dict[str, Any]:
        """Duration of this start so far, and of what it did."""
        began = datetime.fromisoformat(self._start["began"])
        before = self._seconds_before
        spent = {name: round(seconds - before[name], 1) for name, seconds in HEARTBEAT.seconds().items()}
        return {"seconds": round((datetime.now().astimezone() - began).total_seconds(), 1), "spent": spent}

    def _save(self) -> None:
        write_json(self._folder / STARTS, {"starts": [*self._earlier, self._start]})


@contextmanager
def only_warning(logger: logging.Logger) -> Iterator[None]:
    """Turn any exception inside of this context into a warning: a training is worth more than its record."""
    try:
        yield
    except Exception as error:
        logger.warning("the record of this run is not complete: %s: %s", type(error).__name__, error)


def report_test(runner: Runner) -> None:
    """Update the report of a training after a test in its work directory."""
    folder = Path(runner.cfg.work_dir)
    if is_main_process() and (folder / STARTS).is_file():
        with only_warning(runner.logger):
            write_training_report(folder)


def outcome_of(error: BaseException | None) -> tuple[str, str]:
    """Return how a training ended, by an exception or regularly (``None``), and the reason in one line."""
    if error is None:
        return FINISHED, ""
    if isinstance(error, KeyboardInterrupt):
        return STOPPED, "Ctrl-C"
    if isinstance(error, Stop):
        return STOPPED, f"asked to, exit code {error.exit_code}"
    lines = str(error).strip().splitlines() or [""]
    # The message of an error in a worker of a data loader is the worker's whole stack; its last line is what was meant.
    line = lines[-1] if lines[0].startswith("Caught ") else lines[0]
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return FAILED, without_secrets(kind + line)


def command_line(arguments: Sequence[str], environ: Mapping[str, str]) -> str:
    """The command that starts the program again; logins in addresses are masked.

    Args:
        arguments: Program and its arguments (``sys.argv``).
        environ: Environment variables; torchrun sets the number of processes in them.
    """
    program, *words = arguments
    local = int(environ.get("LOCAL_WORLD_SIZE", 1))
    if LAUNCHER not in words or local < 2:
        return without_secrets(shlex.join(["python", from_here(program), *words]))
    config, *words = [word for word, before in zip(words, ["", *words]) if LAUNCHER not in (word, before)]
    nodes = int(environ.get("WORLD_SIZE", local)) // local
    several = f"NNODES={nodes} NODE_RANK=... MASTER_ADDR=... " if nodes > 1 else ""
    script = str(Path(from_here(program)).with_name("dist_train.sh"))
    return several + without_secrets(shlex.join(["bash", script, config, str(local), *words]))


def from_here(path: str) -> str:
    """A path as it is typed in the current folder."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def _hide_later_curves(runner: Runner) -> None:
    """Let TensorBoard hide what was logged before of the steps that follow: they are done again."""
    if backend := runner.visualizer.get_backend("TensorboardVisBackend"):
        backend.experiment.close()  # the next value opens another file in the same folder, which begins with the step
        backend.experiment.purge_step = runner.iter + 1


def _beginning(runner: Runner, resolved: Resolved, plan: TrainingPlan) -> dict[str, Any]:
    cfg = resolved.cfg
    return {
        "command": command_line(sys.argv, os.environ),
        "processes": runner.world_size,
        "config": {
            "file": str(cfg.filename or ""),
            "text": read_text(Path(cfg.filename))[:MAX_CONFIG_CHARACTERS] if cfg.filename else "",
            "changed": {key: [plain_value(old), plain_value(new)] for key, (old, new) in resolved.changed.items()},
        },
        "about": _about(cfg, runner),
        "plan": {**plain_value(asdict(plan)), "lines": plan.lines(), "notes": list(resolved.notes)},
        "environment": environment(),
        "of_steps": runner.max_iters,
    }


def _about(cfg: Config, runner: Runner) -> dict[str, Any]:
    """The facts at the head of the report."""
    backbone = cfg.model.get("backbone") or {}
    ema = ema_settings(cfg)
    return {
        "task": task_of(cfg).name,
        "model": str(cfg.model.type),
        "backbone": str(backbone.get("type", "")),
        "data": str(cfg.get("data_root") or ""),
        "classes": len(inner_datasets(cfg.train_dataloader.dataset)[0].metainfo["classes"]),
        "optimizer": plain_value(dict(cfg.optim_wrapper.optimizer)),
        "ema": None if ema is None else ema["decay"],
        "seed": runner.seed,
    }


def _peak_memory() -> dict[str, int]:
    """Peak resident memory of this process in bytes and, on a GPU, the peak memory of its tensors."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        peak["gpu_memory_bytes"] = torch.cuda.max_memory_allocated()
    return peak


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
