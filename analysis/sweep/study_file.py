"""A study file: which trainings a sweep consists of, in a few declarations, read as a config of mmengine is."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from mmengine.config import Config

from analysis.sweep.results import Objective
from analysis.sweep.space import CONFIG_KEY, Dimension, grid_points, is_all_grid, read_space
from backbones.errors import ConfigError, describe_error, nearest
from backbones.packages import is_absent, missing_package_error
from engine.checkpoint.hook import LOWER_IS_BETTER
from engine.config.custom_imports import refuse_bases
from engine.config.fingerprint import config_values, make_fingerprint
from engine.config.schema import is_number, is_whole
from engine.report.environment import ROOT

SETTINGS = (
    *(CONFIG_KEY, "options", "space", "objective", "seeds", "budget", "sampler", "pruner", "rungs"),
    *("storage", "gpus_per_trial", "per_gpu_batch"),
)
RESERVED = {"randomness.seed": "seeds", "work_dir": "--work-dir", "load_from": "model.backbone.weights"}
SAMPLERS: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
    "tpe": optuna.samplers.TPESampler,
    "gp": optuna.samplers.GPSampler,
    "qmc": optuna.samplers.QMCSampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "nsga2": optuna.samplers.NSGAIISampler,
    "nsga3": optuna.samplers.NSGAIIISampler,
    "random": optuna.samplers.RandomSampler,
}
ADAPTIVE = ("tpe", "gp", "cmaes", "nsga2", "nsga3")  # learn from the trials before
HALVING = ("successive_halving", "asha")
PRUNERS: dict[str, Callable[..., optuna.pruners.BasePruner]] = {
    "median": optuna.pruners.MedianPruner,
    "percentile": optuna.pruners.PercentilePruner,
    "threshold": optuna.pruners.ThresholdPruner,
}


@dataclass(frozen=True)
class Budget:
    """What a study may cost; no trial begins once a limit is reached, those that run are finished.

    Attributes:
        trials: Number of trials; ``None`` for no limit.
        hours: Hours in which the controller runs; ``None`` for no limit.
        gpu_hours: Hours of all trainings times their processes; ``None`` for no limit.
    """

    trials: int | None = None
    hours: float | None = None
    gpu_hours: float | None = None


@dataclass(frozen=True)
class Rungs:
    """Lengths at which trials are compared, each with a schedule that has come to its end.

    Attributes:
        lengths: Epochs or steps, as the config counts; the last one is the full length.
        keep: Fraction of the trials that goes on from each rung.
        decay: Fraction of each length in which the rate falls to 0, from a constant one; the trunk at the constant rate
            is trained once for all rungs. ``None`` for schedules of the config's shape, each from the start.
    """

    lengths: tuple[int, ...]
    keep: float = 1 / 3
    decay: float | None = None


@dataclass(frozen=True)
class StudyFile:
    """A study as its file declares it.

    Attributes:
        path: The file.
        name: Name of the study in its storage: that of the file.
        title: First line of the file's docstring.
        config: Config file of all trainings.
        options: Overrides of all trainings under dotted keys.
        space: Dimensions.
        declared_space: ``space`` as the file states it.
        objective: Score that is optimized.
        seeds: Seeds with which each trial is trained.
        budget: Limits of the whole study.
        sampler: Name in :data:`SAMPLERS`, and arguments of that class.
        pruner: Name in :data:`HALVING` or :data:`PRUNERS`, and arguments of the latter; empty without rungs.
        rungs: Lengths at which trials are compared; ``None`` to train all at full length.
        storage: URL of Optuna's storage; ``None`` for a SQLite file in the study's folder.
        gpus_per_trial: Processes of each training, of which each has a GPU where there are some.
        per_gpu_batch: Option of ``tools/train.py``; ``None`` to leave it out.
    """

    path: Path
    name: str
    title: str
    config: str
    options: Mapping[str, Any]
    space: tuple[Dimension, ...]
    declared_space: Mapping[str, Any]
    objective: Objective
    seeds: tuple[int, ...]
    budget: Budget
    sampler: Mapping[str, Any]
    pruner: Mapping[str, Any]
    rungs: Rungs | None
    storage: str | None = None
    gpus_per_trial: int = 1
    per_gpu_batch: str | None = None

    @property
    def max_trials(self) -> int | None:
        """Number of trials that the study has at most; ``None`` if only time limits it."""
        points = len(grid_points(self.space)) if is_all_grid(self.space) else None
        limits = [limit for limit in (points, self.budget.trials) if limit is not None]
        return min(limits) if limits else None

    def declaration(self) -> dict[str, Any]:
        """What the results depend on, as JSON: it does not change while the study lives."""
        rungs = self.rungs
        return {
            "title": self.title,
            "config": self.config,
            # How a step is spread over micro-batches changes no result.
            "options": {key: value for key, value in self.options.items() if key != "batch.per_gpu"},
            "space": self.declared_space,
            "objective": vars(self.objective),
            "seeds": list(self.seeds),
            "rungs": list(rungs.lengths) if rungs else [],
            "decay": rungs.decay if rungs else None,
            "values": make_fingerprint(*(config_values(config) for config in self.configs)),
        }

    @property
    def configs(self) -> list[str]:
        """Config files among which the space chooses, that of the study first."""
        named = [one[CONFIG_KEY] for dim in self.space for one in dim.settings.values() if CONFIG_KEY in one]
        named += [value for dim in self.space if dim.name == CONFIG_KEY for value in dim.values]
        return list(dict.fromkeys([self.config, *named]))


def read_study_file(path: str | Path) -> StudyFile:
    """Read a study file.

    Args:
        path: A Python file of plain declarations, read by mmengine: ``_base_`` names other study files.

    Raises:
        ConfigError: If it cannot be read or declares something wrong.
        MachineError: If a sampler needs a package that is absent.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"study {str(path)!r} does not exist")
    refuse_bases(path)
    try:
        stated = Config.fromfile(str(path), import_custom_modules=False).to_dict()
        title = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or path.stem).splitlines()[0]
    except (Exception, SystemExit) as error:  # a program: it may raise anything
        raise ConfigError(f"study {str(path)!r} cannot be read: {describe_error(error)}") from error
    return declared_study(stated, path, title.rstrip("."))


