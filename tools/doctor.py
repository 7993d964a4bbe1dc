"""Is this machine fit to train? ``python tools/doctor.py [--quick] [--config CONFIG] [--json FILE]``.

Looks at packages, GPUs, memory, disk, ports and data, then trains and tests all three tasks on a few digits. A line for
each finding: ``ok``, ``note`` or ``bad``, what, what was found, and what to do about it. The exit code is 1 if anything
is bad.
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# These need no package: what is broken in the installation is a finding.
from analysis.doctor.examination import Request, diagnose, write_results  # noqa: E402


def main() -> int:
    """Parse, check, print."""
    parser = argparse.ArgumentParser(description="Check whether this machine is fit to train.")
    parser.add_argument("--quick", action="store_true", help="leave out the training of 20 seconds")
    parser.add_argument("--config", help="look at what this config needs, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings to a file")
    args = parser.parse_args()
    results = []
    for result in diagnose(Request(args.quick, args.config)):
        print(result, flush=True)
        results.append(result)
    bad = sum(result.level == "bad" for result in results)
    print(f"{bad} of {len(results)} findings are bad" if bad else "nothing is bad: this machine is fit to train")
    if args.json:
        try:
            write_results(results, args.json)
        except OSError as error:
            print(f"error: {str(args.json)!r} cannot be written: {error.strerror or error}", file=sys.stderr)
            return 2
    return 1 if bad else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader went away: the interpreter's own flush may not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
