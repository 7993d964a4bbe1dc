"""The demo: its steps, and the program that runs them one after the other and goes on where it was interrupted.

Each step has a folder below the work directory. A finished one leaves ``done.json`` there, an unfinished one
``started.json``; both hold a fingerprint of what the step depends on, so that a change has it done again. What the
step's programs print goes to ``console.log``.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mmengine.config import Config

from backbones.errors import UserError
from demo import dataset as digits
from demo.report import collect, headline, table, write_report
from engine.report.html import duration, memory
from engine.report.run_dir import read_json, write_json

DATA = Path("data/digits")
CLASSIFICATION = "configs/classification/digits.py"
DETECTION = "configs/detection/mask_rcnn_digits.py"
SEGMENTATION = "configs/segmentation/upernet_digits.py"
LOG_INTERVAL = 10  # optimizer steps: the real configs' 50 would leave a few points of these short curves

CHECKPOINT = re.compile(r"\{checkpoint of (\w+)\}")
PROGRESS = re.compile(r"(?:Epoch|Iter)\((train|val|test)\)\s*(?:\[\s*(\d+)\])?\[\s*(\d+)/(\d+)\](.*)")
COLOUR_CODE = re.compile(r"\x1b\[[0-9;]*m")
TICK = 0.5  # seconds between two looks at a running program
SAVE_EVERY = 5.0  # seconds of a step that can be lost to a power failure
PLAIN_EVERY = 30.0  # seconds between two lines about one step where no terminal looks on


@dataclass(frozen=True)
class Command:
    """A Python program of a step.

    Attributes:
        arguments: To the interpreter; ``{checkpoint of NAME}`` stands for the last checkpoint of a step.
        resumable: It goes on from its last checkpoint when it is given ``--resume``.
    """

    arguments: tuple[str, ...]
    resumable: bool = False


@dataclass(frozen=True)
class Step:
    """A part of the demo that is done once.

    Attributes:
        name: Of its folder.
        title: What it does, in a newcomer's words.
        commands: Run in this order.
        config: Config file; a change of what it (with its bases) says has the step done again.
        inputs: Files; a change of their content has the step done again.
        outputs: Files; if one has gone the step is done again.
    """

    name: str
    title: str
    commands: tuple[Command, ...]
    config: str | None = None
    inputs: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()


def demo_steps(work_dir: Path, seed: int, options: Mapping[str, Sequence[str]] | None = None) -> list[Step]:
    """The steps of the demo.

    Args:
        work_dir: Holds the steps' folders.
        seed: Of the trainings; the data is always the same.
        options: By config file, further ``key=value`` settings: tests shrink the runs with them.
    """
    make = Command(("tools/make_digits.py", "--root", str(DATA)))
    title = "Draw the data: handwritten digits on photographs"
    # Another drawing is other data, although the command is the same.
    data = Step("data", title, (make,), inputs=(Path(digits.__file__),), outputs=(DATA / digits.STAMP,))

    def training(name: str, title: str, config: str, backbone: str | None = None) -> Step:
        folder, own = work_dir / name, (options or {}).get(config, ())
        settings = [f"randomness.seed={seed}", f"default_hooks.logger.interval={LOG_INTERVAL}", *own]
        if backbone:
            settings.append(f"model.backbone.weights={{checkpoint of {backbone}}}")
        place = ("--work-dir", str(folder))
        train = ("tools/train.py", config, *place, "--cfg-options", *settings)
        test = ("tools/test.py", config, f"{{checkpoint of {name}}}", *place, *(["--cfg-options", *own] if own else []))
        inputs = (DATA / digits.STAMP, work_dir / backbone / "done.json") if backbone else (DATA / digits.STAMP,)
        return Step(name, title, (Command(train, True), Command(test)), config, inputs, (folder / "test.json",))

    detector, segmentor = "Train Mask R-CNN to find and outline digits", "Train UperNet to name every pixel"
    return [
        data,
        training("classifier", "Train the backbone to name digits", CLASSIFICATION),
        training("detector", f"{detector}, from that backbone", DETECTION, "classifier"),
        training("detector_scratch", "The same Mask R-CNN from scratch, for as long", DETECTION),
        training("segmentor", f"{segmentor}, from that backbone", SEGMENTATION, "classifier"),
        training("segmentor_scratch", "The same UperNet from scratch, for as long", SEGMENTATION),
    ]


def run_demo(steps: Sequence[Step], work_dir: Path, seed: int, stream: IO[str] | None = None) -> None:
    """Do what is not done yet, write the report, print the table.

    Args:
        steps: In order.
        work_dir: Of the demo.
        seed: For the report.
        stream: Where progress goes; default standard output.

    Raises:
        UserError: If a step fails, or another demo is at work in the same folder.
        KeyboardInterrupt: On Ctrl-C, SIGTERM and SIGHUP; the running program has been ended.
    """
    screen = Screen(stream or sys.stdout)
    with _alone(work_dir) as lock, _signals_interrupt():
        screen.say(f"{len(steps)} steps into {work_dir}; interrupted and started again, this goes on where it was")
        for index, step in enumerate(steps, 1):
            run_step(step, work_dir, screen, f"[{index}/{len(steps)}]", lock)
        screen.say("writing the report")
        report = collect(work_dir, {step.name: step.title for step in steps}, seed)
        page, data = write_report(report, work_dir)
    screen.say("\n".join(["", *table(report), "", f"report:  {page}", f"figures: {data}"]))


def run_step(step: Step, work_dir: Path, screen: Screen, number: str, lock: int) -> None:
    """Do one step, or what is left of it.

    Args:
        step: The step.
        work_dir: Of the demo.
        screen: Shows the progress.
        number: Which step of how many, for people.
        lock: File descriptor that the programs keep open as long as they live.

    Raises:
        UserError: If one of its programs fails.
    """
    folder, mark = work_dir / step.name, fingerprint(step)
    done = read_json(folder / "done.json")
    if done.get("fingerprint") == mark and all(Path(path).exists() for path in done["outputs"]):
        screen.say(f"{number} {step.title}: done before, in {duration(done['seconds'])}{_scores(step, done)}")
        return
    screen.say(f"{number} {step.title}")
    state = _begin(folder, mark, len(step.commands))
    for index, command in enumerate(step.commands):
        if not state["commands"][index]["finished"]:
            _run_command(command, state, index, (folder, work_dir), screen, (number, step.name), lock)
    state["seconds"] = sum(entry["seconds"] for entry in state["commands"])
    state["memory_bytes"] = max(entry["memory_bytes"] for entry in state["commands"])
    state["metrics"] = read_json(folder / "test.json").get("metrics", {})
    last = last_checkpoint(folder)
    state["outputs"] = [str(path) for path in (*step.outputs, *([last] if last else []))]
    write_json(folder / "done.json", state)
    (folder / "started.json").unlink()
    screen.say(f"      done in {duration(state['seconds'])}, {memory(state['memory_bytes'])}{_scores(step, state)}")


def fingerprint(step: Step) -> str:
    """Digest of all that a step's result depends on: its commands, its config, the content of its inputs."""
    config = Config.fromfile(step.config, import_custom_modules=False).to_dict() if step.config else None
    inputs = [path.read_text() if path.is_file() else None for path in step.inputs]
    parts = [[command.arguments for command in step.commands], config, inputs]
    return hashlib.sha256(json.dumps(parts, default=repr, sort_keys=True).encode()).hexdigest()


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that a training left last; None if it has left none."""
    note = folder / "last_checkpoint"
    # The note holds a full path: only its name still holds in a folder that was moved.
    return folder / Path(note.read_text().strip()).name if note.is_file() else None


def describe(line: str) -> str | None:
    """What a line of a training's log says about the progress, in a newcomer's words; None if nothing."""
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


class Child:
    """A Python program in a process group of its own, with its output, time and peak memory.

    Used as a context, which ends the whole group however it is left; iterated, it gives the lines of the output as
    they come, and None at least every :data:`TICK`.

    Attributes:
        code: Exit code, negative for a signal, once it has ended.
        memory_bytes: Largest resident size of the program, or of a process that it waited for, once it has ended. Never
            below this process's own size, which Linux counts in up to the program's start; trainings are above it.
    """

    def __init__(self, arguments: Sequence[str], log: Path, keep_open: int) -> None:
        self.code: int | None = None
        self.memory_bytes = 0
        self._begun = time.monotonic()
        self._log = log.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            pass_fds=(keep_open,),
            start_new_session=True,
        )

    @property
    def seconds(self) -> float:
        """Since its start."""
        return time.monotonic() - self._begun

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        if self.code is None:
            self._reap(0)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

    def __iter__(self) -> Iterator[str | None]:
        assert self._process.stdout is not None
        pipe, rest = self._process.stdout.fileno(), b""
        os.set_blocking(pipe, False)
        while self.code is None:
            select.select([pipe], [], [], TICK)
            self._reap(os.WNOHANG)  # before reading: what it wrote last is in the pipe by then
            text = self._read(pipe)
            if not text:
                time.sleep(TICK / 10)  # it has closed its output, or has just ended
            *lines, rest = (rest + text).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)
            yield None

    def _read(self, pipe: int) -> bytes:
        chunks = []
        with suppress(BlockingIOError):
            while chunk := os.read(pipe, 2**16):
                chunks.append(chunk)
                self._log.write(chunk)
        self._log.flush()
        return b"".join(chunks)

    def _reap(self, options: int) -> None:
        pid, status, usage = os.wait4(self._process.pid, options)
        if pid:
            self.code = self._process.returncode = os.waitstatus_to_exitcode(status)
            self.memory_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Screen:
    """Where people look: lines that stay, and below them one that tells how far the present step is.

    On a terminal that one is rewritten twice a second; elsewhere it is printed at sensible intervals.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._shown = ""
        self._next = 0.0

    def say(self, text: str) -> None:
        """Print something that stays."""
        self._stream.write(("\r\x1b[2K" if self._live else "") + text + "\n")
        self._stream.flush()
        self._shown, self._next = "", time.monotonic() + PLAIN_EVERY

    def show(self, seconds: float, text: str) -> None:
        """Tell how far the present step is."""
        if self._live:
            line = f"      {duration(seconds)}  {text}"
            self._stream.write("\r\x1b[2K" + line[: shutil.get_terminal_size().columns - 1])
            self._stream.flush()
        elif time.monotonic() >= self._next and text != self._shown:
            self.say(f"      {duration(seconds)}  {text}")
            self._shown = text


