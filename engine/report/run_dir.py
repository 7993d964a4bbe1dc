"""Reads the files in the work directory of a training; missing and damaged files are skipped without an error.

``docs/run_folder.md`` lists the files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backbones.errors import ConfigError, MachineError, printable
from backbones.files import atomic_write
from engine.report.environment import read_text

if TYPE_CHECKING:  # the doctor reads run directories where mmengine may be broken
    from engine.task import Score

# Written by engine.report.recorder.
STARTS = "starts.json"
ENVIRONMENT = "environment.json"
PLAN = "plan.json"
DIFF = "code.diff"
REPORT = "report.html"
RECEIPTS = "weights.json"  # which weights the training started with
CONFUSION = "confusion.json"  # of the last validation; that of the last test is in the folder of tests
DRAWN_AFTER = "validation.json"  # in the folder of pictures: step of the validation that they are of
EVENTS_FOLDER = "nonfinite"  # written by engine.nonfinite.report

Points = list[tuple[int, float]]
TRAINING = {"loss": "train/loss", "lr": "train/lr", "grad_norm": "train/grad_norm", "noise_scale": "train/noise_scale"}
NOT_METRICS = ("step", "time", "data_time")
# Kinds of what is read of a start; see conform.
START = {
    **dict.fromkeys(("folder", "outcome", "reason", "began", "command"), str),
    **dict.fromkeys(("from_step", "to_step", "of_steps", "processes", "loss_images"), int),
    "about": {"task": str, "seed": int, "optimizer": {}, "ema": (int, float)},
    "plan": {"batch": {"global_batch": int}, "lines": [str], "notes": [str]},
    "config": {"file": str, "text": str, "changed": {"*": list}},
    "environment": {
        "code": {"commit": str, "branch": str},
        "machine": {"gpus": [{"name": str, "memory_bytes": int}], "memory_bytes": int},
        "versions": {},
        "variables": {},
    },
    "weights": [{}],
}
TEST = {"metrics": {}, "class_scores": {"*": {}}, "receipts": [{}]}  # of the file of a test


def scaled(metrics: Mapping[str, float | None], score: Score) -> float | None:
    """The value of a score among metrics, in 0..100; ``None`` where it is absent."""
    value = metrics.get(score.metric)
    return None if value is None else value * score.factor


def greater_is_better(name: str) -> bool:
    """Whether more of a metric is better: of all but losses."""
    return not name.endswith("loss")


def best_point(name: str, points: Sequence[tuple[int, float]]) -> tuple[int, float]:
    """The step and value where a metric was best, the first of equals: the highest, of a loss the lowest."""
    sign = -1 if greater_is_better(name) else 1
    return min(points, key=lambda point: sign * point[1])


def read_curves(folder: Path) -> dict[str, Points]:
    """Training loss, rate and validation metrics of all starts of one training.

    A validation is placed at the optimizer step that it took place after, or, where the folder has no plan, at the last
    step that was logged before it. Where a start went on from an earlier step than the one before had reached, only
    what was done again counts.

    Args:
        folder: Work directory of the training.

    Returns:
        ``train/loss``, ``train/lr``, ``train/grad_norm``, ``train/noise_scale`` and ``val/<metric>``, as far as they
        were logged, each a list of (optimizer step, value).
    """
    per_epoch = _steps_per_epoch(folder)
    begun = {start.get("folder"): start.get("from_step") for start in read_starts(folder)}
    curves: dict[str, dict[int, float]] = {}
    for path in scalar_files(folder):
        step, first = 0, begun.get(path.parent.parent.name)
        if isinstance(first, int):
            curves = {name: {at: y for at, y in curve.items() if at <= first} for name, curve in curves.items()}
        for entry in read_json_lines(path):
            if "lr" in entry:
                step = at = entry["step"]
                values = {TRAINING[name]: entry.get(name) for name in TRAINING}
            else:
                values = {f"val/{name}": entry[name] for name in entry if name not in NOT_METRICS}
                at = entry["step"] * per_epoch if per_epoch else step or entry["step"]
            for name, value in values.items():
                if (number := finite(value)) is not None:
                    curves.setdefault(name, {})[at] = number
    return {name: sorted(points.items()) for name, points in curves.items() if points}


def has_validated(folder: Path) -> bool:
    """Whether a validation was logged, though none of its scores be a finite number."""
    entries = (entry for path in scalar_files(folder) for entry in read_json_lines(path))
    return any("lr" not in entry and set(entry) - {*NOT_METRICS} for entry in entries)


def scalar_files(folder: Path) -> list[Path]:
    """The logged values of each start of the training that a folder holds; of all starts where there is no record."""
    names = {start["folder"] for start in read_starts(folder) if "folder" in start}
    files = sorted(folder.glob("*/vis_data/scalars.json"))
    return [file for file in files if not names or file.parents[1].name in names]


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """The starts of the training that the folder holds, the first one first.

    A start that did not resume began a new training: what was in the folder before is not part of it. One that failed
    before its first step, such as over options that do not fit the checkpoint, began nothing.
    """
    listed = read_json(folder / STARTS).get("starts")
    starts: list[dict[str, Any]] = conform(listed, [START]) or []
    fresh = [index for index, start in enumerate(starts) if has_begun(start) and not start.get("resumed")]
    return starts[fresh[-1] :] if fresh else starts


def has_begun(start: Mapping[str, Any]) -> bool:
    """Whether a start of a training has come as far as its first step."""
    return start.get("from_step") is not None


def last_begun(starts: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The last start that has come as far as its first step; if none has, the last one, or an empty mapping."""
    return next(filter(has_begun, reversed(starts)), starts[-1] if starts else {})


