"""How the training in a work directory stands: whether another may begin there, and where its results are."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from mmengine.config import Config

from backbones.errors import ConfigError
from engine.checkpoint.store import CHECKPOINT_NAME, last_checkpoint
from engine.report.environment import ROOT
from engine.report.recorder import FINISHED, from_here
from engine.report.run_dir import REPORT, last_begun, read_starts


def resumes(asked: bool) -> bool:
    """Whether a start resumes: where ``--resume`` asks for it, and where torchrun starts a process again."""
    return asked or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def obstacle(folder: Path) -> str | None:
    """Why a new training may not begin in a folder, in one line with the ways to go on; ``None`` if it may.

    What it would replace is checkpoints: a start that has left none, such as one that failed early, is no obstacle.
    """
    files = [file for file in folder.glob("*.pth") if CHECKPOINT_NAME.fullmatch(file.name) or _is_best(file)]
    if not files:
        return None
    newest = max(files, key=lambda file: file.stat().st_mtime_ns).name
    ways = "go on with --resume, or give another folder with --work-dir"
    return f"work directory {str(folder)!r} holds a training ({newest}): {ways}"


def check_untrained(folder: Path) -> None:
    """Check that a new training may begin in a folder.

    Raises:
        ConfigError: If it would replace checkpoints.
    """
    if line := obstacle(folder):
        raise ConfigError(line)


def finished_line(cfg: Config) -> str | None:
    """What to say in place of resuming a training that is finished; ``None`` of one that is not.

    Args:
        cfg: Resolved config of the training, whose length may have been changed since.
    """
    folder = Path(cfg.work_dir)
    last = last_begun(read_starts(folder))
    schedule = last.get("plan", {}).get("schedule", {})
    key, unit = ("max_epochs", "epochs") if schedule.get("epochs") else ("max_iters", "steps")
    done, asked = schedule.get(unit), cfg.train_cfg.get(key)
    ended = last.get("outcome") == FINISHED and last.get("to_step") == last.get("of_steps")
    if not (ended and done and asked and asked <= done and _last(folder)):
        return None
    longer = f"to train longer: --resume --cfg-options train_cfg.{key}=N with N above {done}"
    return f"finished before, after {done} {unit if done > 1 else unit[:-1]}; {_results(folder)}; {longer}"


def closing_lines(cfg: Config) -> list[str]:
    """Where a finished training has left its results, and the command that tests it."""
    folder = Path(cfg.work_dir)
    tested = _best(folder) or _last(folder)
    if not (cfg.get("test_dataloader") and cfg.filename and tested):
        return [_results(folder)]
    files = (from_here(str(ROOT / "tools/test.py")), str(folder / Path(cfg.filename).name), str(tested))
    averaged = ["--ema"] if tested.name.startswith("best_ema_") else []
    return [_results(folder), f"next: {shlex.join(['python', *files, *averaged])}"]


def _results(folder: Path) -> str:
    report = folder / REPORT
    places = {"report": report if report.is_file() else None, "last checkpoint": _last(folder), "best": _best(folder)}
    return ", ".join(f"{name} {place}" for name, place in places.items() if place)


def _last(folder: Path) -> Path | None:
    file = last_checkpoint(folder)
    return file if file and file.is_file() else None


def _best(folder: Path) -> Path | None:
    return max(filter(_is_best, folder.glob("*.pth")), key=lambda file: file.stat().st_mtime_ns, default=None)


def _is_best(file: Path) -> bool:
    return file.name.startswith("best_")
