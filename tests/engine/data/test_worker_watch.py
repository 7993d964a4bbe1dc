"""A worker that does nothing is named and its loader's process is told; one that works slowly is only warned about."""

from __future__ import annotations

import functools
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.utils import ManagerMixin
from mmengine.utils.manager import _release_lock
from torch.utils.data import DataLoader, Dataset

from engine.data import sampling, worker_watch
from engine.data.sampling import _report_thread, configure_workers
from engine.data.worker_watch import HungWorkerError
from engine.launch import heartbeat
from engine.launch.exit_codes import EXIT_FAILED, EXIT_HUNG
from engine.launch.leftovers import share_temporary_folder
from engine.launch.workers import LostWorkerError
from tests.programs import PATIENCE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process is doing")
BAD = 5
# Of the worker that works slowly: tenths of a second at most, tenths in which it has worked, and if it was warned of.
LONG = 600
TICKS, TOLD = (multiprocessing.get_context("fork").Value("i", 0) for _ in range(2))


class Samples(Dataset):
    """Numbers, of which one takes its time in some way."""

    def __init__(self, way: str) -> None:
        self._way = way

    def __len__(self) -> int:
        return 8

    def get_data_info(self, index: int) -> dict[str, str]:
        return {"img_path": f"picture_{index}.png"}

    def __getitem__(self, index: int) -> int:
        if index == BAD:
            getattr(self, self._way)()
        return index

    def sleep(self) -> None:
        time.sleep(1000)

    def stop(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def crash(self) -> None:
        os.kill(os.getpid(), signal.SIGBUS)

    def leave(self) -> None:
        os._exit(3)

    def compute(self) -> None:
        until = time.process_time()
        while not TOLD.value and TICKS.value < LONG:
            until += 0.1
            while time.process_time() < until:
                pass
            TICKS.value += 1

    def read(self) -> None:
        while not TOLD.value and TICKS.value < LONG:
            Path(__file__).read_bytes()
            time.sleep(0.1)
            TICKS.value += 1


def number(batch: list[int]) -> int:
    return batch[0]


def number_or_hang(batch: list[int]) -> int:
    if batch[0] == BAD:
        time.sleep(1000)
    return batch[0]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_watch, "WORKER_PATIENCE_SECONDS", 1.5)
    monkeypatch.setattr(worker_watch, "WORKER_POLL_SECONDS", 0.3)
    monkeypatch.setattr(heartbeat, "STACK_SECONDS", PATIENCE)
    share_temporary_folder.cache_clear()


def load(way: str, collate: Callable[[list[int]], int] = number) -> list[int]:
    loader: DataLoader = DataLoader(Samples(way), num_workers=2, collate_fn=collate)
    configure_workers(loader, 0)
    return list(loader)


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("sleep", r"hangs: no CPU time and no byte read in \d+ s, at \S*test_worker_watch.py:\d+ in sleep"),
        ("stop", "was stopped by a signal"),
    ],
)
def test_a_worker_that_does_nothing_is_named(way: str, said: str) -> None:
    who = r"worker 1 of a data loader \(process \d+, sample 5, picture_5.png\)"
    with pytest.raises(HungWorkerError, match=f"{who} {said}") as caught:
        load(way)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.exit_code == EXIT_HUNG


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("kill", "was ended by a signal (Killed), most often by the kernel, for lack of memory: fewer workers"),
        ("crash", "was ended by a signal (Bus error): shared memory (/dev/shm) may be full"),
        ("leave", "left with exit code 3"),
    ],
)
def test_a_worker_that_dies_is_named(way: str, said: str) -> None:
    with pytest.raises(LostWorkerError) as caught:
        load(way)
    (line,) = str(caught.value).splitlines()
    assert re.match(r"worker 1 of a data loader \(process \d+, sample 5, picture_5.png\) ", line)
    assert said in line
    assert caught.value.exit_code == EXIT_FAILED


def test_another_error_of_a_worker_stays() -> None:
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        load("absent")


def test_a_worker_that_hangs_while_it_collates_is_named() -> None:
    who = r"worker 1 of a data loader \(process \d+, collating a batch, of which the last is sample 5, picture_5.png\)"
    said = r"hangs: no CPU time and no byte read in \d+ s, at \S*test_worker_watch.py:\d+ in number_or_hang"
    with pytest.raises(HungWorkerError, match=f"{who} {said}"):
        load("__len__", number_or_hang)


def hang_first(worker: int, begin: Callable[[int], None]) -> None:
    if worker == 1:
        time.sleep(1000)
    begin(worker)


