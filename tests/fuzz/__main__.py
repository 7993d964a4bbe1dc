"""Break things at random: ``python -m tests.fuzz kills 300``, ``... sweeps 300`` or ``... files 1000``.

Everything follows from ``--seed`` but what a training does at a moment. Prints the counts and each failure; exit code 1
with any.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Parse, break, count."""
    parser = argparse.ArgumentParser(description="Kill trainings or sweeps, or damage files, at random.")
    parser.add_argument("kind", choices=["kills", "sweeps", "files"])
    parser.add_argument("count", type=int, help="number of signals, or of files")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no trial after so long")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    from demo.dataset import make_digits
    from tests.fuzz.files import Damager
    from tests.fuzz.kills import Killer
    from tests.fuzz.sweeps import SweepKiller

    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        make_digits(folder / "digits", train_images=24, val_images=8, train_scenes=8, val_scenes=2)
        kind = {"kills": Killer, "sweeps": SweepKiller, "files": Damager}[args.kind]
        fuzzer = kind(folder / "work", folder / "digits", args.seed)
        try:
            fuzzer.run(args.count, minutes=args.minutes)
        finally:
            for what, count in sorted(fuzzer.counts.items()):
                print(f"{what}: {count}")
    sys.exit(1 if fuzzer.failures else 0)


if __name__ == "__main__":
    main()
