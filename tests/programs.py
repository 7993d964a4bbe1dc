"""The tools as people run them, with or without waiting for the imports each time, and a tiny data set for them.

Run as a program, this file is a fork server: it imports what the tools import and then, for each line on its standard
input, forks a process that runs one tool. Such a process differs from a fresh one in nothing but the time that it takes
to start.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import json
import os
import pty
import runpy
import signal
import struct
import subprocess
import sys
import termios
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 300  # seconds until something that hangs is ended; a run takes a few
LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NNODES", "NODE_RANK")


@dataclass(frozen=True)
class Ended:
    """What a tool said, and its exit code."""

    code: int
    out: str
    err: str


def impatient_launcher(folder: Path, **settings: float) -> Path:
    """Write a launcher with other limits than those of ``tools/launch.py``.

    Args:
        folder: Folder for the program.
        settings: Constants of ``engine/launch``, by module and name with two underscores between them.
    """
    lines = [f"engine.launch.{name.replace('__', '.')} = {value!r}" for name, value in settings.items()]
    lines += [f"sys.argv[0] = {str(ROOT / 'tools/launch.py')!r}", 'runpy.run_path(sys.argv[0], run_name="__main__")']
    head = ["import runpy, sys", f"sys.path.insert(0, {str(ROOT)!r})", "import engine.launch.job"]
    (folder / "launcher.py").write_text("\n".join([*head, *lines]))
    return folder / "launcher.py"


def environment() -> dict[str, str]:
    """No setting of a surrounding launcher, and no GPU: these tests are about CPU processes on every machine."""
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCH}
    python_first = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PATH": python_first}


def handles(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


class ForkServer:
    """Runs ``tools/<name>`` in a process that has the imports behind it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        command = [sys.executable, __file__]
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment()
        )

    @property
    def pid(self) -> int:
        """Process of the server."""
        return self._server.pid

    def __call__(self, name: str, *args: object, **settings: str) -> Ended:
        """Run to the end; ``settings`` are variables of its environment."""
        out, err = self._folder / "out", self._folder / "err"
        argv = [str(ROOT / "tools" / name), *map(str, args)]
        job = {"argv": argv, "environment": settings, "out": str(out), "err": str(err)}
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        code = int(self._server.stdout.readline())
        return Ended(code, out.read_text(), err.read_text())

    def stop(self) -> None:
        """Let it end; that its input is closed it may never learn, other processes having inherited it."""
        self._server.stdin.write("null\n")
        self._server.stdin.close()
        self._server.wait(timeout=PATIENCE)
        self._server.stdout.close()


@pytest.fixture(scope="session")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """``tool("train.py", "config.py", ...)`` runs one without waiting for the imports."""
    server = ForkServer(tmp_path_factory.mktemp("tool"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def program() -> Callable[..., Ended]:
    """``program("train.py", "config.py", ...)`` runs one as a shell does, imports and all; ``.sh`` by bash."""

    def run(name: str, *args: object) -> Ended:
        interpreter = "bash" if name.endswith(".sh") else sys.executable
        command = [interpreter, str(ROOT / "tools" / name), *map(str, args)]
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def terminal() -> Callable[..., Ended]:
    """Like ``program``, with a terminal of 160 columns looking on; all that it shows is in ``out``."""

    def run(name: str, *args: object) -> Ended:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
        command = [sys.executable, str(ROOT / "tools" / name), *map(str, args)]
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        alarm = threading.Timer(PATIENCE, process.kill)
        alarm.start()
        shown = b""
        with suppress(OSError):  # how Linux says that the last process has closed the terminal
            while piece := os.read(ours, 2**16):
                shown += piece
        os.close(ours)
        code = process.wait()
        alarm.cancel()
        return Ended(code, shown.decode(), "")

    return run


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few digits in the three formats: 5 steps of 8 images, 11 scenes with something on them."""
    from demo.dataset import make_digits

    root = tmp_path_factory.mktemp("data") / "digits"
    # An odd number to validate on: two processes cannot share it evenly.
    make_digits(root, train_images=40, val_images=21, train_scenes=12, val_scenes=7)
    return root


def serve() -> None:
    """Answer every job with its exit code."""
    sys.path.insert(0, str(ROOT))
    import torch.utils.tensorboard  # noqa: F401

    import classification  # noqa: F401
    import detection  # noqa: F401
    import engine.run  # noqa: F401
    import segmentation  # noqa: F401

    gc.freeze()  # otherwise every forked process would touch, and so copy, all that was imported
    for line in sys.stdin:
        job = json.loads(line)
        if job is None:
            return
        child = os.fork()
        if not child:
            run(job)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def run(job: dict[str, Any]) -> NoReturn:
    """Run a tool in this process and end as the interpreter would, without taking its modules apart first."""
    signal.alarm(PATIENCE)
    os.environ.update(job["environment"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in ((1, job["out"]), (2, job["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = job["argv"]
    code: Any = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
