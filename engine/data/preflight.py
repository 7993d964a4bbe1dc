"""Checks before a run: is the data where the config says, and can it be trained on?"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from logging import Logger
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.dist import broadcast_object_list, is_main_process

from backbones.errors import DataError, UserError, nearest
from backbones.files import describe_special, read_text_file
from engine.config.datasets import inner_datasets
from engine.config.fingerprint import make_fingerprint
from engine.data.check import check_datasets
from engine.data.checker import DAMAGE_KINDS
from engine.data.fault_tolerance import max_replaced_images
from engine.data.findings import DataCheckResult
from engine.data.shards import Shards, find_shards, shard_states
from engine.data.shards.unpacked import data_file, refuse_absent
from engine.data.stores import is_store_url

BRING_DATA_HINT = "see 'Bring your data' in README.md, or point data_root elsewhere with --cfg-options data_root=FOLDER"
DATA_CHECK_FILE = "data_check.json"
MAX_INSPECTION_SECONDS = 50.0  # so that a check of large data ends within the first minute
MAX_LOGGED_WARNINGS = 6


def check_data_paths(cfg: Config, splits: tuple[str, ...]) -> None:
    """Check that every file and folder that the data sets read exists.

    Args:
        cfg: Resolved config.
        splits: Any of ``train``, ``val``, ``test``.

    Raises:
        DataError: If one is missing; names it and the way to get it.
    """
    for split in splits:
        loader = cfg.get(f"{split}_dataloader")
        if not loader:
            continue
        for path in dataset_paths(loader.dataset):
            if special := describe_special(path):
                raise DataError(f"{split} data: {str(path)!r} {special}")
            refuse_absent(path)
            if not data_file(path).exists():
                place = f"{str(path)!r} does not exist (looked from {str(Path.cwd())!r})"
                raise DataError(f"{split} data: {place}{_names_beside(path) or f'; {BRING_DATA_HINT}'}")


def _names_beside(path: Path) -> str:
    """Names like that of a path that is absent, in its folder; nothing where there are none."""
    try:
        return nearest(path.name, [one.name for one in path.parent.iterdir()])
    except OSError:  # the folder is absent too, or an archive
        return ""


def dataset_paths(dataset: ConfigDict) -> list[Path]:
    """Files and folders that a data set reads, from its config; of images in shards the shards.

    Raises:
        DataError: If they cannot be told.
    """
    paths: list[Path] = []
    for one in inner_datasets(dataset):
        stated = one.get("data_root") or "."
        if (shards := _shards_of(one)) is not None:
            paths += [Path(path) for path in shards.paths if not is_store_url(path)]
            continue
        if not isinstance(stated, str | os.PathLike):
            raise DataError(f"data_root={stated!r}: a list is for shards of images with classes; name one folder")
        root = Path(stated)
        parts = [one.get("split"), one.get("ann_file"), *one.get("data_prefix", {}).values()]
        paths += [root, *(root / part for part in parts if part)]
    return paths


def _shards_of(dataset: ConfigDict) -> Shards | None:
    return find_shards(dataset.get("data_root") or ".", dataset.split) if dataset.get("split") else None


def stored_versions(dataset: ConfigDict) -> list[list[Any]]:
    """URL, size and version of the shards that a data set reads from stores, from its config.

    Raises:
        UserError: If a store cannot be asked.
    """
    found = [shards for shards in map(_shards_of, inner_datasets(dataset)) if shards is not None and shards.cache]
    return [list(state[:3]) for shards in found for state in shard_states(shards) if state.cache is not None]


def check_before_training(cfg: Config, logger: Logger, resume: bool) -> None:
    """Check the data that a training will read, for about a minute at most; all processes must call this together.

    The main process checks, the others wait for its result. All findings go to ``data_check.json`` in the work
    directory; a resumed run with the same data and settings does not repeat the check. A few damaged training images do
    not stop the run: they are replaced while training.

    Raises:
        DataError: In all processes, if the training would fail or be wrong; with the first error and their number.
        UserError: In all processes, if the check could not be made.
    """
    _broadcast(_check_and_report(cfg, logger, ("train", "val"), resume) if is_main_process() else None)


def check_before_test(cfg: Config, logger: Logger) -> None:
    """Check the test data in the same way; the findings go to ``test_data_check.json``.

    Raises:
        DataError: In all processes, if the test would fail or its scores be wrong.
        UserError: In all processes, if the check could not be made.
    """
    _broadcast(_check_and_report(cfg, logger, ("test",)) if is_main_process() else None)


def _broadcast(error: UserError | None) -> None:
    """Raise in all processes the error of the main process, if there is one."""
    failure = [error]
    broadcast_object_list(failure)
    if failure[0] is not None:
        raise failure[0]


def _check_and_report(cfg: Config, logger: Logger, splits: tuple[str, ...], resume: bool = False) -> UserError | None:
    """Error that stops the run, ``None`` if nothing does."""
    test = splits == ("test",)
    path = Path(cfg.work_dir) / (f"test_{DATA_CHECK_FILE}" if test else DATA_CHECK_FILE)
    fingerprint = data_fingerprint(cfg, splits)
    if resume and _passed_before(path, fingerprint):
        logger.info("data check: data and settings are those of the check before, %s", path)
        return None
    try:
        result = check_for_a_minute(cfg, splits)
        result.write(path, fingerprint=fingerprint)
        refuse_errors(result, str(path), "tests" if test else "trains")
    except UserError as error:
        return error
    lines = result.finding_lines(str(path))
    for line in lines[:MAX_LOGGED_WARNINGS]:
        logger.warning(f"data check: {line}")  # mmengine's logger drops a second warning of one template
    for line in (*result.notes, result.summary()):
        logger.info("data check: %s", line)
    return None


def check_for_a_minute(cfg: Config, splits: tuple[str, ...]) -> DataCheckResult:
    """Check the data of a resolved config as a run does before it starts, for about a minute at most.

    Raises:
        UserError: If the data cannot be checked at all.
    """
    return _tolerate_damage(check_datasets(cfg, splits, seconds=MAX_INSPECTION_SECONDS))


def refuse_errors(result: DataCheckResult, report: str, starts: str = "trains") -> None:
    """Raise the first error of a check.

    Args:
        result: Result of the check.
        report: Place of all errors.
        starts: Verb for a run without the check.

    Raises:
        DataError: If there is one.
    """
    if count := len(result.errors):
        others = f"the first of {count} errors in the data, all of them in {report}" if count > 1 else f"see {report}"
        raise DataError(f"{result.errors[0]} ({others}; --no-data-check {starts} all the same)")


def _tolerate_damage(result: DataCheckResult) -> DataCheckResult:
    """Turn errors about damaged training images into warnings, where these are few enough to be replaced."""
    errors = [finding for finding in result.errors if finding.split == "train"]
    damaged = {finding for finding in errors if finding.kind in DAMAGE_KINDS}
    inspected, listed = result.inspected.get("train images", (0, 0))
    if len(damaged) > max_replaced_images(listed) * inspected / max(1, listed):
        return result
    findings = [
        replace(finding, level="warning", fix=f"another image takes its place; {finding.fix}")
        if finding in damaged
        else finding
        for finding in result.findings
    ]
    return replace(result, findings=findings)


def data_fingerprint(cfg: Config, splits: tuple[str, ...] = ("train", "val")) -> str:
    """Hash of the data sets' settings and of size and time of the files and folders that they name."""
    settings: list[Any] = []
    for split in splits:
        if loader := cfg.get(f"{split}_dataloader"):
            paths = map(data_file, dataset_paths(loader.dataset))
            stats = [path.stat() for path in paths if path.exists()]
            files = [(stat.st_size, stat.st_mtime_ns) for stat in stats]
            settings.append([loader.dataset.to_dict(), files, *stored_versions(loader.dataset)])
    return make_fingerprint(*settings)[:16]


def _passed_before(path: Path, fingerprint: str) -> bool:
    try:
        previous = json.loads(read_text_file(path))
        return previous["fingerprint"] == fingerprint and previous["errors"] == 0
    except (OSError, ValueError, KeyError, TypeError):
        return False