def declared_study(stated: Mapping[str, Any], path: Path, title: str) -> StudyFile:
    """The study that is declared by settings.

    Args:
        stated: Value of each name that a study file may define.
        path: File after which it is named.
        title: Title of its report.

    Raises:
        ConfigError: If something is declared wrong.
        MachineError: If a sampler needs a package that is absent.
    """
    for key in stated:
        if key not in SETTINGS:
            raise ConfigError(f"study {str(path)!r}: no setting {key!r}{nearest(key, SETTINGS)}: {', '.join(SETTINGS)}")
    if not isinstance(stated.get(CONFIG_KEY), str):
        raise ConfigError(f"study {str(path)!r}: config is missing: the config file of the trainings")
    space = read_space(stated.get("space", {}))
    sampler = _named("sampler", stated.get("sampler", "tpe"), SAMPLERS)
    rungs = _read_rungs(stated.get("rungs"))
    study = StudyFile(
        path=path,
        name=path.stem,
        title=title,
        config=_config_place(stated[CONFIG_KEY]),
        options=_read_options(stated.get("options", {}), space),
        space=space,
        declared_space=stated.get("space", {}),
        objective=_read_objective(stated.get("objective")),
        seeds=_read_seeds(stated.get("seeds", 1)),
        budget=_read_budget(stated.get("budget", {})),
        sampler=sampler,
        pruner=_read_pruner(stated.get("pruner"), rungs, space, sampler),
        rungs=rungs,
        storage=stated.get("storage"),
        gpus_per_trial=stated.get("gpus_per_trial", 1),
        per_gpu_batch=None if stated.get("per_gpu_batch") is None else str(stated["per_gpu_batch"]),
    )
    if not is_whole(study.gpus_per_trial, 1):
        raise ConfigError(f"gpus_per_trial={study.gpus_per_trial!r}: a whole number from 1 up is needed")
    if study.max_trials is None and study.budget == Budget():
        raise ConfigError("budget is missing: the space is sampled without end; give trials, hours or gpu_hours")
    make_sampler(study, 0)
    return study


