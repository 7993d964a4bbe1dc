"""Corrupted copies of a folder of images: ``python tools/corrupt.py IN OUT [--names ...] [--severities ...]``.

They lie in OUT as in ImageNet-C: ``<corruption>/<severity>/<path in IN>``. The same command goes on where it was
interrupted. Exit code 1 when images could not be read; they are listed, the others are copied.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backbones.errors import printable
from engine.cli import run_tool

SHOWN_IMAGES = 20
MAX_CROP = 4096  # pixels; images are made larger for a larger crop


def main() -> None:
    """Parse the arguments, write the copies and say how many."""
    parser = argparse.ArgumentParser(description="Write corrupted copies of a folder of images.")
    parser.add_argument("source", metavar="IN", type=Path, help="folder of images, at any depth")
    parser.add_argument("target", metavar="OUT", type=Path, help="folder to write, outside of IN")
    parser.add_argument(
        "--names",
        nargs="+",
        metavar="NAME",
        help="corruptions, or the groups c (default), extra, cbar, dense",
    )
    parser.add_argument(
        "--severities", nargs="+", type=int, default=[1, 2, 3, 4, 5], metavar="N", help="1 to 5 (default: all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="number of the drawing (%(default)s)")
    parser.add_argument("--png", action="store_true", help="write PNG instead of JPEG of quality 85")
    parser.add_argument("--crop", type=int, default=0, metavar="N", help="cut out the centre first; ImageNet-C: 224")
    parser.add_argument("--workers", type=int, metavar="N", help="number of processes (default: one for each core)")
    args = parser.parse_args()
    if args.workers is not None and args.workers < 1:
        parser.error("--workers: at least 1")
    if not 0 <= args.crop <= MAX_CROP:
        parser.error(f"--crop {args.crop}: a side from 1 to {MAX_CROP} pixels, or 0 for whole images")

    from analysis.robustness.corrupted_folder import CopySettings, corrupt_folder
    from analysis.robustness.corruptions import BAR_CORRUPTIONS, CORRUPTIONS, DENSE_CORRUPTIONS, EXTRA_CORRUPTIONS

    groups = {"c": CORRUPTIONS, "extra": EXTRA_CORRUPTIONS, "cbar": BAR_CORRUPTIONS, "dense": DENSE_CORRUPTIONS}
    names = dict.fromkeys(name for given in args.names or ["c"] for name in groups.get(given, (given,)))
    sets = [(name, severity) for name in names for severity in dict.fromkeys(args.severities)]
    settings = CopySettings(args.png, args.crop, args.seed)
    workers = args.workers or len(os.sched_getaffinity(0))
    result = corrupt_folder(args.source, args.target, sets, settings, workers)
    for note in result.notes:
        print(note)
    print(f"{printable(args.target)}: {result.written} files written, {result.present} were there, {len(sets)} sets")
    if result.damaged:
        shown = result.damaged[:SHOWN_IMAGES]
        more = len(result.damaged) - len(shown)
        print(f"{len(result.damaged)} images could not be read:", *shown, sep="\n  ", file=sys.stderr)
        if more:
            print(f"  and {more} more", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run_tool(main)
