"""Detection and instance segmentation: our parts of mmdet.

Importing the package puts torchvision's operators where mmcv's compiled ones are absent and registers mmdet's modules
and ours (``custom_imports`` in the configs).
"""

import contextlib
import io

from convnext_dense import refuse_namesakes

refuse_namesakes("backbones", "engine")

from engine import mmcv_ops  # noqa: E402

mmcv_ops.install()

# The library prints a line for each optional package that is absent.
with contextlib.redirect_stdout(io.StringIO()):
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=False)

from engine.config.building import add_function_scope  # noqa: E402

add_function_scope("mmdet")

from detection import (  # noqa: E402
    check,
    coco_metric,
    data,
    last_epochs,
    panoptic,
    panoptic_check,
    panoptic_metric,
    panoptic_task,
    task,
    visualizer,
)

__all__ = [
    "check",
    "coco_metric",
    "data",
    "last_epochs",
    "panoptic",
    "panoptic_check",
    "panoptic_metric",
    "panoptic_task",
    "task",
    "visualizer",
]
