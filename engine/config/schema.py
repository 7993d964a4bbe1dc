"""Kinds and ranges of the settings that all configs share.

Libraries accept a value of the wrong kind until something unrelated fails, or for good: a training of -1 epochs is
finished at once.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from types import NoneType
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS

from backbones.errors import ConfigError

_ABSENT = object()
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_MAX_SEED = 2**32 - 1  # of numpy.random.seed


def is_whole(value: object, minimum: float = 0, maximum: float = math.inf) -> bool:
    """Whether a value is an integer in a range, limits included; ``True`` and ``False`` are not integers here."""
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum


def is_number(value: object) -> bool:
    """Whether a value is a finite number; ``True`` and ``False`` are not numbers here."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_a(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


def _is_part(value: Any) -> bool:
    stated = value.get("type") if isinstance(value, dict) else None
    return callable(stated) or (isinstance(stated, str) and bool(stated))


def _is_list_of_parts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(_is_part(item) for item in value)


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


_MAPPING = (_is_a(dict), "a mapping is needed, dict(...)")
_MAPPING_OR_NONE = (_is_a(dict, NoneType), "a mapping is needed, dict(...), or None")
_PART = (_is_part, "a mapping with a type is needed, dict(type=...)")
_PARTS = (_or_none(_is_list_of_parts), "a list of mappings with a type is needed, [dict(type=...), ...]")
_STEPS = (
    _or_none(lambda value: _is_list_of_parts(value) and len(value) > 0),
    "a list of mappings with a type is needed, [dict(type=...), ...], and not an empty one",
)
_ONE_OR_MORE = (
    _or_none(lambda value: _is_part(value) or _is_list_of_parts(value)),
    "a mapping with a type or a list of them is needed",
)
_TEXT = (_is_a(str, os.PathLike), "text is needed")
_TEXT_OR_NONE = (_is_a(str, os.PathLike, NoneType), "text is needed, or None")
_PATHS_OR_NONE = (
    lambda value: (
        _TEXT_OR_NONE[0](value) or (isinstance(value, list | tuple) and len(value) > 0 and all(map(_TEXT[0], value)))
    ),
    "text is needed, a list of shards, or None",
)
_COUNT = (lambda value: is_whole(value, 1), "a whole number from 1 up is needed")
_COUNT_OR_ZERO = (is_whole, "a whole number from 0 up is needed")
_POSITIVE = (lambda value: is_number(value) and value > 0, "a positive number is needed")
_NOT_NEGATIVE = (lambda value: is_number(value) and value >= 0, "a number from 0 up is needed")
_FLAG = (_is_a(bool), "True or False is needed")

# Outer settings before those inside of them. A star stands for all keys of a mapping.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": _PART,
    "model.backbone": _MAPPING,
    "model.backbone.weights": _TEXT_OR_NONE,
    "model.data_preprocessor": _MAPPING_OR_NONE,
    "work_dir": _TEXT,
    "data_root": _PATHS_OR_NONE,
    "shard_cache": _MAPPING_OR_NONE,
    "load_from": _TEXT_OR_NONE,
    "experiment_name": _TEXT_OR_NONE,
    "resume": _FLAG,
    "find_unused_parameters": _FLAG,
    "train_pipeline": _STEPS,
    "test_pipeline": _STEPS,
    "tta_pipeline": _STEPS,
    "tta_model": _MAPPING_OR_NONE,
    **{
        f"{split}_dataloader{inside}": rule
        for split in ("train", "val", "test")
        for inside, rule in {
            "": _MAPPING_OR_NONE,
            ".dataset": _PART,
            ".dataset.data_root": _PATHS_OR_NONE,
            ".dataset.shard_cache": _MAPPING_OR_NONE,
            ".dataset.ann_file": _TEXT_OR_NONE,
            ".dataset.split": _TEXT,
            ".dataset.data_prefix": _MAPPING,
            ".dataset.data_prefix.*": _TEXT_OR_NONE,
            ".dataset.pipeline": _PARTS,
            ".dataset.every": _COUNT,
            ".sampler": _MAPPING,
            ".collate_fn": _MAPPING,
            ".batch_size": _COUNT,
            ".num_workers": _COUNT_OR_ZERO,
            ".drop_last": _FLAG,
        }.items()
    },
    "optim_wrapper": _MAPPING_OR_NONE,
    "optim_wrapper.optimizer": _MAPPING,
    "optim_wrapper.optimizer.lr": _POSITIVE,
    "optim_wrapper.optimizer.weight_decay": _NOT_NEGATIVE,
    "optim_wrapper.paramwise_cfg": _MAPPING_OR_NONE,
    "optim_wrapper.clip_grad": _MAPPING_OR_NONE,
    "optim_wrapper.clip_grad.max_norm": _POSITIVE,
    "train_cfg": _MAPPING_OR_NONE,
    "train_cfg.max_epochs": _COUNT,
    "train_cfg.max_iters": _COUNT,
    "train_cfg.val_interval": _COUNT,
    "train_cfg.val_begin": _COUNT_OR_ZERO,
    "val_cfg": _MAPPING_OR_NONE,
    "test_cfg": _MAPPING_OR_NONE,
    "param_scheduler": _ONE_OR_MORE,
    "val_evaluator": _ONE_OR_MORE,
    "test_evaluator": _ONE_OR_MORE,
    "default_hooks": _MAPPING_OR_NONE,
    "default_hooks.*": _MAPPING_OR_NONE,
    "custom_hooks": _PARTS,
    "env_cfg": _MAPPING,
    "env_cfg.sharded": (_is_a(bool), "True or False"),
    "env_cfg.compile": (_is_a(bool, dict), "True, False or arguments of torch.compile"),
    "env_cfg.noise_scale": _FLAG,
    "env_cfg.patience": (_or_none(_POSITIVE[0]), "a positive number of seconds for a step is needed"),
    "randomness": _MAPPING,
    "randomness.seed": (
        _or_none(lambda value: is_whole(value, 0, _MAX_SEED)),
        f"a whole number from 0 to {_MAX_SEED} is needed",
    ),
    "log_processor": _MAPPING_OR_NONE,
    "log_level": (lambda value: value in _LEVELS, f"choose from {', '.join(_LEVELS)}"),
    "visualizer": _MAPPING_OR_NONE,
    "task": _TEXT_OR_NONE,
    "default_scope": (
        lambda value: value in (None, "mmengine", *MODELS.children),
        "choose from mmengine and the libraries that custom_imports brings in",
    ),
}


def check_settings(cfg: Config) -> None:
    """Check the kinds and ranges of the settings that all configs share.

    Args:
        cfg: Config; a setting that it does not have is not checked.

    Raises:
        ConfigError: For the first wrong setting, with its dotted key.
    """
    for pattern, (fits, wanted) in _RULES.items():
        for key, value in _matches(cfg, pattern):
            if not fits(value):
                raise ConfigError(f"{key}={_short(value)}: {wanted}")


def _matches(cfg: Config, pattern: str) -> list[tuple[str, Any]]:
    """Dotted key and value of each setting that a pattern of ``_RULES`` matches."""
    outer, _, leaf = pattern.rpartition(".")
    node: Any = dict(cfg.items())
    for part in outer.split(".") if outer else []:
        node = node.get(part, _ABSENT) if isinstance(node, dict) else _ABSENT
    if not isinstance(node, dict):
        return []
    names = list(node) if leaf == "*" else [leaf] if leaf in node else []
    return [(f"{outer}.{name}" if outer else name, node[name]) for name in names]


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
