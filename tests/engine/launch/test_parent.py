"""Processes that end with their parent: by the kernel, by a thread, and where the parent has ended before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.launch import parent
from tests.programs import PATIENCE, environment

# A process starts another one, and waits; that one says its number once it is bound to its parent.
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
CHILD = """
import ctypes, os, sys, time
sys.path.insert(0, {root!r})
from engine.launch import parent
parent.WATCH_SECONDS = 0.05
{change}
parent.end_with_parent()
print(os.getpid(), flush=True)
time.sleep({patience})
"""
NO_PRCTL = "def missing(name): raise OSError\nctypes.CDLL = missing"


def is_there(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
@pytest.mark.parametrize("change", ["", NO_PRCTL], ids=["kernel", "thread"])
def test_a_child_ends_with_its_parent(change: str) -> None:
    script = CHILD.format(root=str(Path(__file__).parents[3]), change=change, patience=PATIENCE)
    command = [sys.executable, "-c", PARENT, script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        child = int(process.stdout.readline())
        assert is_there(child)
        process.kill()
        until = time.monotonic() + PATIENCE / 2
        while is_there(child):
            assert time.monotonic() < until, "the child goes on"
            time.sleep(0.02)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Signals that were sent; process 1 belongs to another user, and process 2 has ended."""
    signals: list[tuple[int, int]] = []

    def kill(pid: int, number: int) -> None:
        if number == 0 and pid in (1, 2):
            raise PermissionError if pid == 1 else ProcessLookupError
        if number:
            signals.append((pid, number))

    monkeypatch.setattr(parent.os, "kill", kill)
    monkeypatch.setattr(parent.ctypes, "CDLL", lambda _: SimpleNamespace(prctl=lambda *_: 0))
    return signals


def test_a_parent_that_has_ended_before(sent: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    parent.end_with_parent()
    parent.end_with_parent(signal.SIGTERM, parent=1)
    assert sent == []
    parent.end_with_parent(signal.SIGTERM, parent=2)
    assert sent == [(os.getpid(), signal.SIGTERM)]
    monkeypatch.setattr(parent.multiprocessing, "parent_process", lambda: SimpleNamespace(pid=2))
    parent.end_with_parent()
    assert sent[1:] == [(os.getpid(), signal.SIGKILL)]
