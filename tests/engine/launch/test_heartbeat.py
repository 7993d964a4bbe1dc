"""What a rank announces, and when its launcher takes it for one that hangs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from engine.launch import hang_detector as hang
from engine.launch.hang_detector import HangDetector, StalledRank, StopDetector, describe_hang, find_causes
from engine.launch.heartbeat import (
    ERROR_FILE,
    HEARTBEAT,
    LAUNCHER_PROCESS,
    POSITION_FILE,
    STACKS_FILE,
    Heartbeat,
    Phase,
    Position,
    read_error_report,
    read_frames,
    read_position,
)
from engine.launch.leftovers import STOPPED_STATE, process_state

ROOT = Path(__file__).resolve().parents[3]
LONG_AFTER = 10 * hang.WARM_UP_STEPS

# In a process of its own, since it takes over a signal and the handling of crashes.
RANK = """
import os, signal, sys
sys.path.insert(0, {root!r})
from engine.launch.heartbeat import HEARTBEAT, Phase

HEARTBEAT.start()
HEARTBEAT.configure("work", 7.5)
with HEARTBEAT.during(Phase.VALIDATION):
    HEARTBEAT.enter(Phase.BATCH, "validation, batch 1 of 1")
HEARTBEAT.enter(Phase.DATA)
HEARTBEAT.enter(Phase.STEP, "epoch 1, step 1 of 5 " + "\\u00e4" * 900)
HEARTBEAT.enter(Phase.STEP, "epoch 1, step 2 of 5")
with HEARTBEAT.during(Phase.SAVING):
    os.kill(os.getpid(), signal.SIGUSR2)
