"""Signals are wishes, which all processes learn at the same step."""

from __future__ import annotations

import os
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from engine.checkpoint.preemption import Signals, Stop
from engine.distributed.agreement import Agreement, StopRequest
from engine.launch.exit_codes import EXIT_INTERRUPTED, EXIT_SAVED
from engine.training.loops import EpochLoop

STEPS = 6


@pytest.mark.parametrize(
    "number, stop_request",
    [
        (signal.SIGTERM, StopRequest.LEAVE),
        (signal.SIGUSR1, StopRequest.LEAVE),
        (signal.SIGHUP, StopRequest.LEAVE),
        (signal.SIGINT, StopRequest.INTERRUPT),
    ],
)
def test_a_signal_is_a_stop_request(number: int, stop_request: int) -> None:
    signals = Signals()
    before = signal.signal(number, signal.SIG_DFL)  # the tests may have been started with it ignored
    try:
        with signals.handled():
            assert signals.stop_request == StopRequest.NOTHING
            os.kill(os.getpid(), number)
            assert signals.stop_request == stop_request
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_closed_terminal_is_nothing_to_a_training_under_nohup() -> None:
    signals, before = Signals(), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.handled():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signals.stop_request == StopRequest.NOTHING


def test_a_second_interrupt_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a launcher passes on is the first one still."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    signals = Signals()
    with signals.handled():
        for moment in (100.0, 100.5, 101.9):
            now[0] = moment
            os.kill(os.getpid(), signal.SIGINT)
        now[0] = 102.5
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_to_leave_is_more_urgent_than_an_interrupt() -> None:
    signals = Signals()
    with signals.handled():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    assert signals.stop_request == StopRequest.LEAVE


def test_exit_codes() -> None:
    assert Stop(StopRequest.LEAVE).exit_code == EXIT_SAVED == 75
    assert Stop(StopRequest.INTERRUPT).exit_code == EXIT_INTERRUPTED == 130


def test_one_process_agrees_with_itself_at_once() -> None:
    agreement = Agreement()
    assert agreement.at_step(StopRequest.SAVE) == StopRequest.SAVE
    assert agreement.gather({"a": 1}) == [{"a": 1}]
    agreement.barrier()


class Delayed(Agreement):
    """One process whose wishes take a step, as they do among several."""

    vote = StopRequest.NOTHING

    def at_step(self, stop_request: int) -> int:
        before, self.vote = self.vote, stop_request
        return before

    def _result(self) -> int:
        return self.at_step(StopRequest.NOTHING)


@pytest.mark.parametrize("leave_at", [None, 2, 3, 4])
def test_what_is_late_is_saved_once(leave_at: int | None) -> None:
    """The wish of the next step, which does not know yet that it was heard, is the same one."""
    saved: list[int] = []
    saving = SimpleNamespace(check=lambda: None, save_if_due=lambda *_, **settings: None, overdue=False)

    def save(runner: Any) -> None:
        saved.append(runner.step)
        saving.overdue = False

    saving.save_now = save
    loop = object.__new__(EpochLoop)
    loop._runner = runner = SimpleNamespace(checkpoint_hook=saving, signals=Signals(), agreement=Delayed(), step=0)
    with pytest.raises(Stop) if leave_at else nullcontext():
        for runner.step in range(1, 7):
            saving.overdue = saving.overdue or runner.step == 2
            leaving = leave_at is not None and runner.step >= leave_at
            runner.signals.stop_request = StopRequest.LEAVE if leaving else StopRequest.NOTHING
            loop._save_or_stop(epoch_ended=False, last=False)
    assert saved == ([3] if leave_at != 2 else [])
    assert runner.step == {None: 6, 2: 3, 3: 3, 4: 5}[leave_at]


def _vote(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3)
    agreement = Agreement()
    # Rank 1 wants to save at step 2, rank 2 to leave at step 4.
    wishes = {1: {2: StopRequest.SAVE}, 2: {4: StopRequest.LEAVE}}.get(rank, {})
    learnt = [agreement.at_step(wishes.get(step, StopRequest.NOTHING)) for step in range(STEPS)]
    gathered = agreement.gather([rank, learnt])
    agreement.barrier()
    Path(folder, str(rank)).write_text(f"{learnt} {[one[0] for one in gathered]}")
    dist.destroy_process_group()


def test_all_learn_it_one_step_later(tmp_path: Path) -> None:
    mp.spawn(_vote, (str(tmp_path),), nprocs=3)
    learnt = [
        StopRequest.NOTHING,
        StopRequest.NOTHING,
        StopRequest.NOTHING,
        StopRequest.SAVE,
        StopRequest.NOTHING,
        StopRequest.LEAVE,
    ]
    assert [(tmp_path / str(rank)).read_text() for rank in range(3)] == [f"{learnt} [0, 1, 2]"] * 3
