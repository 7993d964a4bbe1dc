"""Reads the trainings that are compared, and puts those together that differ in nothing but the seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from mmengine.config import Config

from backbones.errors import ConfigError, DataError, UserError, first_line, printable
from engine.config.load import load_config
from engine.config.world import Launch
from engine.report.environment import commit_line, plain_value
from engine.report.run_dir import STARTS, Points, finite, last_begun
from engine.report.training import device_line, read_run, shares_of_time
from engine.task import CUSTOM_TASK, TASK_SPECS, TaskSpec, task_of

FINISHED_OUTCOME = "finished"
# Settings in which repeated trainings of one setting differ: the seed, where they are, how they were started.
NOT_A_SETTING = ("work_dir", "resume", "launcher", "randomness.seed")
PREDICTION_FILES = ("predictions.zip", "analysis/predictions.zip")  # in a run folder


@dataclass(frozen=True)
class TrainingRun:
    """A training, read from its run folder.

    Attributes:
        folder: Run folder.
        task: Name of the task; empty without a record.
        outcome: End of the last start: ``finished``, ``running``, ``stopped`` or ``failed``; empty without a record.
        step: Last optimizer step that is on record.
        steps: Optimizer steps of the whole training.
        seed: Seed.
        config_file: Resolved config.
        config: Its settings as plain data; ``None`` where it cannot be read.
        circumstances: Facts beside the settings, by their names: code, processes, device, version of torch.
        curves: Logged values by name, as of ``engine.report.run_dir.read_curves``.
        tests: Metrics of each test by its label.
        speed: ``step_seconds``, ``images_per_second``, ``data_wait`` (share of the time, 0 to 1), ``memory_bytes`` and
            ``gpu_memory_bytes`` (peaks), ``seconds`` of all starts; ``None`` where it is not known.
        predictions: File of saved predictions of the test data; ``None`` without one.
        validated: Whether there was a validation.
        problem: Reason why the config cannot be read, in a line; empty if it can.
    """

    folder: Path
    task: str
    outcome: str
    step: int | None
    steps: int | None
    seed: int | None
    config_file: Path | None
    config: Mapping[str, Any] | None
    circumstances: Mapping[str, str]
    curves: Mapping[str, Points]
    tests: Mapping[str, Mapping[str, float]]
    speed: Mapping[str, float | None]
    predictions: Path | None
    validated: bool = True
    problem: str = ""

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.resolve().name

    @property
    def is_finished(self) -> bool:
        """Whether the training has come to its end."""
        return self.outcome == FINISHED_OUTCOME

    @property
    def classes(self) -> Any:
        """Names of the classes, if the config states them."""
        return None if self.config is None else self.config.get("classes")


@dataclass(frozen=True)
class ComparedSetting:
    """Trainings that differ in nothing but the seed.

    Attributes:
        letter: Name on the page: ``A``, ``B``...
        runs: The trainings, each with another seed.
        label: Letter, and what the setting is, in a few words.
    """

    letter: str
    runs: Sequence[TrainingRun] = field(default_factory=tuple)
    label: str = ""

    @property
    def is_finished(self) -> bool:
        """Whether its trainings have come to their end."""
        return all(run.is_finished for run in self.runs)

    @property
    def config(self) -> Mapping[str, Any] | None:
        """Settings of the first training."""
        return self.runs[0].config


def read_runs(folders: Sequence[Path]) -> list[TrainingRun]:
    """Read the trainings in run folders.

    Raises:
        UserError: If there are fewer than two, one is no run folder or is named twice, or the tasks differ.
    """
    if len(folders) < 2:
        raise ConfigError("one training has nothing to be compared with: name two run folders or more")
    known: dict[Path, Path] = {}
    for folder in folders:
        if (other := known.setdefault(folder.resolve(), folder)) is not folder:
            raise ConfigError(f"{printable(folder)}: is named twice, also as {printable(other)}")
        _check_run_folder(folder)
    runs = [_read(folder) for folder in folders]
    tasks = {run.task: run for run in reversed(runs) if run.task}
    if len(tasks) > 1:
        (task, run), (other_task, other_run) = list(reversed(tasks.items()))[:2]
        raise ConfigError(
            f"{printable(run.folder)} is a training of {printable(task)}, {printable(other_run.folder)} of "
            f"{printable(other_task)}: "
            "name trainings of one task"
        )
    return runs


def _check_run_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise DataError(f"{printable(folder)}: there is no such folder: name the folders of trainings, as in work_dirs")
    if not (folder / STARTS).is_file():
        inner = min(folder.glob(f"**/{STARTS}"), default=None)
        hint = f": did you mean {printable(inner.parent)}?" if inner else ": name the folder of a training"
        raise DataError(f"{printable(folder)}: is no run folder, there is no {STARTS} in it{hint}")


def _read(folder: Path) -> TrainingRun:
    run = read_run(folder)
    last = last_begun(run["starts"])
    newest = run["starts"][-1] if run["starts"] else {}
    about, plan = last.get("about", {}), last.get("plan", {})
    config_file, config, problem = _read_settings(folder, last)
    seed = about.get("seed")
    if seed is None and config is not None:
        randomness = config.get("randomness")
        seed = randomness.get("seed") if isinstance(randomness, dict) else None
    made = last.get("environment", {})
    machine = made.get("machine", {})
    seconds, batch = run["step_seconds"], (plan.get("batch") or {}).get("global_batch")
    waiting = shares_of_time(run["starts"]).get("waiting for data")
    predictions = [folder / name for name in PREDICTION_FILES if (folder / name).is_file()]
    return TrainingRun(
        folder=folder,
        task=str(about.get("task") or ""),
        outcome=str(newest.get("outcome") or ""),
        step=last.get("to_step", last.get("from_step")),
        steps=last.get("of_steps"),
        seed=seed if isinstance(seed, int) else None,
        config_file=config_file,
        config=config,
        circumstances={
            "code": commit_line(made.get("code", {})),
            "processes": str(last.get("processes", "no record")),
            "device": device_line(machine, last) or "no record",
            "torch": str(made.get("versions", {}).get("torch", "no record")),
        },
        curves=run["curves"],
        tests={test["label"]: _numbers(test.get("metrics", {})) for test in run["tests"].values()},
        speed={
            "step_seconds": seconds,
            "images_per_second": batch / seconds if seconds and batch else None,
            "data_wait": waiting,
            "memory_bytes": max((finite(one.get("memory_bytes")) or 0 for one in run["starts"]), default=0) or None,
            "gpu_memory_bytes": run["gpu_memory_bytes"] or None,
            "seconds": sum(finite(start.get("seconds")) or 0.0 for start in run["starts"]) or None,
        },
        predictions=max(predictions, key=lambda path: path.stat().st_mtime_ns, default=None),
        validated=run["validated"],
        problem=problem,
    )


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: number for name, value in metrics.items() if (number := finite(value)) is not None}


def _read_settings(folder: Path, last: Mapping[str, Any]) -> tuple[Path | None, dict[str, Any] | None, str]:
    """The resolved config of a training, its settings, and the reason why they cannot be read."""
    stated = Path(str((last.get("config") or {}).get("file") or "config.py")).name
    places = [folder / str(last.get("folder", "")) / "vis_data" / "config.py", folder / stated]
    place = next(filter(Path.is_file, places), None)
    if place is None:
        return None, None, f"there is no resolved config in it ({stated})"
    try:
        cfg = Config.fromfile(str(place), import_custom_modules=False)
    except (Exception, SystemExit) as error:  # a config is a program: it may raise anything
        return place, None, f"its config cannot be read: {first_line(error)}"
    return place, plain_value(cfg.to_dict()), ""


def group_by_setting(runs: Sequence[TrainingRun]) -> list[ComparedSetting]:
    """Put trainings together that differ in nothing but the seed, in the order in which they are named.

    A second training with the same settings and the same seed, as before and after a change of the code, begins a
    setting of its own, and so does an unfinished one beside finished ones.
    """
    groups: list[tuple[str, list[TrainingRun]]] = []
    for run in runs:
        key = str(run.folder) if run.config is None else json.dumps([_without_seed(run.config), run.is_finished])
        fitting = (
            group for known, group in groups if known == key and all(one.seed != run.seed for one in group)
        )  # a seed that is not known is no other seed
        group = next(fitting, None) if run.seed is not None else None
        if group is None:
            groups.append((key, [run]))
        else:
            group.append(run)
    return [ComparedSetting(_letter(index), tuple(group)) for index, (_, group) in enumerate(groups)]


def _letter(index: int) -> str:
    """``A`` to ``Z``, then ``A2``..."""
    again, place = divmod(index, len(ascii_uppercase))
    return ascii_uppercase[place] + (str(again + 1) if again else "")


def _without_seed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what is no setting; files in its work directory are named from there."""
    kept: dict[str, Any] = _from_work_folder(config, str(config.get("work_dir") or "work_dirs").rstrip("/"))
    for key in NOT_A_SETTING:
        outer, _, name = key.rpartition(".")
        place = kept.setdefault(outer, {}) if outer else kept
        if isinstance(place, dict):
            place.pop(name, None)
    return kept


def _from_work_folder(value: Any, folder: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _from_work_folder(inner, folder) for key, inner in value.items()}
    if isinstance(value, list):
        return [_from_work_folder(inner, folder) for inner in value]
    return (
        f"work_dir{value.removeprefix(folder)}" if isinstance(value, str) and value.startswith(folder + "/") else value
    )


def compared_config(setting: ComparedSetting) -> Mapping[str, Any] | None:
    """The settings of a training that are compared."""
    return None if setting.config is None else _without_seed(setting.config)


def task_of_runs(runs: Sequence[TrainingRun]) -> tuple[TaskSpec, Config | None, list[str]]:
    """The task of the trainings, from the first config that can be resolved for a test.

    Returns:
        Its specification, the config, and reasons why a config cannot be resolved, a line each.
    """
    reasons = []
    for run in runs:
        if run.config is None or run.config_file is None:
            continue
        try:
            cfg = load_config(run.config_file, {"work_dir": str(run.folder)}, Launch(), training=False).cfg
        except UserError as error:
            reasons.append(f"{run.name}: {first_line(error)}")
            continue
        return task_of(cfg), cfg, reasons
    return TASK_SPECS.get(runs[0].task, CUSTOM_TASK), None, reasons
