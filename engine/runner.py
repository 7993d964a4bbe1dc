"""The one runner of all tasks: mmengine's, with safe and strict loading, CPU processes, sharding, one-line errors."""

from __future__ import annotations

import copy
import difflib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine import Config
from mmengine.dist import is_main_process
from mmengine.hooks import LoggerHook
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from mmengine.runner import CheckpointLoader, EpochBasedTrainLoop
from mmengine.runner import Runner as MMRunner
from torch import nn

import engine.ema
import engine.hooks
import engine.layer_decay
import engine.loops  # noqa: F401  (these four register what configs name)
from backbones.errors import UserError
from backbones.weights import read_checkpoint
from engine.classes import class_names
from engine.ema import KeepEMA
from engine.precision import losses_in_float32
from engine.resolve import Launch, Resolved
from engine.schedules import replay, shapes
from engine.sharding import gathered, shard_model, shard_optimizer
from engine.whole_model import kept_receipts, load_model

CONSOLE_LINES = 8
FILE_ONLY = (
    "The prefix is not set in metric class",
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
    "Distributed training is not used, all SyncBatchNorm",
    "Exp name: ",
)
# mmengine's settings of the environment, and this project's two ways of running the same training otherwise.
ENVIRONMENT = ("cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit", "sharded", "compile")
COMPILED = ("backbone", "neck")
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
RECEIPTS = "weights.json"


@CheckpointLoader.register_scheme(prefixes="", force=True)
def _load_safely(filename: str, map_location: str | None = None) -> dict[str, Any]:
    """Serve mmengine's own loading path, which would fall back to executing pickles."""
    return read_checkpoint(filename)


@contextmanager
def naming_wrong_settings() -> Iterator[None]:
    """Building inside of this context turns what registries and constructors say about a setting into one line.

    Raises:
        UserError: For an unknown ``type``, an unknown argument, or a schedule that begins after the end.
    """
    try:
        yield
    except (TypeError, KeyError) as error:
        reason = str(error.args[0]) if error.args else ""
        if "unexpected keyword argument" not in reason and "is not in the" not in reason:
            raise
        raise UserError(f"config does not build: {reason.partition('. ')[0]}") from error
    except ValueError as error:
        if "end should be larger than begin" not in str(error):
            raise
        raise UserError(
            "param_scheduler: a schedule begins when training is over; with another length of training change its "
            "begin and end too, such as --cfg-options param_scheduler.1.begin=0"
        ) from error