def make_sampler(study: StudyFile, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler of a study.

    Raises:
        ConfigError: If an argument is wrong.
        MachineError: If it needs a package that is absent.
    """
    arguments = dict(study.sampler)
    kind = arguments.pop("type")
    if kind == "cmaes" and is_absent("cmaes"):  # which Optuna imports when it samples
        raise missing_package_error("cmaes", "sampler='cmaes'")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return SAMPLERS[kind](**{"seed": seed, **arguments})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"sampler={dict(study.sampler)!r}: {describe_error(error)}") from error


def make_pruner(study: StudyFile) -> optuna.pruners.BasePruner:
    """The pruner of Optuna's study: one that never prunes where :mod:`analysis.sweep.rungs` decides.

    Raises:
        ConfigError: If an argument is wrong.
    """
    settings = dict(study.pruner)
    kind = settings.pop("type", None)
    if kind not in PRUNERS:
        return optuna.pruners.NopPruner()
    try:
        return PRUNERS[kind](**settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"pruner={dict(study.pruner)!r}: {describe_error(error)}") from error


def _config_place(stated: str) -> str:
    """A config file as it is typed in the current folder, or below the root of this project."""
    return stated if Path(stated).is_file() or not (ROOT / stated).is_file() else str(ROOT / stated)


def _named(place: str, stated: Any, known: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    settings = dict(stated) if isinstance(stated, Mapping) else {"type": stated}
    if settings.get("type") not in known:
        name = str(settings.get("type"))
        raise ConfigError(f"{place}={name!r}{nearest(name, known)}; choose from {', '.join(known)}")
    return settings


def _read_options(stated: Any, space: Sequence[Dimension]) -> dict[str, Any]:
    if not isinstance(stated, Mapping):
        raise ConfigError(f"options={stated!r}: a mapping from dotted keys to values is needed")
    places = {"options": set(stated), **{f"space[{one.name!r}]": one.keys for one in space}}
    for place, keys in places.items():
        for key in sorted(keys & RESERVED.keys()):
            raise ConfigError(f"{place}: {key} is set for each training: use {RESERVED[key]}")
    if CONFIG_KEY in stated:
        raise ConfigError("options: state config at the top level")
    return dict(stated)


def _read_objective(stated: Any) -> Objective:
    settings = {"metric": stated} if isinstance(stated, str) else stated
    if not isinstance(settings, Mapping) or not isinstance(settings.get("metric"), str):
        raise ConfigError(f"objective={stated!r}: a score of the validation is needed, such as dict(metric='top1')")
    unknown = set(settings) - {"metric", "direction", "at"}
    if unknown:
        raise ConfigError(f"objective: no setting {', '.join(sorted(unknown))}: metric, direction, at")
    metric = settings["metric"]
    direction: Any = settings.get("direction", "minimize" if metric.endswith(LOWER_IS_BETTER) else "maximize")
    at: Any = settings.get("at", "last")
    if direction not in ("maximize", "minimize") or at not in ("last", "best"):
        raise ConfigError(f"objective: direction={direction!r}, at={at!r}: maximize or minimize, last or best")
    return Objective(metric, direction, at)


def _read_seeds(stated: Any) -> tuple[int, ...]:
    seeds = tuple(range(stated)) if is_whole(stated, 1) else tuple(stated) if isinstance(stated, list | tuple) else ()
    if not seeds or not all(map(is_whole, seeds)) or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds={stated!r}: their number, or a list of whole numbers from 0 up, each once")
    return seeds


def _read_budget(stated: Any) -> Budget:
    names = vars(Budget()).keys()
    if not isinstance(stated, Mapping) or set(stated) - names:
        raise ConfigError(f"budget={stated!r}: dict(trials=N, hours=H, gpu_hours=G) is needed, or some of them")
    for key, value in stated.items():
        if not (is_whole(value, 1) if key == "trials" else is_number(value) and value > 0):
            raise ConfigError(
                f"budget.{key}={value!r}: a positive {'whole ' if key == 'trials' else ''}number is needed"
            )
    return Budget(**stated)


def _read_rungs(stated: Any) -> Rungs | None:
    if stated is None:
        return None
    settings = dict(stated) if isinstance(stated, Mapping) else {"lengths": stated}
    unknown = set(settings) - vars(Rungs((1, 2))).keys()
    lengths: Any = settings.get("lengths") or ()
    keep: Any = settings.get("keep", 1 / 3)
    decay: Any = settings.get("decay")
    right = isinstance(lengths, list | tuple) and len(lengths) > 1 and all(is_whole(one, 1) for one in lengths)
    if unknown or not right or sorted(set(lengths)) != list(lengths):
        raise ConfigError(f"rungs={stated!r}: dict(lengths=(short, ..., full)) is needed, in epochs or steps, rising")
    for name, value in (("keep", keep), ("decay", decay)):
        if not (name == "decay" and value is None) and not (is_number(value) and 0 < value < 1):
            raise ConfigError(f"rungs.{name}={value!r}: a fraction between 0 and 1 is needed")
    return Rungs(tuple(lengths), keep, decay)


def _read_pruner(
    stated: Any, rungs: Rungs | None, space: Sequence[Dimension], sampler: Mapping[str, Any]
) -> dict[str, Any]:
    if rungs is None:
        if stated is not None:
            raise ConfigError(
                f"pruner={stated!r} without rungs: schedules that are not finished do not compare; "
                "state rungs=dict(lengths=(...)), or leave pruner out"
            )
        return {}
    adaptive = not is_all_grid(space) and sampler["type"] in ADAPTIVE
    return _named("pruner", stated or ("asha" if adaptive else "successive_halving"), (*HALVING, *PRUNERS))
