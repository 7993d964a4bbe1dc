"""The frame of every command-line tool: an error of the user ends it with one line and an exit code."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from backbones.errors import MachineError, UserError
from backbones.files import NO_SPACE_ERRNOS
from backbones.packages import missing_package, missing_package_error
from convnext_dense_signals import Terminated
from engine.launch.child import interrupt_on_signals
from engine.launch.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED
from engine.launch.heartbeat import HEARTBEAT
from engine.launch.workers import LostWorkerError, lost_worker

TOOLS = Path(__file__).resolve().parents[1] / "tools"
UNCHECKED = "--no-data-check"
# Advice on the OpenMMLab packages' own code, of no use to who runs it; their other warnings tell of a wrong config.
UNSHOWN_WARNINGS = (
    r"(?s).*(deprecate|avg_non_ignore|shape of value will convert|For binary segmentation|(OMP|MKL)_NUM_THREADS|"
    r"Detected call of .?scheduler\.step)"
)


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool's ``main`` and turn a :class:`UserError` into one line and its exit code, 2 by default.

    A broken pipe (``tool | head``) ends quietly, Ctrl-C with the customary code 130. Of the OpenMMLab packages'
    warnings those about their own code are not shown. Under a launcher the error is also reported to it, see
    :mod:`engine.launch.heartbeat`. Asked to stop by a signal, a tool ends with one line and the exit code of a run that
    may be started again; a rank leaves the line to the launcher.
    """
    HEARTBEAT.start()
    handled = HEARTBEAT.has_launcher or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    # Python puts the folder of the program on the path, where a library's "import tables" would find a program of ours.
    sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != TOOLS]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 shows any name
    warnings.filterwarnings("ignore", UNSHOWN_WARNINGS, module=r"mm(cv|engine|det|seg)\.")
    # The configs ask for pinned memory, which has no use without a GPU.
    warnings.filterwarnings("ignore", "'pin_memory' argument is set as true but no accelerator is found")
    try:
        with nullcontext() if handled else interrupt_on_signals():
            main()
    except Terminated as stop:
        _print_error(str(stop))
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader closed the pipe: redirect stdout so that the interpreter's own flush cannot fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as raised:
        error = raised
        if isinstance(raised, OSError) and raised.errno in NO_SPACE_ERRNOS:  # whatever was written: a log, a report
            where = f" for {str(raised.filename)!r}" if raised.filename else ""
            error = MachineError(f"{raised.strerror}{where}: make room and start again, a training with --resume")
        if package := missing_package(raised):
            error = missing_package_error(package)
        if lost := lost_worker(raised):  # which was noticed in the midst of something else
            error = LostWorkerError("a worker of a data loader (process {}) {}".format(*lost))
        if isinstance(error, UserError):
            HEARTBEAT.report_error(error, one_line(error))
            _print_error(f"error: {one_line(error)}")
            sys.exit(error.exit_code)
        if not HEARTBEAT.report_error(error):
            if UNCHECKED not in sys.argv:
                raise
            traceback.print_exc()
            _print_error(
                f"the data was not checked ({UNCHECKED}): python tools/check_data.py says what is wrong with it"
            )
            sys.exit(EXIT_FAILED)
        _print_error(f"lost another process: {str(error).splitlines()[0]}")
        sys.exit(EXIT_FAILED)


def config_parser(description: str) -> argparse.ArgumentParser:
    """Parser of a tool for a config: ``config`` and ``--cfg-options``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("config")
    add_config_options(parser)
    return parser


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``, which :func:`engine.config.options.parse_options` reads."""
    parser.add_argument(
        "--cfg-options", nargs="+", metavar="KEY=VALUE", help="override settings, such as batch.size=64"
    )


def add_weights_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--ema`` and ``--tta``: which weights of a checkpoint are tested, and on how many views of an image."""
    parser.add_argument("--ema", action="store_true", help="test the averaged weights of the checkpoint")
    parser.add_argument("--tta", action="store_true", help="several scales and flips, where the config says how")


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust-checkpoint``, which lets :func:`backbones.weights.read_checkpoint` execute code in old files."""
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="execute code that the file asks for: only for files from people you trust",
    )


def add_launch_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that launchers pass: ``--launcher``, and ``--local-rank`` of ``torch.distributed.launch``."""
    parser.add_argument("--launcher", choices=["none", "pytorch"], default="none", help="set by the launch scripts")
    parser.add_argument("--local-rank", "--local_rank", type=_set_local_rank, help=argparse.SUPPRESS)


def _set_local_rank(text: str) -> int:
    """Put the rank within this machine where torchrun puts it, unless the launcher did so itself."""
    rank = int(text)
    os.environ.setdefault("LOCAL_RANK", str(rank))
    return rank


def _print_error(line: str) -> None:
    rank = os.environ.get("RANK", "0")
    print(line if rank == "0" else f"[rank {rank}] {line}", file=sys.stderr)


def one_line(error: UserError) -> str:
    """The message of an error in one line.

    An error from a worker of a data loader has the worker's whole traceback as its message; the last line of it, after
    the name of the class, is the original message.
    """
    last = (str(error).strip().splitlines() or [""])[-1]
    return last.removeprefix(f"{type(error).__module__}.{type(error).__qualname__}: ")