def _run_command(
    command: Command,
    state: dict[str, Any],
    index: int,
    folders: tuple[Path, Path],
    screen: Screen,
    names: tuple[str, str],
    lock: int,
) -> None:
    """Run one program of a step and keep its record up to date in ``started.json``."""
    (folder, work_dir), entry = folders, state["commands"][index]
    arguments = [_with_checkpoints(argument, work_dir) for argument in command.arguments]
    entry["command"] = shlex.join(["python", *arguments])
    before, resume = entry["seconds"], command.resumable and entry["starts"] > 0
    entry["starts"] += 1
    state["starts"] = max(one["starts"] for one in state["commands"])
    log = folder / "console.log"
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {entry['command']}{' --resume' if resume else ''}\n")
    write_json(folder / "started.json", state)
    saved, status = before, "starting"
    child = Child([*arguments, *(["--resume"] if resume else [])], log, lock)
    try:
        with child:
            for line in child:
                status = describe(line or "") or status
                entry["seconds"] = before + child.seconds
                screen.show(sum(one["seconds"] for one in state["commands"]), status)
                if entry["seconds"] - saved > SAVE_EVERY:
                    write_json(folder / "started.json", state)
                    saved = entry["seconds"]
    finally:
        entry["seconds"] = before + child.seconds
        entry["memory_bytes"] = max(entry["memory_bytes"], child.memory_bytes)
        entry["finished"] = child.code == 0
        write_json(folder / "started.json", state)
    if child.code:
        raise UserError(f"step {names[0]} {names[1]} failed: {_reason(child.code, log)}; all of its output: {log}")


