"""Settings and processes of small trainings, for several tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def small_run(work_dir: Path, steps: int, **checkpoint: Any) -> dict[str, Any]:
    """Settings of a run that logs every step, on a schedule of twice the steps.

    Args:
        work_dir: Work directory, and the name of the run.
        steps: Number of optimizer steps.
        checkpoint: Settings of the hook that saves, in steps.
    """
    saving = dict(type="ResumableCheckpointHook", by_epoch=False, **checkpoint)
    return dict(
        param_scheduler=[dict(type="PolyLR", end=2 * steps, by_epoch=False)],
        default_hooks=dict(logger=dict(type="LoggerHook", interval=1), checkpoint=saving),
        custom_hooks=[dict(type="ModelEMAHook", decay=0.7)],
        default_scope="mmengine",
        env_cfg=dict(),
        randomness=dict(seed=0),
        work_dir=str(work_dir),
        experiment_name=str(work_dir),
    )


def forked(*jobs: Callable[[], None]) -> None:
    """Run each in a process of its own, all at the same time."""
    children = []
    for job in jobs:
        child = os.fork()
        if not child:
            try:
                job()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    if any(statuses):
        sys.exit(1)


def run_as_program(script: str, folder: Path, timeout: float) -> None:
    """Run a test file as a program on CPUs, with a folder as its argument, and show how it failed if it does.

    Args:
        script: Test file.
        folder: Folder of its trainings.
        timeout: Seconds.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, script, str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-4000:]


def continue_from(source: Path, target: Path, step: int) -> None:
    """Make a work directory in which the run of another was interrupted after a step."""
    target.mkdir(parents=True)
    shutil.copy(source / f"iter_{step}.pth", target)
    (target / "last_checkpoint").write_text(str(target / f"iter_{step}.pth"))
