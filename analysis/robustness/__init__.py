"""Robustness of trained models: scores of the public suites, and corruptions made on one's own images.

:mod:`~analysis.robustness.scores` holds the arithmetic of the scores and needs NumPy alone.
"""

from analysis.robustness.scores import mean_corruption_error

__all__ = ["mean_corruption_error"]
