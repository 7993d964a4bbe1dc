"""How a study stands, in lines: one for each training that runs, with bar, remaining time and score."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from analysis.sweep.results import Objective, StudyResult, mean_score, validation_score
from analysis.sweep.trainings import Training
from engine.launch.keeper import is_alive
from engine.report.html import duration
from engine.report.run_dir import read_curves, read_starts

BAR_WIDTH = 20
REFRESH_SECONDS = 2.0  # of a terminal
REPEAT_SECONDS = 60.0  # between two outputs of the same lines where the output is no terminal


class StatusLines:
    """Permanent lines, and below them on a terminal the lines of what runs; elsewhere these are printed now and then.

    Args:
        stream: Output.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._live = stream, stream.isatty()
        self._shown = 0
        self._next = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the lines are to be shown again."""
        return time.monotonic() >= self._next

    def say(self, text: str) -> None:
        """Print a permanent line."""
        self._clear()
        self._stream.write(text + "\n")
        self._stream.flush()
        self._next = min(self._next, time.monotonic() + REFRESH_SECONDS)

    def show(self, lines: Sequence[str]) -> None:
        """Show the lines of what runs."""
        self._clear()
        width = shutil.get_terminal_size().columns - 1 if self._live else None
        for line in lines:
            self._stream.write(line[:width] + "\n")
        self._stream.flush()
        self._shown = len(lines) if self._live else 0
        self._next = time.monotonic() + (REFRESH_SECONDS if self._live else REPEAT_SECONDS)

    def _clear(self) -> None:
        if self._shown:
            self._stream.write(f"\x1b[{self._shown}F\x1b[J")
            self._shown = 0


def describe_training(training: Training, objective: Objective) -> str:
    """A training that runs in one line: bar, steps, remaining time, and the score of its last validation."""
    folder = training.folder
    last = (read_starts(folder) or [{}])[-1]
    began = training.record["starts"][-1]["began"]
    steps = last.get("of_steps")
    if not steps or last.get("ended"):
        return f"  {training.label}: starting, {duration(time.time() - began)}"
    curves = read_curves(folder)
    step = max((points[-1][0] for name, points in curves.items() if name.startswith(("train/", "val/"))), default=0)
    done = min(1.0, step / steps)
    bar = "█" * round(BAR_WIDTH * done) + "░" * (BAR_WIDTH - round(BAR_WIDTH * done))
    since, first = time.time() - began, last.get("from_step") or 0
    left = f", about {duration(since * (steps - step) / (step - first))} left" if step > first else ""
    score = validation_score(folder, objective)
    return (
        f"  {training.label}: {bar} {done:4.0%}, step {step:,} of {steps:,}{left}"
        f"{'' if score is None else f', {objective.metric} {score:.4g}'}"
    )


def status_lines(result: StudyResult, folder: Path) -> list[str]:
    """How a study stands, read from its storage and folders alone.

    Args:
        result: The study.
        folder: Folder of the study.
    """
    states = Counter(one.state for one in result.trials)
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    hours = sum(one.gpu_hours for one in result.trials)
    lines = [f"{result.name}: {result.title}", f"trainings: {counts or 'none'}; {hours:.2f} GPU hours logged"]
    for one in result.trials:
        settings = ", ".join(f"{name}={value}" for name, value in one.settings.items())
        head = f"  trial {one.number}, seed {one.seed}"
        if one.state == "running":
            training = Training(one.number, one.seed, one.rung, one.work_dir, result.config, {})
            alive = "job" in training.record["starts"][-1] or is_alive(one.work_dir)
            lines.append(describe_training(training, result.objective) if alive else f"{head}: its process is gone")
        elif one.state != "waiting":
            score = "" if one.score is None else f", {result.objective.metric} {one.score:.5g}"
            lines.append(f"{head}: {one.state}{score}{f' ({one.reason})' if one.reason else ''} [{settings}]")
    if compared := result.compared():
        scores = {number: mean_score(runs) for number, runs in compared.items()}
        lines.append(best_line(result.objective, scores, {n: runs[0].settings for n, runs in compared.items()}))
    return lines


def best_line(objective: Objective, scores: Mapping[int, float], settings: Mapping[int, Mapping[str, Any]]) -> str:
    """The best trial in one line.

    Args:
        objective: Objective of the study.
        scores: Mean score of each trial by its number, at least one.
        settings: Settings of each trial by its number.
    """
    pick = max if objective.direction == "maximize" else min
    best = pick(scores, key=lambda number: scores[number])
    values = ", ".join(f"{name}={value}" for name, value in settings[best].items())
    return f"best: trial {best}, {objective.metric} {scores[best]:.5g}{f' [{values}]' if values else ''}"
