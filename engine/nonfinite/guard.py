"""The first NaN or Inf in a loss or a gradient stops a run, or takes it back, and leaves what reproduces it.

A step is judged before it changes a weight, at the price of one pass over the gradients. The verdict is common to all
processes without a message of its own: a loss that is not finite makes all gradients of its process NaN, and gradients
are exchanged anyway. Then the step runs again, watched (:mod:`engine.nonfinite.trace`), and is written down
(:mod:`engine.nonfinite.report`); ``tools/replay.py`` reproduces it from there.

Going back follows Chowdhery et al., "PaLM", 2022, section 5.1: from an older checkpoint, without the batches before and
at the event.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch
from mmengine.device import get_device
from mmengine.dist import get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from torch import Tensor
from torch.distributed.tensor import DTensor

from backbones.errors import UserError
from engine.checkpoint.rng import RandomState
from engine.checkpoint.store import copied
from engine.config.environment import NonFinitePolicy
from engine.distributed.sharding import gather_whole, unwrapped
from engine.launch.exit_codes import EXIT_NONFINITE
from engine.nonfinite.batch_codec import encode, samples
from engine.nonfinite.report import (
    clear,
    folder_of,
    hint,
    place,
    thin_out,
    write_common,
    write_rank,
    write_report,
)
from engine.nonfinite.trace import run_again

# The loss scale of float16 begins at 2**16 and is halved at each overflow: so many in a row are no search any more.
SKIPPED_IN_A_ROW = 20
# In bfloat16, whose range is that of float32, a gradient overflows by itself before a loss scale like this one does it.
WIDE_SCALE = 2.0**64


class NonFiniteError(UserError):
    """Ends a run whose loss or gradient was not finite; its weights are those before the step."""

    exit_code = EXIT_NONFINITE


class RollBack(Exception):
    """Asks the loop to go on from an older checkpoint.

    Args:
        step: The step that was not finite, from 1.
        window: How many steps, this one the last of them, are passed over when they are reached again.
    """

    def __init__(self, step: int, window: int) -> None:
        super().__init__(step, window)
        self.step, self.window = step, window


class _GradientNotFinite(Exception):
    """Leaves a step before the optimizer changes anything."""


class _Guarded:
    """The optimizer wrapper as models see it, with a loss that is not finite made known to all processes."""

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapper, name)

    def update_params(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Go back through a loss and, in the last micro-batch, update; NaN for all gradients of an infinite loss."""
        spoilt = torch.where(loss.detach().isfinite(), 1.0, math.nan).to(loss.dtype)
        self._wrapper.update_params(loss * spoilt, *args, **kwargs)


