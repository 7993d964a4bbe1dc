"""How well confidences agree with accuracies: the bins of a reliability plot and the expected calibration error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.report.html import CurveLine, note, number, plot

CALIBRATION_BINS = 15  # Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017), section 2


@dataclass(frozen=True)
class CalibrationBin:
    """A bin of a reliability plot.

    Attributes:
        count: Number of predictions.
        confidence: Mean confidence of them.
        accuracy: Fraction of them that is right.
    """

    count: int
    confidence: float
    accuracy: float


def calibration_bins(
    confidences: Sequence[float], right: Sequence[bool], bins: int = CALIBRATION_BINS
) -> list[CalibrationBin]:
    """Bins of equal width over (0, 1], those without a prediction left out.

    Args:
        confidences: Probability of each predicted class, in [0, 1].
        right: Whether each prediction is right.
        bins: Number of bins.
    """
    values, hits = np.asarray(confidences, float), np.asarray(right, float)
    index = np.clip(np.ceil(values * bins).astype(int) - 1, 0, bins - 1)
    chosen = [index == i for i in range(bins)]
    return [CalibrationBin(int(c.sum()), float(values[c].mean()), float(hits[c].mean())) for c in chosen if c.any()]


def expected_calibration_error(bins: Sequence[CalibrationBin]) -> float:
    """Expected calibration error (ECE) in percent: mean distance of confidence and accuracy, weighted by counts.

    Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017), equation 3.

    Args:
        bins: Result of :func:`calibration_bins`.
    """
    total = sum(one.count for one in bins)
    return 100 * math.fsum(one.count * abs(one.confidence - one.accuracy) for one in bins) / total if total else 0.0


def reliability_plot(ece: float, bins: Sequence[Sequence[float]]) -> str:
    """Return the reliability plot as HTML, with the calibration error below it.

    Args:
        ece: Expected calibration error in percent.
        bins: Count, mean confidence and accuracy of each bin.
    """
    points = [(100 * confidence, 100 * accuracy) for _, confidence, accuracy in bins]
    lines = {"accuracy": CurveLine("trained", points), "calibrated": CurveLine("faint", [(0, 0), (100, 100)])}
    words = f"Expected calibration error {number(ece)} %, {len(points)} bins with images."
    return plot("Calibration", "accuracy by confidence, in percent", lines, "confidence") + note(words)
