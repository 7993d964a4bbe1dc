"""Data sets in a config: inside of wrappers, such as ``ConcatDataset``; where they lie; those of a test."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

from backbones.errors import ConfigError

# Ends of the top-level keys below which images are read; hooks may bring the pipeline of some epochs.
DATA_KEYS = ("_dataloader", "_pipeline", "custom_hooks")
MIXING = "MultiImageMixDataset"  # mmdet's and mmseg's; it has a pipeline of its own, after those of its data sets


def all_datasets(dataset: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """A data set and those that it wraps, outer ones first, each with its place in the config.

    Args:
        dataset: Settings of a data set.
        place: Dotted key of it.
    """
    yield place, dataset
    if "dataset" in dataset:
        yield from all_datasets(dataset["dataset"], f"{place}.dataset")
    for index, inner in enumerate(dataset.get("datasets", ())):
        yield from all_datasets(inner, f"{place}.datasets.{index}")


def mappings(node: Any) -> Iterator[Any]:
    """All mappings in a config value, outer ones first."""
    if isinstance(node, dict):
        yield node
    for value in list(node.values()) if isinstance(node, dict) else node if isinstance(node, list | tuple) else ():
        yield from mappings(value)


def inner_datasets(dataset: Any) -> list[Any]:
    """The data sets that read files: those inside of wrappers, or the data set itself."""
    return [one for _, one in all_datasets(dataset) if not is_wrapper(one)]


def is_wrapper(dataset: Any) -> bool:
    """Whether a data set only wraps others."""
    return "dataset" in dataset or "datasets" in dataset


def pipeline_key(split: str) -> str:
    """Top-level key of the pipeline of ``train``, ``val`` or ``test``."""
    return "train_pipeline" if split == "train" else "test_pipeline"


def set_pipeline(dataset: Any, pipeline: Any) -> None:
    """Give a data set the pipeline of its split; inside of wrappers those alone that state none of their own.

    Raises:
        ConfigError: If a data set whose images are mixed states no pipeline that loads them.
    """
    if not is_wrapper(dataset):
        dataset["pipeline"] = pipeline
        return
    wrappers = [one for _, one in all_datasets(dataset) if is_wrapper(one)]
    for mixing in (one for one in wrappers if str(one["type"]).endswith(MIXING)):
        mixing.setdefault("pipeline", pipeline)
        if not all(one.get("pipeline") for one in inner_datasets(mixing)):
            raise ConfigError(
                f"train_dataloader.dataset: {MIXING} mixes what the pipeline of its inner data set loads: state one "
                "there, such as pipeline=[dict(type='LoadCheckedImage'), dict(type='LoadAnnotations', with_bbox=True)]"
            )
    for one in inner_datasets(dataset):
        one.setdefault("pipeline", pipeline)


def set_test_mode(dataset: Any, scope: str | None) -> None:
    """Have a data set keep all of its images, in place; one that takes no ``test_mode`` or states it is as it was."""
    with DATASETS.switch_scope_and_registry(scope) as registry:
        kind = registry.get(dataset["type"])
    for base in (one for one in getattr(kind, "__mro__", ()) if "__init__" in vars(one)):
        parameters = inspect.signature(base.__init__).parameters
        if "test_mode" in parameters:
            dataset.setdefault("test_mode", True)
        if "test_mode" in parameters or "kwargs" not in parameters:
            return


def expand_home(cfg: Config) -> None:
    """Write the home folder for the ``~`` of paths in a config, which the shell does not do after ``data_root=``."""
    for node in (cfg, *mappings([value for _, value in cfg.items()])):
        for key, value in list(node.items()):
            if isinstance(value, str) and value.startswith("~"):
                node[key] = os.path.expanduser(value)


def set_data_root(split: str, dataset: Any, root: str | None, notes: list[str]) -> None:
    """Give a data set, or those inside of a wrapper, the config's ``data_root`` where they state none of their own."""
    for one in inner_datasets(dataset) if root is not None else ():
        if one.get("data_root") is None:
            one["data_root"] = root
        elif one["data_root"] != root:
            notes.append(f"{split} data is in its own data_root {one['data_root']!r}, not in the config's {root!r}")


def set_shard_cache(dataset: Any, settings: Any) -> None:
    """Give a data set, or those inside of a wrapper, the config's ``shard_cache`` where they state none."""
    for one in inner_datasets(dataset) if settings is not None else ():
        one.setdefault("shard_cache", settings)


def carry_to_test(cfg: Config, fallback: Config | None = None) -> None:
    """Test on the validation data where a config, changed in place, states no test or only what differs (no type).

    Args:
        cfg: Config.
        fallback: Config whose test is taken if there is no validation.
    """
    for part in ("dataloader", "evaluator"):
        val, test = cfg.get(f"val_{part}"), cfg.get(f"test_{part}", {})
        stated = test.get("dataset") or {} if part == "dataloader" and isinstance(test, dict) else test
        if isinstance(val, dict | list) and isinstance(test, dict) and "type" not in stated:
            merged = Config({"test": copy.deepcopy(val)})
            merged.merge_from_dict({"test": test})
            cfg[f"test_{part}"] = merged.test
            cfg.setdefault("test_cfg", {})
    for key in ("test_dataloader", "test_evaluator", "test_cfg"):
        if fallback is not None and key in fallback:
            cfg.setdefault(key, fallback[key])
