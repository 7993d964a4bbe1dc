"""Load a config file and resolve it: classes, channels, data folders, batch and launch in one pass.

A config states a few *drivers* at its top level (``classes``, ``data_root``, ``batch``, ``train_pipeline``,
``test_pipeline``); :func:`resolve` copies each to all settings that depend on it. Resolving is idempotent: the dumped
result resolves to itself.
"""

from __future__ import annotations

import copy
import difflib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS

from backbones.errors import ConfigError, MachineError, UserError, describe_error
from backbones.files import describe_special
from backbones.packages import missing_package, missing_package_error, package_of_type
from backbones.registry import unknown_backbone
from engine.config.batch import BatchPlan, collate_settings, plan_batch, scaled_lr
from engine.config.building import build
from engine.config.channels import set_image_channels
from engine.config.class_weights import set_class_weights
from engine.config.classes import FROM_DATA, check_own_names, class_names, fill_classes, palette
from engine.config.custom_imports import read_config
from engine.config.datasets import (
    DATA_KEYS,
    carry_to_test,
    expand_home,
    inner_datasets,
    is_wrapper,
    mappings,
    pipeline_key,
    set_data_root,
    set_pipeline,
    set_shard_cache,
    set_test_mode,
)
from engine.config.environment import check_environment, check_noise_scale
from engine.config.libraries import adopt_library_settings
from engine.config.options import check_options, drop_foreign_arguments, merge_options
from engine.config.precision import fit_precision
from engine.config.schema import check_settings, is_whole
from engine.config.trackers import set_trackers
from engine.config.world import Launch
from engine.task import TASK_SPECS, task_of

DRIVERS = ("classes", "data_root", "shard_cache", "batch", "train_pipeline", "test_pipeline", "trackers")
RUNNER_KEYS = (
    *("model", "work_dir", "train_dataloader", "val_dataloader", "test_dataloader", "train_cfg", "val_cfg", "test_cfg"),
    *("optim_wrapper", "param_scheduler", "val_evaluator", "test_evaluator", "default_hooks", "custom_hooks"),
    *("load_from", "resume", "launcher", "env_cfg", "log_processor", "log_level", "visualizer", "default_scope"),
    *("randomness", "experiment_name", "custom_imports", "tta_model", "tta_pipeline", "find_unused_parameters", "task"),
)
REQUIRED_KEYS = ("model", "train_dataloader", "train_cfg", "optim_wrapper")  # for training; for a test, the first
# Names of hooks in older configs, and mmengine's own hooks from which a run cannot resume exactly.
EMA_HOOK = "ModelEMAHook"
TEST_FOLDER = "test"  # of tests, in the work directory of the training whose files stay as they are
RENAMED_HOOKS = {f"{one}Hook": f"Resumable{one}Hook" for one in ("Checkpoint", "EarlyStopping")} | {"KeepEMA": EMA_HOOK}
RENAMED_LOOPS = {"EpochBasedTrainLoop": "EpochLoop", "IterBasedTrainLoop": "IterationLoop"}  # of mmengine -> ours
LOG_PROCESSOR = "ScoreLogProcessor"  # mmengine's LogProcessor shows the mean of ten validations for a ``val_loss``
BALANCED = {"ClassBalancedDataset": "BalancedDataset"}  # mmengine's does not reach into ConcatDataset
CHECKED_READERS = {"LoadImageFromFile": "LoadCheckedImage"}  # mmcv's reads the rest of a truncated file as grey
# mmengine's words about a mapping over a base's value that is none.
NO_MAPPING_IN_BASE = re.compile(
    r"(\w+)=.* in child config cannot inherit from base .* of type <class '(\w+)'>", re.DOTALL
)
FROM_BACKBONE = re.compile(r"from_backbone(?:\[(\d)\])?")


@dataclass(frozen=True)
class Resolved:
    """A config that is ready to run.

    Attributes:
        cfg: Resolved config.
        plan: Micro-batches and accumulation of a step; ``None`` if it was resolved for a test.
        notes: Changes made for this launch, one line each.
        changed: Value in the file and value in force of each option, under its dotted key.
    """

    cfg: Config
    plan: BatchPlan | None
    notes: tuple[str, ...]
    changed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)


