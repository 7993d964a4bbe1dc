"""What a study has found: its trainings, read from the storage of Optuna and from their work directories.

A *trial* is one choice of settings, as Optuna counts it. It is trained once for each seed of the study, and each of
these trainings is a :class:`TrialResult`; those that differ in the seed alone share the number of the trial.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, get_args

import optuna
from optuna.trial import TrialState

from analysis.sweep.space import decode_value
from backbones.errors import ConfigError, MachineError, first_line
from engine.report.environment import without_secrets
from engine.report.run_dir import (
    PLAN,
    finite,
    read_curves,
    read_json,
    read_json_lines,
    read_starts,
    scalar_files,
)

DATABASE = "study.db"  # in the folder of a study
DECLARATION = "declaration"  # user attribute of Optuna's study: the study file, as far as its results depend on it
MORE_SEEDS = "more_seeds"  # user attribute of Optuna's study: seeds of a trial beyond those of the study, by its number
TRIALS_FOLDER = "trials"
RUN_FILE = "run.json"  # in the work directory of each training of a study

RunState = Literal["waiting", "running", "interrupted", "finished", "pruned", "failed"]


@dataclass(frozen=True)
class Objective:
    """What a study optimizes.

    Attributes:
        metric: Name of a score in the log of a validation, such as ``top1`` or ``ema/bbox_mAP``.
        direction: Whether more or less of it is better.
        at: Validation whose value counts: the last one, or the best one.
    """

    metric: str
    direction: Literal["maximize", "minimize"]
    at: Literal["last", "best"] = "last"

    def better(self, one: float, other: float) -> bool:
        """Whether one score is better than another."""
        return one > other if self.direction == "maximize" else one < other

    def score(self, points: Sequence[tuple[float, float]]) -> float | None:
        """The value that counts of a curve of (epoch or step, score); ``None`` of an empty one."""
        values = [value for _, value in points]
        if not values:
            return None
        return values[-1] if self.at == "last" else max(values) if self.direction == "maximize" else min(values)


@dataclass(frozen=True)
class TrialResult:
    """One training of a study.

    Attributes:
        number: Number of the trial, from 0; trainings that differ in the seed alone share it.
        settings: Value of each dimension of the space by its name, which is a dotted config key or, where a value
            stands for several settings, a label.
        seed: Seed of the training.
        state: ``finished``; ``pruned`` (finished, but shorter than the study's full length, and not continued);
            ``failed``; ``running``; ``interrupted`` (stopped or killed, it will go on); ``waiting`` (not begun).
        score: Value of the objective of the longest finished schedule, in the unit of the log; ``None`` without one.
            Only scores at the same ``rung`` compare.
        rung: Index of that schedule among the rungs of the study; 0 in a study without rungs.
        curve: (epoch, score) of each validation of the longest schedule that was begun; (step, score) where the config
            counts its length in steps.
        unit: Unit of the first value of ``curve``.
        hours: Duration of all starts, in hours.
        gpu_hours: ``hours`` times the number of processes, each of which has a GPU; without GPUs, process hours.
        steps_per_second: Optimizer steps per second between validations; ``None`` if not logged.
        images_per_second: The same times the global batch.
        peak_memory_bytes: Peak memory of the tensors on the GPU of the main process, in bytes; without a GPU, the
            resident memory of that process.
        utilisation: Mean utilisation of the GPU of the main process in the steps, 0..1; ``None`` if not logged.
        data_wait: Fraction of the time of the steps in which they waited for their data, 0..1; ``None`` if not logged.
        parameters: Number of parameters of the model, of its averages not.
        work_dir: Work directory of the longest schedule that was begun.
        command: Command line of its last start; empty before the first one.
        reason: Why it failed or was interrupted, in one line; else empty.
    """

    number: int
    settings: Mapping[str, Any]
    seed: int
    state: RunState
    score: float | None = None
    rung: int = 0
    curve: tuple[tuple[float, float], ...] = ()
    unit: Literal["epoch", "step"] = "epoch"
    hours: float = 0.0
    gpu_hours: float = 0.0
    steps_per_second: float | None = None
    images_per_second: float | None = None
    peak_memory_bytes: int | None = None
    utilisation: float | None = None
    data_wait: float | None = None
    parameters: int | None = None
    work_dir: Path = Path()
    command: str = ""
    reason: str = ""

    @property
    def has_score(self) -> bool:
        """Whether it is finished at full length and has a finite score."""
        return self.state == "finished" and self.score is not None and math.isfinite(self.score)

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.state in ("waiting", "running", "interrupted")


@dataclass(frozen=True)
class StudyResult:
    """A study and all of its trainings.

    Attributes:
        name: Name of the study in its storage.
        title: First line of the study file's docstring.
        folder: Folder of the study.
        storage: URL of Optuna's storage.
        config: Config file of all trainings.
        options: Overrides of all trainings, under dotted keys.
        space: Declaration of each dimension by its name, as in the study file: ``{"log_uniform": [low, high]}``,
            ``{"uniform": [low, high]}``, ``{"choice": values}`` or ``{"grid": values}``; values are a list, or a
            mapping from a name to the settings that it stands for.
        objective: Score that is optimized.
        seeds: Seeds of each trial.
        rungs: Lengths of the schedules that are compared, in epochs or steps of the config, the full length last; empty
            in a study without rungs.
        trials: All trainings in the order of (number, seed), those that wait included.
        complete: Numbers of the trials of which every seed was finished at full length; they may have got more since.
    """

    name: str
    title: str
    folder: Path
    storage: str
    config: str
    options: Mapping[str, Any]
    space: Mapping[str, Mapping[str, Any]]
    objective: Objective
    seeds: tuple[int, ...]
    rungs: tuple[int, ...]
    trials: tuple[TrialResult, ...]
    complete: frozenset[int] = frozenset()

    def by_number(self) -> dict[int, tuple[TrialResult, ...]]:
        """The trainings of each trial, by its number."""
        numbers = sorted({trial.number for trial in self.trials})
        return {number: tuple(one for one in self.trials if one.number == number) for number in numbers}

    def compared(self) -> dict[int, tuple[TrialResult, ...]]:
        """The trainings whose scores compare, by the number of their trial.

        Those are all of a trial, if every seed is finished at full length with a finite score. Seeds that a trial got
        after that count once they are finished.
        """
        found = {}
        for number, runs in self.by_number().items():
            usable = tuple(run for run in runs if run.has_score)
            is_open = number in self.complete and all(run.has_score or run.is_open for run in runs)
            if usable and (usable == runs or is_open):
                found[number] = usable
        return found


def mean_score(runs: Sequence[TrialResult]) -> float:
    """Mean score of the seeds of a compared trial."""
    return fmean(run.score for run in runs if run.score is not None)


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn errors of the database into a ``MachineError``."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
        cause = error.__cause__ or error
        said = first_line(getattr(cause, "orig", None) or cause, 200)
        raise MachineError(
            f"the storage of the study ({without_secrets(url)}): {said}; trainings that run go on, start again with "
            "--resume when it can be written"
        ) from error


def read_study(folder: Path, storage: str | None = None, name: str | None = None) -> StudyResult:
    """Read a study, which may be running.

    Args:
        folder: Folder of the study.
        storage: URL of Optuna's storage; by default the SQLite file in the folder.
        name: Name of the study in the storage; may be omitted if there is one.

    Raises:
        ConfigError: If there is no such study.
        MachineError: If the storage cannot be read.
    """
    if storage is None and not (folder / DATABASE).is_file():
        raise ConfigError(f"{str(folder)!r} holds no study ({DATABASE}): give the folder of one")
    url = storage or f"sqlite:///{os.path.realpath(folder / DATABASE)}"
    with storage_errors(url):
        names = optuna.get_all_study_names(url) if name is None else [name]
        if len(names) != 1:
            raise ConfigError(f"{len(names)} studies in the storage of {str(folder)!r} ({', '.join(names)}): name one")
        try:
            study = optuna.load_study(study_name=names[0], storage=url)
        except KeyError as error:
            raise ConfigError(f"no study {name!r} in the storage of {str(folder)!r}") from error
        attributes, trials = study.user_attrs, study.get_trials(deepcopy=False)
    declared = attributes.get(DECLARATION)
    if declared is None:
        raise ConfigError(f"study {names[0]!r} was not made by tools/sweep.py")
    objective = Objective(**declared["objective"])
    more = attributes.get(MORE_SEEDS, {})
    runs: list[TrialResult] = []
    for trial in trials:
        asked = {*declared["seeds"], *more.get(str(trial.number), ())}
        runs += _read_trial(trial, asked, trial_folder(folder, trial.number), objective)
    return StudyResult(
        name=names[0],
        title=declared["title"],
        folder=folder,
        storage=url,
        config=declared["config"],
        options=declared["options"],
        space=declared["space"],
        objective=objective,
        seeds=tuple(declared["seeds"]),
        rungs=tuple(declared["rungs"]),
        trials=tuple(runs),
        complete=frozenset(one.number for one in trials if one.state is TrialState.COMPLETE),
    )


def trial_folder(folder: Path, number: int) -> Path:
    """Folder of the trainings of a trial in the folder of its study."""
    return folder / TRIALS_FOLDER / f"{number:04d}"


def validation_score(folder: Path, objective: Objective) -> float | None:
    """The value of the objective of a finished training; ``None`` if its validations did not log it."""
    return objective.score(_validations(folder, objective.metric)[0])


def _read_trial(
    trial: optuna.trial.FrozenTrial, asked: Collection[int], place: Path, objective: Objective
) -> list[TrialResult]:
    """The trainings of a trial: of each seed that is asked for, and those of other seeds that are finished.

    A trial without a folder was given up before anything was started; one that failed or was pruned gets no more seeds.
    """
    if not place.is_dir():
        return []
    parts: dict[int, list[tuple[Path, dict[str, Any]]]] = {seed: [] for seed in asked}
    for file in sorted(place.glob(f"*/{RUN_FILE}")):
        record = read_json(file)
        if "seed" in record:
            parts.setdefault(record["seed"], []).append((file.parent, record))
    found = []
    for seed, of_seed in sorted(parts.items()):
        # A trunk comes before its branch.
        of_seed.sort(key=lambda part: (part[1].get("rung", 0), not part[1].get("trunk")))
        run = _read_seed(trial, seed, of_seed, objective)
        is_open = run.state == "waiting" and trial.state in (TrialState.FAIL, TrialState.PRUNED)
        if run.state == "finished" or (seed in asked and not is_open):
            found.append(run if of_seed else replace(run, work_dir=place))
    return found


def _read_seed(
    trial: optuna.trial.FrozenTrial, seed: int, parts: Sequence[tuple[Path, Mapping[str, Any]]], objective: Objective
) -> TrialResult:
    """All that was trained of a trial with one seed: folder and record of each part, the longest one last."""
    settings = {name: decode_value(value) for name, value in trial.params.items()}
    if not parts:
        return TrialResult(trial.number, settings, seed, "waiting")
    ended = [part for part in parts if part[1].get("state") == "finished" and not part[1].get("trunk")]
    folder, record = parts[-1]
    curve, unit = _validations(folder, objective.metric)
    state: RunState = record["state"] if record.get("state") in get_args(RunState) else "interrupted"
    if state == "finished" and trial.state is TrialState.PRUNED:
        state = "pruned"
    starts = [start for part in parts for start in read_starts(part[0])]
    score = None
    if ended:
        score = objective.score(curve) if ended[-1][0] == folder else validation_score(ended[-1][0], objective)
    logged = _mean_logged(folder)
    speed = 1 / logged["time"] if logged.get("time") else None
    plan = read_json(folder / PLAN)
    batch = plan.get("batch", {})
    return TrialResult(
        number=trial.number,
        settings=settings,
        seed=seed,
        state=state,
        score=score,
        rung=ended[-1][1].get("rung", 0) if ended else 0,
        curve=curve,
        unit=unit,
        hours=sum(_seconds(start) for start in starts) / 3600,
        gpu_hours=sum(_seconds(start) * int(start.get("processes") or 1) for start in starts) / 3600,
        steps_per_second=speed,
        images_per_second=speed * batch["global_batch"] if speed and "global_batch" in batch else None,
        peak_memory_bytes=_peak_memory(starts),
        utilisation=logged.get("gpu_utilisation"),
        data_wait=logged["data_time"] * speed if speed and "data_time" in logged else None,
        parameters=_parameters(plan),
        work_dir=folder,
        command=str(starts[-1].get("command", "")) if starts else "",
        reason=str(record.get("reason") or ""),
    )


def _validations(folder: Path, metric: str) -> tuple[tuple[tuple[float, float], ...], Literal["epoch", "step"]]:
    """Values of a score of the validations of a training, at their epochs, or steps where the config counts steps."""
    points = read_curves(folder).get(f"val/{metric}", [])
    schedule = read_json(folder / PLAN).get("schedule", {})
    per_epoch = schedule.get("steps_per_epoch") if schedule.get("epochs") else None
    if not per_epoch:
        return tuple(points), "step"
    return tuple((step / per_epoch, value) for step, value in points), "epoch"


def _seconds(start: Mapping[str, Any]) -> float:
    return finite(start.get("seconds")) or 0.0


def _mean_logged(folder: Path) -> dict[str, float]:
    """Means of what each line of the training's log says of the steps since the line before, by its name."""
    lines = [entry for file in scalar_files(folder) for entry in read_json_lines(file) if "lr" in entry]
    steady = lines[1:] or lines  # the first steps wait for the data and the kernels
    means = {}
    for name in ("time", "data_time", "gpu_utilisation"):
        if values := [value for entry in steady if (value := finite(entry.get(name))) is not None]:
            means[name] = fmean(values)
    return means


def _peak_memory(starts: Sequence[Mapping[str, Any]]) -> int | None:
    for key in ("gpu_memory_bytes", "memory_bytes"):
        if values := [start[key] for start in starts if isinstance(start.get(key), int)]:
            return max(values)
    return None


def _parameters(plan: Mapping[str, Any]) -> int | None:
    rows = plan.get("rows")
    return sum(row["params"] for row in rows) + plan.get("frozen", 0) if rows else None
