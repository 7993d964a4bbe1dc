"""Image classification: model, folder data set, augmentation, metric, pictures.

Importing the package registers its parts in mmengine's root registries (``custom_imports`` in the configs).
"""

from classification import check, data, metric, model, task, visualizer

__all__ = ["check", "data", "metric", "model", "task", "visualizer"]
