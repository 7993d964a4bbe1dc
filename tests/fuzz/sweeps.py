"""Sweeps whose controller and trainings get signals at random moments, and that come to the same end each time."""

from __future__ import annotations

import math
import os
import random
import shutil
import signal
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from analysis.sweep.results import RUN_FILE
from engine.launch.exit_codes import EXIT_INTERRUPTED, EXIT_SAVED
from engine.launch.keeper import KEEPER
from engine.launch.leftovers import is_running
from engine.report.run_dir import read_json
from tests.analysis.sweep.conftest import Sweep, stand_in_sweep
from tests.analysis.sweep.stand_in import EPOCHS
from tests.programs import PATIENCE, handles

ASKED = {signal.SIGINT: EXIT_INTERRUPTED, **dict.fromkeys((signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP), EXIT_SAVED)}
# Whom a signal meets: the controller, or a training, or the keeper of one, which are killed alone.
TARGETS = ("controller",) * 4 + ("program",) * 2 + ("keeper",)
MAX_KILLS_OF_A_TRAINING = 2  # one more, and a sweep gives it up


class SweepKiller:
    """Interrupts sweeps of stand-ins again and again.

    Args:
        folder: Folder for the sweeps.
        digits: Folder of the digits, which stand-ins do not need.
        seed: Seed of the moments.

    Attributes:
        counts: Signals sent, sweeps that came to their end, and what was not as it should be.
        failures: A line for each.
    """

    def __init__(self, folder: Path, digits: Path, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._folder, self._random = folder, random.Random(seed)
        folder.mkdir(parents=True)

    def run(self, kills: int, minutes: float = math.inf) -> None:
        """Send so many signals, or as many as the time allows, in sweeps that each come to their end."""
        until, number = time.monotonic() + 60 * minutes, 0
        while self.counts["signals"] < kills and time.monotonic() < until:
            folder = self._folder / str(number)
            folder.mkdir()
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("STAND_IN_SECONDS", "0.05")
                self._sweep(stand_in_sweep(folder, patch))
            shutil.rmtree(folder)
            number += 1

    def _sweep(self, sweep: Sweep) -> None:
        steps: list[str] = []
        killed: Counter[str] = Counter()
        finished: Counter[str] = Counter()
        for _ in range(self._random.randint(1, 5)):
            controller = sweep.start(resume=True, jobs=2)
            steps.append(self._disturb(sweep, controller, killed))
            self._see(sweep, steps, finished)
        last = sweep.start(resume=True, jobs=2)
        last.join(PATIENCE)
        self._expect(sweep, last.exitcode == 0, steps, f"the last controller ended with {last.exitcode}")
        self._see(sweep, steps, finished)
        states = [(one.state, one.number, one.seed, one.score) for one in sweep.result.trials]
        scores = [(number, seed, 10 - abs(number - 1) + seed / 100) for number in range(3) for seed in range(2)]
        same = [pytest.approx(("finished", number, seed, score)) for number, seed, score in scores]
        self._expect(sweep, states == same, steps, f"another result: {states}")
        left = _processes_of(sweep.folder)
        self._expect(sweep, not left, steps, f"processes are left: {left}")
        files = [place.name for place in sweep.work_dir.rglob("*") if place.suffix in (".part", ".tmp")]
        files = [name for name in files if not name.startswith("epoch_")]  # the stand-ins' own, killed as they write
        self._expect(sweep, not files, steps, f"left behind: {files}")
        self.counts["sweeps"] += 1

    def _disturb(self, sweep: Sweep, controller: BaseProcess, killed: Counter[str]) -> str:
        """Send signals until the controller has ended; says what happened."""
        said = []
        while controller.is_alive():
            self._wait(sweep, controller)
            target = self._random.choice(TARGETS)
            if target == "controller":
                by = self._random.choice((signal.SIGKILL, *ASKED))
                while controller.is_alive() and not handles(controller.pid, signal.SIGTERM):
                    time.sleep(0.005)
                if controller.is_alive():
                    os.kill(controller.pid, by)  # not reaped before join: the number is its own
                    self.counts["signals"] += 1
                    self.counts[f"{by.name} of a controller"] += 1
                said.append(f"{by.name} of the controller")
                controller.join(PATIENCE)
                expected = {0, -by} if by == signal.SIGKILL else {0, ASKED[by]}
                self._expect(sweep, controller.exitcode in expected, said, f"ended with {controller.exitcode}")
                if by != signal.SIGKILL:
                    left = _processes_of(sweep.folder)
                    self._expect(sweep, not left, said, f"trainings go on: {left}")
            else:
                said.append(self._kill_a_training(sweep, target, killed))
        return ", ".join(said)

    def _kill_a_training(self, sweep: Sweep, target: str, killed: Counter[str]) -> str:
        files = list(sweep.work_dir.glob(f"trials/*/*/{KEEPER}"))
        self._random.shuffle(files)
        for file in files:
            noted, name = read_json(file), str(file.parent)
            pid = noted.get("program" if target == "program" else "pid")
            if pid is None or killed[name] >= MAX_KILLS_OF_A_TRAINING or not _is_of(pid, file.parent):
                continue
            killed[name] += 1
            os.kill(pid, signal.SIGKILL)
            self.counts["signals"] += 1
            self.counts[f"SIGKILL of a {'training' if target == 'program' else 'keeper'}"] += 1
            return f"SIGKILL of the {target} of {file.parent.parent.name}/{file.parent.name}"
        return "nothing"

    def _wait(self, sweep: Sweep, controller: BaseProcess) -> None:
        """Until some trainings more have begun, and a moment; or not at all."""
        more = len(sweep.ledger()) + self._random.randint(0, 2)
        until = time.monotonic() + PATIENCE
        while controller.is_alive() and len(sweep.ledger()) < more and time.monotonic() < until:
            time.sleep(0.005)
        controller.join(self._random.uniform(0.0, 0.3))

    def _see(self, sweep: Sweep, steps: list[str], finished: Counter[str]) -> None:
        """What had been finished has not been started since; no start was below one before it."""
        starts: dict[str, list[int]] = {}
        for name, first, _ in sweep.ledger():
            starts.setdefault(name, []).append(first)
        for name, count in finished.items():
            self._expect(sweep, len(starts[name]) == count, steps, f"{name} was finished and ran again")
        for name, firsts in starts.items():
            self._expect(sweep, firsts == sorted(firsts), steps, f"{name} began anew: {firsts}")
            state = read_json(sweep.work_dir / "trials" / name / RUN_FILE).get("state")
            if state == "finished":
                finished[name] = len(firsts)
                whole = (sweep.work_dir / "trials" / name / f"epoch_{EPOCHS}.pth").is_file()
                self._expect(sweep, whole, steps, f"{name} counts as finished and is not")

    def _expect(self, sweep: Sweep, holds: bool, steps: list[str], what: str) -> None:
        if not holds:
            output = sweep.folder / "output"
            said = output.read_text()[-1500:] if output.exists() else ""
            self.counts["failures"] += 1
            self.failures.append(f"{'; '.join(steps)}: {what}\n{said}")
            print(self.failures[-1], flush=True)


def _is_of(pid: int, folder: Path) -> bool:
    """Whether a process runs and its command names a folder."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return os.fsencode(folder) in command and is_running(pid)


def _processes_of(folder: Path) -> list[str]:
    """Commands of the programs that run with something below a folder as an argument."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            command = (place / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(f"{folder}/") in command and is_running(int(place.name)):
            found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found
