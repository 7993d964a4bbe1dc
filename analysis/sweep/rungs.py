"""Rungs that compare fairly: at each, the schedule of every training has come to its end.

Either the whole schedule of the config is shrunk to the length of the rung, and each rung trains from the start; or the
rate stays constant after the warm-up, and falls to 0 over the last part of each length (warmup-stable-decay). Then one
trunk at the constant rate serves all rungs: each branches off from one of its checkpoints, and a trial that goes on
continues the trunk by exact resume.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mmengine.config import Config
from mmengine.optim import LinearLR
from mmengine.registry import PARAM_SCHEDULERS

from analysis.sweep.study_file import Rungs
from backbones.errors import CheckpointError, ConfigError
from engine.checkpoint.store import LAST_CHECKPOINT, RUN_ID_FILE, last_checkpoint
from engine.config.building import registered_class
from engine.optim.schedules import stated_schedules

PLACES = ("begin", "end", "T_max", "total_iters")  # of a schedule, in epochs or steps
MIN_DECAY = 1  # epochs or steps


def length_key(cfg: Config) -> str:
    """The dotted key of a training's length."""
    return "train_cfg.max_epochs" if "max_epochs" in cfg.train_cfg else "train_cfg.max_iters"


def length_of(cfg: Config) -> int:
    """Length of a training, in epochs or steps as its config counts."""
    return int(cfg.train_cfg.get("max_epochs") or cfg.train_cfg.max_iters)


def shrunken(cfg: Config, length: int) -> dict[str, Any]:
    """Options that shrink the whole schedule of a config, its warm-up included, to a length.

    Args:
        cfg: Resolved config.
        length: Epochs or steps, as it counts.
    """
    ratio = length / length_of(cfg)
    options: dict[str, Any] = {length_key(cfg): length}
    for place, one in stated_schedules(cfg):
        for key in PLACES:
            if isinstance(one.get(key), int | float) and 0 < one[key] < math.inf:
                options[f"{place}.{key}"] = max(1, round(one[key] * ratio))
        if one.get("milestones"):
            options[f"{place}.milestones"] = [max(1, round(step * ratio)) for step in one["milestones"]]
    return options


def trunk_length(rungs: Rungs, index: int) -> int:
    """Epochs or steps at the constant rate before the decay of a rung."""
    assert rungs.decay is not None
    length = rungs.lengths[index]
    return length - max(MIN_DECAY, round(length * rungs.decay))


def constant(cfg: Config, length: int) -> dict[str, Any]:
    """Options of a trunk: the config's warm-up, then its rate unchanged, for a length.

    Raises:
        ConfigError: If the warm-up is not over by then.
    """
    return {length_key(cfg): length, "param_scheduler": _warm_ups(cfg, length) or None}


def decaying(cfg: Config, begin: int, length: int) -> dict[str, Any]:
    """Options of a branch: as the trunk up to ``begin``, then linear to 0 at the end of ``length``."""
    by_epoch = "max_epochs" in cfg.train_cfg
    decay = {"type": "LinearLR", "start_factor": 1.0, "end_factor": 0.0, "begin": begin, "end": length}
    decay |= {"by_epoch": True, "convert_to_iter_based": True} if by_epoch else {"by_epoch": False}
    return {length_key(cfg): length, "param_scheduler": [*_warm_ups(cfg, begin), decay]}


def _warm_ups(cfg: Config, until: int) -> list[dict[str, Any]]:
    found = []
    for place, one in stated_schedules(cfg):
        kind = registered_class(PARAM_SCHEDULERS, one["type"])
        rising = isinstance(kind, type) and issubclass(kind, LinearLR) and one.get("start_factor", 1 / 3) < 1
        if rising and one.get("begin", 0) == 0 and one.get("param_name", "lr") == "lr":
            counts_alike = bool(one.get("by_epoch", True)) == ("max_epochs" in cfg.train_cfg)
            if counts_alike and one.get("end", math.inf) > until:
                raise ConfigError(
                    f"rungs: the warm-up of {place} ({one.get('end')}) is not over when the first decay begins "
                    f"({until}): use longer lengths, or a shorter warm-up"
                )
            found.append(dict(one))
    return found


def branch(trunk: Path, folder: Path) -> None:
    """Let a training continue from the last checkpoint of a trunk, which stays as it is.

    Raises:
        CheckpointError: If the trunk has left none.
    """
    last = last_checkpoint(trunk)
    if last is None or not last.is_file():
        raise CheckpointError(f"{str(trunk)!r} has no checkpoint to branch off from")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy2(trunk / RUN_ID_FILE, folder / RUN_ID_FILE)
    part = folder / f"{last.name}.copy"
    shutil.copy2(last, part)
    part.rename(folder / last.name)
    (folder / LAST_CHECKPOINT).write_text(str(folder / last.name), encoding="utf-8")


def goes_on(number: int, scores: Mapping[int, float], keep: float, direction: Literal["maximize", "minimize"]) -> bool:
    """Whether a trial is among the best of its rung, as successive halving has it; of equals the earlier ones are.

    Args:
        number: Number of the trial.
        scores: Score of each trial at this rung by its number, this one included.
        keep: Fraction that goes on; at least one does.
        direction: Whether more or less is better.
    """
    count = max(1, math.floor(keep * len(scores) + 1e-9))
    sign = -1 if direction == "maximize" else 1
    ranked = sorted(scores, key=lambda one: (sign * scores[one], one))
    return number in ranked[:count]


def cost_of(rungs: Rungs, reached: int) -> int:
    """Epochs or steps that a trial has trained when it has finished a rung.

    Args:
        rungs: Rungs of the study.
        reached: Index of the rung.
    """
    if rungs.decay is None:
        return sum(rungs.lengths[: reached + 1])
    decays = sum(length - trunk_length(rungs, index) for index, length in enumerate(rungs.lengths[: reached + 1]))
    return trunk_length(rungs, reached) + decays


def saving(rungs: Rungs, reached: Mapping[int, int]) -> str:
    """What pruning saved, in one line.

    Args:
        rungs: Rungs of the study.
        reached: Number of trials by the highest rung that they finished.
    """
    trials = sum(reached.values())
    spent = sum(cost_of(rungs, rung) * count for rung, count in reached.items())
    whole = trials * rungs.lengths[-1]
    if not trials:
        return "no trial has finished a rung yet"
    counts = ", ".join(f"{reached.get(rung, 0)} to {length}" for rung, length in enumerate(rungs.lengths))
    share = abs(1 - spent / whole)
    word = "saved" if spent <= whole else "cost additionally"
    return f"trials by the length that they finished: {counts}; {spent} trained in place of {whole}: {share:.0%} {word}"
