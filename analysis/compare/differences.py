"""Settings in which trainings differ, under dotted keys as ``--cfg-options`` takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from analysis.compare.runs import ComparedSetting, compared_config
from analysis.sweep.report.findings import value_text

NOT_STATED = "not stated"
MAX_LABEL_KEYS, MAX_LABEL = 2, 34  # settings and characters in the label of a setting


def differing(values: Sequence[Any], key: str = "") -> dict[str, list[Any]]:
    """The parts of several values that differ, by their dotted keys.

    Mappings are compared key by key, and lists that are equally long and have mappings in them place by place; of other
    lists the whole lists are given.

    Args:
        values: Plain values.
        key: Dotted key of the values.

    Returns:
        For each key the values in the given order; ``not stated`` where a mapping lacks it.
    """
    first = values[0]
    if all(value == first for value in values):
        return {}
    parts: list[tuple[Any, list[Any]]] = []
    if all(isinstance(value, Mapping) for value in values):
        names = dict.fromkeys(name for value in values for name in value)
        parts = [(name, [value.get(name, NOT_STATED) for value in values]) for name in names]
    elif all(isinstance(value, list) and len(value) == len(first) and _has_mappings(value) for value in values):
        parts = [(place, list(items)) for place, items in enumerate(zip(*values, strict=True))]
    if not parts:
        return {key: list(values)}
    found: dict[str, list[Any]] = {}
    for name, items in parts:
        found |= differing(items, f"{key}.{name}" if key else str(name))
    return found


def _has_mappings(items: Sequence[Any]) -> bool:
    return any(isinstance(item, Mapping) for item in items)


def find_differences(settings: Sequence[ComparedSetting]) -> dict[str, list[Any]]:
    """The config settings in which those with a config differ; ``None`` for one without a config."""
    configs = {one.letter: config for one in settings if (config := compared_config(one)) is not None}
    if not configs:
        return {}
    found = differing(list(configs.values()))
    return {
        key: [dict(zip(configs, values, strict=True)).get(one.letter) for one in settings]
        for key, values in found.items()
    }


def folded(differences: Mapping[str, Sequence[Any]]) -> dict[str, tuple[list[str], Sequence[Any]]]:
    """Settings with the same last name and the same values as one: the resolved config repeats what depends on others.

    Returns:
        For the first key of each, the further keys and the values.
    """
    first: dict[str, str] = {}
    found: dict[str, tuple[list[str], Sequence[Any]]] = {}
    for key, values in differences.items():
        same = first.setdefault(f"{key.rpartition('.')[2]} {values}", key)
        if same == key:
            found[key] = ([], values)
        else:
            found[same][0].append(key)
    return found


def find_circumstances(settings: Sequence[ComparedSetting]) -> dict[str, list[str]]:
    """What differs beside the config, such as the code; several values of a setting's trainings side by side."""
    rows: dict[str, list[str]] = {}
    for name in settings[0].runs[0].circumstances:
        values = [" / ".join(dict.fromkeys(run.circumstances[name] for run in one.runs)) for one in settings]
        if len(set(values)) > 1 or any(" / " in value for value in values):
            rows[name] = values
    return rows


def labelled(settings: Sequence[ComparedSetting], differences: Mapping[str, Sequence[Any]]) -> list[ComparedSetting]:
    """The settings with a label: what differs, if that is short for all, else the name of the first folder."""
    rows = folded(differences)
    texts = [
        ", ".join(f"{key.rpartition('.')[2]}={value_text(values[place])}" for key, (_, values) in rows.items())
        for place in range(len(settings))
    ]
    labels = [
        text if texts.count(text) == 1 else f"{text} ({one.runs[0].name})"
        for one, text in zip(settings, texts, strict=True)
    ]
    known = all(one.config is not None for one in settings)
    if not rows or len(rows) > MAX_LABEL_KEYS or not known or max(map(len, labels)) > MAX_LABEL:
        labels = [one.runs[0].name[:MAX_LABEL] for one in settings]
    return [replace(one, label=f"{one.letter}: {label}") for one, label in zip(settings, labels, strict=True)]
