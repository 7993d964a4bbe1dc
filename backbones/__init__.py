"""Networks of all families under one registry, with their weights, layouts and kernels.

Lowest package of the project: it knows no task, no config and no data. ``build_backbone(name)`` is the entry, and every
network answers for its channels, strides and layers as a :class:`Backbone`.
"""

from backbones.base import Backbone
from backbones.errors import CheckpointError, ConfigError, DataError, MachineError, UserError
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
