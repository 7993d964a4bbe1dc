"""The heartbeat of a rank: its position in the run and its last error, readable for the launcher at any time.

A rank announces each phase by one call of :meth:`Heartbeat.enter`, which writes a few bytes to a memory-mapped file: no
thread, no message, no lock. The launcher (:mod:`engine.launch.agent`) reads the file of each of its ranks once a
second, so it knows the position of a rank that was killed, hangs in C code or holds the interpreter's lock. Without a
launcher nothing is written.
"""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import signal
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

from backbones.files import open_file, read_text_file
from engine.launch.parent import end_with_parent

POSITION_FILE, ERROR_FILE, STACKS_FILE = "position", "error_report.json", "stacks.txt"
LAUNCHER_PROCESS = "RANK_STARTED_BY"  # variable of the environment with the launcher's process
STACK_SIGNAL = signal.SIGUSR2
STACK_SECONDS = 5.0  # most that processes have to write their stacks
STACK_POLL_SECONDS = 0.1
MAX_LINE_LENGTH = 400
# Parts of the collective libraries' messages when another rank has ended: the consequence of a failure, not its cause.
LOST_PEER_MESSAGES = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL", "Broken pipe")
LOST_PEER_ERRORS = ("DistBackendError", "DistNetworkError")

_LAYOUT = struct.Struct("<QQQBd320s640s")  # the fields of a Position; struct cuts texts and fills them with zeros


class Phase(IntEnum):
    """Activity of a rank; the launcher decides how long each may take."""

    STARTING = 0
    DATA = 1
    STEP = 2
    VALIDATION = 3
    SAVING = 4
    BATCH = 5  # of a validation or a test; what else these do, such as scores, may take longer


_PHASE_NAMES = ("starting", "waiting for data", "training", "validation", "saving", "validation")


class Position(NamedTuple):
    """The last announcement of a rank.

    Attributes:
        sequence: Number of announcements so far.
        steps: Number of announced steps so far.
        batches: Number of announced batches of validations and tests so far.
        phase: Current activity.
        patience: Seconds that the config allows for a step or a batch; 0 for the default.
        place: Place in the run, such as ``epoch 3, step 120 of 500``.
        folder: Work directory of the run.
    """

    sequence: int = 0
    steps: int = 0
    batches: int = 0
    phase: Phase = Phase.STARTING
    patience: float = 0.0
    place: str = ""
    folder: str = ""

    def __str__(self) -> str:
        name = _PHASE_NAMES[self.phase]
        place = " ".join(self.place.split())  # names of files may have line breaks
        return f"{place} ({name})" if place else name


