"""A program that runs another one and notes how it ended, for whoever started it and may have died since.

The folder of a kept program has three files. ``alive`` is locked as long as the keeper or its program lives, even where
one of them was killed; ``keeper.json`` names the process that may be told to stop; ``ended.json`` has the exit code.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from backbones.files import atomic_write, read_text_file, try_lock
from convnext_dense_signals import stop_signals
from engine.launch.child import ChildProcess, handle_signals
from engine.launch.exit_codes import EXIT_SAVED

ALIVE, KEEPER, ENDED = "alive", "keeper.json", "ended.json"
NOTE_POLL_SECONDS = 0.05
GRACE_SECONDS = 150  # for a training to save and end: the launcher allows 120
PROGRAM = Path(__file__).resolve().parents[2] / "tools/keep.py"


def start_kept(folder: Path, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
    """Start a program that outlives this one, in a session of its own.

    Args:
        folder: Folder of the program's state, which exists; what was noted there of an earlier start is removed.
        command: Program and arguments.
        log: File to which its output is appended.
        env: Environment variables.

    Raises:
        RuntimeError: If a program that was started in this folder still runs.
    """
    lock = try_lock(folder / ALIVE)
    if lock is None:
        raise RuntimeError(f"a program still runs in {folder}")
    # The keeper inherits the lock: there is no moment at which its program runs and the lock is free.
    with lock, log.open("ab") as output:
        forget_end(folder)
        program = [sys.executable, str(PROGRAM), "--lock", str(lock.fileno()), str(folder), *command]
        subprocess.Popen(
            program,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=env,
            pass_fds=(lock.fileno(),),
            start_new_session=True,
        )


def forget_end(folder: Path) -> None:
    """Remove what was noted of the last program of a folder, which does not run any more."""
    for name in (KEEPER, ENDED):
        (folder / name).unlink(missing_ok=True)


def keep(folder: Path, command: Sequence[str], lock: int) -> int:
    """Run a program to its end and note its exit code; told to stop, let it save.

    Args:
        folder: Folder of the program's state.
        command: Program and arguments.
        lock: File descriptor of the lock, which the program keeps open too.

    Returns:
        Exit code, negative for a signal.
    """
    child: ChildProcess | None = None
    asked = False

    def send(number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # it has ended just now
            if child is not None and child.exit_code is None:
                os.kill(child.pid, number)

    def stop(*_: object) -> None:
        nonlocal asked
        asked = True
        send(signal.SIGTERM)
        signal.alarm(GRACE_SECONDS)

    asking = dict.fromkeys((*stop_signals(), signal.SIGINT), stop)
    with handle_signals({**asking, signal.SIGALRM: lambda *_: send(signal.SIGKILL)}):
        # Noted before there is a program: whoever wants it to stop need not wait for more than this.
        _note(folder / KEEPER, {"pid": os.getpid()})
        if asked:
            code, memory = EXIT_SAVED, 0
        else:
            with ChildProcess(command, pass_fds=(lock,)) as child:
                if asked:
                    stop()
                _note(folder / KEEPER, {"pid": os.getpid(), "program": child.pid, "began": time.time()})
                code = child.wait()
            memory = child.memory_bytes
        signal.alarm(0)
        _note(folder / ENDED, {"exit_code": code, "ended": time.time(), "memory_bytes": memory})
    return code


def is_alive(folder: Path) -> bool:
    """Whether the program of a folder, or its keeper, runs on this machine."""
    if not (folder / ALIVE).is_file():
        return False
    lock = try_lock(folder / ALIVE)
    if lock is not None:
        lock.close()
    return lock is None


def exit_code_of(folder: Path) -> int | None:
    """The exit code of the program of a folder; ``None`` if it runs, or ended without its keeper."""
    code = _read(folder / ENDED).get("exit_code")
    return code if isinstance(code, int) else None


def tell_to_stop(folder: Path) -> None:
    """Tell the program of a folder to save and to end, if it runs; a keeper that is just starting is waited for."""
    while is_alive(folder) and not (folder / KEEPER).is_file():
        time.sleep(NOTE_POLL_SECONDS)
    noted = _read(folder / KEEPER)
    if not is_alive(folder):
        return
    for key in ("pid", "program"):  # the program alone, where its keeper was killed
        with suppress(ProcessLookupError, PermissionError, KeyError):
            os.kill(noted[key], signal.SIGTERM)
            return


def _note(file: Path, content: Mapping[str, Any]) -> None:
    with atomic_write(file) as place:
        place.write_text(json.dumps(content), encoding="utf-8")


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text_file(file))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