def _reason(code: int, log: Path) -> str:
    if code < 0:
        return f"ended by {signal.Signals(-code).name}, perhaps for want of memory"
    lines = COLOUR_CODE.sub("", log.read_text(encoding="utf-8", errors="replace")).splitlines()
    return next(line.strip() for line in reversed(lines) if line.strip()).removeprefix("error: ")


def _with_checkpoints(argument: str, work_dir: Path) -> str:
    def path_of(match: re.Match[str]) -> str:
        path = last_checkpoint(work_dir / match[1])
        if path is None:
            raise UserError(f"{work_dir / match[1]} holds no checkpoint: remove that folder and start again")
        return str(path)

    return CHECKPOINT.sub(path_of, argument)


def _begin(folder: Path, mark: str, commands: int) -> dict[str, Any]:
    """The record of a step that was interrupted, or a new one in an empty folder."""
    state = read_json(folder / "started.json")
    if state.get("fingerprint") == mark:
        return state
    if folder.exists():
        ours = (folder / "started.json").exists() or (folder / "done.json").exists()
        if not ours and any(folder.iterdir()):
            raise UserError(f"{folder} holds other files: give the demo another folder with --work-dir")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    entries = [{"seconds": 0.0, "memory_bytes": 0, "starts": 0, "finished": False} for _ in range(commands)]
    return {"fingerprint": mark, "starts": 0, "commands": entries}


@contextmanager
def _alone(work_dir: Path) -> Iterator[int]:
    """Hold the work directory; a program of an earlier demo that still runs holds it too."""
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        file = (work_dir / "lock").open("w")
    except OSError as error:
        raise UserError(f"cannot write to {work_dir} ({error.strerror}): choose another with --work-dir") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"a demo is at work in {work_dir}: let it end, or choose another with --work-dir"
            ) from error
        yield file.fileno()


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Being told to end, and losing the terminal, are Ctrl-C here; what the caller ignores stays ignored."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGHUP)}
    for name, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(name, interrupt)
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _scores(step: Step, state: Mapping[str, Any]) -> str:
    text = headline(step.name, state["metrics"])
    return f": {text}" if text else ""