HEARTBEAT.report_error({error})
os.kill(os.getpid(), signal.SIGKILL)
"""


def run_rank(folder: Path, error: str) -> Position:
    program = RANK.format(root=str(ROOT), error=error)
    environment = {"TORCHELASTIC_ERROR_FILE": str(folder / "error.json")}
    subprocess.run([sys.executable, "-c", program], env=environment, cwd=folder, check=False)
    return read_position(folder)


def test_the_launcher_reads_what_a_killed_rank_announced(tmp_path: Path) -> None:
    position = run_rank(tmp_path, "ValueError('boom\\nand more')")
    assert (position.steps, position.batches, position.phase, position.patience) == (2, 1, Phase.STEP, 7.5)
    assert str(position) == "epoch 1, step 2 of 5 (training)"
    assert position.folder == str(tmp_path / "work")
    assert read_error_report(tmp_path) == ("ValueError: boom", False)
    assert read_frames(tmp_path)[0].endswith("in <module>")


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        ("RuntimeError('[third_party/gloo/pair.cc:1] Connection closed by peer')", True),
        ("type('DistBackendError', (RuntimeError,), {})('timed out')", True),
        ("RuntimeError('shapes differ')", False),
        ("ValueError('gloo')", False),
    ],
)
def test_an_error_about_another_rank_is_told_from_one_of_its_own(tmp_path: Path, error: str, lost: bool) -> None:
    run_rank(tmp_path, error)
    assert read_error_report(tmp_path)[1] is lost


def test_without_a_launcher_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    HEARTBEAT.enter(Phase.STEP, "step 1")
    with HEARTBEAT.during(Phase.SAVING):
        HEARTBEAT.configure("work", 3.0)
    assert not HEARTBEAT.report_error(RuntimeError("Connection closed by peer"))
    assert not list(tmp_path.iterdir())
    assert read_position(tmp_path) == Position()
    assert read_error_report(tmp_path) == ("", False)


def late_after(seconds: float, *positions: Position) -> list[int]:
    """Ranks that are late when all have stayed where they are for so long."""
    detector = HangDetector()
    now, late = 100.0, []
    while now <= 100 + seconds:
        late = detector.update(dict(enumerate(positions)), now)
        now += 1.0
    return [status.rank for status in late]


@pytest.mark.parametrize(
    ("phase", "patience"),
    [
        (Phase.STEP, hang.MIN_STEP_PATIENCE_SECONDS),
        (Phase.BATCH, hang.MIN_STEP_PATIENCE_SECONDS),
        (Phase.DATA, hang.PATIENCE_SECONDS[Phase.DATA]),
        (Phase.VALIDATION, hang.PATIENCE_SECONDS[Phase.VALIDATION]),
        (Phase.SAVING, hang.PATIENCE_SECONDS[Phase.SAVING]),
    ],
)
def test_each_phase_has_its_patience(phase: Phase, patience: float) -> None:
    position = Position(9, LONG_AFTER, LONG_AFTER, phase)
    assert late_after(patience, position) == []
    assert late_after(patience + 2, position) == [0]


def test_the_first_steps_may_compile_and_the_start_takes_what_it_takes() -> None:
    assert late_after(10 * hang.MIN_STEP_PATIENCE_SECONDS, Position(3, hang.WARM_UP_STEPS, 0, Phase.STEP)) == []
    first = Position(3, LONG_AFTER, hang.WARM_UP_STEPS, Phase.BATCH)
    assert late_after(10 * hang.MIN_STEP_PATIENCE_SECONDS, first) == []
    assert late_after(2 * hang.PATIENCE_SECONDS[Phase.VALIDATION], Position(1, 0, 0, Phase.STARTING)) == []


@pytest.mark.parametrize("phase", [Phase.STEP, Phase.BATCH])
def test_the_config_decides_how_long_a_step_may_take(phase: Phase) -> None:
    position = Position(9, LONG_AFTER, LONG_AFTER, phase, patience=5.0)
    assert late_after(5, position) == []
    assert late_after(7, position) == [0]


def test_slow_steps_make_patient() -> None:
    detector = HangDetector()
    now = 0.0
    for step in range(1, 9):
        for _ in range(20):  # 20 s each
            detector.update({0: Position(step, step, 0, Phase.STEP)}, now)
            now += 1.0
    assert detector.patience(Position(9, 9, 0, Phase.STEP)) == pytest.approx(200)


def test_slow_steps_make_not_patient_with_batches_nor_quick_batches_impatient_with_steps() -> None:
    """Each validation has one batch, so that what lies between two batches is a training."""
    detector, second, sequence = HangDetector(), 0, 0
    for epoch in range(1, 9):
        for step, batches in ((2 * epoch - 1, epoch - 1), (2 * epoch, epoch - 1), (2 * epoch, epoch)):
            sequence += 1
            phase = Phase.STEP if batches < epoch else Phase.BATCH
            for _ in range(20 if phase == Phase.STEP else 2):
                detector.update({0: Position(sequence, step, batches, phase)}, second)
                second += 1
    assert detector.patience(Position(99, 16, 9, Phase.STEP)) == pytest.approx(200)
    assert detector.patience(Position(99, 16, 9, Phase.BATCH)) == hang.MIN_STEP_PATIENCE_SECONDS
    for batches in range(9, 19):
        for _ in range(7):
            detector.update({0: Position(sequence + batches, 16, batches, Phase.BATCH)}, second)
            second += 1
    assert detector.patience(Position(99, 16, 19, Phase.BATCH)) == pytest.approx(70)
    assert detector.patience(Position(99, 16, 19, Phase.STEP)) == pytest.approx(200)


def test_a_job_that_was_suspended_does_not_hang() -> None:
    detector = HangDetector()
    position = Position(9, LONG_AFTER, 0, Phase.STEP)
    detector.update({0: position}, 0.0)
    assert detector.update({0: position}, 3600.0) == []


def test_a_rank_that_moves_is_not_late() -> None:
    detector = HangDetector()
    for second in range(200):
        late = detector.update(
            {0: Position(second, LONG_AFTER, 0, Phase.STEP), 1: Position(5, LONG_AFTER, 0, Phase.STEP)}, second
        )
    assert [status.rank for status in late] == [1]


def sits(
    rank: int, steps: int, phase: Phase = Phase.STEP, frame: str = "engine/training/loops.py:5 in run"
) -> StalledRank:
    return StalledRank(rank, steps, phase, f"step {steps} (training)", 46.0, [frame, "tools/train.py:1 in main"])


WAITS = "distributed/distributed_c10d.py:9 in all_reduce"


@pytest.mark.parametrize(
    ("statuses", "guilty"),
    [
        ([sits(0, 8), sits(1, 7), sits(2, 8)], [1]),
        ([sits(0, 8, Phase.SAVING), sits(1, 8)], [0]),
        ([sits(0, 8, frame=WAITS), sits(1, 8), sits(2, 8, frame=WAITS)], [1]),
        ([sits(0, 8, frame=WAITS), sits(1, 8, frame=WAITS)], [0, 1]),
        ([sits(0, 8, Phase.BATCH), sits(1, 8, Phase.VALIDATION)], [1]),
    ],
)
def test_the_cause_is_behind_or_does_something_else(statuses: list[StalledRank], guilty: list[int]) -> None:
    assert [status.rank for status in find_causes(statuses)] == guilty
    told = [StalledRank(**json.loads(json.dumps(asdict(status)))) for status in statuses]
    assert told == statuses


def test_a_hang_is_described_in_one_line() -> None:
    line = describe_hang([sits(0, 8, frame=WAITS), sits(1, 8)])
    assert line == (
        "rank 1 hangs (46 s without progress); its last line: step 8 (training), at engine/training/loops.py:5 in run; "
        "the other ranks wait for it"
    )
    assert describe_hang([sits(1, 8, frame=WAITS), sits(0, 8, frame=WAITS)]).startswith("ranks 0, 1 hang (46 s")


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    for name in (POSITION_FILE, ERROR_FILE, STACKS_FILE):
        os.mkfifo(tmp_path / name)
    assert read_position(tmp_path) == Position()
    assert read_error_report(tmp_path) == ("", False)
    assert read_frames(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells that a process is stopped")
def test_a_process_that_is_stopped_and_not_continued() -> None:
    detector, now = StopDetector(), 100.0
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"]) as process:
        try:
            process.send_signal(signal.SIGSTOP)
            while process_state(process.pid) != STOPPED_STATE:
                time.sleep(0.01)
            found = [detector.update({1: process.pid}, now + second) for second in range(int(hang.STOPPED_SECONDS) + 2)]
            assert found[:-1] == [{}] * (len(found) - 1)
            assert found[-1] == {1: hang.STOPPED_SECONDS + 1}
            # The launcher was suspended too: the job may go on any moment now.
            assert detector.update({1: process.pid}, now + 1000) == {}
            process.send_signal(signal.SIGCONT)
            while process_state(process.pid) == STOPPED_STATE:
                time.sleep(0.01)
            assert detector.update({1: process.pid}, now + 1001) == {}
        finally:
            process.kill()


def test_the_time_of_each_activity_is_counted_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("engine.launch.heartbeat.time.monotonic", lambda: next(clock))
    heartbeat = Heartbeat()
    heartbeat.enter(Phase.DATA)
    heartbeat.enter(Phase.STEP)
    with heartbeat.during(Phase.SAVING):
        pass
    heartbeat.enter(Phase.VALIDATION)
    spent = {"starting": 10.0, "waiting for data": 10.0, "training": 20.0, "saving": 10.0, "validation": 10.0}
    assert heartbeat.seconds() == spent


@pytest.mark.parametrize("gone", [True, False])
def test_a_rank_whose_launcher_was_killed_before_the_rank_began(gone: bool, tmp_path: Path) -> None:
    """It would otherwise wait for the others for half an hour."""
    with subprocess.Popen(["true"]) as ended:
        pass
    launcher = ended.pid if gone else os.getpid()
    environment = {"TORCHELASTIC_ERROR_FILE": str(tmp_path / "error.json"), LAUNCHER_PROCESS: str(launcher)}
    program = "from engine.launch.heartbeat import HEARTBEAT; HEARTBEAT.start(); print('goes on')"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == ((-signal.SIGTERM, "") if gone else (0, "goes on\n"))
