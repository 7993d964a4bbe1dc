"""Configs of mmdet and mmseg as bases of ours: which of their settings hold for another backbone and another place."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from backbones.errors import ConfigError
from backbones.files import read_text_file
from backbones.registry import list_backbones
from engine.config.backbone_swap import STAGES, Levels, fit_channels, original_levels
from engine.config.building import build
from engine.config.custom_imports import base_files
from engine.config.datasets import is_wrapper, pipeline_key


def adopt_library_settings(cfg: Config, path: Path, settings: Set[str]) -> list[str]:
    """Let a config's own statements hold in what its bases of a library say, in place.

    Variables of their files that are no settings, such as ``crop_size``, are taken out. Paths below their ``data_root``
    become paths below the config's. Where a network of ours takes the place of their backbone, what they state for
    theirs goes, and what reads its maps gets our channels; with ``out_indices`` of the config's own, the config says
    the channels too.

    Args:
        cfg: The merged config.
        path: Its file.
        settings: Top-level keys that are settings.

    Returns:
        A line for each change.

    Raises:
        ConfigError: If no task is imported, or the backbone does not build.
    """
    bases = list(_library_bases(path))
    if bases and not cfg.get("custom_imports"):
        raise ConfigError(
            f"config {str(path)!r} has a library's base and names no task: add custom_imports = dict(imports=[...]) "
            "with the package of its task, as the files of configs/ have it"
        )
    variables = sorted({key for base in bases for key in base} & {*cfg} - settings)
    batches = [base["auto_scale_lr"].get("base_batch_size") for base in bases if base.get("auto_scale_lr")]
    rates = [_rate(base) for base in bases]
    for key in variables:
        cfg.pop(key)
    notes = []
    if variables:
        notes.append(f"variables of a library's bases, which nothing reads from here on: {', '.join(variables)}")
    for base in bases:
        notes += _keep_pipelines(cfg, base)
        notes += _move_data(cfg, base.get("data_root"))
        notes += _leave_network(cfg, base, path)
    batch = cfg.get("batch")
    size = batch.get("size") if isinstance(batch, dict) else None
    inherited = _rate(cfg) in rates and "lr" not in _stated_arguments(path, "optimizer")
    if batches and size is not None and batches[-1] not in (None, size) and inherited:
        notes.append(
            f"optim_wrapper.optimizer.lr={_rate(cfg)} is a library's for a batch of {batches[-1]}, and this one is "
            f"{size}: state the rate that belongs to it"
        )
    return notes


def _library_bases(path: Path) -> Iterator[Config]:
    """The bases of a config that are a library's."""
    for base in base_files(path, read_text_file(path, "utf-8")):
        if _is_library(base):
            yield Config.fromfile(str(base), import_custom_modules=False)
        else:
            yield from _library_bases(base)


def _is_library(path: Path) -> bool:
    """Whether a file has a ``model-index.yml`` above it, as the configs of mmdet and mmseg."""
    return any((folder / "model-index.yml").is_file() for folder in path.resolve().parents)


def _rate(cfg: Config) -> Any:
    """The learning rate that a config states; ``None`` without one."""
    return ((cfg.get("optim_wrapper") or {}).get("optimizer") or {}).get("lr")


def _move_data(cfg: Config, root: Any) -> list[str]:
    """Replace a library's ``data_root``, at the beginning of any path, by that of the config."""
    own = cfg.get("data_root")
    if not isinstance(root, str) or not isinstance(own, str) or own == root:
        return []
    folder = f"{root.rstrip('/')}/"

    def moved(node: Any) -> Any:
        if isinstance(node, dict):
            for key, value in node.items():
                node[key] = moved(value)
        elif isinstance(node, list | tuple):
            return type(node)(map(moved, node))
        elif isinstance(node, str) and f"{node.rstrip('/')}/".startswith(folder):
            return str(Path(own, node[len(folder) :]))
        return node

    for key in cfg:
        if key.endswith(("_dataloader", "_evaluator", "_pipeline")):
            cfg[key] = moved(cfg[key])
    return [f"data in {root!r} of a library's bases -> {own!r}"]