def ema_settings(cfg: Config) -> ConfigDict | None:
    """The settings of the hook that averages weights (EMA) in a resolved config; ``None`` without one."""
    return next((hook for hook in cfg.get("custom_hooks") or [] if hook["type"] == EMA_HOOK), None)


def load_config(
    path: str | Path,
    options: dict[str, Any] | None = None,
    launch: Launch | None = None,
    training: bool = True,
    known_classes: Callable[[], Sequence[str]] | None = None,
) -> Resolved:
    """Read a config file, apply options and resolve it for a launch.

    Args:
        path: Config file.
        options: Overrides under dotted keys.
        launch: Processes and device; those of this process if not given.
        training: Whether to resolve for training: the global batch has to divide among the processes.
        known_classes: Returns the class names of a checkpoint, for a config that takes them from the data.

    Raises:
        ConfigError: If the file cannot be read, or a setting is wrong.
    """
    if kind := "is a folder: name a file in it" if Path(path).is_dir() else describe_special(path):
        raise ConfigError(f"config {str(path)!r} {kind}")
    if not Path(path).is_file():
        near = difflib.get_close_matches(str(path), map(str, Path("configs").glob("*/*.py")), n=1, cutoff=0.5)
        raise ConfigError(f"config {str(path)!r} does not exist" + (f"; did you mean {near[0]}?" if near else ""))
    try:
        cfg = read_config(Path(path))
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a config is a program: it may raise anything
        if package := missing_package(error):
            raise missing_package_error(package, f"config {str(path)!r}") from error
        if "U+FEFF" in str(error):
            raise ConfigError(
                f"config {str(path)!r} begins with a byte order mark: save it as UTF-8 without one"
            ) from error
        raise ConfigError(f"config {str(path)!r} cannot be read: {_root_cause(error)}") from error
    adopted = adopt_library_settings(cfg, Path(path), {*RUNNER_KEYS, *DRIVERS})
    stated = _stated_batch(cfg, path)
    options = options or {}
    completed = copy.deepcopy(cfg)
    carry_to_test(completed)
    before = check_options(completed, options)
    merge_options(cfg, options)
    dropped = drop_foreign_arguments(cfg, options, before)
    carry_to_test(cfg, completed)
    for key in options.keys() & {"data_root", *TASK_SPECS.drivers()}:
        for node in mappings(dict(cfg)):  # a resolved config has copies of the former value
            if key in node and node[key] == before[key]:
                del node[key]
    if known_classes is not None and cfg.get("classes") in (None, FROM_DATA):
        cfg.classes = tuple(known_classes()) or None
    if "optim_wrapper.optimizer.lr" in options:
        stated = _stated_batch(cfg, path)  # a learning rate given together with a batch belongs to that batch
    cfg.setdefault("work_dir", str(Path("work_dirs") / Path(path).stem))
    resolved = resolve(cfg, stated, launch or Launch.from_environment(), training)
    changed = {key: (before[key], value) for key, value in options.items()}
    return replace(resolved, notes=(*adopted, *dropped, *resolved.notes), changed=changed)


