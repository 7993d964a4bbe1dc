"""A sweep as its command line starts it: checked, shown, or run."""

from __future__ import annotations

import sys
from pathlib import Path

import optuna

from analysis.sweep.controller import Controller
from analysis.sweep.executors import Executor, LocalExecutor, SlurmExecutor
from analysis.sweep.preflight import check_study, dry_run_lines, launch_of
from analysis.sweep.progress import StatusLines, status_lines
from analysis.sweep.results import DATABASE, StudyResult, read_study
from analysis.sweep.storage import StudyStorage, controlling, storage_errors, storage_url
from analysis.sweep.study_file import StudyFile
from engine.config.world import Launch


def run_sweep(
    study: StudyFile, folder: Path, resume: bool = False, jobs: int | None = None, slurm: str | None = None
) -> list[str]:
    """Run a study to its end.

    Args:
        study: Study file.
        folder: Folder of the study.
        resume: Whether to continue the study that the folder or the storage holds.
        jobs: Largest number of trainings at a time; ``None`` for the default of the place.
        slurm: Partition of SLURM; ``None`` for this machine.

    Returns:
        How it ended, in lines.

    Raises:
        UserError: If something in the study or its trainings is wrong, or the storage cannot be used.
        KeyboardInterrupt: On Ctrl-C, SIGTERM and SIGHUP.
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
        controller = Controller(study, folder, storage, executor, screen)
        controller.run()
        screen.show([])
        return controller.closing_lines()


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
