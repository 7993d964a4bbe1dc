"""A rank that dies, hangs or sees no GPU ends the whole job, by name; one that is told to stop has time to save."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.programs import PATIENCE, ROOT, impatient_launcher

HEAD = f"""
import os, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
from engine.launch.heartbeat import HEARTBEAT, Phase
RANK, TRY = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
HEARTBEAT.start()

def say(line):
    os.write(1, f"{{line}}\\n".encode())
"""
# Rank 1 has a fault in its eighth step; the others wait, without a collective and so without noticing.
ALONE = """
for step in range(1, 9):
    HEARTBEAT.enter(Phase.STEP, f"epoch 1, step {step} of 9")
if RANK == 1:
    FAULT
time.sleep(1000)
"""
# The same with a collective in each step.
TOGETHER = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
try:
    for step in range(1, 10):
        if step == 8 and len(sys.argv) > 2:  # not before: a busy machine may take long for any
            HEARTBEAT.configure(sys.argv[1], float(sys.argv[2]))
        HEARTBEAT.enter(Phase.STEP, f"epoch 1, step {step} of 9")
        if RANK == 1 and TRY == 0 and step == 8:
            FAULT
        sum = torch.ones(1)
        dist.all_reduce(sum)
except RuntimeError as error:
    HEARTBEAT.report_error(error)
    os._exit(1)
HEARTBEAT.enter(Phase.SAVING)
say(f"rank {RANK} has {int(sum)}")
dist.destroy_process_group()
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """``start(program, *options)`` launches it; whatever is left at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def run(
        program: str, *options: str, patience: str = "", limits: dict[str, float] | None = None, **settings: object
    ) -> subprocess.Popen[str]:
        file = tmp_path / "program.py"
        file.write_text(HEAD + program)
        launcher = impatient_launcher(tmp_path, heartbeat__STACK_SECONDS=float(PATIENCE), **limits or {})
        command = [sys.executable, str(launcher), *options, str(file), str(tmp_path / "work")]
        command += [patience] if patience else []
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | settings
        started.append(subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **streams))  # type: ignore[call-overload]
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def end(process: subprocess.Popen[str]) -> tuple[int, list[str], list[str]]:
    """Exit code, lines on stdout, lines on stderr."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out.splitlines(), err.splitlines()


@pytest.mark.parametrize(
    ("fault", "code", "line"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "signal SIGKILL; its last line: epoch 1, step 8 of 9 (training)"),
        ("os._exit(3)", 3, "exit code 3; its last line: epoch 1, step 8 of 9 (training)"),
        (
            "HEARTBEAT.report_error(ValueError('boom')); raise ValueError('boom')",
            1,
            "exit code 1; its last line: ValueError: boom, in epoch 1, step 8 of 9 (training)",
        ),
        (
            "import ctypes; ctypes.string_at(0)",
            139,
            r"signal SIGSEGV; its last line: epoch 1, step 8 of 9 (training), at ctypes/__init__.py:\d+ in string_at",
        ),
    ],
)
def test_a_rank_that_dies_ends_the_job_by_name(start: Callable, fault: str, code: int, line: str) -> None:
    ended, _, err = end(start(ALONE.replace("FAULT", fault), "--processes", "3"))
    assert ended == code
    pattern = re.escape(f"error: rank 1 ended with {line}").replace(re.escape(r"\d+"), r"\d+")
    assert re.fullmatch(pattern, err[-1])


def test_a_restart_gives_the_job_another_try(start: Callable) -> None:
    """The ranks that lose one fail too, which is not what the line is about."""
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    code, out, err = end(start(TOGETHER.replace("FAULT", kill), "--processes", "3", "--max-restarts", "1"))
    assert code == 0
    assert sorted(out) == [f"rank {rank} has 3" for rank in range(3)]
    last = "rank 1 ended with signal SIGKILL; its last line: epoch 1, step 8 of 9 (training): starting again (1 of 1)"
    assert err[-1] == last


def test_a_hang_in_a_collective_names_who_keeps_the_others_waiting(start: Callable, tmp_path: Path) -> None:
    code, out, err = end(start(TOGETHER.replace("FAULT", "time.sleep(1000)"), "--processes", "2", patience="3"))
    assert code == 124
    assert not out
    place = "epoch 1, step 8 of 9 (training)"
    assert re.fullmatch(
        rf"error: rank 1 hangs \(\d+ s without progress\); its last line: {re.escape(place)}, at \S*program.py:\d+ in "
        "<module>; the other ranks wait for it",
        err[-1],
    )
    assert any(line.startswith(f"rank 0: {place}, at distributed/distributed_c10d.py") for line in err)
    assert "all_reduce" in (tmp_path / "work/stacks/rank_0.txt").read_text()
    assert "program.py" in (tmp_path / "work/stacks/rank_1.txt").read_text()


def test_waiting_for_a_long_phase_is_no_hang(start: Callable) -> None:
    """Rank 0 validates for longer than a step may take, while rank 1 waits in a step."""
    program = """