@pytest.mark.parametrize("where", ["before our part", "in mmengine's part"])
def test_a_worker_that_hangs_before_it_begins_is_named(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loader: DataLoader = DataLoader(Samples("__len__"), num_workers=2, collate_fn=number)
    configure_workers(loader, 0)
    frames = "; timeout="
    if where == "before our part":
        begin: Any = loader.worker_init_fn
        loader.worker_init_fn = functools.partial(hang_first, begin=begin)
    else:
        hang: Any = lambda worker, **_: hang_first(worker, lambda _: None)  # noqa: E731
        monkeypatch.setattr(sampling, "worker_init_fn", hang)
        frames = r", at \S*test_worker_watch.py:\d+ in hang_first"
    who = r"a worker of a data loader \(process \d+, which has not begun to load\)"
    with pytest.raises(HungWorkerError, match=rf"{who} hangs: no CPU time and no byte read in \d+ s{frames}") as caught:
        list(loader)
    assert caught.value.exit_code == EXIT_HUNG


class Absent(ManagerMixin):
    """A class without an instance."""


@contextmanager
def locked_by_an_error() -> Iterator[None]:
    """Leave mmengine's lock as it leaves it after an error: locked by the thread in which it was raised."""
    with pytest.raises(RuntimeError, match=r"Absent\.get_current_instance"):
        Absent.get_current_instance()
    try:
        yield
    finally:
        _release_lock()


@pytest.mark.parametrize("way", ["compute", "read"])
def test_a_worker_that_works_slowly_is_waited_for(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch's clock goes on as the worker does, which on a busy machine may stand still for long."""
    said: list[str] = []

    def tell(line: str, *_: object) -> None:
        said.append(line)
        TOLD.value = 1

    TICKS.value = TOLD.value = 0
    monkeypatch.setattr(worker_watch, "time", SimpleNamespace(monotonic=lambda: TICKS.value / 10))
    monkeypatch.setattr(MMLogger.get_current_instance(), "warning", tell)
    with locked_by_an_error():
        assert load(way) == list(range(8))
    (line,) = said
    assert "sample 5, picture_5.png) takes long" in line
    assert "slow storage" in line


def test_what_a_thread_of_a_worker_says(capsys: pytest.CaptureFixture[str]) -> None:
    exiting: Any = torch.zeros(1)
    lost = ConnectionResetError("reset by peer")
    _report_thread(exiting, type(lost), lost, None)
    assert (
        capsys.readouterr().err == "a worker of a data loader lost a connection: ConnectionResetError: reset by peer\n"
    )
    exiting.fill_(1)
    _report_thread(exiting, type(lost), lost, None)
    assert capsys.readouterr().err == ""
    _report_thread(exiting, ValueError, ValueError("another"), None)
    assert "ValueError: another" in capsys.readouterr().err


class Looks:
    """A watch without its thread, over one worker whose state and progress are set here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state, self.progress, self.killed, self.said = "S", (1, 1), [], []
        monkeypatch.setattr(worker_watch, "Thread", lambda **_: SimpleNamespace(start=lambda: None))
        monkeypatch.setattr(worker_watch, "process_state", lambda _: self.state)
        monkeypatch.setattr(worker_watch, "_progress", lambda _: self.progress)
        monkeypatch.setattr(worker_watch, "_reason", lambda *_: "hangs")
        monkeypatch.setattr(MMLogger.get_current_instance(), "warning", self.said.append)
        monkeypatch.setattr(worker_watch.os, "kill", lambda pid, _: self.killed.append(pid))
        self.watch = worker_watch._Watch(torch.zeros(1, 3), Samples("sleep"), set())
        self.watch.waits_since = 0.0

    def look(self, now: float, does: int = worker_watch._PREPARES) -> None:
        self.watch._look_at(0, 77, BAD, does, now)


def test_a_worker_that_waits_for_the_disk_is_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch)
    looks.state = "D"
    for now in (0.0, 1.0, 2.0, 3.0):
        looks.look(now)
    assert (looks.killed, looks.watch.diagnosis, len(looks.said)) == ([], "", 1)
    looks.watch.waits_since = 3.0  # for the next batch
    looks.look(6.0)
    assert len(looks.said) == 2
    looks.state = "S"
    looks.look(7.0)
    assert looks.killed == [77]


@pytest.mark.parametrize("kind", [0, 1], ids=["computes", "reads"])
def test_a_worker_that_goes_on_is_not_killed(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch)
    for now in range(6):
        looks.progress = (now, 1) if kind == 0 else (1, now)
        looks.look(float(now))
    assert (looks.killed, len(looks.said)) == ([], 1)


def test_a_worker_is_in_the_way_only_of_a_batch_that_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch)
    looks.watch.waits_since = None
    for now in (0.0, 9.0):
        looks.look(now)
    looks.watch.waits_since = 8.5
    looks.look(9.5)
    assert looks.killed == looks.said == []
    looks.look(20.0, worker_watch._IDLE)  # another one's sample is late
    assert looks.killed == []
    looks.state = "T"
    looks.look(21.0, worker_watch._IDLE)
    assert looks.killed == [77]
