"""Studies whose trainings are stand-ins, run by controllers that may be killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

import analysis.sweep.controller
import analysis.sweep.run
from analysis.sweep.results import StudyResult, read_study
from analysis.sweep.study_file import read_study_file
from analysis.sweep.trainings import SEED, Training
from engine.launch.child import interrupt_on_signals
from engine.launch.exit_codes import EXIT_INTERRUPTED

ROOT = Path(__file__).resolve().parents[3]
DIGITS = str(ROOT / "configs/classification/digits.py")
STAND_IN = Path(__file__).with_name("stand_in.py")
LR = "optim_wrapper.optimizer.lr"
PATIENCE = 240  # seconds until something that hangs fails


def write_study(folder: Path, **settings: Any) -> Path:
    """A study file of the rate of the digits, two seeds each; ``None`` leaves a setting out."""
    file = folder / "rates.py"
    declared = {
        **{"config": DIGITS, "space": {LR: {"grid": [1e-3, 1e-2, 1e-1]}}, "objective": "top1", "seeds": 2},
        **settings,
    }
    lines = [f"{name} = {value!r}" for name, value in declared.items() if value is not None]
    file.write_text('"""Rates of the digits."""\n' + "\n".join(lines))
    return file


class Sweep:
    """A study in a folder of its own, and what makes the command of a training."""

    def __init__(self, folder: Path, command: Callable[..., list[str]]) -> None:
        self.folder, self.work_dir, self.command = folder, folder / "work", command

    def run(
        self, resume: bool = False, jobs: int = 1, more_seeds: int = 0, retry: bool = False, **settings: Any
    ) -> list[str]:
        """Run the study in this process."""
        study = read_study_file(write_study(self.folder, **settings))
        return analysis.sweep.run.run_sweep(study, self.work_dir, resume, jobs, more_seeds=more_seeds, retry=retry)

    def start(self, resume: bool = False, jobs: int = 1, **settings: Any) -> BaseProcess:
        """Start a controller in a process of its own."""
        context = multiprocessing.get_context("fork")
        process = context.Process(target=self._run, args=(resume, jobs), kwargs=settings)
        process.start()
        return process

    def _run(self, *args: Any, **settings: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have these tests ignore it
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        output = (self.folder / "output").open("a", buffering=1)
        sys.stdout = sys.stderr = output
        try:
            with interrupt_on_signals():  # as a tool does
                print("\n".join(self.run(*args, **settings)))
        except KeyboardInterrupt as stop:
            os._exit(getattr(stop, "exit_code", EXIT_INTERRUPTED))

    @property
    def result(self) -> StudyResult:
        return read_study(self.work_dir)

    def ledger(self) -> list[tuple[str, int, int]]:
        """Folder, first and last epoch of each start of a stand-in."""
        file = self.work_dir / "ledger"
        lines = file.read_text().split("\n")[:-1] if file.exists() else []
        return [(line.split()[0], int(line.split()[1]), int(line.split()[2])) for line in lines]

    def wait_for(self, condition: Callable[[], Any]) -> None:
        until = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < until, (self.folder / "output").read_text()
            time.sleep(0.01)


def stand_in_sweep(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """A sweep whose trainings are stand-ins for as long as the patches last."""

    def command(study: Any, training: Training, gpus: int, slurm: str | None = None) -> list[str]:
        options = {**analysis.sweep.trainings.options_of(study, training), SEED: training.seed}
        texts = [f"{key}={value}" for key, value in options.items()]
        return [sys.executable, "-S", str(STAND_IN), "--work-dir", str(training.folder), "--cfg-options", *texts]

    monkeypatch.setattr(analysis.sweep.controller, "command_of", command)
    monkeypatch.setattr(analysis.sweep.run, "check_study", lambda *args: None)
    monkeypatch.setattr(analysis.sweep.executors.LocalExecutor, "poll_seconds", 0.02)
    return Sweep(folder, command)


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sweep]:
    made = stand_in_sweep(tmp_path, monkeypatch)
    yield made
    for file in made.work_dir.glob("trials/*/*/keeper.json"):  # of a test that failed
        analysis.sweep.executors.tell_to_stop(file.parent)
