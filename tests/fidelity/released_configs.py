"""The configs of the released trainings, resolved for eight GPUs."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from mmengine.config import Config

from engine.config.load import load_config
from engine.config.world import Launch

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = Launch(processes=8, device="cuda", local_processes=8)


@cache
def resolved(name: str) -> Config:
    """The resolved config of a file in ``configs/``, such as ``detection/mask_rcnn_convnext_tiny_coco_3x``."""
    return load_config(ROOT / f"configs/{name}.py", None, CLUSTER).cfg
