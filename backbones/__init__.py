"""Networks of all families under one registry, with their weights, layouts and kernels.

Lowest package of the project: it knows no task, no config and no data. ``build_backbone(name)`` is the entry, and every
network answers for its channels, strides and layers as a :class:`Backbone`. The names below are imported when they are
first used, so that the package itself needs no torch; ``backbones.registry`` enters the networks into mmengine's
registry.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from backbones.errors import CheckpointError, ConfigError, DataError, MachineError, UserError

if TYPE_CHECKING:
    from backbones.base import Backbone
    from backbones.registry import build_backbone, list_backbones, register_backbone
    from backbones.weights import LoadReport, read_checkpoint

__all__ = [
    "Backbone",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "LoadReport",
    "MachineError",
    "UserError",
    "build_backbone",
    "list_backbones",
    "read_checkpoint",
    "register_backbone",
]

_MODULES = {"Backbone": "base", "LoadReport": "weights", "read_checkpoint": "weights"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'registry')}"), name)
