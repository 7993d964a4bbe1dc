"""From a built model to one that trains: float32 losses, compilation, initial weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from engine.checkpoint.model_weights import backbones_of
from engine.optim.precision import attention_in_float32, losses_in_float32

COMPILED_PARTS = ("backbone", "neck")


def prepare_for_training(model: nn.Module, settings: Mapping[str, Any], logger: logging.Logger) -> None:
    """Keep losses and deformable attention in float32 and compile what ``env_cfg.compile`` asks for.

    Args:
        model: Model; changed in place.
        settings: The config's ``env_cfg``.
        logger: Logger of the run.
    """
    losses_in_float32(model)
    attention_in_float32(model)
    options = settings.get("compile", False)
    if options is not False:
        parts = compile_parts(model, {} if options is True else options)
        logger.info("compiled in the first steps: %s", ", ".join(parts))


def compile_parts(model: nn.Module, options: dict[str, Any]) -> list[str]:
    """Compile backbone and neck in place; heads work on boxes, whose number varies, and stay as they are.

    Args:
        model: Model; the names of its parts do not change.
        options: Arguments of :func:`torch.compile`.

    Returns:
        The names of the compiled parts.
    """
    parts = {name: getattr(model, name, None) for name in COMPILED_PARTS}
    found = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    for part in found.values():
        part.compile(**options)
    return list(found)


def initialise(model: nn.Module, init_weights: Callable[[], None], trust: bool) -> list[dict[str, Any]]:
    """Give a model its initial weights.

    Args:
        model: Model, perhaps wrapped for several processes.
        init_weights: Initialises the model in all processes alike.
        trust: Whether to execute code that pre-trained files ask for.

    Returns:
        One entry for each pre-trained file that was loaded, as ``weights.json`` holds it.
    """
    backbones = backbones_of(model)
    for backbone in backbones:
        backbone.trust_weights = trust
    init_weights()
    reports = filter(None, (backbone.load_report for backbone in backbones))
    return [{"part": "backbone", "line": str(report), **report.as_dict()} for report in reports]
