"""Plan of a training in a few lines, before it begins and without data."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from mmengine.optim import LinearLR
from mmengine.registry import DATA_SAMPLERS, MODELS, PARAM_SCHEDULERS
from torch import nn

from backbones.errors import ConfigError, DataError
from engine.config.batch import BatchPlan
from engine.config.building import build, registered_class
from engine.config.datasets import is_wrapper
from engine.config.load import Resolved
from engine.config.schema import is_number
from engine.config.world import Launch
from engine.mmcv_ops import check_layers
from engine.optim.param_groups import GroupRow, LayerDecayConstructor, group_rows, groups_of_config
from engine.optim.schedules import WARM_UP_SHARE, LinearWarmUpLR, Placed, stated_schedules
from engine.planning.memory import Memory, autocast_dtype, check_last_batch, estimate_memory
from engine.task import TASK_SPECS, task_of


@dataclass(frozen=True)
class Schedule:
    """The length of a training.

    Attributes:
        epochs: Number of epochs; ``None`` for an iteration-based training.
        steps: Number of optimizer steps; ``None`` for an epoch-based training of unknown data.
        steps_per_epoch: Optimizer steps per epoch; ``None`` until the data is known.
        images: Number of training images; ``None`` until the data is known.
        assumed: Condition under which ``images`` holds, for the text, where the data has not been read.
    """

    epochs: int | None
    steps: int | None
    steps_per_epoch: int | None = None
    images: int | None = None
    assumed: str = ""


# Facts and warnings about a config and its training's length; what computes them is above this package.
Review = Callable[[Any, Schedule], tuple[list[str], list[str]]]


@dataclass(frozen=True)
class TrainingPlan:
    """A training in figures.

    Attributes:
        batch: Processes, micro-batch and accumulation of a step.
        schedule: Length of the training.
        peak: Peak learning rate of the head.
        lowest: Peak learning rate of the group with the lowest one.
        warm_up: Length of the linear warm-up, of steps those before the peak, and whether it is in epochs; ``None``
            without a warm-up.
        precision: Precision, in words.
        clip: Maximum norm of the gradients; ``None`` without clipping.
        rows: Parameter groups; empty where another constructor makes them.
        frozen: Number of parameters that are not trained.
        memory: Estimated memory of one process.
        remainder: Whether the last batch of an epoch holds the images that are left, however few.
        remarks: Further remarks, one line each.
    """

    batch: BatchPlan
    schedule: Schedule
    peak: float
    lowest: float
    warm_up: tuple[int, bool] | None
    precision: str
    clip: float | None
    rows: tuple[GroupRow, ...]
    frozen: int
    memory: Memory
    remainder: bool = False
    remarks: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The plan for people; the first line is the batch."""
        span = f"peak rate {self.peak:g}"
        span += f" at the head, {self.lowest:.3g} at the lowest layer" if self.lowest < self.peak else ""
        clip = f", gradients clipped to a norm of {self.clip:g}" if self.clip is not None else ""
        return [
            f"batch: {self.batch}",
            f"length: {self._length()}",
            f"rate: {span}; {self._warm_up()}",
            f"precision: {self.precision}{clip}",
            f"memory: {self.memory}",
            *(f"note: {remark}" for remark in self.remarks),
        ]

    def with_data(self, images: int, steps_per_epoch: int) -> TrainingPlan:
        """The same plan once the data has been read.

        Raises:
            ConfigError: If the last batch of an epoch does not divide, or is too small for a batch normalisation.
            DataError: If the images are not enough for one step.
        """
        if not steps_per_epoch:
            raise DataError(f"{images} training images are not enough for one step: use a smaller batch.size")
        if self.remainder:
            check_last_batch(self.memory, images, self.batch)
        return replace(self, schedule=_completed(self.schedule, images, steps_per_epoch, ""))

    def _length(self) -> str:
        plan, size = self.schedule, self.batch.global_batch
        known = f"{plan.images:,} images{plan.assumed}" if plan.images is not None else ""
        if plan.epochs is None:
            assert plan.steps is not None
            seen = f", {plan.steps * size / plan.images:.4g} times {known}" if plan.images else ""
            return f"{plan.steps:,} steps{seen}"
        epochs = f"{plan.epochs} epoch{'s' if plan.epochs > 1 else ''}"
        if plan.steps_per_epoch is None:
            return f"{epochs}; steps per epoch are known when the data is read"
        return f"{epochs} of {plan.steps_per_epoch:,} steps = {plan.steps:,} steps ({known})"

    def _warm_up(self) -> str:
        if self.warm_up is None:
            return "no warm-up"
        length, by_epoch = self.warm_up
        if not by_epoch:
            return f"linear warm-up over {length:,} steps"
        epochs = f"{length} epoch{'s' if length > 1 else ''}"
        if self.schedule.steps_per_epoch is None:
            return f"linear warm-up over {epochs}"
        return f"linear warm-up over {length * self.schedule.steps_per_epoch:,} steps ({epochs})"


