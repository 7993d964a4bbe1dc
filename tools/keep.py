"""Run a program and note how it ended; tools/sweep.py starts its trainings with it, see engine/launch/keeper.py."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> None:
    """Parse the arguments, run the program and exit with its exit code, 128 + signal for a signal."""
    parser = argparse.ArgumentParser(description="Run a program and note how it ended.")
    parser.add_argument("--lock", type=int, required=True, help="open file descriptor that the program keeps open")
    parser.add_argument("folder", type=Path, help="folder of the notes")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()

    from engine.launch.keeper import keep

    code = keep(args.folder, args.command, args.lock)
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
