"""Signals that ask a tool to stop, from its first second on: code 75 and one line, whatever it is doing."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.launch.exit_codes import EXIT_INTERRUPTED, EXIT_SAVED
from tests.programs import PATIENCE, ROOT, environment, handles

CONFIG = ROOT / "configs/classification/digits.py"
ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
# Signal and seconds after its handler is there: in imports, in the check of the data, in the first steps.
MOMENTS = [(number, 0.2 * moment) for moment, number in enumerate(ASKING * 3)]
SAID = re.compile(r"stopped (by SIG\w+(:| before anything .*:) start again|with everything saved: go on with)")
# A tool that waits in the midst of its work, which a signal finds there.
WAITING = """
import sys, time
from engine.cli import run_tool
def main():
    print("ready", flush=True)
    time.sleep(1000)
run_tool(main)
"""
DOCTOR = """
import runpy, sys, time
import analysis.doctor.examination as examination
def diagnose(options):
    print("ready", flush=True)
    time.sleep(1000)
examination.diagnose = diagnose
sys.argv = ["tools/doctor.py"]
runpy.run_path("tools/doctor.py", run_name="__main__")
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which signals a process handles")


@contextmanager
def usual(*numbers: signal.Signals) -> Iterator[None]:
    """Programs that start in this context do not ignore these signals, though the tests may have been started so."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def started(*command: object) -> subprocess.Popen[str]:
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with usual(*ASKING, signal.SIGINT):
        return subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, env=environment(), **pipes)


def signalled(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, list[str]]:
    """Exit code and lines on stderr of a program that is sent a signal."""
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    return process.returncode, err.splitlines()


@pytest.mark.parametrize("launched", [False, True])
def test_no_bare_death_by_a_signal(launched: bool, digits: Path, tmp_path: Path) -> None:
    train = (ROOT / "tools/train.py", CONFIG, "--work-dir", tmp_path, "--cfg-options", f"data_root={digits}/imagenet")
    command = (ROOT / "tools/launch.py", "--processes", 1, *train, "--launcher", "pytorch") if launched else train
    for number, moment in MOMENTS:
        process = started(*command)
        while process.poll() is None and not handles(process.pid, number):
            time.sleep(0.001)
        time.sleep(moment)
        code, err = signalled(process, number)
        # The training says on stdout that it has saved.
        assert code == EXIT_SAVED, (number, moment, err)
        assert err or not launched, (number, moment)
        assert not err or SAID.match(err[-1]), (number, moment, err)
        assert "Traceback" not in "".join(err)


@pytest.mark.parametrize("number", [*ASKING, signal.SIGINT])
@pytest.mark.parametrize("program", [WAITING, DOCTOR], ids=["tool", "doctor"])
def test_a_tool_that_is_asked_to_stop_says_one_line(program: str, number: signal.Signals) -> None:
    process = started("-c", program)
    assert process.stdout.readline() == "ready\n"
    said = (EXIT_SAVED, [f"stopped by {number.name}: start again with the same command"])
    assert signalled(process, number) == ((EXIT_INTERRUPTED, ["interrupted"]) if number == signal.SIGINT else said)


def test_what_is_ignored_from_the_start_stays_ignored() -> None:
    lines = ["import os, signal", "from convnext_dense_signals import leave_on_signals"]
    lines += ["signal.signal(signal.SIGHUP, signal.SIG_IGN)", "leave_on_signals()"]  # as nohup starts a program
    lines += [f"os.kill(os.getpid(), signal.{name})" for name in ("SIGHUP", "SIGTERM")]
    process = started("-c", "\n".join(lines))
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (EXIT_SAVED, "stopped by SIGTERM: start again with the same command\n")
