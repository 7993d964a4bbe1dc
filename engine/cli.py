"""How a tool ends: a result, or one line that says what to mend."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from backbones.errors import UserError
from backbones.files import NO_SPACE
from engine.launch.exit_codes import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED
from engine.launch.heartbeat import HEARTBEAT


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool's ``main`` and turn a :class:`UserError` into one line and exit code 2, or its own.

    A broken pipe (``tool | head``) ends quietly, Ctrl-C with the customary code 130. Warnings about old idioms inside
    the OpenMMLab packages, which nobody here can mend, are left out. Under a launcher, the last words of this process
    are left to it, see :mod:`engine.launch.heartbeat`.
    """
    HEARTBEAT.start()
    warnings.filterwarnings("ignore", module=r"mm(cv|engine|det|seg)\.")
    # The configs ask for pinned memory; without a GPU there is nothing to pin it for.
    warnings.filterwarnings("ignore", "'pin_memory' argument is set as true but no accelerator is found")
    try:
        with _full_disk_in_one_line():
            main()
    except UserError as error:
        HEARTBEAT.report_error(error, one_line(error))
        _say(f"error: {one_line(error)}")
        sys.exit(getattr(error, "exit_code", EXIT_BAD_INPUT))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader went away: point stdout at nothing so that the interpreter's own flush cannot fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if not HEARTBEAT.report_error(error):
            raise
        _say(f"lost another process: {str(error).splitlines()[0]}")
        sys.exit(EXIT_FAILED)


@contextmanager
def _full_disk_in_one_line() -> Iterator[None]:
    """Inside of this context a full disk is an error for people, whoever wanted to write: a log, a curve, a report."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        where = f" for {str(error.filename)!r}" if error.filename else ""
        raise UserError(f"{error.strerror}{where}: make room and start again, a training with --resume") from error


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust-checkpoint``, which lets :func:`backbones.weights.read_checkpoint` execute code in old files."""
    parser.add_argument(
        "--trust-checkpoint", action="store_true", help="execute code that the file asks for: only of people you know"
    )


def _say(line: str) -> None:
    rank = os.environ.get("RANK", "0")
    print(line if rank == "0" else f"[rank {rank}] {line}", file=sys.stderr)


def one_line(error: UserError) -> str:
    """The message of an error.

    One that arose in a worker of a data loader arrives with the worker's whole stack as its message; the last line of
    it, after the name of the class, is what was meant.
    """
    last = (str(error).strip().splitlines() or [""])[-1]
    return last.removeprefix(f"{type(error).__module__}.{type(error).__qualname__}: ")
