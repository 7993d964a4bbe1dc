"""What all tasks share at run time, in one sub-package for each concern; a task is known through its TaskSpec alone.

``engine.task`` defines the specification, ``engine.run`` trains and tests a resolved config, ``engine.cli`` ends
the tools, ``engine.visualize`` draws predictions. docs/ARCHITECTURE.md says what lies where.
"""

from convnext_dense import refuse_namesakes

refuse_namesakes("backbones")

__all__ = [
    "checkpoint",
    "config",
    "data",
    "distributed",
    "launch",
    "mmcv_ops",
    "nonfinite",
    "optim",
    "planning",
    "report",
    "training",
]
