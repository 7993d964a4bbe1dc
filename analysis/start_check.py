"""What a start of a training and a dry run check alike: the plan, and every part of the config that needs no data."""

from __future__ import annotations

import copy
import logging
import multiprocessing
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from io import StringIO
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.optim import AmpOptimWrapper, OptimWrapper, build_optim_wrapper
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    EVALUATOR,
    FUNCTIONS,
    HOOKS,
    LOG_PROCESSORS,
    LOOPS,
    METRICS,
    MODELS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    TRANSFORMS,
    VISBACKENDS,
    VISUALIZERS,
    DefaultScope,
    Registry,
)
from mmengine.runner import LogProcessor, Priority, TestLoop, ValLoop
from mmengine.visualization import Visualizer
from torch import nn
from torch.utils.data import DataLoader

from analysis.starting_rate import starting_rate_note
from backbones.errors import ConfigError, nearest
from backbones.packages import DECODER_PACKAGES, LOGGER_PACKAGES, is_absent, missing_package_error
from engine.config.building import build, building, check_arguments
from engine.config.classes import class_names
from engine.config.datasets import all_datasets
from engine.config.load import Resolved
from engine.config.precision import AMP_SETTINGS
from engine.config.schema import is_whole
from engine.config.world import Launch
from engine.data.checker import build_checkers
from engine.optim.schedules import stated_schedules
from engine.planning.plan import TrainingPlan, build_on_meta, training_plan
from engine.training.loops import EpochLoop, IterationLoop
from engine.training.runner import Runner
from engine.training.validation import check_monitored, expected_scores

DEFAULT_HOOKS = ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")  # of mmengine
LOOPS_OF_TRAINING = "EpochLoop trains for a number of epochs, IterationLoop for a number of steps"
# Of mmengine's constructor of parameter groups, which ignores any other.
GROUP_OPTIONS = (
    *("custom_keys", "bias_lr_mult", "bias_decay_mult", "norm_decay_mult", "dwconv_decay_mult"),
    *("flat_decay_mult", "dcn_offset_lr_mult", "bypass_duplicate"),
)
WRITING = ("output_dir", "outfile_prefix")  # arguments of metrics that make folders while they are built


def checked_plan(resolved: Resolved, launch: Launch) -> TrainingPlan:
    """The plan of a training whose parts build.

    Args:
        resolved: Config that was resolved for training.
        launch: Processes and devices of the job.

    Raises:
        ConfigError: If the plan contradicts itself or a part does not build.
        MachineError: If a package is missing.
    """
    plan = training_plan(resolved, launch)
    return replace(plan, remarks=check_parts(resolved.cfg))


def check_parts(cfg: Config) -> tuple[str, ...]:
    """Build the parts of a config, apart from what is trained with, to find wrong settings before the training starts.

    Nothing is written, no data is read, and weights take no memory. Data sets, samplers and loops need data: of these
    the types and the names of the arguments are checked.

    Args:
        cfg: Config that was resolved for training.

    Returns:
        Remarks on what builds, one line each.

    Raises:
        ConfigError: With the first part that does not build, its place, and the nearest right name.
        MachineError: If a package is missing.
    """
    cfg = copy.deepcopy(cfg)
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")), silence():
        for split in ("train", "val", "test"):
            _check_data(cfg, split)
            _check_loop(cfg, split)
        _build_steps("tta_pipeline", cfg.get("tta_pipeline"))
        if cfg.get("tta_model"):
            check_arguments(MODELS, cfg.tta_model, "tta_model", "module")
        metrics = {
            split: _build_metrics(cfg.get(f"{split}_evaluator"), f"{split}_evaluator") for split in ("val", "test")
        }
        _build_visualizer(cfg)
        hooks = list(_build_hooks(cfg))
        _build(LOG_PROCESSORS, {"type": LogProcessor, **(cfg.get("log_processor") or {})}, "log_processor")
        _check_randomness(cfg.get("randomness", {"seed": None}))
        _check_start_method(cfg)
        model = build_on_meta(cfg)
        optimizer = _build_optimizer(cfg, model)
        remarks = (starting_rate_note(cfg, model, optimizer),)  # before a warm-up sets the rates of the first step
        schedules = _build_schedules(cfg, optimizer)
    loop = (
        SimpleNamespace(evaluator=SimpleNamespace(metrics=metrics["val"])) if cfg.get("val_cfg") is not None else None
    )
    classes = class_names(cfg.classes) if cfg.get("classes") else None
    for metric in metrics["val"]:
        if classes and isinstance(metric, BaseMetric):  # an object stands for one that was not built
            metric.dataset_meta = {"classes": classes}  # on which the names of scores may depend
    run = SimpleNamespace(hooks=hooks, param_schedulers=schedules, val_loop=loop)
    run.checkpoint_hook = Runner.checkpoint_hook.fget(run)  # type: ignore[attr-defined]
    check_monitored(run, expected_scores(run))
    return tuple(filter(None, remarks))


