"""Semantic segmentation: our parts of mmseg.

Importing the package puts torchvision's operators where mmcv's compiled ones are absent and registers mmseg's modules
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
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=False)

from engine.config.building import add_function_scope  # noqa: E402

add_function_scope("mmseg")

from segmentation import check, data, linear_head, metric, task, uper_head, visualizer  # noqa: E402

__all__ = ["check", "data", "linear_head", "metric", "task", "uper_head", "visualizer"]
