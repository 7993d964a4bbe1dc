"""Settings that the small trainings of several tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any


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
