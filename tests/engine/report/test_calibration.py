"""The bins of a reliability plot and the calibration error, by hand."""

from __future__ import annotations

import pytest

from engine.report.calibration import calibration_bins, expected_calibration_error


def test_calibration_by_hand() -> None:
    # Bins of a fifth: (0.6, 0.8] holds two at 0.7, half right; (0.8, 1] one at 1.0, right; the edge 0.8 belongs below.
    bins = calibration_bins([0.7, 0.7, 1.0], [True, False, True], bins=5)
    assert [(one.count, one.accuracy) for one in bins] == [(2, 0.5), (1, 1.0)]
    assert expected_calibration_error(bins) == pytest.approx(100 * (2 * 0.2 + 0) / 3)
    assert [one.count for one in calibration_bins([0.8, 0.81, 0.0], [True] * 3, bins=5)] == [1, 1, 1]
    assert expected_calibration_error([]) == 0
