"""Class names: one setting that drives dataset, heads and evaluator of any task."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from backbones.errors import ConfigError
from backbones.files import describe_special, read_text_file
from engine.config.datasets import inner_datasets
from engine.task import TASK_SPECS, task_of

FROM_DATA = "from_data"


def class_names(classes: str | Sequence[str]) -> tuple[str, ...]:
    """Resolve the ``classes`` setting of a config.

    Args:
        classes: Names in order, of which whole numbers are taken as text; or the path of a text file with one name
            per line; or ``imagenet-1k`` (WordNet ids, the folder names of ImageNet) or another set that a registered
            task names (``TaskSpec.named_classes``).

    Returns:
        The names.

    Raises:
        ConfigError: If there are none, one is there twice, or the string is neither a known set nor a file.
    """
    if not isinstance(classes, str | list | tuple):
        wanted = "names in order are needed, not their number, or a file with one name per line"
        raise ConfigError(f"classes={classes!r}: {wanted}")
    names = tuple(_named_set(classes) if isinstance(classes, str) else map(_as_text, classes))
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"classes={classes!r}: at least one name is needed, and names are not empty")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ConfigError(f"classes: {twice[0]!r} stands twice")
    return names


def fill_classes(cfg: Config) -> None:
    """Replace ``classes`` that are absent or ``"from_data"``, in place, by what the training data says.

    Raises:
        UserError: If the data is not there, has no names, or several data sets have different ones.
    """
    if cfg.get("classes") not in (None, FROM_DATA):
        return
    loader = cfg.get("train_dataloader")
    found = [tuple(task_of(cfg).data_classes(one)) for one in inner_datasets(loader.dataset)] if loader else []
    if len(set(found)) != 1 or not found[0]:
        why = "the training data sets have different ones" if len(set(found)) > 1 else "the data tells none"
        raise ConfigError(
            f"config states no classes, and {why}: a tuple of names, a file with one name per line, or a known set"
        )
    cfg.classes = found[0]


def check_own_names(dataset: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse the ``metainfo`` of a data set that names other classes than the config, or in another order.

    One with the colours of :func:`palette` is of a resolved config, whose classes were changed since.

    Raises:
        ConfigError: With the setting that holds for all data sets.
    """
    meta = dataset.get("metainfo") or {}
    stated = meta.get("classes")
    if stated is None or [tuple(one) for one in meta.get("palette") or ()] == palette(class_names(stated)):
        return
    if class_names(stated) != tuple(names):
        raise ConfigError(
            f"{dataset['type']}: metainfo.classes={stated!r} is not the config's classes ({', '.join(names[:5])}...): "
            "name them once, as classes=(...) at the top of the config, for all data sets, heads and scores"
        )


def palette(names: Sequence[str]) -> list[tuple[int, int, int]]:
    """Distinct RGB colours for drawing classes: golden-ratio steps around the hue circle, grey for a background."""
    golden = 0.618033988749895
    shades = ((0.85, 0.95), (0.6, 0.75), (0.95, 0.6))
    colours = [colorsys.hsv_to_rgb((i * golden) % 1.0, *shades[i % 3]) for i in range(len(names))]
    return [
        (64, 64, 64) if name == "background" else (round(255 * red), round(255 * green), round(255 * blue))
        for name, (red, green, blue) in zip(names, colours, strict=True)
    ]


def class_colours(meta: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """Colours of the classes of a data set, RGB: its ``palette``, if it has one for these classes.

    Args:
        meta: The data set's ``metainfo``.
    """
    stated, names = meta.get("palette") or (), meta["classes"]
    if len(stated) != len(names):  # that of the data set whose format the classes' own set has
        return palette(names)
    return [(int(red), int(green), int(blue)) for red, green, blue in stated]


def _as_text(name: Any) -> str:
    """A class name as text; a whole number, such as the name of a folder, is written in decimal digits.

    Raises:
        ConfigError: If it is neither, such as ``yes`` of a YAML file, which is read as a truth value.
    """
    if isinstance(name, str):
        return name
    if isinstance(name, int) and not isinstance(name, bool):
        return str(name)
    raise ConfigError(f"classes: {name!r} is neither text nor a whole number: write the name in quotes")


def _named_set(name: str) -> Sequence[str]:
    known = TASK_SPECS.named_classes()
    if name in known:
        return known[name].names()
    path = Path(name)
    if special := describe_special(path):
        raise ConfigError(f"classes={name!r} {special}")
    if not path.is_file():
        sets = ", ".join(sorted(known))
        raise ConfigError(f"classes={name!r} is neither a file with one name per line nor one of {sets}")
    try:
        return [line.strip() for line in read_text_file(path).splitlines() if line.strip()]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"classes={name!r} cannot be read: a text file in UTF-8 is needed ({error})") from error