def resolve(cfg: Config, stated_batch: int, launch: Launch, training: bool = True) -> Resolved:
    """Copy the drivers to the settings that depend on them and adapt the config to the launch.

    Args:
        cfg: Config with the drivers; changed in place.
        stated_batch: Global batch in images that ``optim_wrapper.optimizer.lr`` belongs to.
        launch: Processes and device.
        training: Whether to split the global batch over the processes.

    Raises:
        ConfigError: If a key is unknown, or a setting is impossible.
    """
    _check_keys(cfg)
    for key in REQUIRED_KEYS if training else REQUIRED_KEYS[:1]:
        if not cfg.get(key):
            raise ConfigError(f"config states no {key}: take it from a file in configs/_base_")
    check_settings(cfg)
    _complete(cfg)
    check_environment(cfg.get("env_cfg", {}))
    _check_validation(cfg)
    notes: list[str] = []
    _check_backbone(cfg, notes)
    _set_hooks(cfg, notes)
    set_trackers(cfg)
    expand_home(cfg)
    for split, dataset in _datasets(cfg):
        set_data_root(split, dataset, cfg.get("data_root"), notes)
        set_shard_cache(dataset, cfg.get("shard_cache"))
    fill_classes(cfg)
    task_of(cfg).complete_config(cfg, notes)
    _set_visualizer(cfg, notes)
    _set_classes(cfg, notes)
    if count := _replace_types([value for key, value in cfg.items() if key.endswith(DATA_KEYS)], CHECKED_READERS):
        notes.append(f"LoadImageFromFile -> LoadCheckedImage in {count} places: it refuses damaged images")
    _replace_types(cfg.get("train_dataloader"), BALANCED)
    _set_data(cfg, launch)
    set_image_channels(cfg, notes)
    _set_channels(cfg.model)
    plan = _set_batch(cfg, stated_batch, launch, notes) if training else None
    if plan is not None:
        check_noise_scale(cfg.get("env_cfg", {}), plan)
    _fit_to_launch(cfg, launch, notes)
    return Resolved(cfg, plan, tuple(notes))


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None and str(error.__cause__):
        error = error.__cause__
    if merged := NO_MAPPING_IN_BASE.match(str(error)):
        name, kind = merged.groups()
        former = "None" if kind == "NoneType" else f"of type {kind}"
        return f"{name} is a mapping here and {former} in its base: write {name}=dict(_delete_=True, ...) in its place"
    return describe_error(error)


def _stated_batch(cfg: Config, path: str | Path) -> int:
    if not isinstance(cfg.get("batch"), dict) or "size" not in cfg.batch:
        raise ConfigError(f"config {str(path)!r} states no batch: add batch = dict(size=..., per_gpu=...)")
    _check_batch(cfg.batch)
    return int(cfg.batch.size)


def _check_keys(cfg: Config) -> None:
    known = (*RUNNER_KEYS, *DRIVERS, *TASK_SPECS.drivers())
    for key in [key for key in cfg if key.startswith("_")]:
        cfg.pop(key)
    for key in cfg:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = (
                f"did you mean {near[0]!r}?"
                if near
                else "nothing reads it; a helper variable belongs into a function, or its name begins with _"
            )
            raise ConfigError(f"config: unknown top-level key {key!r}; {hint}")
    _check_batch(cfg.batch)


def _check_batch(batch: Any) -> None:
    if not isinstance(batch, dict):
        raise ConfigError(f"batch={batch!r} names no setting: give its size, such as batch.size=64")
    unknown = set(batch) - {"size", "per_gpu", "lr_rule"}
    if unknown:
        raise ConfigError(f"batch has no setting {', '.join(sorted(unknown))}: choose from size, per_gpu, lr_rule")
    for name in ("size", "per_gpu"):
        if not (is_whole(batch.get(name), -math.inf) or (name == "per_gpu" and batch.get(name) is None)):
            raise ConfigError(f"batch.{name}={batch.get(name)!r}: a whole number is needed")


def _complete(cfg: Config) -> None:
    """Write what a config may leave out, as configs of other versions do, and what mmengine takes in its place."""
    if cfg.get("default_scope") is None:
        cfg.default_scope = "mmengine"
    if "env_cfg" not in cfg:
        cfg.env_cfg = {}
    for split in ("train", "val", "test"):
        if loader := cfg.get(f"{split}_dataloader"):
            if "dataset" not in loader:
                raise ConfigError(f"{split}_dataloader states no dataset: take it from a file in configs/_base_")
            loader.setdefault("num_workers", 0)


def _check_validation(cfg: Config) -> None:
    for split in ("val", "test"):
        keys = [f"{split}_{part}" for part in ("dataloader", "cfg", "evaluator")]
        missing = [key for key in keys if cfg.get(key) is None]
        if missing and len(missing) < len(keys):
            raise ConfigError(
                f"{missing[0]} is missing: {', '.join(keys)} belong together, state all or set all to None"
            )


