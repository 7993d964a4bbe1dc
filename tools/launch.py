"""Start the processes of a tool on this machine with torchrun's agent; see tools/launch.sh and docs/launching.md."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from convnext_dense_signals import leave_on_signals

leave_on_signals()  # before anything else is imported

import argparse  # noqa: E402
import signal  # noqa: E402

# Until there are processes Ctrl-C ends the launcher at once, and without a traceback.
signal.signal(signal.SIGINT, signal.SIG_DFL)


def main() -> None:
    """Parse the arguments, run the job and exit with its exit code."""
    parser = argparse.ArgumentParser(description="Start the processes of a tool on this machine.")
    parser.add_argument("--processes", type=int, required=True, help="number of processes on this machine")
    parser.add_argument("--nodes", type=int, default=1, help="number of machines")
    parser.add_argument("--node-rank", type=int, default=0, help="number of this machine")
    parser.add_argument("--address", default="127.0.0.1", help="address of the first machine")
    parser.add_argument("--port", type=int, default=29500, help="first of the ports on which the machines may meet")
    parser.add_argument("--max-restarts", type=int, default=0, help="most restarts after a failure")
    parser.add_argument("--grace", type=float, default=120, help="seconds to save for processes told to stop")
    parser.add_argument("program")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    args = parser.parse_args()

    from engine.launch.job import LaunchConfig, launch

    code = launch(LaunchConfig(**vars(args)))
    # A thread of the launcher may be in a call of the store, where the interpreter's exit would abort the process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
