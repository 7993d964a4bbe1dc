"""How a tool ends: a result, or one line that says what to mend."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable

from backbones.errors import UserError

BAD_INPUT = 2
INTERRUPTED = 130


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool's ``main`` and turn a :class:`UserError` into one line and exit code 2.

    A broken pipe (``tool | head``) ends quietly, Ctrl-C with the customary code 130. Warnings about old idioms inside
    the OpenMMLab packages, which nobody here can mend, are left out.
    """
    warnings.filterwarnings("ignore", module=r"mm(cv|engine|det|seg)\.")
    # The configs ask for pinned memory; without a GPU there is nothing to pin it for.
    warnings.filterwarnings("ignore", "'pin_memory' argument is set as true but no accelerator is found")
    try:
        main()
    except UserError as error:
        rank = os.environ.get("RANK", "0")
        line = f"error: {one_line(error)}"
        print(line if rank == "0" else f"[rank {rank}] {line}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader went away: point stdout at nothing so that the interpreter's own flush cannot fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def one_line(error: UserError) -> str:
    """The message of an error.

    One that arose in a worker of a data loader arrives with the worker's whole stack as its message; the last line of
    it, after the name of the class, is what was meant.
    """
    last = (str(error).strip().splitlines() or [""])[-1]
    return last.removeprefix(f"{UserError.__module__}.{UserError.__qualname__}: ")
