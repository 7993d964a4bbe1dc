"""One name, one network: in Python, in every config and on every command line.

The names live in mmengine's root ``MODELS``, the parent of mmdet's and mmseg's registries, which therefore find them
without a scope: ``backbone=dict(type="convnext_tiny", ...)``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from mmengine.registry import MODELS
from torch import nn

from backbones.convnext import ConvNeXt
from backbones.errors import UserError
from backbones.isotropic import IsotropicConvNeXt
from backbones.roadmap import RESNET50_TO_TINY, RESNET200_TO_BASE
from backbones.timm_backbones import TimmConvNet, TimmSwin, TimmVisionTransformer
from backbones.variants import (
    CONVNETS,
    CONVNEXT_V1,
    CONVNEXT_V2,
    ISOTROPIC,
    SWIN,
    VIT,
    IsotropicVariant,
    TimmVariant,
    Variant,
    current_arguments,
)

_NAMES: dict[str, Callable[..., nn.Module]] = {}


class Backbone(Protocol):
    """What every registered network answers about itself; :class:`backbones.base.Network` does most of it."""

    out_channels: tuple[int, ...]
    strides: tuple[int, ...]
    num_features: int

    @property
    def num_layers(self) -> int: ...

    def layer_id(self, name: str) -> int: ...

    @property
    def num_blocks(self) -> int: ...

    def block_id(self, name: str) -> int: ...

    def stage_id(self, name: str) -> int | None: ...

    def no_weight_decay(self, name: str) -> bool: ...


def register_backbone(name: str, build: Callable[..., nn.Module]) -> None:
    """Give a network its name, here and in mmengine's root registry.

    Args:
        name: Lower-case name, as it will be written in configs and commands.
        build: Makes the network from keyword arguments.

    Raises:
        KeyError: If the name is taken.
    """
    if name in _NAMES:
        raise KeyError(f"backbone {name!r} is registered already: choose another name")

    def factory(**kwargs: Any) -> nn.Module:
        # An explicit wrapper: mmengine refuses functools.partial objects, which have no __name__.
        return build(**kwargs)

    factory.__name__ = name
    MODELS.register_module(name=name, module=factory)
    _NAMES[name] = factory


def list_backbones() -> list[str]:
    """Names of all registered networks, in the order of the table."""
    return list(_NAMES)


def unknown_backbone(name: str) -> UserError:
    """The error for a name that is not registered, with the nearest names."""
    parts = [known for known in _NAMES if name and name in known]
    near = (parts or difflib.get_close_matches(name, _NAMES, n=3, cutoff=0.4) or list(_NAMES))[:3]
    return UserError(f"unknown backbone {name!r}; nearest: {', '.join(near)} (all: backbones.list_backbones())")


def build_backbone(name: str, **kwargs: Any) -> Any:
    """Build a network by name and, with ``weights=``, load it.

    Args:
        name: A name of :func:`list_backbones`.
        **kwargs: Arguments of the network, such as ``out_indices``, ``drop_path_rate``, ``weights``.

    Returns:
        The network, see :class:`Backbone` for what it answers.

    Raises:
        UserError: If the name is unknown, an argument does not exist, or the weights do not fit.
    """
    if name not in _NAMES:
        raise unknown_backbone(name)
    try:
        network: Any = _NAMES[name](**kwargs)
    except TypeError as error:
        raise UserError(f"{name}: {error}") from error
    network.init_weights()
    return network


def _register(network: type[nn.Module], rows: Mapping[str, Variant | IsotropicVariant | TimmVariant]) -> None:
    """Register each row of a table as a network; a keyword argument goes before what the row says."""
    for name, row in rows.items():
        register_backbone(name, partial(_build, partial(network, **row.arguments())))


def _build(network: Callable[..., nn.Module], **arguments: Any) -> nn.Module:
    return network(**current_arguments(arguments))


_register(ConvNeXt, CONVNEXT_V1)
_register(ConvNeXt, CONVNEXT_V2)
_register(IsotropicConvNeXt, ISOTROPIC)
_register(TimmSwin, SWIN)
_register(TimmVisionTransformer, VIT)
_register(TimmConvNet, CONVNETS)
for _name, _row in {**RESNET50_TO_TINY, **RESNET200_TO_BASE}.items():
    register_backbone(_name, partial(_build, _row.build))
