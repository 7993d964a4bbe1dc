"""A sweep as its command line starts it: checked, shown, or run."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import optuna

from analysis.sweep.controller import Controller
from analysis.sweep.executors import Executor, LocalExecutor, SlurmExecutor
from analysis.sweep.preflight import check_study, dry_run_lines, launch_of
from analysis.sweep.progress import StatusLines, status_lines
from analysis.sweep.results import DATABASE, StudyResult, mean_score, read_study, storage_errors
from analysis.sweep.storage import StudyStorage, controlling, storage_url
from analysis.sweep.study_file import StudyFile
from backbones.errors import ConfigError
from engine.config.world import Launch


def run_sweep(
    study: StudyFile,
    folder: Path,
    resume: bool = False,
    jobs: int | None = None,
    slurm: str | None = None,
    more_seeds: int = 0,
    retry: bool = False,
) -> list[str]:
    """Run a study to its end.

    Args:
        study: Study file.
        folder: Folder of the study.
        resume: Whether to continue the study that the folder or the storage holds.
        jobs: Largest number of trainings at a time; ``None`` for the default of the place.
        slurm: Partition of SLURM; ``None`` for this machine.
        more_seeds: Number of further seeds for each of the two settings whose mean scores are best.
        retry: Whether trainings that failed are tried again.

    Returns:
        How it ended, in lines.

    Raises:
        UserError: If something in the study or its trainings is wrong, or the storage cannot be used.
        KeyboardInterrupt: On Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP.
    """
    executor: Executor
    if slurm is None:
        executor = LocalExecutor(study.gpus_per_trial, jobs)
    else:
        executor = SlurmExecutor(slurm, study.gpus_per_trial, jobs)
    check_study(study, launch_of(study, slurm is not None))
    screen = StatusLines(sys.stdout)
    with controlling(study, folder), storage_errors(storage_url(study, folder)):
        storage = StudyStorage(study, folder, resume)
        if more_seeds:
            storage.add_seeds(further_seeds(read_study(folder, study.storage, study.name), more_seeds))
        controller = Controller(study, folder, storage, executor, screen, retry)
        controller.run()
        screen.show([])
        return controller.closing_lines()


def further_seeds(result: StudyResult, count: int) -> dict[int, list[int]]:
    """Seeds that would tell the two best settings apart: the same ones for both, so that their differences are paired.

    Args:
        result: The study.
        count: Number of seeds for each, beyond those of the one that has more.

    Returns:
        Further seeds of each of the two trials by its number.

    Raises:
        ConfigError: If no trial is complete.
    """
    scores = {number: mean_score(runs) for number, runs in result.compared().items()}
    if not scores:
        raise ConfigError("--more-seeds: no setting is finished with all of its seeds; run the study first")
    first = sorted(scores, key=lambda number: scores[number], reverse=result.objective.direction == "maximize")[:2]
    has = {number: {run.seed for run in result.by_number()[number]} for number in first}
    wanted = set[int]().union(*has.values())
    target = max(map(len, has.values())) + count
    new = (seed for seed in itertools.count() if seed not in wanted)
    while len(wanted) < target:
        wanted.add(next(new))
    return {number: sorted(wanted - seeds) for number, seeds in has.items()}


def describe_study(study: StudyFile, folder: Path) -> list[str]:
    """How a study stands, in lines; it may be running elsewhere.

    Raises:
        ConfigError: If there is none yet.
    """
    with storage_errors(storage_url(study, folder)):
        return status_lines(read_study(folder, study.storage, study.name), folder)


def report_study(study: StudyFile, folder: Path) -> list[str]:
    """Write the report of a study, which may be running elsewhere; says where it lies.

    Raises:
        ConfigError: If there is no study yet.
    """
    from analysis.sweep.report import write_study_report  # plots need seconds to import

    with storage_errors(storage_url(study, folder)):
        return [f"report: {write_study_report(read_study(folder, study.storage, study.name), folder)}"]


def plan_sweep(study: StudyFile, folder: Path, slurm: str | None = None) -> list[str]:
    """Check a study and list its trials, their cost and their commands; nothing is written or started.

    Raises:
        UserError: As the sweep would.
    """
    launch = launch_of(study, slurm is not None)
    check_study(study, launch)
    return dry_run_lines(study, folder, launch, slurm, _known(study, folder, launch))


def _known(study: StudyFile, folder: Path, launch: Launch) -> StudyResult | None:
    if study.storage is None and not (folder / DATABASE).is_file():
        return None
    with storage_errors(storage_url(study, folder)):
        names = optuna.get_all_study_names(storage_url(study, folder))
        return read_study(folder, study.storage, study.name) if study.name in names else None
