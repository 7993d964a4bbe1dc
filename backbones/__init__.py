"""The registry of backbones: networks, weights in and out; knows no task."""

from backbones.base import Backbone
from backbones.errors import UserError
from backbones.registry import build_backbone, list_backbones, register_backbone

__all__ = ["Backbone", "UserError", "build_backbone", "list_backbones", "register_backbone"]
