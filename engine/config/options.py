"""The options of a command line, ``--cfg-options a.b=1``: read, and checked against the config that they change."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from mmengine.config import Config, DictAction

from backbones.errors import ConfigError

DERIVED_KEYS = {
    "num_classes": "classes",
    "accumulative_counts": "batch.size and batch.per_gpu",
    "launcher": "the launch",
}


def parse_options(options: list[str] | None) -> dict[str, Any]:
    """Turn ``--cfg-options a.b=1 c=[2,3]`` into a flat mapping.

    Args:
        options: Texts ``key=value``. A value that is a Python literal with quotes is what it says; any other with a
            bracket, a comma or a quote is a list or a tuple as mmengine's ``DictAction`` takes it; the rest is a
            number, a truth value, ``None`` or text.

    Raises:
        ConfigError: If an option has no ``=``, or its brackets do not match.
    """
    parsed: dict[str, Any] = {}
    action = DictAction([], "parsed")
    for option in options or []:
        key, equals, value = option.partition("=")
        if not equals or not key:
            raise ConfigError(f"--cfg-options {option!r}: write key=value, such as batch.size=64")
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
        except (AssertionError, IndexError, ValueError) as error:
            raise ConfigError(f"--cfg-options {key!r}: the brackets or quotes of {value!r} do not match") from error
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
        parent, _, leaf = key.rpartition(".")
        node: Any = dict(cfg.items())
        for part in parent.split(".") if parent else []:
            if isinstance(node, list) and part.isdigit() and int(part) < len(node):
                node = node[int(part)]
            elif isinstance(node, dict) and part in node:
                node = node[part]
            else:
                raise ConfigError(f"--cfg-options {key}: the config has no {parent!r}")
        if leaf in DERIVED_KEYS:
            raise ConfigError(f"--cfg-options {key}: it follows from {DERIVED_KEYS[leaf]}: change that instead")
        before[key] = node.get(leaf) if isinstance(node, dict) else None
    return before
