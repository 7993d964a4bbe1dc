"""Check whether this machine is fit to train: ``python tools/doctor.py [--quick] [--config CONFIG] [--json FILE]``.

Checks packages, GPUs, memory, disk, ports and data, then trains and tests all three tasks on a few digits. It prints a
line for each result: ``ok``, ``note`` or ``bad``, the name, what was found, and the fix. The exit code is 1 if any is
bad.
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# These need no package: a broken installation is a result.
from analysis.doctor.examination import DoctorOptions, diagnose, write_results  # noqa: E402
from convnext_dense_signals import Terminated  # noqa: E402
from engine.launch.child import interrupt_on_signals  # noqa: E402
from engine.launch.exit_codes import EXIT_INTERRUPTED  # noqa: E402


def main() -> int:
    """Parse the arguments, run the checks and print the results."""
    parser = argparse.ArgumentParser(description="Check whether this machine is fit to train.")
    parser.add_argument("--quick", action="store_true", help="skip the training of 20 seconds")
    parser.add_argument("--config", help="also check what this config needs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to a file")
    args = parser.parse_args()
    results = []
    for result in diagnose(DoctorOptions(args.quick, args.config)):
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
        with interrupt_on_signals():
            code = main()
        sys.exit(code)
    except KeyboardInterrupt as stop:
        print(str(stop) or "interrupted", file=sys.stderr)
        sys.exit(stop.exit_code if isinstance(stop, Terminated) else EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader closed the pipe: the interpreter's own flush must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
