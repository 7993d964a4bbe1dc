"""Make the embedded data: handwritten digits on photographs, in the formats of ImageNet, COCO and ADE20K.

    python tools/make_digits.py [--root data/digits] [--seed 0]

Takes some ten seconds and downloads nothing; returns at once where the data is there already. Data made with
another seed at the same root is replaced.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import run_tool


def main() -> None:
    """Parse the arguments, make the data and print where it is."""
    parser = argparse.ArgumentParser(description="Make the data sets of handwritten digits on photographs.")
    parser.add_argument("--root", type=Path, default=Path("data/digits"), help="folder to make (%(default)s)")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of the drawing and of the division into training and validation (%(default)s)",
    )
    args = parser.parse_args()

    from demo.dataset import make_digits, read_stamp

    make_digits(args.root, seed=args.seed)
    stamp = read_stamp(args.root)
    assert stamp is not None, "make_digits returns only when the stamp is written"
    for name, what in (("imagenet", "images"), ("coco", "scenes"), ("ade", "scenes")):
        counts = stamp[what]
        print(f"{args.root / name}: {counts['train']} training and {counts['val']} validation {what}")


if __name__ == "__main__":
    run_tool(main)
