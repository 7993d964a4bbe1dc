"""The first NaN or Inf in a loss or a gradient stops a run, or rolls it back, and is recorded for reproduction.

A step is judged before it changes a weight, at the price of one pass over the gradients. The verdict is common to all
processes without a message of its own: the losses are averaged over the processes for the log, and gradients are
exchanged anyway. Then the step runs again, watched (:mod:`engine.nonfinite.trace`), and is written down
(:mod:`engine.nonfinite.report`); ``tools/replay.py`` reproduces it from there.

Rolling back follows Chowdhery et al., "PaLM", 2022, section 5.1: resume from an older checkpoint and skip the batches
before and at the event.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from mmengine.device import get_device
from mmengine.dist import get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper
from torch import Tensor
from torch.distributed.tensor import DTensor

from backbones.errors import MachineError, UserError
from engine.checkpoint.rng import RandomState
from engine.checkpoint.store import cpu_copy, write_checkpoint
from engine.config.environment import NonFinitePolicy
from engine.config.precision import CpuAmpOptimWrapper
from engine.distributed.sharding import gather_whole, unwrapped
from engine.launch.exit_codes import EXIT_NONFINITE
from engine.nonfinite.batch_codec import describe_samples, encode
from engine.nonfinite.report import (
    EVENT_REPORT,
    describe_place,
    event_folder,
    jsonable,
    make_event_folder,
    rank_file,
    suggest_fix,
    thin_out,
    write_common,
)
from engine.nonfinite.trace import run_again
from engine.optim.update import loss_scaler
from engine.report.run_dir import write_json

if TYPE_CHECKING:
    from engine.training.runner import Runner

# The loss scale of float16 starts at 2**16 and is halved at each overflow: so many in a row are no search any more.
MAX_OVERFLOWS_IN_A_ROW = 20
# bfloat16 has the range of float32: up to this loss scale, it is the gradient itself that overflows.
MAX_HARMLESS_BFLOAT16_SCALE = 2.0**64


class NonFiniteError(UserError):
    """Ends a run whose loss or gradient was not finite; its weights are those before the step."""

    exit_code = EXIT_NONFINITE


class RollBack(Exception):
    """Asks the loop to resume from an older checkpoint.

    Args:
        step: Number of the step that was not finite, from 1.
        window: Number of steps, up to and including this one, that are skipped when they are reached again.
    """

    def __init__(self, step: int, window: int) -> None:
        super().__init__(step, window)
        self.step, self.window = step, window


class NonFiniteGuard(Hook):
    """Judges every optimizer step of a training; its loop calls :meth:`begin`, :meth:`check` and :meth:`handle`.

    Args:
        settings: Policy of the run for steps that are not finite.

    Attributes:
        skipped: Numbers of the steps, from 1, that train nothing.
        events: Number of rollbacks so far.
    """

    priority = "LOWEST"

    def __init__(self, settings: NonFinitePolicy) -> None:
        self.settings = settings
        self.skipped: set[int] = set()
        self.events = 0
        self._runner: Runner
        # State before the step that is being taken.
        self._random: RandomState
        self._buffers: list[Tensor] = []
        self._copies: list[Tensor] = []
        self._overflows_before = 0
        # Verdict on it.
        self._finite = True
        self._norm: float | None = None
        self._overflows = 0

    @property
    def _active(self) -> bool:
        return self.settings.action != "ignore"

    def before_train(self, runner: Runner) -> None:
        """Prepare to judge steps; a run that may roll back saves a checkpoint to roll back to from its first step."""
        self._runner = runner
        if not self._active:
            return
        self._buffers = list(unwrapped(runner.model).buffers())
        self._copies = [buffer.clone() for buffer in self._buffers]
        if self.settings.action == "roll_back" and not runner.iter and not self.events:
            runner.checkpoint_hook.save_now(runner)

    def skips(self, step: int) -> bool:
        """Whether a step, counted from 1, trains nothing because it led to an event before a rollback."""
        return self._active and step in self.skipped

    def begin(self) -> None:
        """Remember the state before a step: random states, and buffers, which the forward pass changes."""
        if self._active:
            self._random = RandomState.capture()
            _copy(self._copies, self._buffers)
            self._overflows_before, self._overflows = self._overflows, 0

    def check(self, losses: Mapping[str, Tensor], gradient_norm: float | None) -> bool:
        """Judge a step before it changes a weight.

        With a loss scaler the gradients are left to it: the update that it skips changes nothing either.

        Args:
            losses: Mean losses of all processes by name, ``loss`` among them.
            gradient_norm: Norm of the gradients from clipping; ``None`` to compute it here.

        Returns:
            Whether loss and gradients are finite, the same in all processes.
        """
        if not self._active:
            return True
        self._finite = math.isfinite(float(losses["loss"]))
        self._norm = None
        if loss_scaler(self._runner.optim_wrapper) is None:
            if not self._finite:
                gradient_norm = math.nan
            self._norm = self._total_norm() if gradient_norm is None else gradient_norm
            self._finite = math.isfinite(self._norm)
        return self._finite

    def handle(self, micro_batches: Sequence[Any]) -> None:
        """Deal with a step that did not change the weights; returns if a loss scaler is only searching its scale.

        Args:
            micro_batches: Collated micro-batches of the step in this process.

        Raises:
            NonFiniteError: After an event that stops the run.
            RollBack: After one that rolls it back.
        """
        if self._active:
            self._overflows = self._overflows_before + self._finite
            if not self._finite or self._is_scale_lost():
                self._record_event(micro_batches)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Save the skipped steps and the counts."""
        checkpoint["nonfinite"] = {"skipped": sorted(self.skipped), "events": self.events, "in_row": self._overflows}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Restore them where a run resumes; what was found since the checkpoint is kept."""
        if not runner.is_resuming or "nonfinite" not in checkpoint:
            return
        saved = checkpoint["nonfinite"]
        self.skipped |= set(saved["skipped"])
        self.events = max(self.events, saved["events"])
        self._overflows = saved["in_row"]

    def _total_norm(self) -> float:
        groups = self._runner.optim_wrapper.optimizer.param_groups
        gradients = [param.grad for group in groups for param in group["params"] if param.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def _is_scale_lost(self) -> bool:
        """Whether the overflow that a loss scaler found is no part of its search for a scale."""
        wrapper = self._runner.optim_wrapper
        wide = wrapper.cast_dtype not in (None, torch.float16)
        lost = wide and wrapper.loss_scaler.get_scale() <= MAX_HARMLESS_BFLOAT16_SCALE
        return lost or self._overflows >= MAX_OVERFLOWS_IN_A_ROW

    def _record_event(self, micro_batches: Sequence[Any]) -> NoReturn:
        """Find the place, write everything down, and leave the step."""
        runner = self._runner
        step = runner.iter + 1
        folder = event_folder(Path(runner.work_dir), step)
        report, own = self._run_again(micro_batches, folder)
        problems = runner.agreement.gather(self._write(folder, micro_batches, report, own))
        runner.checkpoint_hook.wait()
        problem = next(filter(None, problems), None)
        if problem:
            runner.logger.warning(f"the record of step {step} is not whole: {problem}")
        runner.logger.info(f"step {step}: {report['hint']}")
        line = f"step {step} was not finite, first in {report['place']}; {folder} has it all: {report['replay']}"
        if self.settings.action == "stop":
            raise NonFiniteError(line)
        self.events += 1
        if self.events > self.settings.max_rollbacks:
            allowed = f"env_cfg.nonfinite.max_rollbacks={self.settings.max_rollbacks}"
            raise NonFiniteError(f"{line}; more such events than {allowed}")
        self.skipped |= set(range(max(1, step - self.settings.window + 1), step + 1))
        runner.logger.warning(line)
        raise RollBack(step, self.settings.window)

    def _run_again(self, micro_batches: Sequence[Any], folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Run the step again from where it started, in all processes.

        Returns:
            The report on all processes, and this process's record.
        """
        runner, wrapper = self._runner, self._runner.optim_wrapper
        model = unwrapped(runner.model)
        _copy(self._buffers, self._copies)
        self._random.restore()
        scaler = loss_scaler(wrapper)
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        # Without it, processes that share their work would wait for gradients that are not exchanged here.
        with runner.model.no_sync() if hasattr(runner.model, "no_sync") else nullcontext():
            found = self._watched(micro_batches, scale)
        _copy(self._buffers, self._copies)
        own = {**found, "scale": scale, "device": get_device(), "precision": self._precision()}
        entry = {"rank": get_rank(), **found, "samples": [describe_samples(part) for part in micro_batches]}
        ranks = runner.agreement.gather(entry)
        had = [one["rank"] for one in ranks if one["found"] is not None and not _received(one["found"])]
        first = ranks[had[0] if had else 0]
        report = {
            "run": runner.run_id,
            "step": runner.iter + 1,
            "epoch": runner.epoch + 1,
            "ranks": {"had_it": had, "received_it": [one["rank"] for one in ranks if one["rank"] not in had]},
            "cause": first["found"],
            "place": describe_place(first["found"]),
            "losses": {name: sum(one["losses"][name] for one in ranks) / len(ranks) for name in first["losses"]},
            "gradient_norm": self._norm,
            "clipped": bool(runner.gradient_clipper.settings),
            "learning_rates": sorted({float(group["lr"]) for group in wrapper.optimizer.param_groups}),
            "skipped_in_a_row": self._overflows,
            **{key: own[key] for key in ("scale", "device", "precision")},
            "torch": torch.__version__,
            "weights_not_finite": [name for name, value in model.named_parameters() if not _finite(value)],
            "by_rank": ranks,
        }
        return {**report, "hint": suggest_fix(report), "replay": f"python tools/replay.py {folder}"}, own

    def _watched(self, micro_batches: Sequence[Any], scale: float) -> dict[str, Any]:
        """Run the step again under watch; a record without the place is better than none."""
        model, wrapper = unwrapped(self._runner.model), self._runner.optim_wrapper
        try:
            return run_again(model, micro_batches, lambda: wrapper.optim_context(model), scale)
        except RuntimeError as error:  # such as too little memory
            self._runner.logger.warning(f"the step could not be run again to find the place: {error}")
            return {"losses": {"loss": math.nan}, "forward": None, "backward": None, "found": None}

    def _write(
        self, folder: Path, micro_batches: Sequence[Any], report: Mapping[str, Any], own: Mapping[str, Any]
    ) -> str | None:
        """Write the part of this process; all processes go through all of it together.

        Returns:
            What went wrong, if anything did.
        """
        runner, model = self._runner, unwrapped(self._runner.model)
        main, rank = is_main_process(), get_rank()
        problems = [_attempt(lambda: make_event_folder(folder)) if main else None]
        runner.agreement.barrier()
        content = {**own, "batch": [encode(part) for part in micro_batches], "random": self._random.as_dict()}
        problems.append(_attempt(lambda: write_checkpoint(content, rank_file(folder, rank))))
        weights = gather_whole(model.state_dict()) if runner.sharded else model.state_dict()
        if main:
            problems.append(_attempt(lambda: write_common(folder, cpu_copy(weights), runner.cfg)))
        runner.agreement.barrier()
        if main:  # the report is the last file: a folder that has it is complete
            problems.append(_attempt(lambda: write_json(folder / EVENT_REPORT, jsonable(report))))
            problems.append(_attempt(lambda: thin_out(folder.parent)))
        return next(filter(None, problems), None)

    def _precision(self) -> str | None:
        """The dtype of mixed precision; ``None`` without."""
        wrapper = self._runner.optim_wrapper
        if not isinstance(wrapper, AmpOptimWrapper | CpuAmpOptimWrapper):
            return None
        dtype = wrapper.cast_dtype or torch.get_autocast_dtype(get_device())
        return str(dtype).removeprefix("torch.")


def _copy(to: list[Tensor], source: list[Tensor]) -> None:
    for target, value in zip(to, source, strict=True):
        target.copy_(value)


def _attempt(write: Callable[[], None]) -> str | None:
    """Write; a record with a gap is better than processes that wait for each other.

    Returns:
        What went wrong, if anything did.
    """
    try:
        write()
    except (MachineError, OSError) as error:
        return str(error)
    return None


def _finite(value: Tensor) -> bool:
    whole = value.full_tensor() if isinstance(value, DTensor) else value
    return bool(whole.detach().isfinite().all())


def _received(found: Mapping[str, Any]) -> bool:
    """Whether a synchronised normalisation brought it from another process."""
    return get_world_size() > 1 and found["synchronised"] and bool(found.get("inputs_finite"))