class Runner(MMRunner):
    """mmengine's runner; see the module's docstring for what differs.

    Attributes:
        averaged: Load the averaged weights of a checkpoint.
        sharded: Whether the model is spread over the processes.
        receipts: What was loaded so far, in order; a training writes it to ``weights.json`` in its work directory.
    """

    averaged = False
    param_schedulers: Any
    sharded = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.receipts: list[dict[str, Any]] = []
        super().__init__(*args, **kwargs)

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger; dumps of many lines and mmengine's words about itself go to the log file only."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(_is_for_people)
        return logger

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint safely and completely, and log the receipt."""
        checkpoint = read_checkpoint(filename)
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        classes = class_names(self.cfg.classes) if self.cfg.get("classes") else None
        begins = self._train_loop is not None and not self._resume
        receipt = load_model(self.model, checkpoint, filename, self.averaged, classes, begins)
        self.logger.info(str(receipt))
        self.receipts.append({"part": "model", "line": str(receipt), **receipt.as_dict()})
        self._has_loaded = True
        return checkpoint

    def load_or_resume(self) -> None:
        """Load what the run begins with; at the start of a training, leave the receipts in the work directory."""
        super().load_or_resume()
        if self._train_loop is not None and is_main_process():
            text = json.dumps({"receipts": self.receipts}, indent=2)
            (Path(self.work_dir) / RECEIPTS).write_text(text, encoding="utf-8")

    def resume(self, *args: Any, **kwargs: Any) -> None:
        """Resume; a schedule that has been changed since goes on as if it had been this one from the start."""
        peaks = [group.get("initial_lr", group["lr"]) for group in self.optim_wrapper.param_groups]
        wanted = shapes(self.param_schedulers or [])
        super().resume(*args, **kwargs)
        if shapes(self.param_schedulers or []) == wanted:
            return
        self.logger.info("the schedule differs from the checkpoint's: rates go on as if it had always been this one")
        config = self.cfg.param_scheduler
        self.param_schedulers = replay(
            lambda: self.build_param_scheduler(copy.deepcopy(config)),
            self.optim_wrapper.param_groups,
            peaks,
            steps=self.iter,
            epoch=len(self.train_dataloader),
        )

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save the file of one process; what is sharded is gathered first, by all processes together."""
        if not self.sharded:
            super().save_checkpoint(*args, **kwargs)
            return
        owners = [self.model, *(hook for hook in self.hooks if isinstance(hook, KeepEMA))]
        if kwargs.get("save_optimizer", True):
            owners.append(self.optim_wrapper)
        with gathered(*owners):
            super().save_checkpoint(*args, **kwargs)

    def _init_model_weights(self) -> None:
        if self.sharded:
            return  # done while the model was whole
        with kept_receipts(self.model) as receipts:
            super()._init_model_weights()
        model = self.model.module if is_model_wrapper(self.model) else self.model
        for receipt in receipts:
            head = getattr(model, "head_origin", None)
            line = f"{receipt}; classifier's head {head}" if head else str(receipt)
            self.receipts.append({"part": "backbone", "line": line, **receipt.as_dict(), "head": head})

    def build_train_loop(self, loop: Any) -> Any:
        """Build the loop with its data; the log counts as the loop does, in epochs or in steps.

        Raises:
            UserError: If the data is not enough for one step.
        """
        with naming_wrong_settings():
            built = super().build_train_loop(loop)
        if not len(built.dataloader):
            raise UserError(
                f"{len(built.dataloader.dataset)} training images are not enough for one step: use a smaller batch.size"
            )
        by_epoch = isinstance(built, EpochBasedTrainLoop)
        self.log_processor.by_epoch = by_epoch
        for hook in self.hooks:
            if isinstance(hook, LoggerHook):
                hook.log_metric_by_epoch = by_epoch
        return built

    def build_val_loop(self, loop: Any) -> Any:
        """Build the loop with its data and metrics."""
        with naming_wrong_settings():
            return super().build_val_loop(loop)

    def build_test_loop(self, loop: Any) -> Any:
        """Build the loop with its data and metrics."""
        with naming_wrong_settings():
            return super().build_test_loop(loop)

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        """Build the optimizer."""
        with naming_wrong_settings():
            built = super().build_optim_wrapper(optim_wrapper)
        if self.sharded and built is not optim_wrapper:
            shard_optimizer(built.optimizer)
        return built

    def build_param_scheduler(self, scheduler: Any) -> Any:
        """Build the schedules."""
        with naming_wrong_settings():
            return super().build_param_scheduler(scheduler)

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Bring the model to its device, for training in the form that ``env_cfg`` asks for.

        On CPU the wrapper for several processes takes no device ids, which mmengine always gives.
        """
        if self._train_loop is not None:
            self._prepare_training(model)
        if self.sharded:
            return shard_model(model)
        if self.distributed and not torch.cuda.is_available() and model_wrapper_cfg is None:
            unused = self.cfg.get("find_unused_parameters", False)
            return MMDistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=unused)
        return super().wrap_model(model_wrapper_cfg, model)

    def _prepare_training(self, model: nn.Module) -> None:
        settings = self.cfg.get("env_cfg", {})
        losses_in_float32(model)
        if settings.get("compile", False) is not False:
            parts = compile_parts(model, {} if settings.compile is True else settings.compile)
            self.logger.info("compiled in the first steps: %s", ", ".join(parts))
        if settings.get("sharded") and not self.distributed:
            self.logger.info("env_cfg.sharded: one process shares with nobody, the model stays whole")
        elif settings.get("sharded"):
            # Only a whole model can be initialised; all processes leave this with the weights of the first.
            self._init_model_weights()
            self.sharded = True
            self.logger.info("sharded over %d processes", self.world_size)


def compile_parts(model: nn.Module, options: dict[str, Any]) -> list[str]:
    """Compile backbone and neck in place, under the names they have; heads work on boxes, whose number varies.

    Args:
        model: The model.
        options: Arguments of :func:`torch.compile`.

    Returns:
        The names of the parts there were.
    """
    parts = {name: getattr(model, name, None) for name in COMPILED}
    found = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    for part in found.values():
        part.compile(**options)
    return list(found)


def _is_for_people(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    if any(phrase in message for phrase in FILE_ONLY):
        return False
    return record.levelno >= logging.WARNING or message.count("\n") < CONSOLE_LINES


def take_gpu(launch: Launch) -> None:
    """Make the GPU of this process's rank on its machine the current one.

    Raises:
        UserError: If the machine has fewer GPUs than processes were started on it.
    """
    present = torch.cuda.device_count()
    if launch.local_processes > present:
        raise UserError(
            f"{launch.local_processes} GPUs asked for on this machine, which has {present}: ask for no more"
        )
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))


def start_processes(launch: Launch) -> None:
    """Join the process group that torchrun made.

    Raises:
        UserError: If the machine has fewer GPUs than processes were started on it.
    """
    if launch.processes == 1 or dist.is_initialized():
        return
    if launch.device == "cuda":
        take_gpu(launch)
    dist.init_process_group("nccl" if launch.device == "cuda" else "gloo", timeout=COLLECTIVE_TIMEOUT)


def build_runner(resolved: Resolved, launch: Launch) -> Runner:
    """Build the runner of a resolved config and log what the launch decided.

    Raises:
        UserError: If the work directory cannot be written, or the config does not build.
    """
    start_processes(launch)
    cfg = resolved.cfg
    check_environment(cfg.get("env_cfg", {}))
    _check_work_dir(cfg)
    with naming_wrong_settings():
        runner = Runner.from_cfg(cfg)
    if resolved.plan is not None:
        runner.logger.info("batch: %s", resolved.plan)
    for note in resolved.notes:
        runner.logger.info(note)
    return runner


def check_environment(settings: dict[str, Any]) -> None:
    """Refuse a setting of ``env_cfg`` that nothing reads.

    Raises:
        UserError: With its name.
    """
    for key in settings:
        if key not in ENVIRONMENT:
            near = (difflib.get_close_matches(key, ENVIRONMENT, n=1) or [", ".join(ENVIRONMENT)])[0]
            raise UserError(f"env_cfg has no setting {key!r}; nearest: {near}")
    if not isinstance(settings.get("sharded", False), bool):
        raise UserError(f"env_cfg.sharded={settings['sharded']!r}: True or False")
    if not isinstance(settings.get("compile", False), bool | dict):
        raise UserError(f"env_cfg.compile={settings['compile']!r}: True, False or arguments of torch.compile")


def _check_work_dir(cfg: Config) -> None:
    try:
        Path(cfg.work_dir).mkdir(parents=True, exist_ok=True)
        writable = os.access(cfg.work_dir, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise UserError(f"work_dir {cfg.work_dir!r} cannot be written: choose another with --work-dir")
