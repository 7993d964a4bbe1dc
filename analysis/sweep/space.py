"""The space of a study: its dimensions, their values, and the settings of a config that a value stands for."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import optuna

from backbones.errors import ConfigError, nearest
from engine.config.schema import is_number, is_whole

Kind = Literal["log_uniform", "uniform", "choice", "grid"]
CONFIG_KEY = "config"  # a dimension, or a setting of a named value, that chooses the config file


@dataclass(frozen=True)
class Dimension:
    """One dimension of a space.

    Attributes:
        name: Dotted config key; where values have names, a label.
        kind: ``log_uniform`` and ``uniform`` are sampled between two limits, ``choice`` among values; of ``grid`` every
            value is run.
        low: Lower limit.
        high: Upper limit, included.
        step: Distance of values; they are whole numbers where limits and step are.
        values: Values of a choice or a grid; their names where they have some.
        settings: Settings under dotted keys for which a name stands; empty where values are those of the key.
    """

    name: str
    kind: Kind
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    values: tuple[Any, ...] = ()
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def suggest(self, trial: optuna.trial.Trial) -> Any:
        """The value of a trial; sampled where it has none yet."""
        if self.values:
            return decode_value(trial.suggest_categorical(self.name, [encode_value(value) for value in self.values]))
        if self.step is not None and all(is_whole(one, 1) for one in (self.low, self.high, self.step)):
            return trial.suggest_int(self.name, int(self.low), int(self.high), step=int(self.step))
        log = self.kind == "log_uniform"
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=log)

    def options(self, value: Any) -> dict[str, Any]:
        """The settings, under dotted keys, that a value stands for."""
        return dict(self.settings[value]) if self.settings else {self.name: value}

    @property
    def examples(self) -> tuple[Any, ...]:
        """Values that a check tries: all of a choice or a grid, else both limits."""
        return self.values or (self.low, self.high)

    @property
    def keys(self) -> set[str]:
        """Dotted keys of the settings that the values change."""
        return {key for settings in self.settings.values() for key in settings} or {self.name}


def read_space(stated: Any) -> tuple[Dimension, ...]:
    """The dimensions of a study file's ``space``.

    Args:
        stated: Mapping from a dotted key or a label to one of ``dict(log_uniform=(low, high))``,
            ``dict(uniform=(low, high), step=None)``, ``dict(choice=values)`` and ``dict(grid=values)``; ``values``
            are a sequence, or a mapping from names to settings.

    Raises:
        ConfigError: If a dimension is not declared so, or two change the same key.
    """
    if not isinstance(stated, Mapping):
        raise ConfigError(f"space={stated!r}: a mapping of dimensions is needed, such as {_EXAMPLE}")
    dimensions = tuple(_read_dimension(str(name), one) for name, one in stated.items())
    for one, other in itertools.combinations(dimensions, 2):
        if shared := one.keys & other.keys:
            raise ConfigError(f"space: {one.name!r} and {other.name!r} both change {', '.join(sorted(shared))}")
    return dimensions


_EXAMPLE = "{'optim_wrapper.optimizer.lr': dict(log_uniform=(1e-5, 1e-2))}"


def _read_dimension(name: str, stated: Any) -> Dimension:
    place = f"space[{name!r}]"
    kinds = get_args(Kind)
    found = [key for key in stated if key in kinds] if isinstance(stated, Mapping) else []
    if len(found) != 1:
        wrong = next(iter(stated), "") if isinstance(stated, Mapping) else ""
        raise ConfigError(f"{place}: one of {', '.join(kinds)} is needed{nearest(str(wrong), kinds)}, as in {_EXAMPLE}")
    kind: Kind = found[0]
    others = set(stated) - {kind} - ({"step"} if kind == "uniform" else set())
    if others:
        raise ConfigError(f"{place}: {kind} takes no {', '.join(sorted(others))}")
    if kind in ("choice", "grid"):
        return _read_values(name, kind, stated[kind], place)
    limits = stated[kind]
    if not (isinstance(limits, Sequence) and len(limits) == 2 and all(map(is_number, limits))):
        raise ConfigError(f"{place}.{kind}={limits!r}: two numbers are needed, the lower and the upper limit")
    low, high = limits
    if not low < high or (kind == "log_uniform" and low <= 0):
        above = " above 0" if kind == "log_uniform" else ""
        raise ConfigError(f"{place}.{kind}={tuple(limits)!r} has no points: a lower limit{above} and a higher one")
    step = stated.get("step")
    if step is not None and not (is_number(step) and 0 < step <= high - low):
        raise ConfigError(f"{place}.step={step!r}: a positive number up to {high - low:g} is needed")
    return Dimension(name, kind, low, high, step)


def _read_values(name: str, kind: Kind, values: Any, place: str) -> Dimension:
    named = isinstance(values, Mapping)
    if not (named or (isinstance(values, Sequence) and not isinstance(values, str))):
        raise ConfigError(f"{place}.{kind}={values!r}: a list of values is needed, or a mapping of named settings")
    if not values:
        raise ConfigError(f"{place}.{kind} has no points: name at least one value")
    if not named:
        plain = tuple(list(value) if isinstance(value, tuple) else value for value in values)
        if len({json.dumps(value, default=repr) for value in plain}) < len(plain):
            raise ConfigError(f"{place}.{kind}={values!r}: each value once")
        if wrong := next((one for one in plain if not isinstance(one, bool | int | float | str | list | None)), None):
            raise ConfigError(f"{place}.{kind}: give {wrong!r} a name: dict({kind}=dict(name={{'key': value}}))")
        return Dimension(name, kind, values=plain)
    for label, settings in values.items():
        if not isinstance(settings, Mapping):
            raise ConfigError(f"{place}.{kind}[{label!r}]={settings!r}: a mapping from dotted keys to values is needed")
    settings = {str(label): dict(one) for label, one in values.items()}
    return Dimension(name, kind, values=tuple(settings), settings=settings)


def encode_value(value: Any) -> Any:
    """A value as Optuna keeps it among choices: lists as their JSON."""
    return json.dumps(value) if isinstance(value, list) else value


def decode_value(value: Any) -> Any:
    """The value that :func:`encode_value` was given."""
    return json.loads(value) if isinstance(value, str) and value.startswith("[") else value


def grid_points(space: Sequence[Dimension]) -> list[dict[str, Any]]:
    """The points of the grid of all ``grid`` dimensions, as Optuna keeps their values; one empty point without any."""
    grids = [dimension for dimension in space if dimension.kind == "grid"]
    names = [dimension.name for dimension in grids]
    return [dict(zip(names, map(encode_value, point))) for point in itertools.product(*(one.values for one in grids))]


def is_all_grid(space: Sequence[Dimension]) -> bool:
    """Whether nothing is sampled: the study is the points of a grid, of which an empty space has one."""
    return all(dimension.kind == "grid" for dimension in space)


def settings_of(space: Sequence[Dimension], values: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under dotted keys of a training at a point; ``config`` among them where the space chooses it.

    Args:
        space: Dimensions.
        values: Value of each dimension by its name.
        options: Options of all trainings; the point's go before them.
    """
    merged = dict(options)
    for dimension in space:
        if dimension.name in values:
            merged |= dimension.options(values[dimension.name])
    return merged
