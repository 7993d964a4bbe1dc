"""torchrun that fails in one line: used by tools/launch.sh with torchrun's own arguments."""

import logging
import signal
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main() -> None:
    """Launch; where a process fails, say which one and leave with its exit code.

    torchrun itself prints a page for each failure, below which the process's own message is hard to find, and always
    leaves with code 1.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        run.main()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        print(f"error: rank {rank} ended with {how}; its message is above", file=sys.stderr)
        sys.exit(128 - code if code < 0 else code)


if __name__ == "__main__":
    main()
