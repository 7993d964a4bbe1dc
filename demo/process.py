"""Runs the steps of the demo, and resumes where an earlier run was interrupted.

Each step has a folder below the work directory. A finished one has ``done.json`` there, an unfinished one
``started.json``; both hold a fingerprint of what the step depends on, so that a change makes it run again. The output
of the step's programs goes to ``console.log``.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from backbones.errors import CheckpointError, ConfigError, MachineError
from backbones.files import try_lock
from demo.pace import Forecast
from demo.report import collect_report, headline, score_table, write_demo_report
from demo.steps import DemoStep
from engine.checkpoint.store import last_checkpoint
from engine.config.fingerprint import config_values, make_fingerprint
from engine.launch.child import ChildProcess, interrupt_on_signals, plain_lines
from engine.launch.pool import usable_cores
from engine.report.environment import memory_limit
from engine.report.html import duration, memory
from engine.report.run_dir import read_json, write_json

CHECKPOINT = re.compile(r"\{checkpoint of (\w+)\}")
PROGRESS = re.compile(r"(?:Epoch|Iter)\((train|val|test)\)\s*(?:\[\s*(\d+)\])?\[\s*(\d+)/(\d+)\](.*)")
SAVE_SECONDS = 5.0  # of a step's time that a power failure can lose
# Of a machine on which two steps run at the same time: two detectors need 3.2 GiB (docs/results.md), their workers,
# this process and the system the rest.
PAIR_BYTES = 6 * 2**30
STATUS_SECONDS = 30.0  # between two lines about one step if the output is not a terminal


def run_demo(steps: Sequence[DemoStep], work_dir: Path, seed: int, stream: IO[str] | None = None) -> None:
    """Run the steps that are not finished yet, write the report, print its table.

    Args:
        steps: Steps in order.
        work_dir: Work directory of the demo.
        seed: Seed of the trainings, for the report.
        stream: Stream of the progress; standard output by default.

    Raises:
        UserError: If a step fails, or another demo runs in the same folder.
        KeyboardInterrupt: On Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP; the running program has been ended.
    """
    screen = Screen(stream or sys.stdout)
    with _locked(work_dir) as lock, interrupt_on_signals():
        screen.say(f"{len(steps)} steps into {work_dir}; interrupted and started again, this goes on where it was")
        groups = []
        for numbered in _groups(steps):
            threads = usable_cores() // len(numbered) if len(numbered) > 1 else None
            groups.append([StepRun(step, work_dir, screen, number, lock, threads) for number, step in numbered])
        forecast = Forecast([[run.step for run in group if not run.is_finished()] for group in groups])
        if left := forecast.left():
            screen.say(f"about {left} on this machine")
        for group in groups:
            begun, new = time.monotonic(), all(run.is_new() for run in group)
            _run_together([run.run() for run in group])
            forecast.learn(time.monotonic() - begun if new else None)
            report = collect_report(work_dir, {step.name: step.title for step in steps}, seed)
            page, data = write_demo_report(report, work_dir)
            if (left := forecast.left()) and any(run.step.config for run in group):
                screen.say(f"      results so far, with pictures: {page}; about {left} more")
    screen.say("\n".join(["", *score_table(report), "", f"report:  {page}", f"figures: {data}"]))


def _groups(steps: Sequence[DemoStep]) -> list[list[tuple[str, DemoStep]]]:
    """The steps with their numbers in words, those together that run at the same time."""
    # A GPU's memory and time are for one training; a single core gains nothing by two.
    alone = torch.cuda.is_available() or usable_cores() == 1 or (memory_limit() or PAIR_BYTES) < PAIR_BYTES
    groups: list[list[tuple[str, DemoStep]]] = []
    for number, step in enumerate(steps, 1):
        if not step.beside_former or alone:
            groups.append([])
        groups[-1].append((f"[{number}/{len(steps)}]", step))
    return groups


def _run_together(runs: Sequence[Generator[None]]) -> None:
    """Go through the runs in turns to the end of all; if one fails, the programs of the others are ended."""
    unfinished = list(runs)
    with ExitStack() as stack:
        for run in runs:
            stack.callback(run.close)  # of each, though closing another fails
        while unfinished:
            unfinished = [run for run in unfinished if next(run, run) is None]  # a run that is at its end gives itself


class Screen:
    """Output of the demo: permanent lines, and below them the status of the running step.

    On a terminal the status is one line that is rewritten; elsewhere it is printed every :data:`STATUS_SECONDS`.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._lines: dict[str, str] = {}
        self._due: dict[str, float] = {}
        self._said = 0.0

    def say(self, text: str) -> None:
        """Print a permanent line."""
        self._print(text)
        self._lines.clear()
        self._due.clear()
        self._said = time.monotonic()

    def show(self, seconds: float, text: str, name: str = "") -> None:
        """Show the status of a running step and its time in seconds, with its name if it is not the only one."""
        now, line = time.monotonic(), f"{duration(seconds)}  {name}{': ' if name else ''}{text}"
        if self._live:
            self._lines[name] = line
            whole = "      " + "; ".join(self._lines.values())
            self._stream.write("\r\x1b[2K" + whole[: shutil.get_terminal_size().columns - 1])
            self._stream.flush()
        elif now >= self._due.get(name, self._said + STATUS_SECONDS) and text != self._lines.get(name):
            self._print(f"      {line}")
            self._lines[name], self._due[name] = text, now + STATUS_SECONDS

    def _print(self, text: str) -> None:
        self._stream.write(("\r\x1b[2K" if self._live else "") + text + "\n")
        self._stream.flush()


