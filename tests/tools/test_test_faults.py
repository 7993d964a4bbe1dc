"""A process of several that is killed, hangs, or is stopped and not continued, ends a test or a prediction by name."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS

from engine.config.load import load_config
from engine.launch.exit_codes import EXIT_HUNG
from engine.launch.hang_detector import WARM_UP_STEPS
from tests.programs import PATIENCE, ROOT, environment, impatient_launcher

# Rank 1 signals itself, or hangs, in a batch; the other one waits for its results.
CONFIG = """
import os, time
_base_ = {base!r}
data_root = {data!r}
model = dict(backbone=dict(depths=[1, 1, 1, 1], dims=[8, 8, 8, 16]))
test_dataloader = dict(num_workers=0, batch_size=1)
env_cfg = dict(patience=1.0)
def _register():
    from mmengine.hooks import Hook
    from mmengine.registry import HOOKS

    @HOOKS.register_module(force=True)
    class Fault(Hook):
        def before_test_iter(self, runner, batch_idx, data_batch=None):
            if os.environ["RANK"] == "1" and batch_idx == {batch}:
                {fault}

        def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if os.environ["RANK"] == "0" and batch_idx == 10:
                open({ahead!r}, "w").close()
            while os.environ["RANK"] == "1" and batch_idx == 3 and not os.path.exists({ahead!r}):
                time.sleep(0.01)  # in a batch that may still take long: rank 0 has no more then

_register()
custom_hooks = [dict(type="Fault", priority="LOW")]
"""


def launch_two(folder: Path, tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a tool in two processes."""
    limits = {"hang_detector__STOPPED_SECONDS": 2.0, "heartbeat__STACK_SECONDS": PATIENCE}
    launcher = impatient_launcher(folder, **limits, agent__ROOT_CAUSE_SECONDS=10.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:  # a port that is in use is none that one machine needs
        options = ("--processes", "2", "--port", str(taken.getsockname()[1]), str(ROOT / tool))
        return subprocess.run(
            [sys.executable, str(launcher), *options, *arguments],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )


@pytest.mark.parametrize(
    ("fault", "batch", "code", "line"),
    [
        ("os.kill(os.getpid(), 9)", 0, 137, "ended with signal SIGKILL"),
        ("os.kill(os.getpid(), 19)", 0, EXIT_HUNG, r"was stopped by a signal \d+ s ago, .*"),
        ("time.sleep(1000)", WARM_UP_STEPS, EXIT_HUNG, r"hangs \(\d+ s without progress\)"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells that a process is stopped")
def test_a_test_loses_a_process(fault: str, batch: int, code: int, line: str, digits: Path, tmp_path: Path) -> None:
    config, weights = tmp_path / "config.py", tmp_path / "weights.pth"
    base, data = str(ROOT / "configs/classification/digits.py"), str(digits / "imagenet")
    config.write_text(CONFIG.format(base=base, data=data, fault=fault, batch=batch, ahead=str(tmp_path / "ahead")))
    torch.save({"state_dict": MODELS.build(load_config(config).cfg.model).state_dict()}, weights)
    arguments = (str(config), str(weights), "--work-dir", str(tmp_path / "work"), "--launcher", "pytorch")
    done = launch_two(tmp_path, "tools/test.py", *arguments)
    assert done.returncode == code, done.stderr
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(f"error: rank 1 {line}; its last line: test, batch {batch + 1} of 11 .*", last)
    if "sleep" in fault:
        assert re.search(
            r", at \S+config.py:\d+ in before_test_iter; the other ranks wait for it$", done.stderr.strip()
        )
    assert "Traceback" not in done.stderr


# Rank 1 signals itself, or hangs, in its sixth image, once the other one has no more.
PREDICTION = """
import atexit, os, time
_base_ = {base!r}
data_root = {data!r}
model = dict(backbone=dict(depths=[1, 1, 1, 1], dims=[8, 8, 8, 16]))
env_cfg = dict(patience=1.0)
def _register():
    if os.environ.get("RANK") == "0":  # ends for longer than a batch may take, when it has lost rank 1
        atexit.register(time.sleep, 3.0)
    import classification
    from classification.data import ClassificationTransform
    from mmengine.registry import TRANSFORMS

    @TRANSFORMS.register_module(force=True)
    class FaultyTransform(ClassificationTransform):
        count = 0

        def __call__(self, sample):
            self.count += 1
            if os.environ["RANK"] == "0" and self.count == 11:
                open({ahead!r}, "w").close()
            while os.environ["RANK"] == "1" and self.count == 4 and not os.path.exists({ahead!r}):
                time.sleep(0.01)
            if os.environ["RANK"] == "1" and self.count == 6:
                {fault}
            return super().__call__(sample)

_register()
test_pipeline = [dict(type="FaultyTransform", size=48, crop_ratio=1.0)]
"""


@pytest.mark.parametrize(
    ("fault", "code", "line"),
    [
        ("os.kill(os.getpid(), 9)", 137, "ended with signal SIGKILL"),
        ("time.sleep(1000)", EXIT_HUNG, r"hangs \(\d+ s without progress\)"),
    ],
)
def test_a_prediction_loses_a_process(fault: str, code: int, line: str, digits: Path, tmp_path: Path) -> None:
    config, weights, images = tmp_path / "config.py", tmp_path / "weights.pth", tmp_path / "images"
    base, data = str(ROOT / "configs/classification/digits.py"), str(digits / "imagenet")
    config.write_text(PREDICTION.format(base=base, data=data, fault=fault, ahead=str(tmp_path / "ahead")))
    torch.save({"state_dict": MODELS.build(load_config(config).cfg.model).state_dict()}, weights)
    images.mkdir()
    for number, image in enumerate(sorted((digits / "imagenet/val").glob("*/*.png"))):
        shutil.copy(image, images / f"{number:02d}.png")
    arguments = (str(config), str(weights), str(images), "--out", str(tmp_path / "out"), "--no-pictures")
    done = launch_two(tmp_path, "tools/predict.py", *arguments, "--format", "csv", "--batch", "1")
    assert done.returncode == code, done.stderr
    last = done.stderr.splitlines()[-1]
    assert re.match(f"error: rank 1 {line}; its last line: prediction, batch 6 of 10", last)
    assert "Traceback" not in done.stderr
