"""Many trainings compared: ``python tools/sweep.py STUDY.py [--jobs N] [--resume] [--dry-run] [--status] [--report]``.

STUDY.py declares a config, a space of settings, a score and a budget; docs/sweeps.md has examples.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse

from engine.cli import run_tool


def main() -> None:
    """Parse the arguments, then run, describe or plan the study."""
    parser = argparse.ArgumentParser(description="Run a study: many trainings that differ in some settings.")
    parser.add_argument("study", help="study file")
    parser.add_argument("--work-dir", help="folder of the study (default: work_dirs/sweeps/<study name>)")
    parser.add_argument("--jobs", type=int, metavar="N", help="trainings at a time (default: as many as fit the GPUs)")
    parser.add_argument("--gpus-per-trial", type=int, metavar="G", help="processes of each training (default: 1)")
    parser.add_argument("--slurm", metavar="PARTITION", help="submit each training as a job of SLURM")
    parser.add_argument("--resume", action="store_true", help="continue the study in the folder or the storage")
    parser.add_argument(
        "--more-seeds", type=int, default=0, metavar="N", help="continue; N more for the two best settings"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--dry-run", action="store_true", help="check everything, print trials, costs and commands")
    mode.add_argument("--status", action="store_true", help="print how the study stands, from any shell")
    mode.add_argument("--report", action="store_true", help="write the report of what there is so far")
    args = parser.parse_args()
    for name, least in (("jobs", 1), ("gpus_per_trial", 1), ("more_seeds", 0)):
        if (value := getattr(args, name)) is not None and value < least:
            parser.error(f"--{name.replace('_', '-')} {value}: at least {least}")

    from analysis.sweep.run import describe_study, plan_sweep, report_study, run_sweep
    from analysis.sweep.study_file import read_study_file

    study = read_study_file(args.study)
    if args.gpus_per_trial:
        study = replace(study, gpus_per_trial=args.gpus_per_trial)
    folder = Path(args.work_dir or f"work_dirs/sweeps/{study.name}")
    if args.status:
        lines = describe_study(study, folder)
    elif args.report:
        lines = report_study(study, folder)
    elif args.dry_run:
        lines = plan_sweep(study, folder, args.slurm)
    else:
        resume = args.resume or args.more_seeds > 0
        print("\n".join(run_sweep(study, folder, resume, args.jobs, args.slurm, args.more_seeds)))
        lines = report_study(study, folder)
    print("\n".join(lines))


if __name__ == "__main__":
    run_tool(main)
