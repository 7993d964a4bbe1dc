"""Building the parts of a config; a wrong setting is a ``ConfigError`` that names its place in the config."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import mmengine.registry as registries
from mmengine.registry import DefaultScope, Registry

from backbones.arguments import named_in_constructors, parameters_of, required_by
from backbones.errors import ConfigError, UserError, describe_error, nearest
from backbones.packages import missing_package, missing_package_error, package_of_type

REGISTRIES: tuple[Registry, ...] = (
    *(registries.MODELS, registries.TASK_UTILS, registries.WEIGHT_INITIALIZERS, registries.FUNCTIONS),
    *(registries.DATASETS, registries.TRANSFORMS, registries.DATA_SAMPLERS, registries.LOOPS, registries.HOOKS),
    *(registries.OPTIMIZERS, registries.OPTIM_WRAPPERS, registries.OPTIM_WRAPPER_CONSTRUCTORS),
    *(registries.PARAM_SCHEDULERS, registries.METRICS, registries.EVALUATOR, registries.VISUALIZERS),
    *(registries.VISBACKENDS, registries.LOG_PROCESSORS),
)
# What constructors raise for an argument of the wrong name, kind or value.
REFUSALS = (TypeError, ValueError, LookupError)
# What mmengine and its builders take out of a part before they call its constructor.
BUILDER_KEYS = ("type", "_scope_", "constructor", "paramwise_cfg", "convert_to_iter_based", "epoch_length", "priority")
UNEXPECTED_ARGUMENT = re.compile(r"unexpected keyword argument '(\w+)'")


def add_function_scope(scope: str) -> None:
    """Let functions be looked up in the scope of a library that registers none: mmengine would warn each time.

    Args:
        scope: Scope of the library.
    """
    if scope not in registries.FUNCTIONS.children:
        Registry("function", parent=registries.FUNCTIONS, scope=scope)


def build(registry: Registry, settings: Mapping[str, Any], place: str, scope: str | None = None, **given: Any) -> Any:
    """Build a part of a config.

    Args:
        registry: Registry of the part's ``type``.
        settings: The part: ``type`` and the arguments of its constructor.
        place: Dotted key of the part in the config, for error messages.
        scope: Default scope during the construction; ``None`` for the current one.
        given: Arguments that the config does not state.

    Returns:
        The object.

    Raises:
        ConfigError: If a type, an argument's name or a value in it is wrong.
        MachineError: If a package is missing.
    """
    if given:
        settings = {**given, **settings}
    with DefaultScope.overwrite_default_scope(scope), building({place: settings}, place):
        if isinstance(settings, Mapping):
            _known_class(registry, settings, place)
        return registry.build(settings)


def check_arguments(registry: Registry, settings: Mapping[str, Any], place: str, *given: str) -> Any:
    """Check the type and the names of the arguments of a part that cannot be built without data.

    Args:
        registry: Registry of the part's ``type``, in the present default scope.
        settings: The part.
        place: Dotted key of the part in the config, for error messages.
        given: Arguments that the config does not state.

    Returns:
        The class or function.

    Raises:
        ConfigError: If the type or an argument is unknown, or an argument that must be stated is not.
    """
    built = _known_class(registry, settings, place)
    parameters, is_open = parameters_of(built)
    unknown = [key for key in _unknown(settings, parameters) if key not in named_in_constructors(built)]
    if unknown and not is_open:
        raise ConfigError(f"config does not build: {place}: {_no_argument(settings, unknown, parameters)}")
    if missing := [name for name in required_by(built) if name not in (*settings, *given)]:
        raise ConfigError(f"config does not build: {place}: {_name(settings)} needs the argument {missing[0]!r}")
    return built


@contextmanager
def building(cfg: Mapping[str, Any], *places: str) -> Iterator[None]:
    """Turn what constructors raise inside of this context into a ``ConfigError`` that names the part.

    Constructors of mmdet and mmseg build their inner parts themselves. The part that an error is about is found by
    building each part alone: the innermost one that raises the same error is named.

    Args:
        cfg: Config.
        places: Top-level keys of the parts that are built, in the order in which they are searched.

    Raises:
        ConfigError: If a type, an argument's name or a value is wrong.
        MachineError: If a package is missing.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a constructor may raise anything
        package = missing_package(error)
        for place in places:
            found = _refused_part(cfg.get(place), place, error)
            if found is not None and package:
                raise missing_package_error(package, f"{found[0]}: {_name(found[1])}") from error
            if found is not None:
                raise _refusal(*found, error) from error
        if not isinstance(error, REFUSALS):
            raise
        where = f"{places[0]}: " if len(places) == 1 else ""
        raise ConfigError(f"config does not build: {where}{describe_error(error)}") from error


