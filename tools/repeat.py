"""Mean and standard deviation over seeds: ``python tools/repeat.py CONFIG --seeds 0 1 2 [--gpus N]``.

Trains once for each seed into ``<work dir>/seed_<n>``. An interrupted command is resumed when it is started
again. The results are written to ``<work dir>/repeat.json``.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import config_parser, run_tool


def main() -> None:
    """Parse the arguments, run the trainings and print the summary."""
    parser = config_parser("Train a config with several seeds; print mean and deviation.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--gpus", type=int, metavar="N", help="train on N GPUs (without any, N CPU processes)")
    parser.add_argument("--work-dir", help="default: work_dirs/<config name>_seeds")
    parser.add_argument("--per-gpu-batch", metavar="N|auto", help="option of tools/train.py")
    args = parser.parse_args()

    from analysis.seeds import repeat, summary_lines

    work_dir = Path(args.work_dir or f"work_dirs/{Path(args.config).stem}_seeds")
    options = args.cfg_options or []
    result = repeat(args.config, args.seeds, work_dir, options, args.gpus or 1, args.per_gpu_batch)
    print("\n".join(summary_lines(result)))


if __name__ == "__main__":
    run_tool(main)
