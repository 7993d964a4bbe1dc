"""Checks of data and of the place for results."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mmengine.config import Config

from analysis.doctor.examination import GIB, Check, Request, Result, bad, note, ok
from engine.config.load import Resolved, load_config
from engine.config.world import Launch
from engine.data.preflight import BRING_DATA_HINT, dataset_paths
from engine.planning.plan import training_plan
from engine.report.environment import ROOT
from engine.report.html import memory

BASES = ("imagenet1k", "coco_instance", "ade20k")
WORK_DIRS = Path("work_dirs")
LITTLE, ENOUGH = 2 * GIB, 20 * GIB


def checks(request: Request) -> list[Check]:
    """The checks of this group."""
    if request.config is None:
        return [
            Check("data", lambda: check_places(usual_places())),
            Check("work_dirs", lambda: check_work_dir(WORK_DIRS)),
            Check("disk", lambda: check_disk(free_bytes(WORK_DIRS), WORK_DIRS)),
        ]
    config = request.config
    return [Check("config", lambda: check_config(config, Launch.from_environment()))]


def usual_places() -> dict[str, Path]:
    """Where the configs look for each data set."""
    return {name: Path(Config.fromfile(str(ROOT / "configs/_base_" / f"{name}.py")).data_root) for name in BASES}


def check_places(places: Mapping[str, Path]) -> Iterator[Result]:
    """Data sets that are not needed before somebody trains on them."""
    for path in places.values():
        if not path.is_dir():
            yield note("data", f"{path} is absent", BRING_DATA_HINT.partition(",")[0])
        elif not any(path.iterdir()):
            yield note("data", f"{path} is empty", BRING_DATA_HINT.partition(",")[0])
        else:
            yield ok("data", f"{path} is there")


def check_config(config: str, launch: Launch) -> Iterator[Result]:
    """What a training of this config would need.

    Args:
        config: A config file.
        launch: Where it would run.
    """
    try:
        resolved = load_config(config, {}, launch)
        plan = training_plan(resolved, launch)
    except ValueError as error:  # a UserError is one
        yield bad("config", str(error), "mend the config")
        return
    yield ok("config", f"{config}: {plan.batch}")
    yield from check_data(_data_of(resolved))
    for name in ("model.backbone.weights", "load_from"):
        source = resolved.cfg
        for part in name.split("."):
            source = (source or {}).get(part)
        if source and "://" not in source and not Path(source).exists():
            yield bad("weights", f"{name}: {source} is absent", "train or fetch it first, or set it to None")
    work_dir = Path(resolved.cfg.work_dir)
    yield from check_work_dir(work_dir)
    held = plan.memory.parameters + plan.memory.moments + plan.memory.averages
    kept = resolved.cfg.default_hooks.get("checkpoint", {}).get("max_keep_ckpts", 1)
    # The best one beside those that are kept, and the next one while it is written.
    yield from check_disk(free_bytes(work_dir), work_dir, (max(kept, 1) + 2) * held)


def _data_of(resolved: Resolved) -> dict[str, Sequence[Path]]:
    loaders = {split: resolved.cfg.get(f"{split}_dataloader") for split in ("train", "val")}
    return {split: dataset_paths(loader.dataset) for split, loader in loaders.items() if loader}


def check_data(paths: Mapping[str, Sequence[Path]]) -> Iterator[Result]:
    """Files and folders that a training reads, by split."""
    for split, needed in paths.items():
        absent = [str(path) for path in needed if not path.exists()]
        if absent:
            yield bad(f"data, {split}", f"{', '.join(absent)} absent", BRING_DATA_HINT)
        else:
            yield ok(f"data, {split}", f"{needed[0]} is there")


def check_work_dir(folder: Path) -> Iterator[Result]:
    """Whether results can be written; leaves nothing behind."""
    place = _existing(folder)
    try:
        with tempfile.NamedTemporaryFile(dir=place) as file:
            file.write(b"0" * 4096)
            file.flush()
    except OSError as error:
        reason = error.strerror or error
        yield bad("work_dirs", f"{place} cannot be written: {reason}", "choose another with --work-dir")
        return
    yield ok("work_dirs", f"{folder} can be written")


def free_bytes(folder: Path) -> int:
    """Room on the disk that a folder is on, or will be."""
    return shutil.disk_usage(_existing(folder)).free


def check_disk(free: int, folder: Path, needed: int | None = None) -> Iterator[Result]:
    """Room for checkpoints.

    Args:
        free: Bytes.
        folder: Where.
        needed: Bytes that a training's checkpoints take at most; ``None`` if unknown.
    """
    text = f"{memory(free)} free for {folder}"
    mend = "make room, or choose another disk with --work-dir"
    if needed is not None:
        text += f", checkpoints take up to {memory(needed)}"
    if free < (LITTLE if needed is None else needed):
        yield bad("disk", text, mend)
    elif free < (ENOUGH if needed is None else needed + LITTLE):
        yield note("disk", text, mend)
    else:
        yield ok("disk", text)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return folder if folder.is_dir() else _existing(folder.parent)
