"""What a sweep checks before anything starts: every value of every dimension, the metric, and what it will cost."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from mmengine.registry import DATASETS

from analysis.config_flops import count_config
from analysis.start_check import checked_plan
from analysis.sweep.results import StudyResult
from analysis.sweep.rungs import cost_of, length_of
from analysis.sweep.space import CONFIG_KEY, decode_value, grid_points, is_all_grid, settings_of
from analysis.sweep.study_file import StudyFile, make_sampler
from analysis.sweep.trainings import command_of, options_of, shown_command, trainings_of
from backbones.errors import ConfigError
from engine.config.building import build
from engine.config.load import Resolved, load_config
from engine.config.world import Launch
from engine.data.preflight import dataset_paths
from engine.planning.plan import training_plan

MAX_RESOLVED = 256  # points of a grid that are resolved one by one; of a larger one the values of each dimension
BEST = "default_hooks.checkpoint.save_best"  # through which a start checks the name of a score
SHOWN_EXAMPLES = 5  # trials that a dry run shows of a space that is sampled
PASSES = 3  # of a training step, in forward passes: one forward, two for the gradients
WITHOUT_FLOPS = ("optim_wrapper.", "batch.", "train_cfg.", "param_scheduler", "randomness.", "env_cfg.", "val_")


def launch_of(study: StudyFile, slurm: bool) -> Launch:
    """Processes and device of a training."""
    if slurm:
        return Launch.on_gpus(study.gpus_per_trial)
    device = Launch.from_environment().device
    return Launch(study.gpus_per_trial, device, study.gpus_per_trial)


def check_study(study: StudyFile, launch: Launch) -> None:
    """Check that every training of a study could start.

    All points of a grid are resolved, so that each batch divides and each key exists; parts are built for the first
    value of each dimension, and for each further value with the first of the others.

    Raises:
        ConfigError: With the values of the first point that would not start.
        MachineError: If a package is missing.
    """
    first = {one.name: one.examples[0] for one in study.space}
    for point in _combinations(study):
        _resolve(study, {**first, **point}, launch)
    for point in _one_by_one(study, first):
        resolved = _resolve(study, point, launch, {BEST: study.objective.metric})
        with _at(point):
            try:
                checked_plan(resolved, launch)
            except ConfigError as error:
                if not str(error).startswith(f"{BEST}="):
                    raise
                raise ConfigError(str(error).replace(BEST, "objective.metric", 1)) from error
    if study.rungs is not None:
        _check_rungs(study, first, launch)


def _check_rungs(study: StudyFile, first: Mapping[str, Any], launch: Launch) -> None:
    """Resolve the training of each rung at the first point."""
    assert study.rungs is not None
    for training in trainings_of(study, Path(), 0, first, study.seeds[0], _last_rung(study)):
        with _at({"length": study.rungs.lengths[training.rung], **first}):
            checked_plan(load_config(training.config, options_of(study, training), launch), launch)


def _combinations(study: StudyFile) -> Iterator[dict[str, Any]]:
    """Combinations of all values that can be listed, and of the limits of the others, if there are not too many."""
    names = [one.name for one in study.space]
    count = 1
    for one in study.space:
        count *= len(one.examples)
    if count <= MAX_RESOLVED:
        for values in itertools.product(*(one.examples for one in study.space)):
            yield dict(zip(names, values))


def _one_by_one(study: StudyFile, first: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield dict(first)
    for dimension in study.space:
        for value in dimension.examples[1:]:
            yield {**first, dimension.name: value}


def _resolve(
    study: StudyFile, point: Mapping[str, Any], launch: Launch, more: Mapping[str, Any] | None = None
) -> Resolved:
    options = {**settings_of(study.space, point, study.options), **(more or {})}
    config = options.pop(CONFIG_KEY, study.config)
    if study.per_gpu_batch and study.per_gpu_batch.isdigit():
        options["batch.per_gpu"] = int(study.per_gpu_batch)
    with _at(point):
        return load_config(config, options, launch)


@contextmanager
def _at(point: Mapping[str, Any]) -> Iterator[None]:
    """Context in which an error names the point of the space."""
    try:
        yield
    except ConfigError as error:
        values = ", ".join(f"{name}={value}" for name, value in point.items())
        message = str(error).replace("--cfg-options ", "", 1)
        raise ConfigError(f"{message}{f' (at {values})' if values else ''}") from error


@dataclass
class CostEstimate:
    """What trainings cost, as far as it is known before they run.

    Attributes:
        images: Training images of each config; ``None`` where they are neither known nor present.
        flops: Multiply-adds of a forward pass on one image, by config and the settings that change the network.
    """

    images: dict[str, int | None] = field(default_factory=dict)
    flops: dict[str, int] = field(default_factory=dict)

    def of(self, study: StudyFile, point: Mapping[str, Any], launch: Launch) -> tuple[int | None, float]:
        """Training images that one training sees, ``None`` if unknown, and multiply-adds per image of a step.

        Args:
            study: The study.
            point: Value of each dimension.
            launch: Processes and device.
        """
        options = settings_of(study.space, point, study.options)
        config = options.pop(CONFIG_KEY, study.config)
        resolved = load_config(config, dict(options), launch)
        cfg = resolved.cfg
        ratio = 1.0 if study.rungs is None else cost_of(study.rungs, len(study.rungs.lengths) - 1) / length_of(cfg)
        network = {key: value for key, value in options.items() if not key.startswith(WITHOUT_FLOPS)}
        key = json.dumps([config, network], default=repr, sort_keys=True)
        if key not in self.flops:
            self.flops[key] = count_config(config, options=dict(options)).flops
        if "max_iters" in cfg.train_cfg:
            seen: float | None = cfg.train_cfg.max_iters * cfg.batch.size
        else:
            images = self._images(key, resolved, launch)
            seen = None if images is None else images * cfg.train_cfg.max_epochs
        return None if seen is None else round(seen * ratio), PASSES * self.flops[key]

    def _images(self, key: str, resolved: Resolved, launch: Launch) -> int | None:
        if key not in self.images:
            cfg = resolved.cfg
            dataset, scope = cfg.train_dataloader.dataset, cfg.get("default_scope")
            if all(path.exists() for path in dataset_paths(dataset)):
                self.images[key] = len(build(DATASETS, dataset, "train_dataloader.dataset", scope))
            else:  # that of the data set that the config names
                self.images[key] = training_plan(resolved, launch).schedule.images
        return self.images[key]


def dry_run_lines(
    study: StudyFile, folder: Path, launch: Launch, slurm: str | None, known: StudyResult | None
) -> list[str]:
    """The trials of a study, what they would cost, and their commands.

    Args:
        study: Study file, which has been checked.
        folder: Folder of the study.
        launch: Processes and device of a training.
        slurm: Partition of SLURM; ``None`` on this machine.
        known: The study as far as it has run, from which hours are estimated; ``None`` if it has not.
    """
    points = list(_points_of(study))
    total = study.max_trials
    count = "as many trials as the budget allows" if total is None else f"{total} trial{'s' if total > 1 else ''}"
    shown = "" if total is not None and len(points) >= total else f"; the first {len(points)} are examples"
    lines = [f"{study.title}: {count} x {len(study.seeds)} seed{'s' if len(study.seeds) > 1 else ''}{shown}"]
    estimate, costs = CostEstimate(), []
    speed = _speed(study, known, launch, estimate)
    for number, point in enumerate(points):
        values = ", ".join(f"{name}={value}" for name, value in point.items()) or "the config as it is"
        images, flops = estimate.of(study, point, launch)
        costs.append(None if images is None else images * flops * len(study.seeds))
        lines += ["", f"trial {number}: {values}", f"  cost: {_cost(images, flops, len(study.seeds), speed)}"]
        for training in trainings_of(study, folder, number, point, study.seeds[0], _last_rung(study)):
            lines.append(f"  {shown_command(command_of(study, training, launch.processes, slurm))}")
    if total is not None and None not in costs and costs:
        whole = sum(cost for cost in costs if cost is not None) / len(costs) * total
        hours = f", about {whole / speed / 3600:.1f} GPU hours by what has run" if speed else ""
        lines += ["", f"together: {whole / 1e15:,.3g} Pflop (multiply-adds){hours}{_without_pruning(study)}"]
    return lines


def _last_rung(study: StudyFile) -> int:
    return 0 if study.rungs is None else len(study.rungs.lengths) - 1


def _points_of(study: StudyFile) -> Iterator[dict[str, Any]]:
    """Value of each dimension of the trials of a grid; examples where the space is sampled."""
    points = grid_points(study.space)
    count = len(points) if is_all_grid(study.space) else SHOWN_EXAMPLES
    count = min(count, study.max_trials or count)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampled = optuna.create_study(sampler=make_sampler(study, study.seeds[0]))
    for index in range(count):
        sampled.enqueue_trial(points[index % len(points)])
        trial = sampled.ask()
        yield {dimension.name: decode_value(dimension.suggest(trial)) for dimension in study.space}


def _speed(study: StudyFile, known: StudyResult | None, launch: Launch, estimate: CostEstimate) -> float | None:
    """Multiply-adds per GPU second of the trainings that are finished; ``None`` without any."""
    done, hours = 0.0, 0.0
    for one in known.trials if known is not None else ():
        images, flops = estimate.of(study, one.settings, launch)
        if one.state == "finished" and images is not None and one.gpu_hours:
            done, hours = done + images * flops, hours + one.gpu_hours
    return done / hours / 3600 if hours else None


def _cost(images: int | None, flops: float, seeds: int, speed: float | None) -> str:
    if images is None:
        return f"{flops / 1e9:,.3g} Gflop for an image; the number of images is known when the data is there"
    times = f" x {seeds} seeds" if seeds > 1 else ""
    hours = f", about {images * flops * seeds / speed / 3600:.2f} GPU hours" if speed else ""
    return f"{images:,} images x {flops / 1e9:,.3g} Gflop{times} = {images * flops * seeds / 1e15:,.3g} Pflop{hours}"


def _without_pruning(study: StudyFile) -> str:
    return "" if study.rungs is None else "; if no trial were pruned"
