"""What is worth knowing of a GPU that is there for minutes: ``python tools/gpu_day.py OUT [PART ...] [--seconds N]``.

Without PART, all that have no result in OUT yet, the most valuable ones first. OUT/gpu_day.json is written after each.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import run_tool


def main() -> None:
    """Run the parts, or list them."""
    parser = argparse.ArgumentParser(description="Measure and try on a GPU what matters most, part by part.")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of the results")
    parser.add_argument("parts", metavar="PART", nargs="*", help="parts to run (default: all without a result)")
    parser.add_argument("--seconds", type=float, default=480.0, metavar="N", help="for all together (default: 480)")
    parser.add_argument("--list", action="store_true", help="print parts, limits and commands; run nothing")
    args = parser.parse_args()

    from analysis.benchmark.gpu_day import part_list, run_gpu_day

    if args.list:
        print("\n".join(part_list()))
    else:
        run_gpu_day(args.out, args.parts, args.seconds)


if __name__ == "__main__":
    run_tool(main)