def _check_backbone(cfg: Config, notes: list[str]) -> None:
    backbone = cfg.model.get("backbone", {})
    name = backbone.get("type")
    # The task's library may have networks, such as mmdet's ResNet, that are not in our registry.
    with MODELS.switch_scope_and_registry(cfg.get("default_scope")) as registry:
        network = registry.get(name) if isinstance(name, str) else None
        if isinstance(name, str) and network is None:
            if (package := package_of_type(name)) is None:
                raise unknown_backbone(name)
            absent = missing_package_error(package, f"model.backbone: {name}")
            raise MachineError(f"{absent}: model=dict(backbone=dict(type='convnext_tiny')) takes one of ours")
    key = "layer_scale_init_value"
    own, stated = getattr(network, "own_arguments", {}).get(key), backbone.get(key)
    if own is not None and stated not in (None, own):
        notes.append(
            f"model.backbone.{key}={stated}: {name} has {own} of its own; if it is that of another "
            f"network in a base, leave it out with _delete_=True beside type={name!r}"
        )


def _datasets(cfg: Config) -> Iterator[tuple[str, ConfigDict]]:
    for split in ("train", "val", "test"):
        loader = cfg.get(f"{split}_dataloader")
        if loader:
            yield split, loader.dataset


def _set_hooks(cfg: Config, notes: list[str]) -> None:
    """Bring hooks and loops to their present names; a config without a checkpoint hook gets one that can resume."""
    if cfg.get("default_hooks") is None:
        cfg.default_hooks = {}
    cfg.default_hooks.setdefault("checkpoint", dict(type=RENAMED_HOOKS["CheckpointHook"]))
    cfg.log_processor = {"type": LOG_PROCESSOR, **(cfg.get("log_processor") or {})}
    _replace_types(cfg.log_processor, {"LogProcessor": LOG_PROCESSOR})
    hooks = [cfg.default_hooks, cfg.get("custom_hooks")]
    for what, parts, renamed in (("hook", hooks, RENAMED_HOOKS), ("loop", cfg.get("train_cfg"), RENAMED_LOOPS)):
        for former, name in renamed.items():
            if _replace_types(parts, {former: name}):
                notes.append(f"{what} {former} -> {name}")


def _set_visualizer(cfg: Config, notes: list[str]) -> None:
    """Let the task's visualizer, whose panels the pages show, take the place of its library's and of its options."""
    theirs = cfg.get("visualizer") or {}
    former = str(theirs.get("type")).rpartition(".")[2]
    if (name := task_of(cfg).visualizers.get(former)) is not None:
        kept = {key: theirs[key] for key in ("name", "vis_backends", "save_dir") if key in theirs}
        cfg.visualizer = {"type": name, **kept}
        notes.append(f"visualizer {former} -> {name}")


def _set_classes(cfg: Config, notes: list[str]) -> None:
    names = class_names(cfg.classes)
    parts = [cfg.get(key) for key in ("model", "train_pipeline", "test_pipeline", "tta_pipeline")]
    for node in mappings([*parts, *(dataset for _, dataset in _datasets(cfg))]):
        if "num_classes" in node:
            node["num_classes"] = len(names)
    task_of(cfg).count_classes(cfg, notes)
    background = max((layer.extra_rows for layer in task_of(cfg).class_layers.values()), default=0)
    set_class_weights(cfg.model, names, background, notes)
    for _, dataset in _datasets(cfg):
        # Only where they are drawn in colours: 21,841 of them take a while to print.
        colours = {"palette": palette(names)} if task_of(cfg).coloured_classes else {}
        for inner in inner_datasets(dataset):
            if colours:
                check_own_names(inner, names)
            inner.metainfo = dict(classes=names, **colours)


