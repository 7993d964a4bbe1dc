"""Mean and standard deviation over seeds: ``python tools/repeat.py CONFIG --seeds 0 1 2 [--gpus N] [--jobs N]``.

A study of one point (docs/sweeps.md). An interrupted command goes on when it is started again, and further seeds join
those that are finished. The results are in ``repeat.json`` and ``study.html`` in the work directory.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import config_parser, run_tool


def main() -> None:
    """Parse the arguments, run the trainings and print the summary."""
    parser = config_parser("Train a config with several seeds; print mean and deviation.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument(
        "--gpus", type=int, default=1, metavar="N", help="GPUs, or processes, of a training (default: 1)"
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="trainings at a time (default: as many as fit the GPUs)")
    parser.add_argument("--work-dir", help="default: work_dirs/<config name>_seeds")
    parser.add_argument("--per-gpu-batch", metavar="N|auto", help="option of tools/train.py")
    args = parser.parse_args()
    for name in ("gpus", "jobs"):
        if (value := getattr(args, name)) is not None and value < 1:
            parser.error(f"--{name} {value}: at least 1")

    from analysis.sweep.repeat import repeat, summary_lines
    from analysis.sweep.report import write_study_report
    from analysis.sweep.results import read_study

    work_dir = Path(args.work_dir or f"work_dirs/{Path(args.config).stem}_seeds")
    options = args.cfg_options or []
    result = repeat(args.config, args.seeds, work_dir, options, args.gpus, args.per_gpu_batch, args.jobs)
    print("\n".join(summary_lines(result)))
    print(f"report: {write_study_report(read_study(work_dir), work_dir)}")


if __name__ == "__main__":
    run_tool(main)
