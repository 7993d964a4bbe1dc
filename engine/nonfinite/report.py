"""The folder that a step with a number that is not finite leaves: what is in it, what it says, what it suggests.

``step_<N>/report.json`` is for people and programs; ``config.py`` is the resolved config; ``weights.pt`` holds the
model before the step and the config as data; ``rank_<R>.pt`` what one process had: its batch and its random states.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from backbones.errors import UserError
from engine.checkpoint.store import write_checkpoint
from engine.nonfinite.batch_codec import encode
from engine.nonfinite.trace import OUTPUT
from engine.report.run_dir import write_json

FOLDER = "nonfinite"
REPORT, CONFIG, WEIGHTS = "report.json", "config.py", "weights.pt"
# Folders of a run that keep batch and weights: the first, which is the interesting one, and the last ones.
WHOLE = 3
HALF_MAX = torch.finfo(torch.float16).max


def folder_of(work_dir: Path, step: int) -> Path:
    """Where the event of a step is recorded; steps count from 1, as in the log and in the names of checkpoints."""
    return work_dir / FOLDER / f"step_{step}"


def rank_file(folder: Path, rank: int) -> Path:
    """What one process had."""
    return folder / f"rank_{rank}.pt"


def place(found: Mapping[str, Any] | None) -> str:
    """Where it began, in a few words: the module, its class, what of it, how much of it."""
    if found is None:
        return "no module of the model: run again, the step was finite"
    tensor = found["tensor"]
    total = math.prod(tensor["shape"])
    name = found["module"] or "the model itself"
    return f"{name} ({found['class']}), {found['what']}: {tensor['nan']} NaN and {tensor['inf']} Inf of {total} values"


def hint(report: Mapping[str, Any]) -> str:
    """What to mend, as far as the record tells.

    Args:
        report: The report without it.
    """
    cause = report["cause"]
    for entry in report["by_rank"]:
        for sample in (one for part in entry["samples"] for one in part):
            if sample["image"] and sample["image"]["nan"] + sample["image"]["inf"]:
                return f"image {sample['path'] or sample['id']} holds NaN or Inf: mend it or take it out of the data"
    if report["weights_not_finite"]:
        first = report["weights_not_finite"][0]
        return f"weights were not finite before the step, {first} first: begin with others, or an older checkpoint"
    half = report["precision"] == "float16"
    if half and (report["skipped_in_a_row"] or _overflowed(cause)):
        return f"float16 ends at {HALF_MAX:.0f}: take optim_wrapper.dtype='bfloat16'"
    if cause is None:
        return "not deterministic: see whether compile=False changes it, and whether the hardware is sound"
    if cause["what"] == OUTPUT and cause.get("inputs_finite") and _is_loss(cause):
        return "the loss of finite outputs: look at the labels of these images, and for log, sqrt or a division by 0"
    rate = max(report["learning_rates"], default=0.0)
    milder = "" if report["clipped"] else ", clip gradients (optim_wrapper.clip_grad=dict(max_norm=1.0))"
    return f"lower the learning rate (here {rate:g}) or warm up longer{milder}, if the images named are sound"


def write_rank(folder: Path, rank: int, content: Mapping[str, Any]) -> None:
    """Write what one process had.

    Raises:
        UserError: If there is no room, or no permission.
    """
    write_checkpoint(dict(content), rank_file(folder, rank))


def write_common(folder: Path, weights: Mapping[str, Any], config: Config) -> None:
    """Write what is common to all processes, but the report.

    Raises:
        UserError: If there is no room, or no permission.
    """
    write_checkpoint({"state_dict": dict(weights), "config": encode(config.to_dict())}, folder / WEIGHTS)
    config.dump(folder / CONFIG)


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write the report, the last file: a folder that has it is complete."""
    write_json(folder / REPORT, jsonable(report))


def clear(folder: Path) -> None:
    """Make the folder, and remove what an earlier run has recorded of the same step.

    Raises:
        UserError: If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in [folder / REPORT, *folder.glob("*.pt")]:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{str(folder)!r} cannot be written: {error.strerror}") from error


def thin_out(events: Path) -> None:
    """Let the first and the last events keep batch and weights; of those between, the reports stay."""
    whole = [file.parent for file in events.glob(f"*/{REPORT}") if (file.parent / WEIGHTS).exists()]
    whole.sort(key=lambda folder: (folder / REPORT).stat().st_mtime_ns)
    for folder in whole[1 : len(whole) - WHOLE + 1]:
        for file in folder.glob("*.pt"):
            file.unlink(missing_ok=True)


def jsonable(value: Any) -> Any:
    """The same with ``"nan"``, ``"inf"`` and ``"-inf"`` for the numbers that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): jsonable(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [jsonable(inner) for inner in value]
    return value


def _overflowed(cause: Mapping[str, Any] | None) -> bool:
    """Whether numbers came near the end of float16 where it began."""
    if cause is None or cause["tensor"]["dtype"] != "float16":
        return False
    return bool(cause["tensor"]["inf"])


def _is_loss(cause: Mapping[str, Any]) -> bool:
    """The model itself computes a loss, and so does a module of that name."""
    return not cause["module"] or "loss" in cause["module"].lower() or "loss" in cause["class"].lower()
