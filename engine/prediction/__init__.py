"""Predictions of a trained model: ``predictor`` gives them in Python, ``visualize`` as pictures and files."""

from engine.prediction.predictor import Prediction, Predictor, load_model

__all__ = ["Prediction", "Predictor", "load_model"]
