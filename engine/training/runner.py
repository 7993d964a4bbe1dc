"""The one runner of all tasks: mmengine's, with safe and strict loading, CPU processes, sharding, one-line errors."""

from __future__ import annotations

import copy
import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmengine import Config
from mmengine.dist import is_main_process
from mmengine.hooks import LoggerHook
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import BaseLoop, EpochBasedTrainLoop
from mmengine.runner import Runner as MMRunner
from torch import nn
from torch.utils.data import DataLoader

import engine.optim.param_groups
import engine.training.ema
import engine.training.loops
import engine.training.progress  # noqa: F401  (these three register what configs name)
from backbones.errors import UserError, described
from backbones.kernels.autotune import autotuner
from backbones.weights import read_checkpoint
from engine.checkpoint.hook import ResumableCheckpointHook
from engine.checkpoint.model_weights import backbones_of, load_model, replace_checkpoint_loader
from engine.checkpoint.preemption import Signals, Stop
from engine.checkpoint.state import check_resumable, restore_position, restore_random_state, resume_state
from engine.checkpoint.store import last_good, write_checkpoint
from engine.config.building import building
from engine.config.classes import class_names
from engine.config.environment import NonFinitePolicy, check_environment
from engine.config.load import Resolved
from engine.config.world import Launch
from engine.data.fault_tolerance import FaultTolerantDataset, ReplacedImagesHook
from engine.data.sampling import build_train_loader, configure_workers, shutdown_workers
from engine.distributed.agreement import Agreement
from engine.distributed.consistency import check_data, describe_data
from engine.distributed.processes import start_processes
from engine.distributed.sharding import gather_whole, shard_model, shard_optimizer, unwrapped
from engine.launch.heartbeat import HEARTBEAT
from engine.nonfinite.guard import NonFiniteError, NonFiniteGuard, RollBack
from engine.optim.precision import losses_in_float32
from engine.optim.schedules import replay, shapes
from engine.report.run_dir import write_json

CONSOLE_LINES = 8
FILE_ONLY = (
    "The prefix is not set in metric class",
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
    "Distributed training is not used, all SyncBatchNorm",
    "Exp name: ",
)
COMPILED = ("backbone", "neck")
COMPILE_PATIENCE = 600.0  # seconds
LAST_BATCH = 1.0  # seconds that a run waits at its end for workers that are at work on one
LOAD_REPORTS = "weights.json"