def _refused_part(node: Any, place: str, error: Exception) -> tuple[str, Mapping[str, Any], Registry] | None:
    """Place, settings and registry of the innermost part whose construction alone raises an equal error."""
    entries = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list | tuple) else ()
    for key, inner in entries:
        if (found := _refused_part(inner, f"{place}.{key}", error)) is not None:
            return found
    if isinstance(node, Mapping) and (isinstance(name := node.get("type"), str) or callable(name)):
        known = [registry for registry in REGISTRIES if registered_class(registry, name) is not None]
        for registry in known or (REGISTRIES if isinstance(error, KeyError) else ()):
            try:
                registry.build(copy.deepcopy(node))
            except Exception as again:  # the same one, or another that the part's owner prevents
                if type(again) is type(error) and str(again) == str(error):
                    return place, node, registry
    return None


def _refusal(place: str, settings: Mapping[str, Any], registry: Registry, error: Exception) -> UserError:
    built = registered_class(registry, settings["type"])
    if built is None:
        return _unregistered(registry, settings, place)
    parameters, is_open = parameters_of(built)
    unknown = _unknown(settings, parameters)
    reason = f"{_name(settings)}: {describe_error(error)}"
    said = UNEXPECTED_ARGUMENT.search(str(error))  # tells the one that is not known, where others may be taken too
    if said and said[1] in unknown:
        reason = _no_argument(settings, [said[1]] if is_open else unknown, parameters)
    return ConfigError(f"config does not build: {place}: {reason}")


def _known_class(registry: Registry, settings: Mapping[str, Any], place: str) -> Any:
    built = registered_class(registry, settings.get("type"))
    if built is None:
        raise _unregistered(registry, settings, place)
    return built


def _unregistered(registry: Registry, settings: Mapping[str, Any], place: str) -> UserError:
    """The error about a type that is missing, unknown, or registered by a package that is not there."""
    if not isinstance(name := settings.get("type"), str):
        return ConfigError(f"config does not build: {place}: its type is missing")
    if package := package_of_type(name):
        return missing_package_error(package, f"{place}: {name}")
    with registry.switch_scope_and_registry(None) as scoped:
        known = [*scoped.module_dict, *(scoped.parent.module_dict if scoped.parent else ())]
    return ConfigError(
        f"config does not build: {place}: {name} is not in the {registry.name} registry{nearest(name, known)}"
    )


def _unknown(settings: Mapping[str, Any], parameters: Iterable[str]) -> list[str]:
    return sorted(settings.keys() - {*parameters, *BUILDER_KEYS})


def _no_argument(settings: Mapping[str, Any], unknown: list[str], parameters: Iterable[str]) -> str:
    name = _name(settings)
    fix = f"; correct it, or leave out with _delete_=True beside type={name!r} what the base has for another type"
    return f"{name} has no argument {', '.join(map(repr, unknown))}{nearest(unknown[0], (*parameters, 'type'))}{fix}"


def _name(settings: Mapping[str, Any]) -> str:
    kind = settings["type"]
    return kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))


def registered_class(registry: Registry, kind: Any) -> Any:
    """Return what a ``type`` in a config stands for.

    Args:
        registry: Registry to look in, in the present default scope.
        kind: Registered name, or a class, which is returned as it is.

    Returns:
        The class or function; ``None`` if the name is unknown or ``kind`` is neither.
    """
    if not isinstance(kind, str):
        return kind if callable(kind) else None
    with registry.switch_scope_and_registry(None) as scoped, suppress(RuntimeError):  # a dotted name of no module
        return scoped.get(kind)
    return None
