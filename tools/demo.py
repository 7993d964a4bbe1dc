"""The demo on real images: ``python tools/demo.py [--work-dir DIR] [--seed N]``.

``bash tools/demo.sh`` does the same and makes the environment first. Trains a ConvNeXt by the classification recipe on
handwritten digits, then Mask R-CNN and UperNet from its checkpoint and again from scratch, tests all of them on
held-out data and writes report.html and report.json. An interrupted demo is resumed when it is started again.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from convnext_dense_signals import Terminated  # noqa: E402
from engine.cli import run_tool  # noqa: E402
from engine.launch.exit_codes import EXIT_INTERRUPTED  # noqa: E402


def main() -> None:
    """Parse the arguments and run the steps from the root of the repository."""
    parser = argparse.ArgumentParser(description="Train and test one backbone in three tasks; write a report.")
    parser.add_argument("--work-dir", type=Path, help="folder of runs and report (default: work_dirs/demo)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the trainings; the data stays the same (default: 0)"
    )
    args = parser.parse_args()
    work_dir = args.work_dir.absolute() if args.work_dir else ROOT / "work_dirs" / "demo"
    if work_dir.is_relative_to(ROOT):
        work_dir = work_dir.relative_to(ROOT)
    os.chdir(ROOT)
    try:
        from demo.process import run_demo
        from demo.steps import demo_steps

        run_demo(demo_steps(work_dir, args.seed), work_dir, args.seed)
    except KeyboardInterrupt as stop:
        again = shlex.join(["bash", "tools/demo.sh", *sys.argv[1:]])
        print(f"\nstopped; what is done is kept, and this goes on from here: {again}", file=sys.stderr)
        sys.exit(stop.exit_code if isinstance(stop, Terminated) else EXIT_INTERRUPTED)


if __name__ == "__main__":
    run_tool(main)