class Runner(MMRunner):
    """mmengine's runner; see the module's docstring for what differs.

    Attributes:
        averaged: Load the averaged weights of a checkpoint.
        sharded: Whether the model is spread over the processes.
        load_reports: Results of loading, in order; a training writes them to ``weights.json`` in its work directory.
        trust: Execute code that checkpoints ask for (``--trust-checkpoint``).
        run_id: Name of the training, which all starts that go on with it share.
        signals: What this process was asked for.
        agreement: What all processes were asked for.
    """

    averaged = False
    trust = False
    param_schedulers: Any
    sharded = False
    _resume: bool
    _load_from: str | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.load_reports: list[dict[str, Any]] = []
        self.signals = Signals()
        self._resumed: dict[str, Any] | None = None
        # Logger, history and pictures of a run are found by this name and the second in which it began: another run of
        # this process within that second would add to them.
        name = kwargs.get("experiment_name") or Path(getattr(kwargs.get("cfg"), "filename", None) or "run").stem
        super().__init__(*args, **kwargs | {"experiment_name": f"{name}_{secrets.token_hex(4)}"})
        self.agreement = Agreement()
        # Not from the time alone: two trainings may begin in a folder within a second.
        self.run_id = f"{self.timestamp}_{secrets.token_hex(4)}"
        self.nonfinite_guard = NonFiniteGuard(
            NonFinitePolicy.from_setting(self.cfg.get("env_cfg", {}).get("nonfinite", "stop"))
        )

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger; dumps of many lines and mmengine's words about itself go to the log file only."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(_is_for_people)
            else:
                # What does not go into the file, on a full disk, is on the console; no stack for each line of it.
                handler.handleError = lambda record: None  # type: ignore[method-assign]
        return logger

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint safely and completely, and log the report."""
        checkpoint = read_checkpoint(filename, self.trust)
        if self._resume:
            check_resumable(checkpoint, filename, bool(self.param_schedulers))
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        classes = class_names(self.cfg.classes) if self.cfg.get("classes") else None
        begins = self._train_loop is not None and not self._resume
        report = load_model(self.model, checkpoint, filename, self.averaged, classes, begins)
        self.logger.info(str(report))
        self.load_reports.append({"part": "model", "line": str(report), **report.as_dict()})
        self._has_loaded = True
        if self._resume:
            self._resumed = checkpoint.get("resume")
            self.run_id = checkpoint["meta"].get("run", self.run_id)
            # mmengine executes this text, which our own checkpoints do not have, to look for a list of GPUs in it.
            checkpoint["meta"].pop("config", None)
        return checkpoint

    def load_or_resume(self) -> None:
        """Load what the run begins with; at the start of a training, leave the load reports in the work directory."""
        if self._resume:
            # What the config loads is what the run began with: only a run that saved nothing begins with it again.
            found = self._last_good()
            self._resume = found is not None
            self._load_from = found or self._load_from
        super().load_or_resume()
        if self._train_loop is not None and is_main_process():
            write_json(Path(self.work_dir) / LOAD_REPORTS, {"receipts": self.load_reports})

    def resume(self, *args: Any, **kwargs: Any) -> None:
        """Resume; a schedule that has been changed since goes on as if it had been this one from the start."""
        peaks = [group.get("initial_lr", group["lr"]) for group in self.optim_wrapper.param_groups]
        wanted = shapes(self.param_schedulers or [])
        try:
            super().resume(*args, **kwargs)
        except UserError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            # Of torch and mmengine, for an optimizer or a schedule that is not the config's.
            raise UserError(
                f"--resume: checkpoint {args[0]!r} is of another training than the config's: {described(error)}"
            ) from error
        # Without a seed in the config, or with another one: the run stays the one that it was.
        self.train_dataloader.batch_sampler.reseed(self.seed, not self._randomness_cfg.get("diff_rank_seed", False))
        if self._resumed is None:
            self.logger.warning("saved by an older version: the order of the data and random numbers begin anew")
        else:
            restore_position(self, self._resumed)
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

    def _last_good(self) -> str | None:
        """The checkpoint to go on from; the main process looks, for all."""
        found = self.agreement.from_main(lambda: last_good(Path(self.work_dir), self.logger.warning, trust=self.trust))
        if found is None:
            self.logger.info(f"nothing to go on from in {self.work_dir}: beginning at the start")
        return None if found is None else str(found)

    def roll_back(self, event: RollBack) -> None:
        """Take up again what a checkpoint of this run holds, from before the steps that are to be passed over.

        Raises:
            NonFiniteError: If there is none.
        """
        self.checkpoint_hook.wait()
        found = None
        with suppress(UserError):  # all damaged
            found = self.agreement.from_main(lambda: self.nonfinite_guard.checkpoint_before(event))
        if found is None:
            raise NonFiniteError(f"step {event.step} was not finite, and {self.work_dir} has nothing to go back to")
        self.logger.warning(f"going back from step {event.step} to {found}")
        self._resume = True
        self.resume(str(found))

    @property
    def is_resuming(self) -> bool:
        """Whether the run continues from a checkpoint of its own."""
        return self._resume

    @property
    def checkpoint_hook(self) -> ResumableCheckpointHook:
        """The hook that saves."""
        found = next((hook for hook in self.hooks if isinstance(hook, ResumableCheckpointHook)), None)
        if found is None:
            raise UserError(
                "default_hooks.checkpoint=None: a training without checkpoints could not go on; with a large interval "
                "and minutes=inf it saves at its end alone"
            )
        return found

    def build_training_loader(self, loader: dict[str, Any]) -> DataLoader:
        """Build the data loader of a training, which can begin at any step."""
        settings = copy.deepcopy(loader)
        same_order = not self._randomness_cfg.get("diff_rank_seed", False)
        self.register_hook(ReplacedImagesHook())
        return build_train_loader(
            settings, self.seed, same_order, lambda dataset: FaultTolerantDataset(dataset, self.work_dir)
        )

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict[str, Any], seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """Build a data loader that leaves the main process's random numbers alone."""
        built = MMRunner.build_dataloader(dataloader, seed, diff_rank_seed)
        configure_workers(built, seed or 0)
        return built

    def train(self) -> nn.Module:
        """Train; asked to stop, save and leave by :class:`engine.checkpoint.preemption.Stop`."""
        saving = self.checkpoint_hook
        repeatable = nullcontext() if torch.cuda.is_available() else autotuner.without_measuring()
        with self.signals.heeded(), repeatable, self._workers_ended():
            try:
                return super().train()
            except Stop:
                saving.in_between(self)
                saving.wait()
                self.agreement.meet()
                raise
            except Exception:
                # What was handed over is written still, whatever ends the run, and whether or not that fails too.
                with suppress(UserError):
                    saving.wait()
                raise

    def test(self) -> dict[str, float]:
        """Test."""
        with self._workers_ended():
            return super().test()

    @contextmanager
    def _workers_ended(self) -> Iterator[None]:
        """End the workers of all loaders when this context is left; an error or a stop does not wait for them."""
        patience = 0.0
        try:
            yield
            patience = LAST_BATCH
        finally:
            loops = (self._train_loop, self._val_loop, self._test_loop)
            shutdown_workers([loop.dataloader for loop in loops if isinstance(loop, BaseLoop)], patience)

    def checkpoint_state(self, resumable: bool = True) -> dict[str, Any]:
        """The state of the run, on whatever device it is, in the main process; the others help and get nothing.

        Args:
            resumable: Whether a run is to go on from it, or the weights alone are wanted.
        """
        parts = {"resume": resume_state(self)} if resumable else {}
        if not (self.sharded or is_main_process()):
            return {}
        state = {"meta": self._checkpoint_meta(), "state_dict": unwrapped(self.model).state_dict(), **parts}
        if resumable:
            state["message_hub"] = self.message_hub.state_dict()
            state["optimizer"] = self.optim_wrapper.state_dict()
            state["param_schedulers"] = [one.state_dict() for one in self.param_schedulers or []]
        self.call_hook("before_save_checkpoint", checkpoint=state)
        return gather_whole(state) if self.sharded else state

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """Save at once, as mmengine's and other hooks ask for; the settings of how are not heeded."""
        state = self.checkpoint_state()
        if is_main_process():
            write_checkpoint(state, Path(out_dir) / filename)

    def restore_random_state(self) -> None:
        """Take up the random numbers where the checkpoint left them, if the run goes on from one."""
        if self._resumed is not None:
            restore_random_state(self, self._resumed)

    def _checkpoint_meta(self) -> dict[str, Any]:
        meta = {"epoch": self.epoch, "iter": self.iter, "cfg": self._config_text, "seed": self.seed, "run": self.run_id}
        meta |= {"experiment_name": self.experiment_name, "mmengine_version": mmengine.__version__}
        meta |= {"time": time.strftime("%Y%m%d_%H%M%S"), "dataset_meta": self.train_dataloader.dataset.metainfo}
        return meta

    @cached_property
    def _config_text(self) -> str:
        """The config, whose layout takes a second each time."""
        return self.cfg.pretty_text

    def _init_model_weights(self) -> None:
        if self.sharded:
            return  # done while the model was whole
        backbones = backbones_of(self.model)
        for backbone in backbones:
            backbone.trust_weights = self.trust
        super()._init_model_weights()
        for report in filter(None, (backbone.load_report for backbone in backbones)):
            self.load_reports.append({"part": "backbone", "line": str(report), **report.as_dict()})

    def build_train_loop(self, loop: Any) -> Any:
        """Build the loop with its data; the log counts as the loop does, in epochs or in steps.

        Raises:
            UserError: If the data is not enough for one step.
        """
        with building(self.cfg, "train_cfg", "train_pipeline", "train_dataloader"):
            built = super().build_train_loop(loop)
        self._compare("training", built.dataloader)
        if not len(built.dataloader):
            raise UserError(
                f"{len(built.dataloader.dataset)} training images are not enough for one step: use a smaller batch.size"
            )
        self.register_hook(self.nonfinite_guard)
        by_epoch = isinstance(built, EpochBasedTrainLoop)
        self.log_processor.by_epoch = by_epoch
        for hook in self.hooks:
            if isinstance(hook, LoggerHook):
                hook.log_metric_by_epoch = by_epoch
        return built

    def build_val_loop(self, loop: Any) -> Any:
        """Build the loop with its data and metrics."""
        with building(self.cfg, "val_cfg", "val_evaluator", "test_pipeline", "val_dataloader"):
            built = super().build_val_loop(loop)
        self._compare("validation", built.dataloader)
        return built

    def build_test_loop(self, loop: Any) -> Any:
        """Build the loop with its data and metrics."""
        with building(self.cfg, "test_cfg", "test_evaluator", "test_pipeline", "test_dataloader"):
            built = super().build_test_loop(loop)
        self._compare("test", built.dataloader)
        return built

    def _compare(self, what: str, loader: DataLoader) -> None:
        """See that all processes have the same data."""
        same = not self._randomness_cfg.get("diff_rank_seed", False)
        check_data(what, self.agreement.gather(describe_data(loader, same)))

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        """Build the optimizer."""
        with building(self.cfg, "optim_wrapper"):
            built = super().build_optim_wrapper(optim_wrapper)
        if self.sharded and built is not optim_wrapper:
            shard_optimizer(built.optimizer)
        return built

    def build_param_scheduler(self, scheduler: Any) -> Any:
        """Build the schedules."""
        with building(self.cfg, "param_scheduler"):
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


