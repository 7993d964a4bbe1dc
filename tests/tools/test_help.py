"""``--help`` of every tool answers at once: it is printed before torch or another heavy package is imported.

Nor does a tool import later what it has no use for.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "torchvision", "timm", "mmengine", "mmcv", "mmdet", "mmseg", "numpy", "cv2", "PIL", "matplotlib")
FORMER = ("checkpointing", "data_speed", "detection_speed", "throughput")  # print the command that replaces them
PROGRAM = """
import runpy, sys
sys.path[0] = sys.argv[1].rpartition("/")[0]
sys.argv[:] = [sys.argv[1], *sys.argv[2:]]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("imported:", *(name for name in %r if name in sys.modules))
"""


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "tools").glob("*.py")))
def test_help_imports_no_heavy_package(name: str) -> None:
    program = f"{ROOT}/tools/{name}.py"
    command = [sys.executable, "-c", PROGRAM % (HEAVY,), program, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == (2 if name in FORMER else 0), done.stderr
    assert done.stdout.splitlines()[-1] == "imported:"
    assert name in FORMER or done.stdout.startswith("usage: ")


def test_a_wrong_option_imports_none_either() -> None:
    command = [sys.executable, "-c", PROGRAM % (HEAVY,), f"{ROOT}/tools/train.py", "config.py", "--bogus"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert "unrecognized arguments: --bogus" in done.stderr
    assert done.stdout == "imported:\n"


def test_counting_a_network_imports_nothing_that_it_does_not_need() -> None:
    unneeded = ("engine.config.load", "mmengine.optim", "transformers", "mmcv", "timm", "torchvision")
    command = [sys.executable, "-c", PROGRAM % (unneeded,), f"{ROOT}/tools/flops.py", "convnext_atto", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported:"
