"""Trainings that are killed at random moments and resumed, compared bit by bit with one that was not."""

from __future__ import annotations

import ctypes
import math
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engine.checkpoint.store import RUN_ID_FILE
from engine.launch.exit_codes import EXIT_INTERRUPTED, EXIT_SAVED
from tests.programs import PATIENCE, ForkServer
from tests.tools.test_exact_resume import CONFIGS, EVERY_STEP, TASKS, assert_same_run

PR_SET_CHILD_SUBREAPER = 36
SHARED_MEMORY = Path("/dev/shm")
# The first reading of the config starts a process that signals the training from outside, at whatever it is doing then.
KILLER = """
import ctypes, os, signal, time
_by, _training = os.environ.pop("FUZZ_SIGNAL", "").split(), os.getpid()
if _by and not os.fork():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # it ends with the training
    time.sleep(float(_by[1]))
    if os.getppid() == _training:
        os.kill(_training, int(_by[0]))
    os._exit(0)
custom_hooks = [dict(type="ModelEMAHook", decay=0.9)]
"""
# Smaller than the tests' trainings: a kill costs seconds.
SMALLER = {
    "classifier": """
model["backbone"].update(depths=[1, 1, 1, 1], dims=[8, 8, 8, 16])
train_cfg = dict(max_epochs=2)
param_scheduler = [dict(type="CosineAnnealingLR", T_max=2, by_epoch=True, convert_to_iter_based=True)]
""",
    "detector": 'model["backbone"].update(depths=[1, 1, 1, 1], dims=[8, 16, 16, 16])\ntrain_cfg = dict(max_epochs=1)\n',
    "segmentor": """
model["backbone"].update(depths=[1, 1, 1, 1], dims=[8, 16, 16, 16])
train_cfg = dict(max_iters=4, val_interval=2)
""",
}
# SIGKILL most of the time; what asks for an orderly end sometimes.
SIGNALS = (signal.SIGKILL,) * 8 + (signal.SIGTERM, signal.SIGINT)
ENDS = {0, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, EXIT_SAVED, EXIT_INTERRUPTED}


