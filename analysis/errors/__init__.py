"""The errors of a trained model on its test data, as one page and as JSON.

``run`` tests a checkpoint, or takes saved predictions, and lets the task's error analysis
(``TaskSpec.error_analysis``) look at each image; ``page`` draws the worst images and writes the page.
"""

from analysis.errors.run import ErrorOptions, analyze_errors

__all__ = ["ErrorOptions", "analyze_errors"]
