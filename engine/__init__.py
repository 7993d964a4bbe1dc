"""What all tasks share at run time, in one sub-package for each concern; a task is known through its TaskSpec alone.

``engine.task`` defines the specification, ``engine.run`` trains and tests a resolved config, ``engine.cli`` ends
the tools. docs/ARCHITECTURE.md says what lies where.
"""

from importlib import import_module
from typing import Any

from convnext_dense import refuse_namesakes

refuse_namesakes("backbones")

__all__ = [
    "checkpoint",
    "config",
    "data",
    "distributed",
    "launch",
    "load_model",
    "mmcv_ops",
    "nonfinite",
    "optim",
    "planning",
    "prediction",
    "report",
    "training",
]


def __getattr__(name: str) -> Any:
    """Import ``load_model`` once it is used: it needs torch, which ``--help`` of a tool does without."""
    if name == "load_model":
        return import_module("engine.prediction").load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