class Killer:
    """Kills trainings of each task again and again.

    Args:
        folder: Folder for configs and trainings.
        digits: Folder of the digits.
        seed: Seed of the moments.

    Attributes:
        counts: Signals sent, chains that ended the same, and what was not as it should be.
        failures: A line for each.
    """

    def __init__(self, folder: Path, digits: Path, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._folder, self._random = folder, random.Random(seed)
        folder.mkdir(parents=True)
        self._configs: dict[str, Path] = {}
        self._seconds: dict[str, tuple[float, float]] = {}  # until the first step, and until the end
        for task, smaller in SMALLER.items():
            self._configs[task] = folder / f"{task}.py"
            settings = TASKS[task].format(configs=str(CONFIGS), data=str(digits))
            self._configs[task].write_text(settings + EVERY_STEP + smaller + KILLER, encoding="utf-8")
        self._others: set[int] = set()

    def run(self, kills: int, tasks: tuple[str, ...] = tuple(SMALLER), minutes: float = math.inf) -> None:
        """Kill so many times, or as often as the time allows, in chains of one to five; each chain ends."""
        until = time.monotonic() + 60 * minutes
        self._others = children()  # of other tests
        # A short path, as sockets in a long one would be elsewhere.
        short = tempfile.TemporaryDirectory(prefix="k", dir="/tmp")
        with short as name, adopting_orphans(), serving(self._folder, name) as tool:
            self._temporary = Path(name)
            tool("train.py", "--help")  # waits for the imports
            for task in tasks:
                began, whole = time.time(), self._folder / f"{task}_whole"
                code, said = self._train(tool, task, whole, 0)
                assert code == 0, said
                self._seconds[task] = (whole / RUN_ID_FILE).stat().st_mtime - began, time.time() - began
            chain = 0
            while self.counts["kills"] < kills and time.monotonic() < until:
                self._chain(tool, tasks[chain % len(tasks)], chain)
                chain += 1

    def _train(self, tool: ForkServer, task: str, work_dir: Path, workers: int, by: str = "") -> tuple[int, str]:
        """Train, or go on; the exit code, and the output if it did not end as it may."""
        options = [f"{split}_dataloader.num_workers={workers}" for split in ("train", "val")]
        options += [f"{split}_dataloader.persistent_workers={workers > 0}" for split in ("train", "val")]
        command = (
            self._configs[task],
            "--work-dir",
            work_dir,
            "--no-data-check",
            "--resume",
            "--cfg-options",
            *options,
        )
        ended = tool("train.py", *command, FUZZ_SIGNAL=by)
        expected = ended.code in ENDS if by else ended.code == 0
        well = expected and "Traceback" not in ended.err
        return ended.code, "" if well else f"exit code {ended.code}: {ended.err[:2000]} ... {ended.err[-1000:]}"

    def _chain(self, tool: ForkServer, task: str, number: int) -> None:
        work_dir = self._folder / f"{task}_{number}"
        steps: list[str] = []
        killed: set[str] = set()
        for _ in range(self._random.randint(1, 5)):
            by, workers = self._random.choice(SIGNALS), self._random.choice((0, 2))
            start, whole = self._seconds[task]
            after = self._random.uniform(self._random.choice((0.0, start, start)), whole)  # a start is most of the time
            steps.append(f"{by.name} after {after:.3f} s with {workers} workers")
            code, said = self._train(tool, task, work_dir, workers, f"{int(by)} {after}")
            if code:  # it had not ended by then
                self.counts["kills"] += 1
                self.counts[f"kills {task}"] += 1
                self.counts[f"kills by {by.name}"] += 1
            self._expect(not said, steps, said)
            self._expect(not (left := self._processes(tool)), steps, f"{left} processes are left")
            killed |= {place.name.removeprefix("worker-") for place in self._temporary.glob("*/worker-*")}
        _, said = self._train(tool, task, work_dir, self._random.choice((0, 2)))
        self._expect(not said, steps, said)
        shared = [place for pid in killed for place in SHARED_MEMORY.glob(f"torch_{pid}_*")]
        files = [place.name for place in (*self._temporary.iterdir(), *work_dir.rglob("*.part"), *shared)]
        self._expect(not files, steps, f"left behind: {files}")
        try:
            assert_same_run(work_dir, self._folder / f"{task}_whole")
        except Exception as error:
            self._expect(False, steps, f"another result: {error!r}"[:500])
        else:
            self.counts["chains that ended bit by bit the same"] += 1
        self.counts["chains"] += 1
        shutil.rmtree(work_dir, ignore_errors=True)

    def _expect(self, holds: bool, steps: list[str], what: str) -> None:
        if not holds:
            self.counts["failures"] += 1
            self.failures.append(f"{'; '.join(steps)}: {what}")
            print(self.failures[-1], flush=True)

    def _processes(self, tool: ForkServer) -> int:
        """Number of processes that trainings have left behind, after a while in which they may end; they are killed."""
        until = time.monotonic() + PATIENCE
        while left := list(running(children() - self._others - {tool.pid})):
            if time.monotonic() > until:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                return len(left)
            time.sleep(0.05)
        return 0


def children() -> set[int]:
    """Process ids of the children of this process."""
    return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


def running(pids: set[int]) -> Iterator[int]:
    """Those of some children that run; the others are forgotten."""
    for pid in pids:
        with suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                yield pid


@contextmanager
def adopting_orphans() -> Iterator[None]:
    """Context in which a process that loses its parent becomes a child of this one."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0)


@contextmanager
def serving(folder: Path, temporary: str) -> Iterator[ForkServer]:
    """A fork server whose programs have a temporary folder of their own."""
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = temporary
    server = ForkServer(folder)
    try:
        yield server
    finally:
        server.stop()
        os.environ.pop("TMPDIR") if before is None else os.environ.update(TMPDIR=before)