def build_on_meta(cfg: Any, weights: bool = False) -> nn.Module:
    """Build the model of a resolved config without memory.

    Args:
        cfg: Resolved config.
        weights: Whether the model keeps the file that its backbone would load; it does not run before that.

    Raises:
        ConfigError: If a part or an argument does not exist.
    """
    settings = copy.deepcopy(cfg.model)
    if not weights and settings.get("backbone", {}).get("weights"):
        settings.backbone.weights = None
    with torch.device("meta"):
        model: nn.Module = build(MODELS, settings, "model", cfg.default_scope)
    return model


def training_plan(resolved: Resolved, launch: Launch) -> TrainingPlan:
    """Compute the plan of a config that was resolved for training; no data is read and nothing is started.

    Raises:
        ConfigError: If the model does not build, or groups or schedules contradict themselves.
        MissingOpError: If the model needs an op of mmcv that is missing here.
    """
    cfg = resolved.cfg
    assert resolved.plan is not None, "resolved for testing"
    task_of(cfg).check_training(cfg, resolved.plan.per_process)
    model = build_on_meta(cfg)
    check_layers(model)
    peak = float(cfg.optim_wrapper.optimizer.lr)
    rows: list[GroupRow] = []
    if cfg.optim_wrapper.get("constructor") == LayerDecayConstructor.__name__:
        rows = group_rows(model, groups_of_config(model, cfg.optim_wrapper), peak)
    if rows and not any(row.rate for row in rows):
        raise ConfigError("optim_wrapper.paramwise_cfg: the rate of every group is 0, and nothing would be learnt")
    frozen = sum(param.numel() for param in model.parameters() if not param.requires_grad)
    lowest = min((row.rate for row in rows), default=peak)
    schedules = stated_schedules(cfg)
    _check_schedules(schedules, cfg.train_cfg, peak)
    clip = cfg.optim_wrapper.get("clip_grad") or {}
    return TrainingPlan(
        batch=resolved.plan,
        schedule=_schedule(cfg, launch.processes),
        peak=peak,
        lowest=lowest,
        warm_up=_warm_up(schedules, cfg.train_cfg),
        precision=_precision(cfg.optim_wrapper),
        clip=clip.get("max_norm", clip.get("clip_value")),
        rows=tuple(rows),
        frozen=frozen,
        memory=estimate_memory(model, cfg, launch.processes, resolved.plan.per_process),
        remainder=_has_remainder(cfg.train_dataloader),
    )


def _has_remainder(loader: Any) -> bool:
    """Whether the last batch of an epoch holds the images that are left; a sampler that skips has no epochs."""
    endless = hasattr(registered_class(DATA_SAMPLERS, loader.sampler.get("type")), "skip")
    return not (endless or _full_batches(loader))


def _full_batches(loader: Any) -> bool:
    """Whether what is left at the end of an epoch is dropped: by the loader, or by a sampler of its batches.

    A sampler that has no ``drop_last`` to state, as ``AspectRatioBatches``, gives full batches alone; mmdet's
    ``AspectRatioBatchSampler`` keeps the rest unless it is told.
    """
    if loader.get("drop_last", False):
        return True
    order = loader.get("batch_sampler")
    if not order:
        return False
    kinds = (registered_class(one, order["type"]) for one in (DATA_SAMPLERS, *DATA_SAMPLERS.children.values()))
    parameters = [inspect.signature(kind).parameters for kind in kinds if kind is not None]
    known = parameters[0].get("drop_last") if parameters else None
    return bool(order.get("drop_last", known is None or known.default))


