"""Parameters and multiply-adds of a config's whole model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from mmengine.registry import MODELS
from torch import nn

from analysis.flops import Count, count_built
from backbones.errors import ConfigError
from engine.config.building import build
from engine.config.load import load_config
from engine.config.world import Launch
from engine.task import Shape, task_of


def count_config(path: str | Path, shape: Shape | None = None, options: dict[str, Any] | None = None) -> Count:
    """Count the model of a config of any task, heads included, the way its papers do.

    Args:
        path: Config file.
        shape: Height and width in pixels; by default those of the config's test images, or of the task's papers for
            their scale (``TaskSpec.default_shape``).
        options: Overrides of the config under dotted keys.

    Raises:
        ConfigError: If the config is wrong, or its model does not take images of this shape.
    """
    cfg = load_config(path, options, launch=Launch()).cfg
    cfg.model.get("backbone", {}).pop("weights", None)
    task = task_of(cfg)
    shape = shape or task.default_shape(cfg)
    if shape is None:
        raise ConfigError(f"config {str(path)!r}: its test pipeline states no size; give the image with --shape H W")

    def build_model() -> nn.Module:
        model: nn.Module = build(MODELS, copy.deepcopy(cfg.model), "model", cfg.get("default_scope"))
        return model  # mmdet's models change their settings

    return count_built(str(path), task.counted_parts, build_model, task.count_forward, shape)
