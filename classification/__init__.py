"""Image classification: model, folder data set, augmentation, metric, pictures.

Importing the package registers its parts in mmengine's root registries (``custom_imports`` in the configs).
"""

from convnext_dense import refuse_namesakes

refuse_namesakes("backbones", "engine")

from classification import check, data, metric, model, robustness, task, visualizer  # noqa: E402

__all__ = ["check", "data", "metric", "model", "robustness", "task", "visualizer"]