class StepRun:
    """One step, or the rest of it after an interruption.

    Args:
        step: The step; also an attribute.
        work_dir: Work directory of the demo.
        screen: Output of the progress.
        number: Number of the step in words, such as ``[2/6]``.
        lock: File descriptor that the programs keep open as long as they live.
        threads: Threads of its programs where another step runs at the same time; ``None`` where it is alone.
    """

    def __init__(
        self, step: DemoStep, work_dir: Path, screen: Screen, number: str, lock: int, threads: int | None = None
    ) -> None:
        self.step, self._work_dir, self._screen, self._number, self._lock = step, work_dir, screen, number, lock
        self._environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if threads is not None:
            self._environment.setdefault("OMP_NUM_THREADS", str(threads))
        self._shown_name = "" if threads is None else step.name
        self._beside_former = step.beside_former and threads is not None
        self._folder = work_dir / step.name
        self._state: dict[str, Any] = {}

    def is_finished(self) -> bool:
        """Whether the step was finished before, with the same inputs."""
        done = read_json(self._folder / "done.json")
        same = done.get("fingerprint") == step_fingerprint(self.step) if done else False
        return same and all(Path(path).exists() for path in done["outputs"])

    def is_new(self) -> bool:
        """Whether the step runs from its beginning."""
        return not self.is_finished() and not (self._folder / "started.json").exists()

    def run(self) -> Generator[None]:
        """Run the commands that are not finished, unless the step is finished with the same inputs.

        Yields:
            ``None`` whenever its output has been read, for another step's to be read; closed, it ends its program.

        Raises:
            UserError: If one of the programs fails.
        """
        step, mark = self.step, step_fingerprint(self.step)
        if self.is_finished():
            done = read_json(self._folder / "done.json")
            self._screen.say(f"{self._title}: done before, in {duration(done['seconds'])}{self._scores(done)}")
            return
        self._screen.say(self._title)
        state = self._state = self._start(mark)
        for index, entry in enumerate(state["commands"]):
            if not entry["finished"]:
                yield from self._run_command(index)
        state["seconds"] = self._seconds
        state["beside_former"] = self._beside_former
        state["memory_bytes"] = max(entry["memory_bytes"] for entry in state["commands"])
        state["metrics"] = read_json(self._folder / "test.json").get("metrics", {})
        last = last_checkpoint(self._folder)
        state["outputs"] = [str(path) for path in (*step.outputs, *([last] if last else []))]
        write_json(self._folder / "done.json", state)
        (self._folder / "started.json").unlink()
        cost = f"{duration(state['seconds'])}, {memory(state['memory_bytes'])}"
        name = f"{self._shown_name} " if self._shown_name else ""
        self._screen.say(f"      {name}done in {cost}{self._scores(state)}")

    @property
    def _title(self) -> str:
        return f"{self._number} {self.step.title}"

    @property
    def _seconds(self) -> float:
        return sum(entry["seconds"] for entry in self._state["commands"])

    def _scores(self, state: Mapping[str, Any]) -> str:
        text = headline(self.step.name, state["metrics"])
        return f": {text}" if text else ""

    def _start(self, mark: str) -> dict[str, Any]:
        """The record of an interrupted run of the step, or a new one in an empty folder."""
        folder = self._folder
        state = read_json(folder / "started.json")
        if state.get("fingerprint") == mark:
            return state
        if folder.exists():
            ours = (folder / "started.json").exists() or (folder / "done.json").exists()
            if not ours and any(folder.iterdir()):
                raise ConfigError(f"{folder} holds other files: give the demo another folder with --work-dir")
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        entry = {"seconds": 0.0, "memory_bytes": 0, "starts": 0, "finished": False}
        return {"fingerprint": mark, "starts": 0, "commands": [entry.copy() for _ in self.step.commands]}

    def _save(self) -> None:
        write_json(self._folder / "started.json", self._state)

    def _run_command(self, index: int) -> Generator[None]:
        """Run one program and keep its record up to date in ``started.json``."""
        command, entry = self.step.commands[index], self._state["commands"][index]
        arguments = [_with_checkpoints(argument, self._work_dir) for argument in command.arguments]
        entry["command"] = shlex.join(["python", *arguments])
        before, resume = entry["seconds"], command.resumable and entry["starts"] > 0
        entry["starts"] += 1
        self._state["starts"] = max(one["starts"] for one in self._state["commands"])
        log = self._folder / "console.log"
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ {entry['command']}{' --resume' if resume else ''}\n")
        self._save()
        saved, status = before, "starting"
        program = [sys.executable, *arguments, *(["--resume"] if resume else [])]
        child = ChildProcess(program, log, env=self._environment, pass_fds=(self._lock,))
        try:
            with child:
                for line in child.lines():
                    status = describe_progress(line or "") or status
                    entry["seconds"] = before + child.seconds
                    self._screen.show(self._seconds, status, self._shown_name)
                    if entry["seconds"] - saved > SAVE_SECONDS:
                        self._save()
                        saved = entry["seconds"]
                    if line is None:
                        yield
        finally:
            entry["seconds"] = before + child.seconds
            entry["memory_bytes"] = max(entry["memory_bytes"], child.memory_bytes)
            entry["finished"] = child.exit_code == 0
            self._save()
        if child.exit_code:
            reason = _reason(child.exit_code, log)
            raise MachineError(f"step {self._number} {self.step.name} failed: {reason}; all of its output: {log}")


