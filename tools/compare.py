"""Compare trainings: ``python tools/compare.py work_dirs/A work_dirs/B ... [--out FILE]``.

One self-contained page and the same as JSON: settings that differ, curves, scores with their spread, speed, images.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import run_tool


def main() -> None:
    """Read the run folders, write the page, print the answer and where the page is."""
    parser = argparse.ArgumentParser(description="Compare finished or running trainings from their run folders.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_FOLDER", help="run folders, such as work_dirs/A")
    parser.add_argument("--out", type=Path, metavar="FILE", help="page (compare.html beside the first run folder)")
    args = parser.parse_args()

    from analysis.compare import compare_trainings
    from backbones.errors import printable

    written = compare_trainings(args.folders, args.out)
    lines = [written.answer, *(f"note: {line}" for line in written.gaps)]
    print("\n".join([*lines, f"page: {printable(written.page)}, numbers: {printable(written.data)}"]))


if __name__ == "__main__":
    run_tool(main)
