"""Processes of a tool on this machine, by torchrun's agent; used by tools/launch.sh, see docs/launching.md."""

import argparse
import os
import signal
import sys
from pathlib import Path

# Until there are processes that could save, Ctrl-C ends this at once, and without a stack.
signal.signal(signal.SIGINT, signal.SIG_DFL)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.launch.job import Job, launch  # noqa: E402
from engine.launch.rendezvous import RendezvousError  # noqa: E402


def main() -> None:
    """Parse, hand over, leave with the code of the rank that failed."""
    parser = argparse.ArgumentParser(description="Start the processes of a tool on this machine.")
    parser.add_argument("--processes", type=int, required=True, help="on this machine")
    parser.add_argument("--nodes", type=int, default=1, help="machines")
    parser.add_argument("--node-rank", type=int, default=0, help="number of this machine")
    parser.add_argument("--address", default="127.0.0.1", help="of the first machine")
    parser.add_argument("--port", type=int, default=29500, help="first of the ports on which the machines may meet")
    parser.add_argument("--max-restarts", type=int, default=0, help="how often to start again after a failure")
    parser.add_argument("--grace", type=float, default=120, help="seconds to save for processes told to stop")
    parser.add_argument("program")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    try:
        code = launch(Job(**vars(parser.parse_args())))
    except RendezvousError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    # A thread of the launcher may be within a call of the store, and there the interpreter's end aborts the process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