def step_fingerprint(step: DemoStep) -> str:
    """Digest of all that a step's result depends on: its commands, its config, the content of its inputs."""
    config = config_values(step.config) if step.config else None
    inputs = [path.read_text() if path.is_file() else None for path in step.inputs]
    return make_fingerprint([command.arguments for command in step.commands], config, inputs)


def describe_progress(line: str) -> str | None:
    """The progress that a line of a training's log reports, in plain words; ``None`` if it reports none."""
    match = PROGRESS.search(line)
    if not match:
        return None
    mode, epoch, at, total, rest = match.groups()
    if mode != "train":
        return f"{'checking' if mode == 'val' else 'testing'} on held-out images, batch {at} of {total}"
    parts = ["training", f"epoch {epoch}"] if epoch else ["training"]
    parts.append(f"step {at} of {total}")
    loss, left = re.search(r"\bloss: (\S+)", rest), re.search(r"\beta: (.+?)\s\s", rest)
    parts += [f"loss {float(loss[1]):.2f}"] if loss else []
    parts += [f"about {re.sub('^0:0?', '', left[1])} left"] if left else []
    return ", ".join(parts)


def _reason(code: int, log: Path) -> str:
    if code < 0:
        return f"ended by {signal.Signals(-code).name}, perhaps for want of memory"
    return plain_lines(log)[-1].removeprefix("error: ")


def _with_checkpoints(argument: str, work_dir: Path) -> str:
    def path_of(match: re.Match[str]) -> str:
        path = last_checkpoint(work_dir / match[1])
        if path is None:
            raise CheckpointError(f"{work_dir / match[1]} holds no checkpoint: remove that folder and start again")
        return str(path)

    return CHECKPOINT.sub(path_of, argument)


@contextmanager
def _locked(work_dir: Path) -> Iterator[int]:
    """Lock the work directory; a program of an earlier demo that still runs holds the lock too."""
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        file = try_lock(work_dir / "lock")
    except OSError as error:
        raise MachineError(f"cannot write to {work_dir} ({error.strerror}): choose another with --work-dir") from error
    if file is None:
        raise MachineError(f"a demo is at work in {work_dir}: let it end, or choose another with --work-dir")
    with file:
        yield file.fileno()
