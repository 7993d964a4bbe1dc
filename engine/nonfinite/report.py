"""The record of a step that was not finite: its folder, its report, and the fix that it suggests.

``step_<N>/report.json`` is for people and programs; ``config.py`` is the resolved config; ``weights.pt`` holds the
model before the step and the config as data; ``rank_<R>.pt`` the batch and the random states of one process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from backbones.errors import MachineError
from engine.checkpoint.store import write_checkpoint
from engine.nonfinite.batch_codec import encode
from engine.nonfinite.trace import OUTPUT
from engine.report.run_dir import EVENTS_FOLDER

EVENT_REPORT, CONFIG, WEIGHTS = "report.json", "config.py", "weights.pt"
# Number of events whose batch and weights a run keeps: the first, which is the interesting one, and the last ones.
MAX_COMPLETE_EVENTS = 3
MAX_FLOAT16 = torch.finfo(torch.float16).max


def event_folder(work_dir: Path, step: int) -> Path:
    """Folder for the event of a step; steps count from 1, as in the log and in the names of checkpoints."""
    return work_dir / EVENTS_FOLDER / f"step_{step}"


def rank_file(folder: Path, rank: int) -> Path:
    """File with the batch and the random states of one process."""
    return folder / f"rank_{rank}.pt"


def describe_place(found: Mapping[str, Any] | None) -> str:
    """Describe where the event began: module, class, kind of tensor, and number of bad values.

    Args:
        found: Description by :class:`engine.nonfinite.trace.Trace`; ``None`` if the step was finite when run again.
    """
    if found is None:
        return "no module of the model: run again, the step was finite"
    tensor = found["tensor"]
    total = math.prod(tensor["shape"])
    name = found["module"] or "the model itself"
    return f"{name} ({found['class']}), {found['what']}: {tensor['nan']} NaN and {tensor['inf']} Inf of {total} values"


def suggest_fix(report: Mapping[str, Any]) -> str:
    """Suggest a fix, as far as the report of the event tells."""
    cause = report["cause"]
    for entry in report["by_rank"]:
        for sample in (one for part in entry["samples"] for one in part):
            if sample["image"] and sample["image"]["nan"] + sample["image"]["inf"]:
                return f"image {sample['path'] or sample['id']} holds NaN or Inf: fix it or take it out of the data"
    if report["weights_not_finite"]:
        first = report["weights_not_finite"][0]
        return f"weights were not finite before the step, {first} first: begin with others, or an older checkpoint"
    half = report["precision"] == "float16"
    if half and (report["skipped_in_a_row"] or _overflowed(cause)):
        return f"float16 ends at {MAX_FLOAT16:.0f}: take optim_wrapper.dtype='bfloat16'"
    if cause is None:
        return "not deterministic: see whether compile=False changes it, and whether the hardware is sound"
    if cause["what"] == OUTPUT and cause.get("inputs_finite") and _is_loss(cause):
        return "the loss of finite outputs: look at the labels of these images, and for log, sqrt or a division by 0"
    rate = max(report["learning_rates"], default=0.0)
    milder = "" if report["clipped"] else ", clip gradients (optim_wrapper.clip_grad=dict(max_norm=1.0))"
    return f"lower the learning rate (here {rate:g}) or warm up longer{milder}, if the images named are sound"


def write_common(folder: Path, weights: Mapping[str, Any], config: Config) -> None:
    """Write the weights before the step and the config, which are common to all processes.

    Raises:
        UserError: If there is no room, or no permission.
    """
    write_checkpoint({"state_dict": dict(weights), "config": encode(config.to_dict())}, folder / WEIGHTS)
    config.dump(folder / CONFIG)


def make_event_folder(folder: Path) -> None:
    """Make the folder, and remove an earlier run's record of the same step.

    Raises:
        UserError: If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in [folder / EVENT_REPORT, *folder.glob("*.pt")]:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise MachineError(f"{str(folder)!r} cannot be written: {error.strerror}") from error


def thin_out(events: Path) -> None:
    """Remove batch and weights of all events but the first and the last ones; all reports stay.

    Args:
        events: Folder of the events of a run.
    """
    whole = [file.parent for file in events.glob(f"*/{EVENT_REPORT}") if (file.parent / WEIGHTS).exists()]
    whole.sort(key=lambda folder: (folder / EVENT_REPORT).stat().st_mtime_ns)
    for folder in whole[1 : len(whole) - MAX_COMPLETE_EVENTS + 1]:
        for file in folder.glob("*.pt"):
            file.unlink(missing_ok=True)


def jsonable(value: Any) -> Any:
    """A copy with ``"nan"``, ``"inf"`` and ``"-inf"`` for the numbers that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): jsonable(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [jsonable(inner) for inner in value]
    return value


def _overflowed(cause: Mapping[str, Any] | None) -> bool:
    """Whether float16 overflowed where the event began."""
    return cause is not None and cause["tensor"]["dtype"] == "float16" and bool(cause["tensor"]["inf"])


def _is_loss(cause: Mapping[str, Any]) -> bool:
    """Whether the module computes a loss: the model itself, or a module with that name."""
    return not cause["module"] or "loss" in cause["module"].lower() or "loss" in cause["class"].lower()