@contextmanager
def silence() -> Iterator[None]:
    """Context without warnings, log lines and prints, which come when the training builds the same."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _check_data(cfg: Config, split: str) -> None:
    """Check data sets, transforms, what these leave of an image, samplers and the loader of a split."""
    loader, place = cfg.get(f"{split}_dataloader"), f"{split}_dataloader"
    if not loader:
        return
    pipeline = "train_pipeline" if split == "train" else "test_pipeline"
    for inner, dataset in all_datasets(loader.dataset, f"{place}.dataset"):
        check_arguments(DATASETS, dataset, inner)
        steps = dataset.get("pipeline")
        _build_steps(pipeline if steps == cfg.get(pipeline) else f"{inner}.pipeline", steps)
    for checker in build_checkers(cfg, (split,)):
        checker.network_input.refuse_small_output(pipeline if cfg.get(pipeline) else f"{place}.dataset.pipeline")
    if not loader.get("sampler"):
        raise ConfigError(f"{place}.sampler is missing: dict(type='DefaultSampler', shuffle={split == 'train'})")
    for key, given in (("sampler", ("dataset", "seed")), ("batch_sampler", ("sampler", "batch_size"))):
        if loader.get(key):
            check_arguments(DATA_SAMPLERS, loader[key], f"{place}.{key}", *given)
    if collate := loader.get("collate_fn"):
        check_arguments(FUNCTIONS, collate, f"{place}.collate_fn")
        if collate.get("type") == "micro_batch_collate":
            inner = collate["collate"]  # of one micro-batch
            check_arguments(FUNCTIONS, inner if isinstance(inner, dict) else {"type": inner}, f"{place}.collate_fn")
    apart = {"dataset", "sampler", "batch_sampler", "collate_fn", "worker_init_fn"}
    apart |= {"num_batch_per_epoch"} if split != "train" else set()
    others = {key: value for key, value in loader.items() if key not in apart}
    _build(FUNCTIONS, {"type": DataLoader, **others}, place, dataset=[0], sampler=[0])


def _build(registry: Registry, settings: Any, place: str, **given: Any) -> Any:
    """Build a part; an error that its constructor raises in words of its own is given the place, too."""
    try:
        return build(registry, settings, place, **given)
    except ConfigError as error:
        if place in str(error):
            raise
        raise ConfigError(f"{place}: {error}") from error


def _build_steps(place: str, steps: Any) -> None:
    for index, step in enumerate(steps or ()):
        if isinstance(step, dict):  # mmengine takes functions too
            _build(TRANSFORMS, step, f"{place}.{index}")
            package = DECODER_PACKAGES.get(str(step.get("imdecode_backend")))
            if package and is_absent(package):
                raise missing_package_error(package, f"{place}.{index}.imdecode_backend")


def _check_loop(cfg: Config, split: str) -> None:
    place = f"{split}_cfg"
    if cfg.get(place) is None:
        return
    settings = {"type": {"val": ValLoop, "test": TestLoop}.get(split), **cfg[place]}
    if settings["type"] is None:
        raise ConfigError(f"{place}.type is missing: {LOOPS_OF_TRAINING}")
    kind = check_arguments(LOOPS, settings, place, "runner", "dataloader", "evaluator")
    if split != "train":
        return
    if not issubclass(kind, EpochLoop | IterationLoop):
        raise ConfigError(f"{place}.type={settings['type']!r}: {LOOPS_OF_TRAINING}")
    length = "max_epochs" if issubclass(kind, EpochLoop) else "max_iters"
    if length not in settings:
        raise ConfigError(f"{place}.{length} is missing: it is the length of the training")


def _build_metrics(settings: Any, place: str) -> list[Any]:
    """Build the metrics of an evaluator; one that reads absent data or makes a folder is replaced by an object."""
    if not settings:
        return []
    if isinstance(settings, dict) and "metrics" in settings:
        check_arguments(EVALUATOR, {"type": Evaluator, **settings}, place)
        settings, place = settings["metrics"], f"{place}.metrics"
    listed = isinstance(settings, list | tuple)
    built: list[Any] = []
    for index, one in enumerate(settings if listed else [settings]):
        where = f"{place}.{index}" if listed else place
        check_arguments(METRICS, one, where)
        try:
            built.append(object() if any(map(one.get, WRITING)) else _build(METRICS, one, where))
        except (ConfigError, OSError) as error:
            if not isinstance(error if isinstance(error, OSError) else error.__cause__, FileNotFoundError):
                raise
            built.append(object())
    return built


def _build_visualizer(cfg: Config) -> None:
    """Build the visualizer, which writes from its first use on; check that the packages of its loggers are there."""
    settings = cfg.get("visualizer") or {"type": Visualizer}
    # mmengine keeps visualizers by name, for hooks that ask for the newest. By the stated name a run would get this.
    unnamed = {**copy.deepcopy(settings), "name": secrets.token_hex(8)}
    _build(VISUALIZERS, unnamed, "visualizer", save_dir=cfg.work_dir)
    backends = settings.get("vis_backends") or []
    for index, one in enumerate([backends] if isinstance(backends, dict) else backends):
        place = f"visualizer.vis_backends.{index}"
        bases = check_arguments(VISBACKENDS, one, place, "save_dir").__mro__
        for package in (name for base in bases for name in LOGGER_PACKAGES.get(base.__name__, ())):
            if is_absent(package):
                raise missing_package_error(package, f"{place}: {one['type']}")


def _build_hooks(cfg: Config) -> Iterator[Any]:
    named = {f"default_hooks.{name}": hook for name, hook in cfg.default_hooks.items()}
    named |= {f"custom_hooks.{index}": hook for index, hook in enumerate(cfg.get("custom_hooks") or ())}
    for place, hook in named.items():
        if hook is not None:
            priority = hook.pop("priority", "NORMAL")
            if not is_whole(priority, 0, 100) and priority not in Priority.__members__:
                names = ", ".join(Priority.__members__)
                raise ConfigError(f"{place}.priority={priority!r}: a whole number from 0 to 100 is needed, or {names}")
            yield _build(HOOKS, hook, place)
        elif place.rpartition(".")[2] not in DEFAULT_HOOKS:
            raise ConfigError(f"{place}=None removes no hook: choose from {', '.join(DEFAULT_HOOKS)}")


def _check_randomness(settings: Any) -> None:
    check_arguments(FUNCTIONS, {"type": Runner.set_randomness, **settings}, "randomness")
    if "seed" not in settings:
        raise ConfigError("randomness.seed is missing: a whole number, or None for one that is drawn")


def _check_start_method(cfg: Config) -> None:
    known = multiprocessing.get_all_start_methods()
    method = (cfg.env_cfg.get("mp_cfg") or {}).get("mp_start_method", known[0])
    if method not in known:
        raise ConfigError(f"env_cfg.mp_cfg.mp_start_method={method!r}: choose from {', '.join(known)}")


def _build_optimizer(cfg: Config, model: nn.Module) -> OptimWrapper:
    """Build the optimizer on the parameter groups of a model whose weights take no memory."""
    settings = {"type": "OptimWrapper", **cfg.optim_wrapper}
    weight = torch.zeros(1, requires_grad=True)
    weight.grad = torch.zeros(1)
    _build(OPTIMIZERS, settings["optimizer"], "optim_wrapper.optimizer", params=[weight])
    settings["optimizer"].pop("fused", None)  # refuses weights without memory
    grouping = {"type": settings.get("constructor"), "paramwise_cfg": settings.get("paramwise_cfg")}
    if grouping["type"] in (None, "DefaultOptimWrapperConstructor"):
        _check_group_options(settings.get("paramwise_cfg") or {})
    if grouping["type"] is not None:
        check_arguments(OPTIM_WRAPPER_CONSTRUCTORS, grouping, "optim_wrapper.constructor", "optim_wrapper_cfg")
    kind = check_arguments(OPTIM_WRAPPERS, settings, "optim_wrapper")
    if issubclass(kind, AmpOptimWrapper) and not torch.cuda.is_available():  # a dry run for another machine
        _check_precision(settings)
        settings = {key: settings[key] for key in settings.keys() - AMP_SETTINGS} | {"type": OptimWrapper}
    with building({"optim_wrapper": settings}, "optim_wrapper"):
        built: OptimWrapper = build_optim_wrapper(model, settings)
    if built.clip_grad_kwargs:
        clip = {"type": built.clip_func, **built.clip_grad_kwargs}
        _build(FUNCTIONS, clip, "optim_wrapper.clip_grad", parameters=[weight])
    return built


def _check_group_options(options: Any) -> None:
    for name in options:
        if name not in GROUP_OPTIONS:
            known = f"choose from {', '.join(GROUP_OPTIONS)}"
            raise ConfigError(
                f"optim_wrapper.paramwise_cfg.{name}: nothing reads it{nearest(name, GROUP_OPTIONS)}; {known}"
            )


def _check_precision(settings: Any) -> None:
    dtype, scale = settings.get("dtype"), settings.get("loss_scale", "dynamic")
    if dtype not in (None, *AmpOptimWrapper.valid_dtypes):
        known = ", ".join(AmpOptimWrapper.valid_dtypes)
        raise ConfigError(
            f"optim_wrapper.dtype={dtype!r}{nearest(str(dtype), AmpOptimWrapper.valid_dtypes)}; choose from {known}"
        )
    if scale != "dynamic" and not isinstance(scale, float | dict):
        raise ConfigError(f"optim_wrapper.loss_scale={scale!r}: 'dynamic' or a number with a point is needed")


def _build_schedules(cfg: Config, optimizer: OptimWrapper) -> list[Any]:
    built = []
    for place, one in stated_schedules(cfg):
        # As mmengine has it: a loop of steps is one epoch; the steps of a loop of epochs are known with the data.
        end = cfg.train_cfg.get("max_epochs", 1) if one.get("by_epoch", True) else cfg.train_cfg.get("max_iters")
        ends = {} if end is None else {"end": end}
        built.append(_build(PARAM_SCHEDULERS, one, place, optimizer=optimizer, epoch_length=1, **ends))
    return built