def read_load_reports(path: Path) -> list[dict[str, Any]] | None:
    """The load reports of a training or a test, in order; ``None`` where the file has none."""
    load_reports = read_json(path).get("receipts")
    return [one for one in load_reports if isinstance(one, dict)] if isinstance(load_reports, list) else None


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a file; an empty one where there is none."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def conform(value: Any, shape: Any) -> Any:
    """A value from JSON without the parts that are of another kind than they should be, as if they were not written.

    Args:
        value: Value.
        shape: A type or several; ``[shape]`` of the items of a list; a mapping of shapes by key, with ``*`` for the
            keys that it does not name. What it has no shape for is kept.

    Returns:
        The value; ``None`` if it is of another kind itself.
    """
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return None
        kinds = {key: shape.get(key, shape.get("*")) for key in value}
        kept = {key: inner if kinds[key] is None else conform(inner, kinds[key]) for key, inner in value.items()}
        return {key: inner for key, inner in kept.items() if inner is not None or kinds[key] is None}
    if isinstance(shape, list):
        items = [conform(item, shape[0]) for item in value] if isinstance(value, list) else None
        return None if items is None else [item for item in items if item is not None]
    fits = isinstance(value, shape) and (not isinstance(value, int | float) or finite(value) is not None)
    return value if fits else None


def read_json_lines(path: Path) -> Iterable[dict[str, Any]]:
    """The mappings with a ``step`` in a file of one JSON per line."""
    for line in read_text(path).splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):  # the last line of a run that was killed may be cut
            continue
        if isinstance(entry, dict) and isinstance(finite(entry.get("step")), int):
            yield entry


def write_json(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write JSON at once: a reader sees the old or the new. The folder is made where it is absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as place:
        place.write_text(json.dumps(content, indent=2), encoding="utf-8")


def write_result(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write JSON to a file that a command asks for.

    Raises:
        MachineError: If it cannot be written.
    """
    try:
        write_json(path, content)
    except OSError as error:
        problem = f"{str(path)!r} cannot be written ({error.strerror or error}): choose another file with --json"
        raise MachineError(problem) from error


def numbers_file(page: Path) -> Path:
    """The JSON beside a page.

    Raises:
        ConfigError: If the page has the name of the JSON, or none.
    """
    if not page.name or page.suffix == ".json":
        raise ConfigError(f"--out {str(page)!r}: the page is HTML, with its numbers as .json beside it: name an .html")
    return page.with_suffix(".json")


def write_page(page: Path, text: str, numbers: Mapping[str, Any] | None = None) -> None:
    """Write a page, and its numbers beside it, if there are some.

    Raises:
        MachineError: If they cannot be written.
    """
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(page) as part:
            part.write_text(text, encoding="utf-8")
        if numbers is not None:
            write_json(numbers_file(page), numbers)
    except OSError as error:
        reason = error.strerror or error
        raise MachineError(f"{printable(page)} cannot be written ({reason}): choose another file with --out") from error


def finite(value: Any) -> float | None:
    """The number, if it is one and finite."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) <= sys.float_info.max else None


def _steps_per_epoch(folder: Path) -> int | None:
    """Optimizer steps for each count of the validations' log: 1 where it counts steps, ``None`` if unknown."""
    schedule = read_json(folder / PLAN).get("schedule")
    if not isinstance(schedule, dict):
        return None
    steps = schedule.get("steps_per_epoch") if schedule.get("epochs") else 1
    return steps if isinstance(finite(steps), int) else None
