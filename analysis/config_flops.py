"""Parameters and multiply-adds of a config's whole model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import nn

from analysis.flops import Count, count_built
from backbones.channels import image_channels
from backbones.errors import ConfigError
from engine.config.building import build
from engine.config.load import load_config
from engine.config.world import Launch
from engine.mmcv_ops import check_layers
from engine.planning.misfits import MisfitError, refusing_misfits
from engine.task import Shape, TaskSpec, task_of


def count_config(path: str | Path, shape: Shape | None = None, options: dict[str, Any] | None = None) -> Count:
    """Count the model of a config of any task, heads included, the way its papers do.

    Args:
        path: Config file.
        shape: Height and width in pixels; by default those of the config's test images, or of the task's papers for
            their scale (``TaskSpec.default_shape``).
        options: Overrides of the config under dotted keys.

    Raises:
        ConfigError: If the config is wrong, or its model does not take images of this shape.
        MissingOpError: If the model has a layer of mmcv whose op is missing here.
    """
    cfg = load_config(path, options, launch=Launch()).cfg
    cfg.model.get("backbone", {}).pop("weights", None)
    task = task_of(cfg)
    shape = shape or task.default_shape(cfg)
    if shape is None:
        raise ConfigError(f"config {str(path)!r}: its test pipeline states no size; give the image with --shape H W")

    def build_model() -> nn.Module:
        # Mmdet's models change their settings.
        model: nn.Module = build(MODELS, copy.deepcopy(cfg.model), "model", cfg.get("default_scope"))
        check_layers(model)
        return model

    try:
        return count_built(str(path), task.counted_parts, build_model, task.count_forward, shape)
    except ConfigError:
        _refuse_misfits(build_model().eval(), cfg.model, task, shape)
        raise


def _refuse_misfits(model: nn.Module, settings: Mapping[str, Any], task: TaskSpec, shape: Shape) -> None:
    """Run a model that could not be counted, and name the layer that gets other channels than it takes."""
    try:
        with torch.no_grad(), refusing_misfits(model, settings):
            task.count_forward(model, torch.zeros(1, image_channels(model), *shape))
    except MisfitError:
        raise
    except Exception:  # of a library, of any kind: the caller has said it
        return
