"""What a killed process leaves behind: its workers end, and its temporary folders are gone after the next start."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from backbones.files import COMPILATION_PREFIX, LOCK_FILE
from backbones.kernels.cpu.native import _compiled
from engine.config.custom_imports import read_config
from engine.data.sampling import configure_workers
from engine.launch import leftovers, parent
from engine.launch.leftovers import clear_leftovers, is_running, share_temporary_folder, temporary_folder
from tests.programs import PATIENCE

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder and a shared memory of the test's own, with room for the paths of sockets below it.

    Those of pytest, which creates the folder of all tests with the first ``tmp_path``, stay where they are.
    """
    parent_folder = tempfile.TemporaryDirectory(prefix="l", dir="/tmp")
    folder = Path(parent_folder.name)
    (folder / "tmp").mkdir()
    (folder / "shm").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "tmp"))
    monkeypatch.setattr(leftovers, "SHARED_MEMORY", folder / "shm")
    configuration: Any = multiprocessing.current_process()
    monkeypatch.setitem(configuration._config, "tempdir", None)
    share_temporary_folder.cache_clear()
    with parent_folder:
        yield folder / "tmp"
    share_temporary_folder.cache_clear()


class LargeSamples(Dataset):
    """More than a pipe holds in each, and tensors, which are passed on by their own sockets."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> tuple[Any, torch.Tensor, int]:
        return np.zeros(200_000, np.uint8).tobytes(), torch.zeros(10), os.getpid()


def first(batch: list[Any]) -> Any:
    return batch[0]


def load(out: Connection, watched: bool) -> None:
    """Start two workers, report them and wait to be killed."""
    if watched:
        parent.ctypes = None  # type: ignore[assignment]  # as if the system had no such call
    loader: DataLoader = DataLoader(LargeSamples(), num_workers=2, collate_fn=first, prefetch_factor=8)
    configure_workers(loader, 0)
    batches = iter(loader)
    out.send({next(batches)[2] for _ in range(6)})
    time.sleep(1000)


def test_workers_pass_tensors_on_below_a_long_temporary_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = place / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.setattr(leftovers, "_SHORT_FOLDER", str(place))
    here, there = FORK.Pipe()
    process = FORK.Process(target=load, args=(there, False))
    process.start()
    assert here.poll(PATIENCE)
    assert len(here.recv()) == 2
    process.kill()
    process.join()
    (left,) = place.glob("pymp-*")
    until = time.monotonic() + PATIENCE
    while left.exists():  # the workers hold it until they have ended
        assert time.monotonic() < until
        clear_leftovers()
    assert list(long.iterdir()) == []


@pytest.mark.parametrize("watched", [False, True])
def test_workers_end_when_their_process_is_killed(watched: bool, place: Path) -> None:
    here, there = FORK.Pipe()
    process = FORK.Process(target=load, args=(there, watched))
    process.start()
    assert here.poll(PATIENCE)
    workers = here.recv()
    assert len(workers) == 2
    assert all(map(is_running, workers))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    until = time.monotonic() + PATIENCE
    while any(map(is_running, workers)):
        if time.monotonic() > until:
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
            pytest.fail("the workers are still there")
        time.sleep(0.05)
    (left,) = place.glob("pymp-*")
    shared = place.parent / "shm"
    mine, other = (shared / f"torch_{pid}_123_0" for pid in (min(workers), os.getpid()))
    mine.touch()
    other.touch()
    while left.exists():  # the kernel may still be closing their files
        assert time.monotonic() < until
        with temporary_folder("launch_"):
            pass
    assert list(place.iterdir()) == []
    assert list(shared.iterdir()) == [other]


def test_copies_of_a_config_are_cleared_after_a_kill(place: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.py"
    config.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    process = FORK.Process(target=read_config, args=(config,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (left,) = place.iterdir()
    assert list(left.glob("tmp*/*.py"))
    config.write_text("value = 1\n")
    process = FORK.Process(target=read_config, args=(config,))  # what every start does first
    process.start()
    process.join()
    assert process.exitcode == 0
    assert list(place.iterdir()) == []


def test_what_a_kill_leaves_of_a_compilation_is_cleared(place: Path, tmp_path: Path) -> None:
    """The compiler is killed with the process that waits for it; both have their files in one folder."""
    compiler, config, target = tmp_path / "compiler", tmp_path / "config.py", tmp_path / "cpu.so"
    compiler.write_text("#!/bin/sh\n: > $TMPDIR/draft.s\nkill -9 $PPID\n")
    compiler.chmod(0o700)
    process = FORK.Process(target=_compiled, args=([str(compiler)], target))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (left,) = place.iterdir()
    assert left.name.startswith(COMPILATION_PREFIX)
    assert (left / "draft.s").exists()
    config.write_text("value = 1\n")
    process = FORK.Process(target=read_config, args=(config,))  # what every start does first
    process.start()
    process.join()
    assert list(place.iterdir()) == []
    assert not target.exists()


def test_a_file_system_without_locks(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with temporary_folder("launch_") as folder:
        assert folder.is_dir()
    assert list(place.iterdir()) == []


def hold(out: Connection) -> None:
    with temporary_folder("launch_") as folder:
        out.send(folder)
        time.sleep(1000)


def test_a_folder_in_use_and_others_folders_stay(place: Path) -> None:
    here, there = FORK.Pipe()
    process = FORK.Process(target=hold, args=(there,))
    process.start()
    used = here.recv()
    for name in ("launch_of_another_program", "pymp-other", "mine"):
        (place / name).mkdir()
    (place / "mine" / LOCK_FILE).touch()
    (place / "launch_link").symlink_to(place / "mine")
    (place / "launch_file").touch()
    (place / "launch_pipe").mkdir()
    os.mkfifo(place / "launch_pipe" / LOCK_FILE)
    (place / "launch_linked_lock").mkdir()
    (place / "launch_linked_lock" / LOCK_FILE).symlink_to(place / "mine" / LOCK_FILE)
    with subprocess.Popen(["true"]) as ended:
        pass
    (place / "mine" / f"worker-{ended.pid}").mkdir()  # not reached through the link
    shared = place.parent / "shm" / f"torch_{ended.pid}_123_0"
    shared.touch()
    before, opened = sorted(place.iterdir()), os.listdir("/dev/fd")
    clear_leftovers()
    assert sorted(place.iterdir()) == [one for one in before if one.name != "launch_pipe"]
    assert shared.exists()
    assert len(os.listdir("/dev/fd")) == len(opened)
    process.kill()
    process.join()
    clear_leftovers()
    assert used not in list(place.iterdir())


def leave_behind(place: Path, pid: int) -> tuple[Path, Path]:
    """The folder of a run that was killed, and the shared memory of its worker, of whose number a process is now."""
    folder, shared = place / f"launch_of_{pid}", place.parent / "shm" / f"torch_{pid}_123_0"
    (folder / f"worker-{pid}").mkdir(parents=True)
    (folder / LOCK_FILE).touch()
    shared.touch()
    return folder, shared


def test_shared_memory_of_others_stays(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, shared = leave_behind(place, os.getpid())  # another process has the number by now
    clear_leftovers()
    assert (folder.exists(), shared.exists()) == (False, True)
    with subprocess.Popen(["true"]) as ended:
        pass
    folder, shared = leave_behind(place, ended.pid)
    users = iter([os.getuid()])  # the folder's; that of the file is another
    monkeypatch.setattr(os, "getuid", lambda: next(users, 12345))
    clear_leftovers()
    assert (folder.exists(), shared.exists()) == (False, True)


def test_a_start_clears_and_an_end_too(place: Path) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    before = leave_behind(place, ended.pid)
    with temporary_folder("launch_"):
        assert not any(one.exists() for one in before)
        during = leave_behind(place, ended.pid)
    assert not any(one.exists() for one in during)


def _share(expected: str) -> None:
    share_temporary_folder()
    os._exit(tempfile.tempdir != expected)


def test_other_temporary_files_stay_where_they_were_asked_for(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(place / ("x" * 100)))
    monkeypatch.setattr(leftovers, "_SHORT_FOLDER", str(place))
    process = FORK.Process(target=_share, args=(tempfile.tempdir,))
    process.start()
    process.join()
    assert process.exitcode == 0


def test_a_folder_of_another_user_stays(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "launch_x").mkdir()
    (place / "launch_x" / LOCK_FILE).touch()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: 12345)
        clear_leftovers()
        assert (place / "launch_x").exists()
    clear_leftovers()
    assert not (place / "launch_x").exists()


def test_programs_that_a_process_starts_do_not_hold_its_lock() -> None:
    with temporary_folder("launch_") as folder:
        program = subprocess.Popen(["sleep", "1000"], close_fds=False)
        lock = folder / LOCK_FILE
        kept = folder.parent / "kept"
        os.link(lock, kept)
    with kept.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    program.kill()
    program.wait()