def build_runner(resolved: Resolved, launch: Launch, trust: bool = False) -> Runner:
    """Build the runner of a resolved config and log what the launch decided.

    Args:
        resolved: The config.
        launch: Number and kind of processes.
        trust: Execute code that checkpoints ask for (``--trust-checkpoint``).

    Raises:
        UserError: If the work directory cannot be written, or the config does not build.
    """
    start_processes(launch)
    cfg = resolved.cfg
    settings = cfg.get("env_cfg", {})
    check_environment(settings)
    _check_work_dir(cfg)
    # What is compiled may be compiled again at any step, for a shape that is new.
    HEARTBEAT.configure(
        cfg.work_dir, settings.get("patience") or (COMPILE_PATIENCE if settings.get("compile") else 0.0)
    )
    replace_checkpoint_loader(trust)
    with building(cfg, "default_hooks", "custom_hooks", "visualizer", "log_processor", "model"):
        runner = Runner.from_cfg(cfg)
    runner.trust = trust
    if resolved.plan is not None:
        runner.logger.info("batch: %s", resolved.plan)
    for note in resolved.notes:
        runner.logger.info(note)
    return runner


def _check_work_dir(cfg: Config) -> None:
    try:
        Path(cfg.work_dir).mkdir(parents=True, exist_ok=True)
        writable = os.access(cfg.work_dir, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise UserError(f"work_dir {cfg.work_dir!r} cannot be written: choose another with --work-dir")
