"""The weights that a training begins with, loaded as its start does, into a model that takes no memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from analysis.start_check import silence
from backbones.published import cached_file, is_published, nearest_published
from backbones.weights import read_checkpoint
from engine.checkpoint.model_weights import backbones_of, load_model_weights
from engine.config.classes import class_names
from engine.planning.plan import build_on_meta


def starting_weights(cfg: Any, trust: bool = False) -> list[str]:
    """Load what a training would begin with; absent files, and those still to be downloaded, are only named.

    Args:
        cfg: Config that was resolved for training.
        trust: Whether to execute code that checkpoints ask for (``--trust-checkpoint``).

    Returns:
        A line for each source: the report of what was loaded, or that the file is not here.

    Raises:
        UserError: As the training would, if a file cannot be read or does not fit.
    """
    pretrained, whole = (cfg.model.get("backbone") or {}).get("weights"), cfg.get("load_from")
    absent = {"backbone": _absence(pretrained), "model": _absence(whole)}
    lines = [f"{part} from: {text}" for part, text in absent.items() if text]
    model = build_on_meta(cfg, weights=not absent["backbone"])
    with silence():
        if not absent["backbone"]:
            lines += [f"backbone: {report}" for report in _load_backbones(model, trust)]
        if whole and not absent["model"]:
            classes = class_names(cfg.classes) if cfg.get("classes") else None
            checkpoint = read_checkpoint(whole, trust)
            lines.append(f"model: {load_model_weights(model, checkpoint, whole, classes=classes, training=True)}")
    return lines


def _load_backbones(model: nn.Module, trust: bool) -> Iterator[object]:
    """Load the pre-trained weights of a model, by its own method where its head comes from the same file."""
    backbones = backbones_of(model)
    for backbone in backbones:
        backbone.trust_weights = trust
    own: Any = getattr(model, "load_pretrained", None)
    for load in [own] if own else [backbone.init_weights for backbone in backbones]:
        load()
    yield from filter(None, (backbone.load_report for backbone in backbones))


def _absence(source: str | None) -> str:
    """Text about a source of weights that is not here; empty if it is, or if there is none."""
    if not source:
        return ""
    if is_published(source):
        return "" if cached_file(source) else f"{source} (to be downloaded)"
    return "" if Path(source).exists() else f"{source} (ABSENT{nearest_published(source)})"
