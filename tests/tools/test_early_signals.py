"""SIGTERM in the first seconds of a training, alone or under the launcher: code 75 and a line, at whatever moment."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convnext_dense_signals import ASKED_TO_STOP
from engine.launch.exit_codes import EXIT_SAVED
from tests.programs import PATIENCE, ROOT, environment

CONFIG = ROOT / "configs/classification/digits.py"
MOMENTS = [0.2 * number for number in range(8)]  # seconds after the handler is there
SAID = (
    ASKED_TO_STOP,
    "stopped by SIGTERM before anything was there to save: start again",
    "stopped with everything saved: go on with",
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which signals a process handles")


def handles(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def stopped_after(seconds: float, *command: object) -> tuple[int, list[str]]:
    """Exit code and lines on stderr of a program that is sent SIGTERM so long after it has a handler."""
    with subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while process.poll() is None and not handles(process.pid, signal.SIGTERM):
            time.sleep(0.001)
        time.sleep(seconds)
        process.terminate()
        _, err = process.communicate(timeout=PATIENCE)
    return process.returncode, err.splitlines()


@pytest.mark.parametrize("launched", [False, True])
def test_no_bare_death_by_a_signal(launched: bool, digits: Path, tmp_path: Path) -> None:
    train = (ROOT / "tools/train.py", CONFIG, "--work-dir", tmp_path, "--cfg-options", f"data_root={digits}/imagenet")
    command = (ROOT / "tools/launch.py", "--processes", 1, *train, "--launcher", "pytorch") if launched else train
    for moment in MOMENTS:
        code, err = stopped_after(moment, *command)
        assert code == EXIT_SAVED, (moment, err)
        assert err, moment
        assert err[-1].startswith(SAID), (moment, err)
        assert "Traceback" not in "".join(err)
