"""Checks of data sets and of the work directory."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmengine.config import Config, ConfigDict

from analysis.doctor.examination import CheckResult, Checks, DoctorOptions, bad, notice, ok
from backbones.errors import DataError, UserError
from backbones.published import is_published
from engine.config.datasets import inner_datasets
from engine.config.load import load_config
from engine.config.world import Launch
from engine.data.preflight import BRING_DATA_HINT, dataset_paths
from engine.data.shards.unpacked import data_file
from engine.planning.plan import training_plan
from engine.report.environment import ROOT
from engine.report.html import GIB, memory

DATA_BASES = ("imagenet1k", "coco_instance", "ade20k")
WORK_DIRS = Path("work_dirs")
MIN_FREE_BYTES, AMPLE_FREE_BYTES = 2 * GIB, 20 * GIB


def data_checks(options: DoctorOptions) -> Checks:
    """Checks of the usual folders, or of those in the config of the options."""
    if options.config is None:
        return {
            "data": lambda: check_places(usual_places()),
            "work_dirs": lambda: check_work_dir(WORK_DIRS),
            "disk": lambda: check_disk(free_bytes(WORK_DIRS), WORK_DIRS),
        }
    return {"config": lambda: check_config(str(options.config), Launch.from_environment())}


def usual_places() -> dict[str, Path]:
    """Data root of each data set in the shipped configs."""
    return {name: Path(Config.fromfile(str(ROOT / "configs/_base_" / f"{name}.py")).data_root) for name in DATA_BASES}


def check_places(places: Mapping[str, Path]) -> Iterator[CheckResult]:
    """Presence of the data sets; a missing one matters only to trainings on it."""
    for path in places.values():
        try:
            found = data_file(path)
        except DataError as error:  # of its archive
            yield bad("data", str(error), "fetch it again")
            continue
        if found.is_file() or (path.is_dir() and any(path.iterdir())):
            yield ok("data", f"{found} is there")
        else:
            state = "empty" if path.is_dir() else "absent"
            yield notice("data", f"{path} is {state}", BRING_DATA_HINT.partition(",")[0])


def check_config(config: str, launch: Launch) -> Iterator[CheckResult]:
    """Check a config file, its data, its weights, its work directory and the disk space for its checkpoints."""
    try:
        resolved = load_config(config, {}, launch)
        plan = training_plan(resolved, launch)
    except ValueError as error:  # a UserError is one
        yield bad("config", str(error), "fix the config")
        return
    yield ok("config", f"{config}: {plan.batch}")
    loaders = {split: resolved.cfg.get(f"{split}_dataloader") for split in ("train", "val")}
    for split, loader in loaders.items():
        if loader:
            yield check_data_set(f"data, {split}", loader.dataset)
    sources = {
        "model.backbone.weights": resolved.cfg.model.get("backbone", {}).get("weights"),
        "load_from": resolved.cfg.get("load_from"),
    }
    for name, source in sources.items():
        if source and not is_published(source) and not Path(source).exists():
            yield bad("weights", f"{name}: {source} is absent", "train or fetch it first, or set it to None")
    work_dir = Path(resolved.cfg.work_dir)
    yield from check_work_dir(work_dir)
    held = plan.memory.parameters + plan.memory.moments + plan.memory.averages
    kept = resolved.cfg.default_hooks.get("checkpoint", {}).get("max_keep_ckpts", 1)
    # Beside those that are kept: the best one, and the next one while it is written.
    yield from check_disk(free_bytes(work_dir), work_dir, (max(kept, 1) + 2) * held)


def check_data_set(name: str, dataset: ConfigDict) -> CheckResult:
    """Presence of what a data set reads: files and folders, archives that hold them, or shards in a store.

    Args:
        name: Name of the check.
        dataset: Config of the data set.
    """
    try:
        needed = dataset_paths(dataset)
        absent = [str(path) for path in needed if not data_file(path).exists()]
    except UserError as error:  # of an archive, or of a store
        return bad(name, str(error), "fix the data, or set data_root")
    if absent:
        return bad(name, f"{', '.join(absent)} absent", BRING_DATA_HINT)
    stores = [str(one.get("data_root")) for one in inner_datasets(dataset)]
    return ok(name, f"{data_file(needed[0]) if needed else stores[0]} is there")


def check_work_dir(folder: Path) -> Iterator[CheckResult]:
    """Whether results can be written; the test file is removed."""
    place = _existing(folder)
    try:
        with tempfile.NamedTemporaryFile(dir=place) as file:
            file.write(b"0" * 4096)
            file.flush()
        yield ok("work_dirs", f"{folder} can be written")
    except OSError as error:
        reason = error.strerror or error
        yield bad("work_dirs", f"{place} cannot be written: {reason}", "choose another with --work-dir")


def free_bytes(folder: Path) -> int:
    """Free space in bytes on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(_existing(folder)).free


def check_disk(free: int, folder: Path, needed: int | None = None) -> Iterator[CheckResult]:
    """Disk space for checkpoints.

    Args:
        free: Free space in bytes.
        folder: Work directory.
        needed: Largest size of a training's checkpoints in bytes; ``None`` if unknown.
    """
    text = f"{memory(free)} free for {folder}"
    least, ample = MIN_FREE_BYTES, AMPLE_FREE_BYTES
    if needed is not None:
        text += f", checkpoints take up to {memory(needed)}"
        least, ample = needed, needed + MIN_FREE_BYTES
    if free >= ample:
        yield ok("disk", text)
    else:
        yield (bad if free < least else notice)("disk", text, "make room, or choose another disk with --work-dir")


def _existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    folder = folder.absolute()
    return folder if folder.is_dir() else _existing(folder.parent)
