"""Before a run: is the data where the config says, and can it be trained on?"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from logging import Logger
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.dist import broadcast_object_list, is_main_process

from backbones.errors import UserError
from engine.data.check import DAMAGE, check_data
from engine.data.findings import Findings
from engine.data.samples import most_replaced

HOW = "see 'Bring your data' in README.md, or point data_root elsewhere with --cfg-options data_root=FOLDER"
DATA_CHECK = "data_check.json"
SECONDS = 50.0  # for the look into files, so that a check of large data ends within the first minute
LOG_LINES = 6  # of warnings


def check_data_folders(cfg: Config, splits: tuple[str, ...]) -> None:
    """Look for every file and folder that the data sets of some splits read.

    Args:
        cfg: A resolved config.
        splits: Any of ``train``, ``val``, ``test``.

    Raises:
        UserError: If one is absent, with the place and the way to get it.
    """
    for split in splits:
        loader = cfg.get(f"{split}_dataloader")
        if not loader:
            continue
        for path in data_paths(loader.dataset):
            if not path.exists():
                raise UserError(f"{split} data: {str(path)!r} does not exist (looked from {str(Path.cwd())!r}); {HOW}")


def data_paths(dataset: ConfigDict) -> list[Path]:
    """Files and folders that a data set reads."""
    root = Path(dataset.get("data_root") or ".")
    parts = [dataset.get("split"), dataset.get("ann_file"), *dataset.get("data_prefix", {}).values()]
    return [root, *(root / part for part in parts if part)]


def check_before_training(cfg: Config, logger: Logger, resume: bool) -> None:
    """Check the data that a training is about to read, for a minute at most; all processes call this together.

    The main process looks, the others wait for what it says. All findings go to ``data_check.json`` in the work
    directory; a run that goes on with the same data and settings does not repeat it. Damaged training images, if they
    are few, are no reason to stop: the training replaces them.

    Args:
        cfg: A resolved config.
        logger: For warnings.
        resume: Whether a run goes on.

    Raises:
        UserError: In all processes, if the training would fail or be wrong; with the first error and their number.
    """
    outcome: list[str | None] = [_outcome(cfg, logger, resume) if is_main_process() else None]
    broadcast_object_list(outcome)
    if outcome[0] is not None:
        raise UserError(outcome[0])


def _outcome(cfg: Config, logger: Logger, resume: bool) -> str | None:
    path = Path(cfg.work_dir) / DATA_CHECK
    mark = fingerprint(cfg)
    if resume and _passed(path, mark):
        logger.info("data check: data and settings are those of the check before, %s", path)
        return None
    try:
        found = _tolerant(check_data(cfg, ("train", "val"), seconds=SECONDS))
        found.write(path, fingerprint=mark)
    except UserError as error:
        return str(error)
    if found.errors:
        count = len(found.errors)
        others = f"the first of {count} errors in the data, all of them in {path}" if count > 1 else f"see {path}"
        return f"{found.errors[0]} ({others}; --no-data-check trains all the same)"
    *lines, summary = found.screen(str(path))
    for line in lines[:LOG_LINES]:
        logger.warning(f"data check: {line}")  # mmengine's logger drops a second warning of one template
    logger.info("data check: %s", summary)
    return None


def _tolerant(found: Findings) -> Findings:
    """Turn errors about damaged training images into warnings, where these are few enough to be replaced."""
    damaged = {one for one in found.errors if one.split == "train" and one.kind.partition(" ")[0] in DAMAGE}
    looked, listed = found.looked_at.get("train images", (0, 0))
    if len(damaged) > most_replaced(listed) * looked / max(1, listed):
        return found
    items = [
        replace(one, level="warning", mend=f"another image takes its place; {one.mend}") if one in damaged else one
        for one in found.items
    ]
    return replace(found, items=items)


def fingerprint(cfg: Config) -> str:
    """Of the settings of the data and of the files and folders that they name."""
    settings: list[Any] = []
    for split in ("train", "val"):
        if loader := cfg.get(f"{split}_dataloader"):
            stats = [path.stat() for path in data_paths(loader.dataset) if path.exists()]
            settings.append([loader.dataset.to_dict(), [(stat.st_size, stat.st_mtime_ns) for stat in stats]])
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _passed(path: Path, mark: str) -> bool:
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        return before["fingerprint"] == mark and before["errors"] == 0
    except (OSError, ValueError, KeyError, TypeError):
        return False
