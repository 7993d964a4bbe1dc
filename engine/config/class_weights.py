"""Settings with a value for each class: by name or in the order of the classes, and as many as there are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from backbones.errors import ConfigError, describe_error
from backbones.files import open_file, read_text_file
from engine.config.schema import is_number

# ``class_weight`` of mmseg's and mmdet's losses; ``alpha`` of mmseg's focal loss where it is a list.
PER_CLASS_KEYS = ("class_weight", "alpha")
NO_OBJECT = "no object"  # name of the background in weights by name


def set_class_weights(model: Any, names: Sequence[str], background: int, notes: list[str]) -> None:
    """Turn weights by class name into lists, in place, and check the length of lists.

    The weight of the background, or of queries without an object, has the name :data:`NO_OBJECT`.
    Names that are all of other classes come from the config that this one is based on: they are left out. A list with
    one weight for all classes, and another for the background behind them, as Mask2Former has in mmdet and mmseg,
    follows the number of classes.

    Args:
        model: The config's model.
        names: Class names.
        background: Rows that a softmax has for the background beside the classes, such as 1 in mmdet's box heads.
        notes: Gets a line for each setting that was left out or follows.

    Raises:
        ConfigError: If there are weights for another number of classes, or all are 0.
    """
    _visit(model, "model", None, names, background, notes)


def _visit(node: Any, place: str, rows: int | None, names: Sequence[str], background: int, notes: list[str]) -> None:
    """Walk through a part; ``rows`` is the number of classes of the head that it belongs to."""
    if isinstance(node, list | tuple):
        for index, inner in enumerate(node):
            _visit(inner, f"{place}.{index}", rows, names, background, notes)
    if not isinstance(node, dict):
        return
    rows = node.get("num_classes", node.get("num_things_classes", rows))
    for key, value in list(node.items()):
        if key not in PER_CLASS_KEYS or not isinstance(value, list | tuple | Mapping | str):
            _visit(value, f"{place}.{key}", rows, names, background, notes)
        elif rows is not None and not node.get("use_mask"):
            # A loss of queries has a class "no object" in any task.
            extra = 0 if node.get("use_sigmoid") else max(background, int(place.endswith(".loss_cls")))
            value = _read_weights(value, f"{place}.{key}") if isinstance(value, str) else value
            node[key] = _weights(value, f"{place}.{key}", names, extra, notes)


def _read_weights(path: str, place: str) -> Any:
    """Weights in a file, as mmseg reads it: an array of NumPy, or a list, here also a mapping, as JSON."""
    try:
        if not path.endswith(".npy"):
            return json.loads(read_text_file(path))
        with open_file(path) as file:
            return np.lib.format.read_array(file, allow_pickle=False).tolist()
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{place}={path!r} cannot be read as .npy or JSON: {describe_error(error)}") from error


def _weights(value: Any, place: str, names: Sequence[str], extra: int, notes: list[str]) -> list[float] | None:
    if isinstance(value, Mapping):
        others = value.get(NO_OBJECT, 1.0) if extra and NO_OBJECT not in names else 1.0
        unknown = [name for name in value if name not in names and not (extra and name == NO_OBJECT)]
        if unknown and len(unknown) == len(value):
            notes.append(f"{place}: weights of {', '.join(map(repr, unknown[:5]))}, none of the classes, are left out")
            return None
        if unknown:
            raise ConfigError(
                f"{place}: {unknown[0]!r} is none of the classes ({', '.join(names[:5])}); weights of a base "
                "config are merged with these unless they have _delete_=True"
            )
        value = [*(value.get(name, 1.0) for name in names), *[others] * extra]
    count = len(names) + extra
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{place}: a list of {count} weights is needed, not {value!r}")
    stated = len(value) - extra
    # A list as long as the classes may lack the background.
    of_others = extra and stated > 1 and len(value) not in (len(names), count)
    if of_others and all(map(is_number, value)) and all(one == value[0] for one in value[:stated]):
        notes.append(f"{place}: {value[0]:g} for each of {len(names)} classes, where it was for {stated}")
        value = [*[value[0]] * len(names), *value[stated:]]
    if len(value) != count:
        whom = f"{len(names)} classes" + (" and the background" if extra else "")
        raise ConfigError(
            f"{place} has {len(value)} weights for {whom}: give {count}, give them by name, such as "
            f"{{{names[0]!r}: 0.1}}, or set it to None; a config that is based on another has the other's"
        )
    if not all(is_number(one) and one >= 0 for one in value) or not any(value):
        raise ConfigError(f"{place}: numbers from 0 up are needed, and not all of them 0")
    return list(value)