class Heartbeat:
    """Announcements of this process to its launcher; nothing is written until :meth:`start` finds a launcher."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._page: mmap.mmap
        self._position = Position()
        self._seconds = dict.fromkeys(_PHASE_NAMES, 0.0)
        self._since = time.monotonic()

    def start(self) -> None:
        """Open the position file, if torchrun's agent has given this rank a folder.

        From now on a crash in C code leaves the stack of every thread, ``SIGUSR2`` makes the rank write its stacks and
        continue, and a rank whose launcher is killed gets SIGTERM, so that no rank keeps a GPU without a launcher.
        """
        error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
        if not error_file or self._folder is not None or not Path(error_file).parent.is_dir():
            return
        folder = Path(error_file).parent
        with open(folder / POSITION_FILE, "w+b") as file:
            file.write(bytes(_LAYOUT.size))  # real blocks: on a full disk a mapped hole would crash at the first write
            file.flush()
            self._page = mmap.mmap(file.fileno(), _LAYOUT.size)
        self._folder = folder
        stacks = open(folder / STACKS_FILE, "w", encoding="utf-8")  # noqa: SIM115  (open until the process ends)
        faulthandler.enable(stacks)
        faulthandler.register(STACK_SIGNAL, stacks)
        launcher = os.environ.get(LAUNCHER_PROCESS)
        end_with_parent(signal.SIGTERM, int(launcher) if launcher else None)

    @property
    def has_launcher(self) -> bool:
        """Whether a launcher watches this process."""
        return self._folder is not None

    def configure(self, work_dir: str, patience: float = 0.0) -> None:
        """Pass on the settings of the config that the launcher needs.

        Args:
            work_dir: Work directory, which gets the stacks of a hang.
            patience: Seconds allowed for a step or a batch; 0 for the default, see :mod:`engine.launch.hang_detector`.
        """
        self._announce(patience=patience, folder=str(Path(work_dir).resolve()))

    def enter(self, phase: Phase, place: str = "") -> None:
        """Announce the start of a phase; an empty place leaves that of the last announcement."""
        before = self._position
        steps, batches = before.steps + (phase == Phase.STEP), before.batches + (phase == Phase.BATCH)
        self._announce(steps=steps, batches=batches, phase=phase, place=place or before.place)

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Announce a phase within another one, which continues afterwards, and its place with it."""
        before = self._position
        self.enter(phase)
        yield
        self._announce(phase=before.phase, place=before.place)

    def seconds(self) -> dict[str, float]:
        """Seconds of this process so far by activity, such as ``waiting for data``."""
        self._count()
        return dict(self._seconds)

    def report_error(self, error: BaseException, line: str | None = None) -> bool:
        """Write the error that ends this rank to a file for the launcher.

        Args:
            error: The exception.
            line: Text in place of the exception's class and the first line of its message.

        Returns:
            Whether the error only means that another rank has ended; the launcher then reports which one.
        """
        if self._folder is None:
            return False
        name, text = type(error).__name__, str(error).strip()
        lost = name in LOST_PEER_ERRORS or (name == "RuntimeError" and any(part in text for part in LOST_PEER_MESSAGES))
        line = line or ": ".join(filter(None, [name, next(iter(text.splitlines()), "")]))
        report = {"line": line[:MAX_LINE_LENGTH], "lost_peer": lost}
        with suppress(OSError):  # a full disk must not hide the error itself
            (self._folder / ERROR_FILE).write_text(json.dumps(report), encoding="utf-8")
        return lost

    def _count(self) -> None:
        """Add the time since the last announcement to its activity."""
        now = time.monotonic()
        self._seconds[_PHASE_NAMES[self._position.phase]] += now - self._since
        self._since = now

    def _announce(self, **changes: Any) -> None:
        self._count()
        now = self._position = self._position._replace(sequence=self._position.sequence + 1, **changes)
        if self._folder is not None:
            self._page[:] = _LAYOUT.pack(*now[:5], now.place.encode(), now.folder.encode())


HEARTBEAT = Heartbeat()  # one rank per process


def read_position(folder: Path) -> Position:
    """The last announcement of the rank with this folder; the default position if there is none."""
    try:
        with open_file(folder / POSITION_FILE) as file:
            sequence, steps, batches, phase, patience, *texts = _LAYOUT.unpack(file.read(_LAYOUT.size + 1))
        place, work_dir = (text.rstrip(b"\0").decode(errors="replace") for text in texts)
        return Position(sequence, steps, batches, Phase(phase), patience, place, work_dir)
    except (OSError, struct.error, ValueError):
        return Position()


def read_error_report(folder: Path) -> tuple[str, bool]:
    """The line of :meth:`Heartbeat.report_error` in this folder, and whether it only means that another rank ended."""
    try:
        report = json.loads(read_text_file(folder / ERROR_FILE))
        return str(report["line"]), bool(report["lost_peer"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "", False


def request_stacks(processes: Mapping[int, Path]) -> None:
    """Have processes write their stacks, and wait until they have, which one that is stopped never does.

    Args:
        processes: Folder with the stack file of each process, by its id.
    """

    def sizes() -> list[int]:
        return [file.stat().st_size if file.exists() else 0 for file in files]

    files = [folder / STACKS_FILE for folder in processes.values()]
    before = last = sizes()
    until = time.monotonic() + STACK_SECONDS
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, STACK_SIGNAL)
    while time.monotonic() < until:
        time.sleep(STACK_POLL_SECONDS)
        now = sizes()
        if now == last and all(size > start for size, start in zip(now, before, strict=True)):
            return  # they grow no more
        last = now


def read_frames(folder: Path) -> list[str]:
    """Frames of the newest stack that the rank with this folder wrote, innermost first.

    They belong to its main thread or, after a crash, to the thread that crashed.
    """
    try:
        with open_file(folder / STACKS_FILE) as file:
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    # The thread that crashed, or the main thread, which handles the signal.
    block = text.rpartition("Current thread")[2].partition("\n")[2]
    frames: list[str] = []
    for line in block.partition("\n\n")[0].splitlines():
        path, _, rest = line.strip().removeprefix('File "').partition('", line ')
        if rest and not (frames and "site-packages" in path):  # of the libraries' frames only the innermost one
            number, _, name = rest.partition(" in ")
            frames.append(f"{Path(path).parent.name}/{Path(path).name}:{number} in {name}")
    return frames
