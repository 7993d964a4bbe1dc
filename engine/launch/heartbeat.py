"""Where a rank is and what it said last, kept where its launcher can read it when the rank no longer can say it.

A rank announces each phase by one call of :func:`enter`, which writes a few bytes to a shared page of memory: no
thread, no message, no lock. The launcher (:mod:`engine.launch.agent`) reads the page of each of its ranks once a
second, so it knows the position of a rank that was killed, hangs in C code or holds the interpreter's lock. Without a
launcher all this is idle.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import mmap
import os
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

POSITION, LAST_WORDS, STACKS = "position", "last_words.json", "stacks.txt"
STACK_SIGNAL = signal.SIGUSR2
LONGEST_LINE = 400
# What the libraries of the collectives say when another rank has gone: the consequence of a failure, not its cause.
LOST_PEER = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL", "Broken pipe")
LOST_PEER_ERRORS = ("DistBackendError", "DistNetworkError")
PR_SET_PDEATHSIG = 1

_PAGE = 1024
_FIXED = struct.Struct("<QQBdHH")  # sequence, steps, phase, patience, length of the place, length of the folder
_PLACE, _FOLDER = 64, 384


class Phase(IntEnum):
    """What a rank is doing; how long each may take is up to the launcher."""

    STARTING = 0
    DATA = 1
    STEP = 2
    VALIDATION = 3
    SAVING = 4


_NAMES = ("starting", "waiting for data", "training", "validation", "saving")


@dataclass(frozen=True)
class Position:
    """What a rank announced last.

    Attributes:
        sequence: Number of announcements so far.
        steps: Number of announced steps so far.
        phase: What it does.
        patience: Seconds that the config grants a step; 0 for the default.
        place: Such as ``epoch 3, step 120 of 500``.
        folder: Work directory of the run.
    """

    sequence: int = 0
    steps: int = 0
    phase: Phase = Phase.STARTING
    patience: float = 0.0
    place: str = ""
    folder: str = ""

    def __str__(self) -> str:
        name = _NAMES[self.phase]
        return f"{self.place} ({name})" if self.place else name


class _Board:
    """The page of this rank, and what stands on it."""

    def __init__(self, folder: Path) -> None:
        with open(folder / POSITION, "w+b") as file:
            file.write(bytes(_PAGE))  # real blocks: on a full disk a mapped hole would crash at the first write
            file.flush()
            self._page = mmap.mmap(file.fileno(), _PAGE)
        self.files = folder
        self.sequence = self.steps = 0
        self.phase = Phase.STARTING
        self.patience = 0.0
        self.place = self.folder = b""

    def write(self) -> None:
        self.sequence += 1
        page, place, folder = self._page, self.place, self.folder
        page[_PLACE : _PLACE + len(place)] = place
        page[_FOLDER : _FOLDER + len(folder)] = folder
        _FIXED.pack_into(page, 0, self.sequence, self.steps, self.phase, self.patience, len(place), len(folder))


_board: _Board | None = None


def begin() -> None:
    """Open the page of this rank, where torchrun's agent has given it a folder.

    From now on a crash in C code leaves the stack of every thread, ``SIGUSR2`` makes the rank write its stacks and go
    on, and a rank whose launcher is killed gets SIGTERM, so that no rank is left alone on a GPU.
    """
    global _board
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not error_file or _board is not None or not Path(error_file).parent.is_dir():
        return
    _board = _Board(Path(error_file).parent)
    stacks = open(_board.files / STACKS, "w", encoding="utf-8")  # noqa: SIM115  (open for as long as the process lives)
    faulthandler.enable(stacks)
    faulthandler.register(STACK_SIGNAL, stacks)
    with suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def settle(folder: str, patience: float = 0.0) -> None:
    """Say what the launcher has to know of the config.

    Args:
        folder: Work directory, where the stacks of a hang are left.
        patience: Seconds that a step may take; 0 for the default, see :mod:`engine.launch.hang_detector`.
    """
    if _board is not None:
        _board.patience = patience
        _board.folder = str(Path(folder).resolve()).encode()[: _PAGE - _FOLDER]
        _board.write()


def enter(phase: Phase, place: str = "") -> None:
    """Announce what comes now.

    Args:
        phase: What.
        place: Where in the run; as before if empty.
    """
    board = _board
    if board is None:
        return
    if phase == Phase.STEP:
        board.steps += 1
    if place:
        board.place = place.encode()[: _FOLDER - _PLACE]
    board.phase = phase
    board.write()


@contextmanager
def during(phase: Phase) -> Iterator[None]:
    """Announce a phase inside of another one, which goes on afterwards."""
    before = _board.phase if _board is not None else phase
    enter(phase)
    yield
    if _board is not None:
        _board.phase = before
        _board.write()


def last_words(error: BaseException, line: str | None = None) -> bool:
    """Leave what ends this rank to the launcher.

    Args:
        error: The exception.
        line: What to say of it instead of its class and the first line of its message.

    Returns:
        Whether it only says that another rank has gone, and the launcher will say which.
    """
    if _board is None:
        return False
    name, text = type(error).__name__, str(error).strip()
    lost = name in LOST_PEER_ERRORS or (name == "RuntimeError" and any(phrase in text for phrase in LOST_PEER))
    line = line or ": ".join(filter(None, [name, next(iter(text.splitlines()), "")]))
    words = {"line": line[:LONGEST_LINE], "lost_peer": lost}
    with suppress(OSError):  # a full disk must not hide the error itself
        (_board.files / LAST_WORDS).write_text(json.dumps(words), encoding="utf-8")
    return lost


def read_position(folder: Path) -> Position:
    """What the rank with this folder announced last; the start where it has announced nothing."""
    try:
        page = (folder / POSITION).read_bytes()
        sequence, steps, phase, patience, place, work = _FIXED.unpack_from(page)
        return Position(
            sequence,
            steps,
            Phase(phase),
            patience,
            page[_PLACE : _PLACE + place].decode(errors="replace"),
            page[_FOLDER : _FOLDER + work].decode(errors="replace"),
        )
    except (OSError, struct.error, ValueError):
        return Position()


def read_last_words(folder: Path) -> tuple[str, bool]:
    """What :func:`last_words` left in this folder: the line, and whether it is about another rank's end."""
    try:
        words = json.loads((folder / LAST_WORDS).read_text(encoding="utf-8"))
        return str(words["line"]), bool(words["lost_peer"])
    except (OSError, ValueError, KeyError):
        return "", False


def read_frames(folder: Path) -> list[str]:
    """The frames in the newest stacks that the rank with this folder wrote, innermost first.

    Of its main thread or, after a crash, of the thread that crashed.
    """
    try:
        text = (folder / STACKS).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    # The thread that crashed, or the main one, which takes the signal.
    block = text.rpartition("Current thread")[2].partition("\n")[2]
    frames: list[str] = []
    for line in block.partition("\n\n")[0].splitlines():
        path, _, rest = line.strip().removeprefix('File "').partition('", line ')
        if rest and not (frames and "site-packages" in path):  # of libraries, only where it sits
            number, _, name = rest.partition(" in ")
            frames.append(f"{Path(path).parent.name}/{Path(path).name}:{number} in {name}")
    return frames
