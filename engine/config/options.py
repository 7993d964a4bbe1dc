"""The options of a command line, ``--cfg-options a.b=1``: read, and checked against the config that they change."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.registry import DefaultScope

from backbones.arguments import parameters_of
from backbones.errors import ConfigError, nearest
from engine.config.building import BUILDER_KEYS, REGISTRIES, registered_class
from engine.config.datasets import is_wrapper, pipeline_key

DERIVED_KEYS = {
    "num_classes": "classes",
    "accumulative_counts": "batch.size and batch.per_gpu",
    "launcher": "the launch",
}
WEIGHT_SETTINGS = ("weights", "init_cfg")  # of a backbone of ours, and of mmdet and mmseg
RATES = ("lr", "weight_decay")
PIPELINE = re.compile(r"(train|val|test)_dataloader\.dataset\.pipeline(?![^.])")


def parse_options(options: list[str] | None) -> dict[str, Any]:
    """Turn ``--cfg-options a.b=1 c=[2,3]`` into a flat mapping.

    Args:
        options: Texts ``key=value``. A value that is a Python literal with quotes is what it says; any other with a
            bracket, a comma or a quote is a list or a tuple as mmengine's ``DictAction`` takes it; the rest is a
            number, a truth value, ``None`` or text.

    Raises:
        ConfigError: If an option has no ``=``, is a variable of a file (``_name``), or its brackets do not match.
    """
    parsed: dict[str, Any] = {}
    action = DictAction([], "parsed")
    for option in options or []:
        key, equals, value = option.partition("=")
        if not equals or not key:
            raise ConfigError(f"--cfg-options {option!r}: write key=value, such as batch.size=64")
        if key.startswith("_"):
            raise ConfigError(
                f"--cfg-options {key}: a variable inside of the file, which has used its value by now: change it "
                "there, or give a setting, such as model.backbone.type, train_cfg.max_epochs, batch.size, "
                "optim_wrapper.optimizer.lr"
            )
        if value == "{}":
            parsed[key] = {}
            continue
        if set(value).isdisjoint("[(,'\""):
            parsed[key] = _scalar(value)  # mmengine's action drops all blanks, which the name of a folder may have
            continue
        with suppress(ValueError, SyntaxError):
            if not set(value).isdisjoint("'\""):  # DictAction drops quotes and blanks: "01" would become 1
                parsed[key] = ast.literal_eval(value)
                continue
        found = argparse.Namespace()
        try:
            action(argparse.ArgumentParser(), found, [option])
        except (AssertionError, IndexError, ValueError, RecursionError) as error:
            form = "write a mapping as {'type':'Name'}, or in the config" if "dict(" in value else "they do not match"
            raise ConfigError(f"--cfg-options {key!r}: the brackets or quotes of {value!r}: {form}") from error
        parsed |= found.parsed
    return parsed


def _scalar(text: str) -> int | float | bool | str | None:
    for number in (int, float):
        with suppress(ValueError):
            return number(text)
    return {"true": True, "false": False}.get(text.lower(), None if text == "None" else text)


def check_options(cfg: Config, options: Mapping[str, Any]) -> dict[str, Any]:
    """Check that each option sets a key of a mapping that exists.

    Returns:
        The config's own value of each option; ``None`` where it has none.

    Raises:
        ConfigError: If a key does not exist or may not be set.
    """
    before = {}
    for key in options:
        if (pipeline := PIPELINE.match(key)) and not is_wrapper(_node(cfg, f"{pipeline[1]}_dataloader.dataset") or {}):
            driver = pipeline_key(pipeline[1])
            if cfg.get(driver) is not None:
                raise ConfigError(
                    f"--cfg-options {key}: {driver} takes its place: write {driver}{key[pipeline.end() :]}"
                )
        place, _, leaf = key.rpartition(".")
        node = _node(cfg, place)
        if node is None:
            raise ConfigError(f"--cfg-options {key}: the config has no {place!r}")
        if leaf in DERIVED_KEYS:
            raise ConfigError(f"--cfg-options {key}: it follows from {DERIVED_KEYS[leaf]}: change that instead")
        before[key] = node.get(leaf) if isinstance(node, dict) else None
    return before


def merge_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Set options in a config, in place; a mapping replaces a value that is none, which mmengine would refuse."""
    for key, value in options.items():
        place, _, leaf = key.rpartition(".")
        node = _node(cfg, place) if place else cfg
        if isinstance(value, dict) and leaf in node and not isinstance(node[leaf], dict | list):
            node.pop(leaf)
    cfg.merge_from_dict(dict(options))


def _node(cfg: Config, place: str) -> Any:
    """The value under a dotted key, the config for an empty one; ``None`` if there is none."""
    node: Any = dict(cfg.items())
    for part in place.split(".") if place else []:
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict) and part in node:
            node = node[part]
        else:
            return None
    return node


def drop_foreign_arguments(cfg: Config, options: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """Where options changed a ``type``, take out the arguments of the former one that the new one does not take.

    What a network of the tables sets itself, such as its depths, and weights of the former network go too. The config
    has the options already; ``before`` are its own values of them, from :func:`check_options`.

    Returns:
        A line for each part that lost arguments, and for an optimizer with the rate of another.

    Raises:
        ConfigError: If the options state an argument that the new type does not take.
    """
    notes = []
    for key, name in options.items():
        place, _, leaf = key.rpartition(".")
        node, former = _node(cfg, place), before[key]
        built = _new_class(cfg, former, name) if leaf == "type" and name != former else None
        if built is None or not isinstance(node, dict):  # an unknown name has an error of its own
            continue
        stated = {one.removeprefix(f"{place}.").split(".")[0] for one in options if one.startswith(f"{place}.")}
        taken, is_open = parameters_of(built)
        foreign = [one for one in node if not (is_open or one in taken or one in BUILDER_KEYS)]
        if wrong := next((one for one in foreign if one in stated), None):
            raise ConfigError(f"--cfg-options {place}.{wrong}: {name} has no argument {wrong!r}{nearest(wrong, taken)}")
        rest = [one for one in node if one not in {*stated, *foreign}]
        own = [one for one in rest if one in getattr(built, "own_arguments", ())]
        weights = [one for one in rest if one in WEIGHT_SETTINGS and node[one] and place == "model.backbone"]
        groups = {f"not of {name}": foreign, f"{name} has its own": own, f"of {former}": weights}
        dropped = [f"{', '.join(names)} ({reason})" for reason, names in groups.items() if names]
        for one in (*foreign, *own, *weights):
            del node[one]
        if dropped:
            notes.append(f"{key} {former} -> {name}: left out {'; '.join(dropped)}")
        rates = [f"{one}={node[one]}" for one in rest if one in RATES]
        if rates and place == "optim_wrapper.optimizer":
            still = "; momentum is 0 unless stated" if "momentum" in taken.keys() - node.keys() else ""
            notes.append(f"{place}: {', '.join(rates)} stated for {former}, give those of {name}{still}")
    return notes


def _new_class(cfg: Config, former: Any, name: Any) -> Any:
    """What a new ``type`` stands for in the registry that knows the former one too; ``None`` if none does."""
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        known = (registry for registry in REGISTRIES if registered_class(registry, former) is not None)
        return next(filter(None, (registered_class(registry, name) for registry in known)), None)
