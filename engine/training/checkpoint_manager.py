"""Checkpoints of a run: loaded at its start, resumed, rolled back to, and the state that is saved in them."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mmengine
from mmengine.dist import is_main_process

from backbones.errors import CheckpointError, ConfigError, UserError, describe_error
from backbones.weights import read_checkpoint
from engine.checkpoint.model_weights import load_model_weights
from engine.checkpoint.state import (
    begin_random_state,
    check_resumable,
    restore_position,
    restore_random_state,
    resume_state,
)
from engine.checkpoint.store import last_good, write_checkpoint
from engine.config.classes import class_names
from engine.distributed.sharding import gather_whole, unwrapped
from engine.nonfinite.guard import NonFiniteError, RollBack
from engine.optim.resumption import OptimizerSettings, check_optimizer
from engine.optim.schedules import follows_scores, replay_schedules, schedule_shapes, scheduled_settings
from engine.report.run_dir import RECEIPTS, write_json
from engine.training.validation import drop_former_scores

if TYPE_CHECKING:
    from engine.training.runner import Runner


class CheckpointManager:
    """Loads, resumes and rolls back a run, and gathers its state."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._resumed: dict[str, Any] | None = None
        self._checkpoint: Mapping[str, Any] = {}
        self._settings = OptimizerSettings((), {})
        self._shapes: list[dict[str, Any]] = []

    def remember_settings(self) -> None:
        """Remember a training's settings of optimizer and schedules, before a resume restores others over them."""
        runner = self._runner
        if not runner.is_training:
            return
        self._settings = OptimizerSettings.of(runner.optim_wrapper)
        self._shapes = schedule_shapes([one.state_dict() for one in runner.param_schedulers or []])

    def load(self, filename: str) -> dict[str, Any]:
        """Load a checkpoint into the model, safely and completely, and log what was loaded.

        Args:
            filename: Path or URL of the checkpoint.

        Returns:
            Content of the checkpoint.

        Raises:
            UserError: If it is damaged or does not fit, or if the run cannot continue from it.
        """
        runner = self._runner
        checkpoint = read_checkpoint(filename, runner.trust)
        if runner.is_resuming:
            check_resumable(checkpoint, filename, bool(runner.param_schedulers))
        runner.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        classes = class_names(runner.cfg.classes) if runner.cfg.get("classes") else None
        starts_training = runner.is_training and not runner.is_resuming
        report = load_model_weights(runner.model, checkpoint, filename, runner.averaged, classes, starts_training)
        runner.logger.info(str(report))
        meta = checkpoint.get("meta")
        run = meta.get("run") if isinstance(meta, dict) else None
        runner.load_reports.append({"part": "model", "line": str(report), "run": run, **report.as_dict()})
        if runner.is_resuming:
            drop_former_scores(runner, checkpoint)
            self._resumed = checkpoint.get("resume")
            self._checkpoint = {key: checkpoint[key] for key in ("meta", "param_schedulers") if key in checkpoint}
            runner.run_id = checkpoint["meta"].get("run", runner.run_id)
            # mmengine executes this text, which our own checkpoints do not have, to look for a list of GPUs in it.
            checkpoint["meta"].pop("config", None)
        return checkpoint

    def write_load_reports(self) -> None:
        """Write to ``weights.json`` which weights a training started with."""
        if self._runner.is_training and is_main_process():
            write_json(Path(self._runner.work_dir) / RECEIPTS, {"receipts": self._runner.load_reports})

    def newest(self) -> str | None:
        """The checkpoint to resume from, chosen by the main process for all; ``None`` if nothing was saved yet."""
        runner = self._runner
        found = runner.agreement.from_main(
            lambda: last_good(Path(runner.work_dir), runner.logger.warning, trust=runner.trust)
        )
        if found is None:
            runner.logger.info(f"nothing to go on from in {runner.work_dir}: beginning at the start")
        return None if found is None else str(found)

    @contextmanager
    def resuming(self, filename: str) -> Iterator[None]:
        """Context in which mmengine resumes from a checkpoint; position, settings and schedules follow at its end.

        Settings of the optimizer are the config's, not the checkpoint's. A schedule that was changed since continues as
        if it had been this one from the start.

        Raises:
            UserError: If the checkpoint belongs to a training with another model, optimizer or schedule.
        """
        runner = self._runner
        try:
            yield
        except UserError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            # torch and mmengine raise these for an optimizer or a schedule that is not the config's.
            raise CheckpointError(
                f"--resume: checkpoint {filename!r} is of another training than the config's: {describe_error(error)}"
            ) from error
        # The seed is the checkpoint's now, also where the config has none or another.
        runner.train_dataloader.batch_sampler.reseed(runner.seed, runner.same_order)
        if self._resumed is None:
            runner.logger.warning("saved by an older version: the order of the data and random numbers begin anew")
        else:
            restore_position(runner, self._resumed)
        self._apply_settings()

    def _apply_settings(self) -> None:
        """Bring the resumed optimizer and schedules to the settings of the config, and log what changes.

        Raises:
            ConfigError: If a setting cannot be changed in the middle of a training.
        """
        runner, meta = self._runner, self._checkpoint["meta"]
        stated, saved = runner.cfg.optim_wrapper.optimizer, meta.get("optimizer")
        check_optimizer(runner.optim_wrapper.optimizer, stated, saved)
        shapes = schedule_shapes(self._checkpoint.get("param_schedulers") or [])
        moved = runner.iter != meta["iter"]  # an epoch has another number of steps
        changed = shapes != self._shapes or (moved and any(not one["by_epoch"] for one in shapes))
        if follows_scores(self._shapes) and (shapes != self._shapes or (saved or stated)["lr"] != stated["lr"]):
            raise ConfigError(
                "--resume: rate or schedule are not the checkpoint's, and one that follows scores cannot be computed "
                "anew: keep both, or start from the weights alone with --cfg-options load_from=FILE"
            )
        changes = self._settings.apply(runner.optim_wrapper, scheduled_settings(self._shapes))
        if changes:
            runner.logger.warning(
                f"settings that differ from the checkpoint's are the config's from step {runner.iter + 1} on: "
                f"{', '.join(changes)}"
            )
        if changed and self._shapes:
            groups = runner.optim_wrapper.param_groups  # with several of them, the last one has the config's own rate
            before = groups[-1]["lr"]
            self._settings.reset_scheduled(groups, scheduled_settings(self._shapes))
            runner.param_schedulers = replay_schedules(
                lambda: runner.build_param_scheduler(copy.deepcopy(runner.cfg.param_scheduler)),
                groups,
                self._settings.peaks,
                steps=runner.iter,
                epoch=len(runner.train_dataloader),
            )
            now = groups[-1]["lr"]
            (runner.logger.warning if now > 1.01 * before else runner.logger.info)(
                "the schedule differs from the checkpoint's: rates go on as if it had always been this one, at "
                f"{now:.3g} in step {runner.iter + 1} after {before:.3g}; to stay there: --cfg-options "
                f"param_scheduler=None optim_wrapper.optimizer.lr={before:.3g}"
            )

    def set_random_state(self) -> None:
        """Restore the random states of the checkpoint; where there is none, each process begins with its own."""
        if self._resumed is not None:
            restore_random_state(self._runner, self._resumed)
        else:
            begin_random_state(self._runner)

    def roll_back(self, event: RollBack) -> None:
        """Resume from a checkpoint of this run from before the steps that are to be skipped.

        Raises:
            NonFiniteError: If there is no such checkpoint.
        """
        runner = self._runner
        runner.checkpoint_hook.wait()
        try:
            found = runner.agreement.from_main(lambda: self._before(event))
        except CheckpointError:  # all of them are damaged
            found = None
        if found is None:
            raise NonFiniteError(f"step {event.step} was not finite, and {runner.work_dir} has nothing to go back to")
        runner.logger.warning(f"going back from step {event.step} to {found}")
        runner.resume(str(found))

    def _before(self, event: RollBack) -> Path | None:
        """The newest intact checkpoint from before the window of skipped steps, or else from before the event."""
        folder, logger = Path(self._runner.work_dir), self._runner.logger
        limits = (event.step - event.window, event.step - 1)
        found = (last_good(folder, logger.warning, limit, self._runner.trust) for limit in limits)
        return next(filter(None, found), None)

    def state(self, resumable: bool = True) -> dict[str, Any]:
        """The state of the run, on its devices, in the main process; other processes take part and get nothing.

        Args:
            resumable: Whether a run is to resume from it, or the weights alone are wanted.

        Returns:
            Content of a checkpoint: tensors and plain data.
        """
        runner = self._runner
        parts = {"resume": resume_state(runner)} if resumable else {}
        if not (runner.sharded or is_main_process()):
            return {}
        optimizer = runner.cfg.optim_wrapper.optimizer
        meta = {
            "epoch": runner.epoch,
            "iter": runner.iter,
            "cfg": runner.cfg.pretty_text,
            "seed": runner.seed,
            "optimizer": {"type": str(optimizer.get("type")), "lr": optimizer["lr"]},
            "run": runner.run_id,
            "experiment_name": runner.experiment_name,
            "mmengine_version": mmengine.__version__,
            "time": time.strftime("%Y%m%d_%H%M%S"),
            "dataset_meta": runner.train_dataloader.dataset.metainfo,
        }
        state = {"meta": meta, "state_dict": unwrapped(runner.model).state_dict(), **parts}
        if resumable:
            state["message_hub"] = runner.message_hub.state_dict()
            state["optimizer"] = runner.optim_wrapper.state_dict()
            state["param_schedulers"] = [one.state_dict() for one in runner.param_schedulers or []]
        runner.call_hook("before_save_checkpoint", checkpoint=state)
        return gather_whole(state) if runner.sharded else state

    def save(self, file: Path) -> None:
        """Save the whole state at once, in the foreground."""
        state = self.state()
        if is_main_process():
            write_checkpoint(state, file)