def wait_for(name):
    while not os.path.exists(f"{sys.argv[1]}.{name}"):
        time.sleep(0.05)

def mark(name):
    open(f"{sys.argv[1]}.{name}", "w").close()

HEARTBEAT.configure(sys.argv[1], 0.5)
if RANK == 0:  # validates before the other rank begins to wait, and until it has ended its step
    HEARTBEAT.enter(Phase.VALIDATION)
    mark("validates")
    wait_for("waited")
else:
    wait_for("validates")
    for step in range(1, 9):
        HEARTBEAT.enter(Phase.STEP, f"step {step}")
    time.sleep(4)
    HEARTBEAT.enter(Phase.SAVING)
    mark("waited")
"""
    assert end(start(program, "--processes", "2")) == (0, [], [])


def test_what_a_user_has_to_fix_is_not_tried_again(start: Callable) -> None:
    program = "HEARTBEAT.report_error(ValueError(), 'no such file'); say('tried'); sys.exit(2)"
    code, out, err = end(start(program, "--processes", "1", "--max-restarts", "3"))
    assert (code, out) == (2, ["tried"])
    assert err == ["error: rank 0 ended with exit code 2; its last line: no such file"]


# Rank 0 takes its time to save; the other one leaves at once, and must not take rank 0 with it.
SAVES = """
wish = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: wish.append(number))
say("ready")
until = time.monotonic() + 900
while not wish and time.monotonic() < until:
    time.sleep(0.05)
if RANK == 0:
    time.sleep(2)
    say("written")
