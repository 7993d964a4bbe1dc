"""Reproduce a step whose loss or gradient was not finite: ``python tools/replay.py work_dirs/x/nonfinite/step_120``.

Forward and backward in this one process, with the recorded batch, weights and random states; prints the losses and the
first module whose output or gradient is not finite. Exit code 0: reproduced; 1: not reproduced, with possible reasons.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import run_tool


def main() -> None:
    """Parse the arguments, replay, print the result."""
    parser = argparse.ArgumentParser(description="Reproduce a step whose loss or gradient was not finite.")
    parser.add_argument("folder", type=Path, help="work_dir/nonfinite/step_<N>")
    parser.add_argument("--rank", type=int, help="process whose batch is used (default: the first that had the event)")
    parser.add_argument(
        "--trust-imports",
        action="store_true",
        help="import the modules that the recorded config names, also those outside this project",
    )
    args = parser.parse_args()

    from analysis.replay import replay_step

    result = replay_step(args.folder, args.rank, args.trust_imports)
    print("\n".join(result.lines))
    if not result.reproduced:
        sys.exit(1)


if __name__ == "__main__":
    run_tool(main)
