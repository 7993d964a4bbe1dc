"""Masked pre-training of ConvNeXt on images without labels (FCMAE): model, data, metric, pictures.

Importing the package registers its parts in mmengine's root registries (``custom_imports`` in the configs).
"""

from classification.pretraining import check, data, metric, model, task, visualizer

__all__ = ["check", "data", "metric", "model", "task", "visualizer"]
