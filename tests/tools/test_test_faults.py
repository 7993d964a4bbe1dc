"""A process of a test on several that is killed, hangs, or is stopped and not continued, ends the test by name."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS

from engine.config.load import load_config
from engine.launch.exit_codes import EXIT_HUNG
from tests.programs import PATIENCE, ROOT, environment

# Rank 1 signals itself, or sleeps, in its first batch; the other one waits for its results.
CONFIG = """
import os, time
_base_ = {base!r}
data_root = {data!r}
model = dict(backbone=dict(depths=[1, 1, 1, 1], dims=[8, 8, 8, 16]))
test_dataloader = dict(num_workers=0)
def _register():
    from mmengine.hooks import Hook
    from mmengine.registry import HOOKS

    @HOOKS.register_module(force=True)
    class Fault(Hook):
        def before_test_iter(self, runner, batch_idx, data_batch=None):
            if os.environ["RANK"] == "1":
                {fault}

_register()
custom_hooks = [dict(type="Fault", priority="LOW")]
"""
# The launcher, less patient.
LAUNCHER = f"""
import runpy, sys
sys.path.insert(0, {str(ROOT)!r})
import engine.launch.hang_detector
engine.launch.hang_detector.STOPPED_SECONDS = 2.0
engine.launch.hang_detector.PATIENCE_SECONDS[engine.launch.heartbeat.Phase.VALIDATION] = 10.0
sys.argv[0] = {str(ROOT / "tools/launch.py")!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("fault", "code", "line"),
    [
        ("os.kill(os.getpid(), 9)", 137, "ended with signal SIGKILL"),
        ("os.kill(os.getpid(), 19)", EXIT_HUNG, r"was stopped by a signal \d s ago, and not continued \(kill -CONT\)"),
        ("time.sleep(200)", EXIT_HUNG, r"hangs \(\d+ s without progress\)"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells that a process is stopped")
def test_a_test_loses_a_process(fault: str, code: int, line: str, digits: Path, tmp_path: Path) -> None:
    config, weights, launcher = tmp_path / "config.py", tmp_path / "weights.pth", tmp_path / "launcher.py"
    base, data = str(ROOT / "configs/classification/digits.py"), str(digits / "imagenet")
    config.write_text(CONFIG.format(base=base, data=data, fault=fault))
    launcher.write_text(LAUNCHER)
    torch.save({"state_dict": MODELS.build(load_config(config).cfg.model).state_dict()}, weights)
    with socket.create_server(("127.0.0.1", 0)) as taken:  # a port that is in use is none that one machine needs
        options = ("--processes", "2", "--port", str(taken.getsockname()[1]), str(ROOT / "tools/test.py"))
        arguments = (str(config), str(weights), "--work-dir", str(tmp_path / "work"), "--launcher", "pytorch")
        done = subprocess.run(
            [sys.executable, str(launcher), *options, *arguments],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    assert done.returncode == code, done.stderr
    assert re.fullmatch(f"error: rank 1 {line}; its last line: test, batch 1 of 1 .*", done.stderr.splitlines()[-1])
    if "sleep" in fault:
        assert re.search(
            r", at \S+config.py:\d+ in before_test_iter; the other ranks wait for it$", done.stderr.strip()
        )
    assert "Traceback" not in done.stderr
