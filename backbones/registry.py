"""The registry of backbones: one name for a network in Python, in every config and on every command line.

The names live in mmengine's root ``MODELS``, the parent of mmdet's and mmseg's registries, which therefore find them
without a scope: ``backbone=dict(type="convnext_tiny", ...)``.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from inspect import Parameter
from typing import Any

from mmengine.registry import MODELS, Registry

from backbones.arguments import parameters_of
from backbones.base import Backbone
from backbones.convnext import ConvNeXt
from backbones.errors import ConfigError
from backbones.isotropic import IsotropicConvNeXt
from backbones.layers import ContiguousMaps
from backbones.roadmap import RESNET50_TO_TINY, RESNET200_TO_BASE
from backbones.timm_backbones import TimmConvNet, TimmSwin, TimmVisionTransformer
from backbones.variants import (
    CONVNETS,
    CONVNEXT_ISOTROPIC,
    CONVNEXT_V1,
    CONVNEXT_V2,
    FORMER_ARGUMENTS,
    SWIN,
    VIT,
    IsotropicVariant,
    TimmVariant,
    Variant,
    current_arguments,
)

BACKBONES = Registry("backbone", scope="backbones")
MODELS.register_module(module=ContiguousMaps)


def register_backbone(name: str, build: Callable[..., Backbone]) -> None:
    """Register a network here and in mmengine's root registry; it also takes ``frozen_stages``.

    Args:
        name: Lower-case name for configs and commands.
        build: Builds the network from keyword arguments.

    Raises:
        KeyError: If the name is taken.
    """
    if name in BACKBONES.module_dict:
        raise KeyError(f"backbone {name!r} is registered already: choose another name")

    def factory(frozen_stages: int = -1, **kwargs: Any) -> Backbone:
        # An explicit wrapper: mmengine refuses functools.partial objects, which have no __name__.
        network = build(**kwargs)
        if frozen_stages != -1:
            network.freeze_stages(frozen_stages)
        return network

    factory.__name__ = name
    factory.__signature__, factory.own_arguments = _signature(build)  # type: ignore[attr-defined]
    MODELS.register_module(name=name, module=factory)
    BACKBONES.register_module(name=name, module=factory)


def _signature(build: Callable[..., Backbone]) -> tuple[inspect.Signature, dict[str, Any]]:
    """Signature of a registered network, and the arguments that it sets itself, such as its depths."""
    network, renames = build, {}
    if isinstance(build, partial) and build.func is _build:
        network, renames = build.args[0], FORMER_ARGUMENTS
    found, is_open = parameters_of(network)
    named = {name: one.replace(kind=Parameter.KEYWORD_ONLY) for name, one in found.items()}
    named["frozen_stages"] = Parameter("frozen_stages", Parameter.KEYWORD_ONLY, default=-1)
    for former, current in renames.items():
        if current in found:
            named[former] = named[current].replace(name=former)
    others = [Parameter("others", Parameter.VAR_KEYWORD)] if is_open else []
    return inspect.Signature([*named.values(), *others]), getattr(network, "keywords", {})


def list_backbones() -> list[str]:
    """Names of all registered networks, in the order of registration."""
    return list(BACKBONES.module_dict)


def unknown_backbone(name: str) -> ConfigError:
    """The error for a name that is not registered, with the nearest names."""
    known = list_backbones()
    containing = [other for other in known if name and name in other]
    nearest = (containing or difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known)[:3]
    return ConfigError(f"unknown backbone {name!r}; nearest: {', '.join(nearest)} (all: backbones.list_backbones())")


def build_backbone(name: str, **kwargs: Any) -> Backbone:
    """Build a network by name and load its ``weights``, if given.

    Args:
        name: Name in :func:`list_backbones`.
        **kwargs: Arguments of the network, such as ``out_indices``, ``drop_path_rate``, ``weights``, and
            ``frozen_stages`` of :meth:`backbones.base.Backbone.freeze_stages`.

    Returns:
        The network.

    Raises:
        ConfigError: If the name is unknown or an argument does not exist.
        CheckpointError: If the weights cannot be read or do not fit.
    """
    if name not in BACKBONES.module_dict:
        raise unknown_backbone(name)
    try:
        network: Backbone = BACKBONES.module_dict[name](**kwargs)
    except TypeError as error:
        raise ConfigError(f"{name}: {error}") from error
    network.init_weights()
    return network


def _register(network: type[Backbone], rows: Mapping[str, Variant | IsotropicVariant | TimmVariant]) -> None:
    """Register a network for each row of a table; keyword arguments override the row's values."""
    for name, row in rows.items():
        register_backbone(name, partial(_build, partial(network, **row.arguments())))


def _build(network: Callable[..., Backbone], **arguments: Any) -> Backbone:
    return network(**current_arguments(arguments))


_TABLES = (
    (ConvNeXt, CONVNEXT_V1),
    (ConvNeXt, CONVNEXT_V2),
    (IsotropicConvNeXt, CONVNEXT_ISOTROPIC),
    (TimmSwin, SWIN),
    (TimmVisionTransformer, VIT),
    (TimmConvNet, CONVNETS),
)
for _network, _rows in _TABLES:
    _register(_network, _rows)
for _name, _row in {**RESNET50_TO_TINY, **RESNET200_TO_BASE}.items():
    register_backbone(_name, partial(_build, _row.constructor()))
