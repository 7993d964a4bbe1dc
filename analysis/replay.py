"""Reproduce in one process a step that :mod:`engine.nonfinite.guard` recorded; its files execute nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import mmengine.registry
import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope, Registry
from torch import nn

from backbones.errors import ConfigError, DataError, UserError, describe_error
from backbones.weights import read_checkpoint
from engine.checkpoint.rng import RandomState
from engine.nonfinite.batch_codec import decode
from engine.nonfinite.report import EVENT_REPORT, WEIGHTS, describe_place, rank_file
from engine.nonfinite.trace import run_again
from engine.optim.precision import losses_in_float32
from engine.report.environment import ROOT
from engine.report.run_dir import read_json

# Operators of mmcv that mmdet builds by name without a registry.
OPERATORS = ("nms", "soft_nms", "RoIAlign")
MAX_PATHS = 8
LOSS_TOLERANCE = 1e-4  # relative


@dataclass(frozen=True)
class ReplayResult:
    """Result of a replay.

    Attributes:
        reproduced: Whether the same tensor of the same module was the first that is not finite.
        lines: Lines for people: images, losses, places, verdict.
    """

    reproduced: bool
    lines: tuple[str, ...]


def replay_step(folder: Path, rank: int | None = None, trust_imports: bool = False) -> ReplayResult:
    """Run a recorded step forward and backward, with its batch, weights and random states.

    Args:
        folder: Folder of the record, ``work_dir/nonfinite/step_<N>``.
        rank: Process whose batch is used; ``None`` for the first one in which the event arose.
        trust_imports: Whether to import modules that the config names and that are not of this project.

    Raises:
        UserError: If the record is incomplete, or not of this version of the project.
    """
    report = read_json(folder / EVENT_REPORT)
    if not isinstance(report.get("ranks"), dict) or not isinstance(report.get("by_rank"), list):
        raise DataError(f"{str(folder)!r} is no record of a step: it lacks {EVENT_REPORT}, the last file to be written")
    if not (folder / WEIGHTS).exists():
        raise DataError(
            f"{str(folder)!r} holds the report alone: of many events, the first and the last are kept whole"
        )
    if rank is None:
        had_it = report["ranks"].get("had_it") or [0]
        rank = had_it[0] if isinstance(had_it, list) and isinstance(had_it[0], int) else 0
    if not rank_file(folder, rank).exists():
        raise DataError(f"{str(folder)!r} has nothing of rank {rank}; there were {len(report['by_rank'])} processes")
    common, own = read_checkpoint(str(folder / WEIGHTS)), read_checkpoint(str(rank_file(folder, rank)))
    try:
        return _replay(report, common, own, rank, trust_imports)
    except UserError:
        raise
    except Exception as error:  # files that anyone may have written, of any content
        problem = f"{str(folder)!r} is no record that this version can run again: {describe_error(error, 160)}"
        raise DataError(problem) from error


def _replay(
    report: Mapping[str, Any], common: Mapping[str, Any], own: Mapping[str, Any], rank: int, trust_imports: bool
) -> ReplayResult:
    device = "cuda" if own["device"] == "cuda" and torch.cuda.is_available() else "cpu"
    model = _build_model(decode(common["config"]), trust_imports)
    model.load_state_dict(common["state_dict"])
    model.to(device).train()
    batch = [decode(part) for part in own["batch"]]
    dtype = getattr(torch, own["precision"]) if own["precision"] else None
    RandomState.from_dict(own["random"]).restore()
    now = run_again(
        model, batch, lambda: nullcontext() if dtype is None else torch.autocast(device, dtype), own["scale"]
    )
    reproduced = _tensor_of(now["found"]) is not None and _tensor_of(now["found"]) == _tensor_of(own["found"])
    lines = [*_image_line(report, rank), *_losses(own["losses"], now["losses"])]
    lines += [f"first, as recorded: {_first(own)}", f"first, in the replay: {_first(now)}"]
    if reproduced:
        return ReplayResult(True, (*lines, "reproduced"))
    return ReplayResult(False, (*lines, f"not reproduced: {'; '.join(_differences(report, own, rank, device))}"))


def _build_model(config: Mapping[str, Any], trust_imports: bool) -> BaseModel:
    """Build the model as the training did, but not sharded and not compiled."""
    for name in (config.get("custom_imports") or {}).get("imports", ()):
        if not trust_imports and not (name.isidentifier() and (ROOT / name / "task.py").is_file()):
            raise ConfigError(f"the config imports {name!r}, which is not of this project: --trust-imports does so")
        import_module(name)
    settings = ConfigDict(config["model"])
    if settings.get("backbone", {}).get("weights"):
        settings.backbone.weights = None
    check_types(settings)
    with DefaultScope.overwrite_default_scope(config.get("default_scope")):
        model: nn.Module = MODELS.build(settings)
    losses_in_float32(model)
    return revert_sync_batchnorm(model)


def check_types(settings: Any) -> None:
    """Refuse every ``type`` that is not registered: mmengine would import and call whatever it names.

    Args:
        settings: Config of a model, from a file that anyone may have written.

    Raises:
        ConfigError: If it names such a type.
    """
    known = {*OPERATORS, *_registered()}
    for name in _types(settings):
        if name not in known:
            raise ConfigError(f"the config was refused: it builds {name!r}, which is no registered part of a model")


def _registered() -> Iterator[str]:
    roots = (value for value in vars(mmengine.registry).values() if isinstance(value, Registry))
    for root in roots:
        root.import_from_location()
        yield from root.module_dict
        for scope, child in root.children.items():
            yield from child.module_dict
            yield from (f"{scope}.{name}" for name in child.module_dict)


def _types(node: Any) -> Iterator[Any]:
    if isinstance(node, Mapping):
        if "type" in node:
            yield node["type"]
        for value in node.values():
            yield from _types(value)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for value in node:
            yield from _types(value)


def _tensor_of(found: Mapping[str, Any] | None) -> tuple[Any, ...] | None:
    return None if found is None else (found["micro_batch"], found["module"], found["what"])


def _first(found: Mapping[str, Any]) -> str:
    return "none" if found["found"] is None else describe_place(found["found"])


def _image_line(report: Mapping[str, Any], rank: int) -> Iterator[str]:
    entry = next(one for one in report["by_rank"] if one["rank"] == rank)
    paths = [str(sample["path"] or sample["id"]) for part in entry["samples"] for sample in part]
    more = f" and {len(paths) - MAX_PATHS} more" if len(paths) > MAX_PATHS else ""
    yield f"step {report['step']}, rank {rank} of {len(report['by_rank'])}: {', '.join(paths[:MAX_PATHS])}{more}"


def _losses(recorded: Mapping[str, float], now: Mapping[str, float]) -> Iterator[str]:
    for name, value in recorded.items():
        again = now.get(name, math.nan)
        same = (
            value == again or math.isclose(value, again, rel_tol=LOSS_TOLERANCE) or (value != value and again != again)
        )
        yield f"{name}: {again:.6g}" + ("" if same else f" (recorded: {value:.6g})")


def _differences(report: Mapping[str, Any], own: Mapping[str, Any], rank: int, device: str) -> Iterator[str]:
    had = report["ranks"]["had_it"]
    if own["found"] is None and had:
        yield f"rank {rank} only received it, --rank {had[0]} had it"
    elif own["found"] is None:
        yield "the run itself, asked again, found the step finite"
    if own["device"] != device:
        precision = own["precision"] or "float32"
        yield f"recorded on {own['device']} in {precision}, replayed on {device}, which draws other numbers"
    if report["torch"] != torch.__version__:
        yield f"recorded with torch {report['torch']}, replayed with {torch.__version__}"
    if len(report["by_rank"]) > 1:
        yield "statistics that the processes shared are those of one process here"
    yield "the batch, the weights and the random states are those of the record"