class NonFiniteGuard(Hook):
    """Judges every step of a training.

    Args:
        settings: What to do about an event.

    Attributes:
        skipped: Steps, from 1, from which nothing is learnt.
        events: How often the run was taken back.
    """

    priority = "LOWEST"

    def __init__(self, settings: NonFinitePolicy) -> None:
        self.settings = settings
        self.skipped: set[int] = set()
        self.events = 0
        self._in_row = 0
        self._handles: list[Any] = []
        self._runner: Any
        self._random: RandomState
        self._buffers: list[Tensor] = []
        self._copies: list[Tensor] = []
        # Of the step that is being taken: its gradient norm, whether it failed, whether the optimizer got to work.
        self._norm: float | Tensor | None = None
        self._found: Tensor | None = None
        self._updated = False

    def before_train(self, runner: Any) -> None:
        """Look at the optimizer from now on; a run that may go back has something to go back to from its first step."""
        self._runner = runner
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self.settings.action == "ignore":
            return
        optimizer = runner.optim_wrapper.optimizer
        self._handles.append(optimizer.register_step_pre_hook(self._before_update))
        self._handles.append(optimizer.register_step_post_hook(self._after_update))
        self._buffers = list(unwrapped(runner.model).buffers())
        self._copies = [buffer.clone() for buffer in self._buffers]
        if self.settings.action == "roll_back" and not runner.iter and not self.events:
            runner.checkpoint_hook.in_between(runner)

    def step(self, parts: Sequence[Any], learn: Callable[[Any], dict[str, Tensor]]) -> dict[str, Tensor] | None:
        """Take one optimizer step, or pass over it.

        Args:
            parts: Its micro-batches.
            learn: Does it, given the optimizer wrapper, and returns the mean losses of all processes.

        Returns:
            What ``learn`` returns; ``None`` for a step that is passed over.

        Raises:
            NonFiniteError: After an event that stops the run.
            RollBack: After one that takes it back.
        """
        wrapper = self._runner.optim_wrapper
        if self.settings.action == "ignore":
            return learn(wrapper)
        if self._runner.iter + 1 in self.skipped:
            wrapper._inner_count += len(parts)
            return None
        self._random = RandomState.capture()
        _copy(self._copies, self._buffers)
        self._norm, self._found, self._updated = None, None, False
        try:
            logs = learn(_Guarded(wrapper))
        except _GradientNotFinite:
            self._event(parts)
        if not math.isfinite(float(logs["loss"])) or self._gradient_failed():
            self._event(parts)
        return logs

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Keep what is passed over, and the counts."""
        checkpoint["nonfinite"] = {"skipped": sorted(self.skipped), "events": self.events, "in_row": self._in_row}

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Take it up again where a run goes on; what has been learnt since the checkpoint is not forgotten."""
        if not runner.is_resuming or "nonfinite" not in checkpoint:
            return
        saved = checkpoint["nonfinite"]
        self.skipped |= set(saved["skipped"])
        self.events = max(self.events, saved["events"])
        self._in_row = saved["in_row"]

    def _before_update(self, optimizer: Any, *_: Any) -> None:
        self._updated = True
        if self._scaler is not None:  # has looked at the gradients itself
            self._found = getattr(optimizer, "found_inf", None)
            return
        self._norm = self._gradient_norm(optimizer)
        whole = isinstance(self._norm, Tensor) and not self._runner.sharded
        if whole and getattr(optimizer, "_step_supports_amp_scaling", False):
            # A fused optimizer is told on its device, as GradScaler tells it: nobody waits for the number.
            optimizer.found_inf = self._found = (~self._norm.isfinite()).float()  # type: ignore[union-attr]
        elif not math.isfinite(float(self._norm)):
            raise _GradientNotFinite

    def _after_update(self, optimizer: Any, *_: Any) -> None:
        if self._scaler is None and self._found is not None:
            del optimizer.found_inf

    def _gradient_norm(self, optimizer: Any) -> float | Tensor:
        wrapper = self._runner.optim_wrapper
        if wrapper.clip_grad_kwargs and wrapper.grad_name == "grad_norm":
            return float(wrapper.message_hub.get_scalar("train/grad_norm").current())  # of a moment ago
        params = (param for group in optimizer.param_groups for param in group["params"])
        norm = torch.nn.utils.get_total_norm([param.grad for param in params if param.grad is not None])
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    @property
    def _scaler(self) -> Any:
        scaler = getattr(self._runner.optim_wrapper, "loss_scaler", None)
        return scaler if scaler is not None and scaler.is_enabled() else None

    def _gradient_failed(self) -> bool:
        """Whether a gradient failed of which the optimizer was not told by an exception."""
        if self._scaler is None:
            return self._found is not None and bool(self._found)
        skipped = not self._updated if self._found is None else bool(self._found)
        self._in_row = self._in_row + 1 if skipped else 0
        wide = self._runner.optim_wrapper.cast_dtype not in (None, torch.float16)
        return skipped and (self._in_row >= SKIPPED_IN_A_ROW or (wide and self._scaler.get_scale() <= WIDE_SCALE))

    def _event(self, parts: Sequence[Any]) -> NoReturn:
        """Find out, write down, and leave the step."""
        runner = self._runner
        number = runner.iter + 1
        runner.optim_wrapper.zero_grad()
        report = self._look_again(parts)
        folder = folder_of(Path(runner.work_dir), number)
        problems = runner.agreement.gather(self._write(folder, parts, report))
        runner.checkpoint_hook.wait()
        problem = next(filter(None, problems), None)
        if problem:
            runner.logger.warning(f"the record of step {number} is not whole: {problem}")
        runner.logger.info(f"step {number}: {report['hint']}")
        line = f"step {number} was not finite, first in {report['place']}; {folder} has it all: {report['replay']}"
        if self.settings.action == "stop":
            raise NonFiniteError(line)
        self.events += 1
        if self.events > self.settings.max_rollbacks:
            allowed = f"env_cfg.nonfinite.max_rollbacks={self.settings.max_rollbacks}"
            raise NonFiniteError(f"{line}; more such events than {allowed}")
        self.skipped |= set(range(max(1, number - self.settings.window + 1), number + 1))
        runner.logger.warning(line)
        raise RollBack(number, self.settings.window)

    def _look_again(self, parts: Sequence[Any]) -> dict[str, Any]:
        """Run the step again from where it began, in all processes, and put together what they found."""
        runner, wrapper = self._runner, self._runner.optim_wrapper
        model = unwrapped(runner.model)
        _copy(self._buffers, self._copies)
        self._random.restore()
        scale = 1.0 if self._scaler is None else float(self._scaler.get_scale())
        # Without it, processes that share their work would wait for gradients that are not exchanged here.
        with runner.model.no_sync() if hasattr(runner.model, "no_sync") else nullcontext():
            own = self._watched(parts, scale)
        _copy(self._buffers, self._copies)
        self._own = {**own, "scale": scale, "device": get_device(), "precision": self._precision()}
        entry = {"rank": get_rank(), **own, "samples": [samples(part) for part in parts]}
        ranks = runner.agreement.gather(entry)
        had = [one["rank"] for one in ranks if one["found"] is not None and not _passed_on(one["found"])]
        first = ranks[had[0] if had else 0]
        report = {
            "step": runner.iter + 1,
            "epoch": runner.epoch + 1,
            "ranks": {"had_it": had, "received_it": [one["rank"] for one in ranks if one["rank"] not in had]},
            "cause": first["found"],
            "place": place(first["found"]),
            "losses": {name: sum(one["losses"][name] for one in ranks) / len(ranks) for name in first["losses"]},
            "gradient_norm": None if self._norm is None else float(self._norm),
            "clipped": bool(wrapper.clip_grad_kwargs),
            "learning_rates": sorted({float(group["lr"]) for group in wrapper.optimizer.param_groups}),
            "skipped_in_a_row": self._in_row,
            **{key: self._own[key] for key in ("scale", "device", "precision")},
            "torch": torch.__version__,
            "weights_not_finite": [name for name, value in model.named_parameters() if not _finite(value)],
            "by_rank": ranks,
        }
        folder = folder_of(Path(runner.work_dir), runner.iter + 1)
        return {**report, "hint": hint(report), "replay": f"python tools/replay.py {folder}"}

    def _watched(self, parts: Sequence[Any], scale: float) -> dict[str, Any]:
        """The step once more; a record without its place is better than none."""
        model, wrapper = unwrapped(self._runner.model), self._runner.optim_wrapper
        try:
            return run_again(model, parts, lambda: wrapper.optim_context(model), scale)
        except RuntimeError as error:  # as for want of memory
            self._runner.logger.warning(f"the step could not be run again to find the place: {error}")
            return {"losses": {"loss": math.nan}, "forward": None, "backward": None, "found": None}

    def _write(self, folder: Path, parts: Sequence[Any], report: Mapping[str, Any]) -> str | None:
        """Write the part of this process; returns what went wrong. All processes go through all of it together."""
        runner, model = self._runner, unwrapped(self._runner.model)
        main, rank = is_main_process(), get_rank()
        problems = [_attempt(lambda: clear(folder)) if main else None]
        runner.agreement.meet()
        content = {**self._own, "batch": [encode(part) for part in parts], "random": self._random.as_dict()}
        problems.append(_attempt(lambda: write_rank(folder, rank, content)))
        weights = gather_whole(model.state_dict()) if runner.sharded else model.state_dict()
        if main:
            problems.append(_attempt(lambda: write_common(folder, copied(weights), runner.cfg)))
        runner.agreement.meet()
        if main:
            problems.append(_attempt(lambda: write_report(folder, report)))
            problems.append(_attempt(lambda: thin_out(folder.parent)))
        return next(filter(None, problems), None)

    def _precision(self) -> str | None:
        """The dtype of mixed precision; ``None`` without."""
        wrapper = self._runner.optim_wrapper
        if not hasattr(wrapper, "cast_dtype"):
            return None
        dtype = wrapper.cast_dtype or torch.get_autocast_dtype(get_device())
        return str(dtype).removeprefix("torch.")


def _copy(to: list[Tensor], source: list[Tensor]) -> None:
    if to:  # torch refuses empty lists
        torch._foreach_copy_(to, source)


def _attempt(write: Callable[[], None]) -> str | None:
    """Do it; returns what went wrong. A record with a gap is better than processes that wait for each other."""
    try:
        write()
    except (UserError, OSError) as error:
        return str(error)
    return None


def _finite(value: Tensor) -> bool:
    whole = value.full_tensor() if isinstance(value, DTensor) else value
    return bool(whole.detach().isfinite().all())


def _passed_on(found: Mapping[str, Any]) -> bool:
    """Whether a synchronised normalisation brought it from another process."""
    return get_world_size() > 1 and found["class"] == "SyncBatchNorm" and bool(found.get("inputs_finite"))
