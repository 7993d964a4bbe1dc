"""Predictions of a trained model: ``predictor`` gives them in Python, ``visualize`` as pictures and files.

``validation_pictures`` draws those of a network that is being trained.
"""

from engine.prediction.predictor import Prediction, Predictor, load_model
from engine.prediction.validation_pictures import ValidationPicturesHook

__all__ = ["Prediction", "Predictor", "ValidationPicturesHook", "load_model"]