os._exit(130 if wish[0] == signal.SIGINT else 75)
"""


def wait_for(process: subprocess.Popen[str], times: int) -> None:
    for _ in range(times):
        assert process.stdout.readline() == "ready\n"


def test_sigterm_saves_once_and_leaves_with_code_75(start: Callable) -> None:
    process = start(SAVES, "--processes", "2", "--max-restarts", "2")
    wait_for(process, 2)
    process.terminate()
    code, out, err = end(process)
    assert (code, out) == (75, ["written"])
    assert err == ["stopped with everything saved: go on with the same command and --resume"]


def test_ctrl_c_in_a_terminal_saves_once_and_leaves_with_code_130(start: Callable) -> None:
    ours, theirs = pty.openpty()

    def own_terminal() -> None:
        os.setsid()
        os.close(os.open(os.ttyname(theirs), os.O_RDWR))  # the first one that is opened becomes the terminal

    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    process = start(SAVES, "--processes", "2", preexec_fn=own_terminal, **streams)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # how Linux says that the last process has closed the terminal
        while piece := os.read(ours, 2**12):
            shown += piece
            if shown.count(b"ready") == 2 and b"^C" not in shown:
                os.write(ours, b"\x03")
                shown += b"^C"
    os.close(ours)
    assert process.wait(PATIENCE) == 130
    assert shown.count(b"written\r\n") == 1
    assert b"interrupted: the same command and --resume go on from what was saved" in shown
    assert b"Traceback" not in shown


@pytest.mark.parametrize("same", [True, False])
def test_a_second_ctrl_c_ends_at_once(start: Callable, same: bool) -> None:
    """One within 2 seconds is the same, as the terminal and a shell both send it; here within many, or none."""
    program = "signal.signal(signal.SIGINT, lambda *_: say('ready')); say('ready')\nwhile True:\n    time.sleep(1000)"
    limit = {"agent__REPEATED_SIGNAL_SECONDS": 10_000.0 if same else 0.0}
    process = start(program, "--processes", "2", "--grace", str(10 * PATIENCE), limits=limit)
    for _ in range(3 if same else 1):
        wait_for(process, 2)
        process.send_signal(signal.SIGINT)
    if not same:
        wait_for(process, 2)  # the launcher has seen the first one
        process.send_signal(signal.SIGINT)
        code, _, err = end(process)
        assert (code, err) == (130, ["interrupted twice: ranks 0, 1 ended without saving"])
    else:
        wait_for(process, 2)
        process.terminate()


def test_a_closed_terminal_asks_to_save_and_is_nothing_under_nohup(start: Callable) -> None:
    program = "for one in (signal.SIGTERM, signal.SIGUSR1): signal.signal(one, lambda number, _: say(str(number)))"
    program += "\nsay('ready')\nwhile True: time.sleep(1000)"
    for handler, told in ((signal.SIG_DFL, signal.SIGTERM), (signal.SIG_IGN, signal.SIGUSR1)):
        before = signal.signal(signal.SIGHUP, handler)
        try:
            process = start(program, "--processes", "1")
        finally:
            signal.signal(signal.SIGHUP, before)
        wait_for(process, 1)
        process.send_signal(signal.SIGHUP)
        if handler == signal.SIG_IGN:
            process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == f"{int(told)}\n"
        process.kill()


def test_who_does_not_stop_in_time_is_killed(start: Callable) -> None:
    program = "signal.signal(signal.SIGTERM, signal.SIG_IGN); say('ready'); time.sleep(1000)"
    process = start(program, "--processes", "1", "--grace", "1")
    wait_for(process, 1)
    process.terminate()
    assert end(process) == (143, [], ["error: rank 0 did not end within 1 s of SIGTERM"])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has gone")
def test_no_rank_is_left_when_the_launcher_is_killed(start: Callable) -> None:
    process = start(SAVES, "--processes", "2")
    wait_for(process, 2)
    process.send_signal(signal.SIGKILL)
    out, _ = process.communicate(timeout=PATIENCE)  # until all who could write have ended
    assert out == "written\n"


def test_both_machines_name_the_rank_that_died_on_one_and_start_again(start: Callable) -> None:
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    port = str(20_000 + os.getpid() % 10_000)
    where = ["--processes", "1", "--nodes", "2", "--port", port]
    program = TOGETHER.replace("FAULT", kill)
    both = [start(program, *where, "--max-restarts", "1", "--node-rank", node) for node in ("0", "1")]
    for rank, (code, out, err) in enumerate(map(end, both)):
        assert (code, out) == (0, [f"rank {rank} has 2"])
        place = "epoch 1, step 8 of 9 (training)"
        assert err[-1] == f"rank 1 ended with signal SIGKILL; its last line: {place}: starting again (1 of 1)"


# What engine.training.runner does first, with GPUs that are not there; rank 0 would wait for rank 1 for ever.
GPUS = """
import torch
import torch.distributed as dist
from engine.cli import run_tool
from engine.config.world import Launch
from engine.distributed.processes import start_processes
torch.cuda.set_device = lambda index: None
torch.cuda.device_count = lambda: (2, 1)[RANK]
dist.init_process_group = lambda *_, **__: time.sleep(1000)
run_tool(lambda: start_processes(Launch(2, DEVICE, 2)))
"""


@pytest.mark.parametrize(
    ("device", "line"),
    [
        ("'cuda'", r"rank 1 .*: 2 GPUs asked for on this machine, which has 1: ask for no more"),
        (
            "('cuda', 'cpu')[RANK]",
            r"rank [01] .*: (no GPU is to be seen here on|rank 1 on \S+ sees no GPU, this one).*",
        ),
    ],
)
def test_a_rank_that_sees_no_gpu_ends_the_job(start: Callable, device: str, line: str) -> None:
    code, _, err = end(start(GPUS.replace("DEVICE", device), "--processes", "2"))
    assert code == 2
    assert re.fullmatch(rf"error: {line}", err[-1])
    assert "Traceback" not in "".join(err)