def _schedule(cfg: Any, processes: int) -> Schedule:
    loop, loader = cfg.train_cfg, cfg.train_dataloader
    plan = Schedule(loop.get("max_epochs"), loop.get("max_iters"))
    name = cfg.get("classes")
    known = TASK_SPECS.named_classes().get(name) if isinstance(name, str) and not is_wrapper(loader.dataset) else None
    if known is None:
        return plan
    every = loader.dataset.get("every", 1)  # a study on a part of the data
    images = known.images // every
    steps = epoch_steps(loader, images, processes)
    return _completed(plan, images, steps, f" if the data is {'all' if every == 1 else f'1/{every}'} of {name}")


def epoch_steps(loader: Any, images: int, processes: int) -> int:
    """Optimizer steps of an epoch.

    Args:
        loader: Settings of the training's data loader.
        images: Number of training images.
        processes: World size.
    """
    share = math.ceil(images / processes)
    return int(share // loader.batch_size if _full_batches(loader) else math.ceil(share / loader.batch_size))


def _completed(plan: Schedule, images: int, steps_per_epoch: int, assumed: str) -> Schedule:
    if plan.epochs is None:
        return replace(plan, images=images, assumed=assumed)
    steps = plan.epochs * steps_per_epoch
    return replace(plan, steps=steps, steps_per_epoch=steps_per_epoch, images=images, assumed=assumed)


def _warm_up(schedules: Sequence[Placed], loop: Any) -> tuple[int, bool] | None:
    for _, one in schedules:
        kind = registered_class(PARAM_SCHEDULERS, one["type"])
        linear = isinstance(kind, type) and issubclass(kind, LinearLR)
        if linear and one.get("begin", 0) == 0 and one.get("start_factor", 1 / 3) < 1:
            by_epoch = bool(one.get("by_epoch", True))
            end = one.get("end", loop.get("max_epochs" if by_epoch else "max_iters"))  # without one mmengine's own
            # mmengine's own is at the peak one step before its end.
            early = not by_epoch and not issubclass(kind, LinearWarmUpLR)
            return None if end is None else (int(end) - early, by_epoch)
    return None


def _check_schedules(schedules: Sequence[Placed], loop: Any, peak: float) -> None:
    """Refuse a schedule that begins when training is over, which mmengine's message does not name, or never falls."""
    for place, one in schedules:
        begin, by_epoch = one.get("begin", 0), one.get("by_epoch", True)
        end = one.get("end", loop.get("max_epochs" if by_epoch else "max_iters"))
        if is_number(begin) and is_number(end) and begin >= end:
            raise ConfigError(
                f"{place}: a schedule begins when training is over (begin={begin}, end={end}); with another length of "
                f"training change both, such as --cfg-options {_earlier(schedules, place, begin, end)}"
            )
        converted = one.get("convert_to_iter_based") and end is not None
        if by_epoch and "max_iters" in loop and not converted and "Plateau" not in str(one["type"]):
            raise ConfigError(
                f"{place}: it counts epochs, of which a training of max_iters has none: state "
                "by_epoch=False, and its length in steps"
            )
        final = one.get("eta_min")
        if one.get("param_name", "lr") == "lr" and is_number(final) and final >= peak:
            raise ConfigError(
                f"{place}.eta_min={final:g} is not below the rate of {peak:g}: it would not fall; "
                f"--cfg-options {place}.eta_min=0 lets it"
            )


def _earlier(schedules: Sequence[Placed], place: str, begin: float, end: float) -> str:
    """Options with which a schedule begins in a training that ends at ``end``, and the warm-up before it ends there."""
    warm_ups = [one for one, settings in schedules if one != place and settings.get("end") == begin]
    length = max(1, int(end) // WARM_UP_SHARE)
    start = min(length, int(end) - 1) if warm_ups else 0
    return " ".join([*(f"{one}.end={length}" for one in warm_ups), f"{place}.begin={start}"])


def _precision(optim_wrapper: Mapping[str, Any]) -> str:
    names = {None: "float32", torch.bfloat16: "mixed, bfloat16", torch.float16: "mixed, float16 with scaled loss"}
    return names[autocast_dtype(optim_wrapper)]