def _set_data(cfg: Config, launch: Launch) -> None:
    cores = max(1, (os.cpu_count() or 1) // launch.local_processes)
    for split, dataset in _datasets(cfg):
        if is_wrapper(dataset) and split != "train":
            raise ConfigError(f"{split}_dataloader.dataset.type={dataset.type!r}: wrappers are for training data alone")
        if split != "train":
            set_test_mode(dataset, cfg.get("default_scope"))
        pipeline = cfg.get(pipeline_key(split))
        if pipeline is not None:
            set_pipeline(dataset, pipeline)
        loader = cfg[f"{split}_dataloader"]
        loader.num_workers = min(loader.num_workers, cores)
        loader.persistent_workers = loader.num_workers > 0
    for name in ("val_evaluator", "test_evaluator"):
        for node in mappings(cfg.get(name)):
            if "ann_file" in node and cfg.get(name.replace("evaluator", "dataloader")):
                dataset = cfg[name.replace("evaluator", "dataloader")].dataset
                if not dataset.get("ann_file"):
                    split = name.removesuffix("_evaluator")
                    raise ConfigError(f"{split}_dataloader.dataset states no ann_file, which its metric reads")
                node["ann_file"] = str(Path(dataset.get("data_root") or "") / dataset.ann_file)
            if file := node.get("confusion_file"):
                if not isinstance(file, str | os.PathLike):
                    raise ConfigError(f"{name}: confusion_file={file!r}: text is needed")
                folder = Path(cfg.work_dir) / (TEST_FOLDER if name == "test_evaluator" else "")
                node["confusion_file"] = str(folder / Path(file).name)
            if (metric := task_of(cfg).class_metrics.get(str(node.get("type")).rpartition(".")[2])) is not None:
                node["type"] = metric


def _set_channels(model: ConfigDict) -> None:
    """Replace ``from_backbone`` by the channels of the backbone's outputs, ``from_backbone[i]`` by one of them."""
    channels: tuple[int, ...] | None = None
    for node in mappings(model):
        for key, value in node.items():
            match = FROM_BACKBONE.fullmatch(value) if isinstance(value, str) else None
            if not match:
                continue
            if "backbone" not in model:
                raise ConfigError(f"{key}={value!r}: model states no backbone")
            if channels is None:
                with torch.device("meta"):
                    unloaded = {name: one for name, one in model.backbone.items() if name != "weights"}
                    channels = getattr(build(MODELS, unloaded, "model.backbone"), "out_channels", None)
                if channels is None:
                    raise ConfigError(f"{key}={value!r}: {model.backbone.type} does not say its channels, give numbers")
            if match[1] is not None and int(match[1]) >= len(channels):
                raise ConfigError(
                    f"{key}={value!r}: number of maps that the backbone returns: {len(channels)}; state its "
                    "out_indices, such as (0, 1, 2, 3)"
                )
            node[key] = list(channels) if match[1] is None else channels[int(match[1])]


def _set_batch(cfg: Config, stated: int, launch: Launch, notes: list[str]) -> BatchPlan:
    size = int(cfg.batch.size)
    plan = plan_batch(size, launch.processes, cfg.batch.get("per_gpu"))
    optimizer = cfg.optim_wrapper.get("optimizer", {})
    if "lr" not in optimizer:
        raise ConfigError("optim_wrapper.optimizer.lr=None: a positive number is needed")
    if size != stated:
        rule = cfg.batch.get("lr_rule", "linear")
        lr = scaled_lr(optimizer.lr, stated, size, rule)
        notes.append(f"global batch {stated} -> {size}: learning rate {optimizer.lr:g} -> {lr:g} ({rule} rule)")
        optimizer.lr = lr
    loader = cfg.train_dataloader
    loader.batch_size = plan.per_process * plan.accumulation
    cfg.optim_wrapper.accumulative_counts = plan.accumulation
    loader.collate_fn = collate_settings(loader.get("collate_fn", "pseudo_collate"), plan.accumulation)
    return plan


def _fit_to_launch(cfg: Config, launch: Launch, notes: list[str]) -> None:
    if launch.processes == 1 or launch.device == "cpu":
        replaced = _replace_types(cfg.model, {"SyncBN": "BN"})
        if replaced:
            where = "one process" if launch.processes == 1 else "CPU"
            notes.append(f"SyncBN -> BN in {replaced} place{'s' if replaced > 1 else ''} ({where})")
    fit_precision(cfg, launch.device, notes)
    cfg.env_cfg.dist_cfg = dict(backend="nccl" if launch.device == "cuda" else "gloo")
    cfg.launcher = "pytorch" if launch.processes > 1 else "none"


def _replace_types(node: Any, table: dict[str, str]) -> int:
    matches = [item for item in mappings(node) if isinstance(item.get("type"), str) and item["type"] in table]
    for item in matches:
        item["type"] = table[item["type"]]
    return len(matches)