def _keep_pipelines(cfg: Config, base: Config) -> list[str]:
    """Let the pipelines of a library's data sets be those of the top level where its variable of this name is another.

    Raises:
        ConfigError: If the config states the pipeline of a data set, whose place that of the top level would take.
    """
    notes = []
    for key in ("train_pipeline", "test_pipeline"):
        if base.get(key) is None or _unscoped(cfg.get(key)) != _unscoped(base[key]):
            continue
        theirs = []
        for split in (split for split in ("train", "val", "test") if pipeline_key(split) == key):
            own, stated = (((one.get(f"{split}_dataloader") or {}).get("dataset") or {}) for one in (cfg, base))
            if own.get("pipeline") is None or is_wrapper(own):
                continue
            if _unscoped(own["pipeline"]) != _unscoped(stated.get("pipeline")):
                raise ConfigError(
                    f"{split}_dataloader.dataset.pipeline: {key} of a library's base takes its place: "
                    f"state {key} at the top level of the config"
                )
            theirs.append(_unscoped(own["pipeline"]))
        if theirs and theirs[0] != _unscoped(cfg[key]) and theirs.count(theirs[0]) == len(theirs):  # one for all splits
            cfg[key] = theirs[0]
            notes.append(f"{key}: that of the data set of a library's base, whose variable of this name is another")
    return notes


def _unscoped(node: Any) -> Any:
    """A part of a config without ``_scope_``, which mmengine writes into bases of another package."""
    if isinstance(node, dict):
        return {key: _unscoped(value) for key, value in node.items() if key != "_scope_"}
    return [_unscoped(value) for value in node] if isinstance(node, list | tuple) else node


def _leave_network(cfg: Config, base: Config, path: Path) -> list[str]:
    """Take out what a base says of its backbone where one of ours is in its place, and fit what reads its maps."""
    theirs = (base.get("model") or {}).get("backbone")
    model = cfg.get("model")
    ours = model.get("backbone") if isinstance(model, dict) else None
    if not theirs or not isinstance(ours, dict) or ours.get("type") not in list_backbones():
        return []
    name, stated = ours["type"], _stated_arguments(path, "backbone")
    left_out = [key for key in theirs if key not in {"type", *stated} and key in ours and ours[key] == theirs[key]]
    for key in left_out:
        del ours[key]
    weights = [(cfg, base, "load_from"), (cfg.model, base.model, "pretrained")]
    for node, of, key in weights:
        if of.get(key) is not None and node.get(key) == of[key]:
            node[key] = None
            left_out.append(key)
    notes = []
    if left_out:
        notes.append(f"model.backbone {theirs['type']} -> {name}: left out {', '.join(left_out)} of a library's base")
    if "out_indices" not in ours:
        unloaded = {key: value for key, value in ours.items() if key != "weights"}
        with DefaultScope.overwrite_default_scope(cfg.get("default_scope")), torch.device("meta"):
            levels = original_levels(base.model)
            network = build(MODELS, {**unloaded, "out_indices": range(STAGES)}, "model.backbone")
        stages = Levels(tuple(network.out_channels), tuple(network.strides))
        ours["out_indices"] = fit_channels(cfg.model, levels, stages)
        notes.append(f"model.backbone.out_indices={ours['out_indices']}, and in_channels of what reads its maps follow")
    return notes


def _stated_arguments(path: Path, part: str) -> set[str]:
    """Names of the arguments that a config and its bases of ours state in a ``part=dict(...)``."""
    text = read_text_file(path, "utf-8")
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.keyword) and node.arg == part and isinstance(node.value, ast.Call):
            names |= {keyword.arg for keyword in node.value.keywords if keyword.arg}
    return names.union(*(_stated_arguments(base, part) for base in base_files(path, text) if not _is_library(base)))
