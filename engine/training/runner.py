"""The one runner of all tasks: mmengine's, with safe and strict loading, CPU processes, sharding, one-line errors."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import LoggerHook
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop
from mmengine.runner import Runner as MMRunner
from torch import nn
from torch.utils.data import DataLoader

import engine.optim.param_groups
import engine.training.ema
import engine.training.loops
import engine.training.progress
import engine.training.validation  # (these register what configs name)
from backbones.errors import ConfigError, DataError
from backbones.kernels.autotune import autotuner
from engine.checkpoint.hook import ResumableCheckpointHook
from engine.checkpoint.preemption import Signals, Stop
from engine.config.building import building
from engine.config.environment import NonFinitePolicy
from engine.data.sampling import configure_workers
from engine.distributed.agreement import Agreement
from engine.distributed.consistency import check_same_data, describe_loader
from engine.distributed.sharding import shard_model, shard_optimizer
from engine.nonfinite.guard import NonFiniteGuard
from engine.optim.update import GradientClipper
from engine.training.checkpoint_manager import CheckpointManager
from engine.training.loaders import workers_ended
from engine.training.logging import run_settings, set_up_handlers
from engine.training.model_preparation import initialise, prepare_for_training


class Runner(MMRunner):
    """mmengine's runner; see the module's docstring for what differs.

    Attributes:
        averaged: Whether a checkpoint's averaged weights are loaded in place of the raw ones.
        sharded: Whether the model is sharded over the processes.
        load_reports: Results of loading, in order; a training writes them to ``weights.json``.
        trust: Whether code that checkpoints ask for is executed (``--trust-checkpoint``).
        run_id: Name of the training, common to all starts that continue it.
        signals: Stop requests of this process.
        agreement: Decisions that all processes take together.
        nonfinite_guard: Judge of every optimizer step.
        gradient_clipper: Gradient clipping as the config says.
        checkpoints: Loading, resuming, rolling back, and the state of the run.
    """

    averaged = False
    sharded = False
    trust = False
    param_schedulers: Any
    _resume: bool
    _load_from: str | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.load_reports: list[dict[str, Any]] = []
        self.signals = Signals()
        self.checkpoints = CheckpointManager(self)
        self.gradient_clipper = GradientClipper()
        self._loaders: list[DataLoader] = []
        # Log, history and pictures are found by this name and the second of the start, which another run may share.
        name = kwargs.get("experiment_name") or Path(getattr(kwargs.get("cfg"), "filename", None) or "run").stem
        super().__init__(*args, **kwargs | run_settings(kwargs) | {"experiment_name": f"{name}_{secrets.token_hex(4)}"})
        self.agreement = Agreement()
        # Not from the time alone: two trainings may begin in a folder within a second.
        self.run_id = f"{self.timestamp}_{secrets.token_hex(4)}"
        policy = self.cfg.get("env_cfg", {}).get("nonfinite", "stop")
        self.nonfinite_guard = NonFiniteGuard(NonFinitePolicy.from_setting(policy))

    @property
    def is_training(self) -> bool:
        """Whether the config describes a training, not only a test."""
        return self.cfg.get("train_cfg") is not None

    @property
    def is_resuming(self) -> bool:
        """Whether the run continues from a checkpoint of its own."""
        return self._resume

    @property
    def same_order(self) -> bool:
        """Whether all processes draw from one common order of the samples."""
        return not self.cfg.get("randomness", {}).get("diff_rank_seed", False)

    @property
    def checkpoint_hook(self) -> ResumableCheckpointHook:
        """The hook that saves.

        Raises:
            ConfigError: If the config removed it.
        """
        found = next((hook for hook in self.hooks if isinstance(hook, ResumableCheckpointHook)), None)
        if found is None:
            raise ConfigError(
                "default_hooks.checkpoint=None: a training without checkpoints could not go on; with a large interval "
                "and minutes=inf it saves at its end alone"
            )
        return found

    def train(self) -> nn.Module:
        """Train.

        Raises:
            Stop: After a request to stop, with the state saved.
        """
        hook = self.checkpoint_hook
        repeatable = nullcontext() if torch.cuda.is_available() else autotuner.without_measuring()
        with self.signals.handled(), repeatable, workers_ended(self._loaders):
            try:
                return super().train()
            except Stop:
                hook.save_now(self)
                hook.wait()
                self.agreement.barrier()
                raise
            except Exception:
                hook.drain()  # what was handed over is still written, whatever ends the run
                raise

    def test(self) -> dict[str, float]:
        """Test."""
        with workers_ended(self._loaders):
            return super().test()

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint safely and completely, and log what was loaded; mmengine's other arguments are ignored."""
        self._has_loaded = True
        return self.checkpoints.load(filename)

    def load_or_resume(self) -> None:
        """Load what the run starts with; a training writes to ``weights.json`` what that was."""
        self.checkpoints.remember_settings()
        if self._resume:
            # What the config loads is what the run began with: only a run that saved nothing begins with it again.
            found = self.checkpoints.newest()
            self._resume = found is not None
            self._load_from = found or self._load_from
        super().load_or_resume()
        self.checkpoints.write_load_reports()

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Resume; a schedule that has been changed since continues as if it had been this one from the start."""
        self._resume = True  # of a run that is rolled back too
        with self.checkpoints.resuming(filename):
            super().resume(filename, *args, **kwargs)

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """Save at once, as mmengine's and other hooks ask for; their settings of how are ignored."""
        self.checkpoints.save(Path(out_dir) / filename)

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger; dumps of many lines and mmengine's messages about itself go to the log file only."""
        logger = super().build_logger(*args, **kwargs)
        set_up_handlers(logger)
        return logger

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict[str, Any], seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """Build a data loader that leaves the main process's random numbers alone."""
        built = MMRunner.build_dataloader(dataloader, seed, diff_rank_seed)
        configure_workers(built, seed or 0)
        return built

    def build_train_loop(self, loop: BaseLoop | dict[str, Any]) -> BaseLoop:
        """Build the loop with its data; the log counts as the loop does, in epochs or in steps.

        Raises:
            DataError: If the data is not enough for one step.
        """
        if isinstance(loop, BaseLoop):
            return loop
        built = self._build_loop("train", "training", super().build_train_loop, loop)
        if not len(built.dataloader):
            raise DataError(
                f"{len(built.dataloader.dataset)} training images are not enough for one step: use a smaller batch.size"
            )
        self.register_hook(self.nonfinite_guard)
        self.log_processor.by_epoch = built.by_epoch
        for hook in self.hooks:
            if isinstance(hook, LoggerHook):
                hook.log_metric_by_epoch = built.by_epoch
        return built

    def build_val_loop(self, loop: BaseLoop | dict[str, Any]) -> BaseLoop:
        """Build the loop with its data and metrics."""
        return self._build_loop("val", "validation", super().build_val_loop, loop)

    def build_test_loop(self, loop: BaseLoop | dict[str, Any]) -> BaseLoop:
        """Build the loop with its data and metrics."""
        return self._build_loop("test", "test", super().build_test_loop, loop)

    def _build_loop(self, split: str, label: str, build: Callable[[Any], Any], loop: Any) -> Any:
        """Build the loop of a split from its places in the config; check that all processes have the same data."""
        if isinstance(loop, BaseLoop):
            return loop
        pipeline = "train_pipeline" if split == "train" else "test_pipeline"
        with building(self.cfg, f"{split}_cfg", f"{split}_evaluator", pipeline, f"{split}_dataloader"):
            built = build(loop)
        check_same_data(label, self.agreement.gather(describe_loader(built.dataloader, self.same_order)))
        self._loaders.append(built.dataloader)
        return built

    def build_optim_wrapper(self, optim_wrapper: OptimWrapper | dict[str, Any]) -> OptimWrapper:
        """Build the optimizer."""
        with building(self.cfg, "optim_wrapper"):
            built = super().build_optim_wrapper(optim_wrapper)
        self.gradient_clipper.take_over(built)
        if self.sharded and built is not optim_wrapper:
            shard_optimizer(built.optimizer)
        return built

    def build_param_scheduler(self, scheduler: Any) -> Any:
        """Build the schedules; what they state is of the config's rate, of which each group has its share."""
        with building(self.cfg, "param_scheduler"):
            return super().build_param_scheduler(engine.optim.schedules.own_shares(scheduler, self.optim_wrapper))

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Bring the model to its device; for a training, in the form that ``env_cfg`` asks for."""
        settings = self.cfg.get("env_cfg", {})
        if self.is_training:
            prepare_for_training(model, settings, self.logger)
        if self.is_training and settings.get("sharded"):
            if self.distributed:
                self._init_model_weights()  # only a whole model can be initialised
                self.sharded = True
                self.logger.info("sharded over %d processes", self.world_size)
                return shard_model(model)
            self.logger.info("env_cfg.sharded: there is one process, the model stays whole")
        if self.distributed and not torch.cuda.is_available() and model_wrapper_cfg is None:
            unused = self.cfg.get("find_unused_parameters", False)  # mmengine would pass device ids too
            return MMDistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=unused)
        return super().wrap_model(model_wrapper_cfg, model)

    def _init_model_weights(self) -> None:
        if not self.sharded:  # otherwise done while the model was whole
            self.load_reports += initialise(self.model, super()._init_model_weights, self.trust)
