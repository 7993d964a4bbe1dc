"""Scores against sums by hand, and every wrong input of the mean corruption error by name."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from analysis.robustness import mean_corruption_error
from analysis.robustness.expected import rows_of
from analysis.robustness.planning import MADE_HERE, RELEASED, PlannedSuite
from analysis.robustness.scores import (
    ALEXNET_ERRORS,
    mean_error,
    performance_under_corruption,
)
from analysis.robustness.summary import score_rows
from backbones.errors import ConfigError
from engine.task import ImageSet


def alexnet() -> dict[str, list[float]]:
    return {name: [error] * 5 for name, error in ALEXNET_ERRORS.items()}


def test_alexnet_has_100_and_a_perfect_network_0() -> None:
    assert mean_corruption_error(alexnet()) == pytest.approx(100)
    assert mean_corruption_error({name: [0.0] * 5 for name in ALEXNET_ERRORS}) == 0
    assert len(ALEXNET_ERRORS) == 15


def test_each_corruption_is_divided_by_its_own_error_before_the_mean() -> None:
    errors = alexnet()
    errors["brightness"] = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert mean_corruption_error(errors) == pytest.approx((14 * 100 + 100 * 0.3 / 0.564592) / 15)
    # ResNet-50 of torchvision (V1) has an mCE of 76.7: halving all errors halves it, whatever the corruption.
    assert mean_corruption_error({name: [e / 2 for e in five] for name, five in errors.items()}) == pytest.approx(
        mean_corruption_error(errors) / 2
    )


def test_the_plain_error_is_not_divided() -> None:
    errors = {"a": [0.1, 0.2, 0.3, 0.4, 0.5], "b": [0.5] * 5}
    assert mean_error(errors, ("a", "b")) == pytest.approx(40)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"snow": None}, "corruption 'snow' missing"),
        ({"snow": None, "fog": None}, "corruption 'snow' and 1 others missing"),
        ({"sno": [0.1] * 5}, "corruption 'sno' is unknown.*nearest: snow"),
        ({"speckle_noise": [0.1] * 5}, "corruption 'speckle_noise' is unknown"),
        ({"fog": [0.1] * 4}, "corruption 'fog' has 4 values"),
        ({"fog": []}, "corruption 'fog' has 0 values"),
        ({"fog": [0.1, 0.1, 53.2, 0.1, 0.1]}, "corruption 'fog', severity 3: 53.2 is no fraction"),
        ({"fog": [0.1, 0.1, 0.1, 0.1, -0.1]}, "corruption 'fog', severity 5: -0.1"),
        ({"fog": [math.nan] * 5}, "corruption 'fog', severity 1: nan"),
        ({"fog": [None] * 5}, "corruption 'fog', severity 1: None"),
        ({"fog": "12345"}, "corruption 'fog', severity 1: '1'"),
        ({"fog": 0.3}, "corruption 'fog': 0.3 in place of five values"),
    ],
)
def test_a_wrong_input_is_named(change: dict[str, list[float] | None], message: str) -> None:
    errors = {name: five for name, five in (alexnet() | change).items() if five is not None}
    with pytest.raises(ConfigError, match=message):
        mean_corruption_error(errors)


def test_performance_under_corruption_is_relative_to_the_clean_one() -> None:
    # Fewer severities of a noise count as fewer sets, as in the practice of segmentation.
    found = performance_under_corruption({"fog": [30, 20, 10, 10, 10], "shot_noise": [20, 12, 8]}, clean=40)
    assert found.mean == pytest.approx(15)
    assert found.relative == pytest.approx(37.5)
    assert performance_under_corruption({"fog": [0.0] * 5}, clean=0).relative is None
    with pytest.raises(ConfigError, match="corruption 'fog' has no score"):
        performance_under_corruption({"fog": []}, clean=1)
    with pytest.raises(ConfigError, match="no corruption has a score"):
        performance_under_corruption({}, clean=1)


def test_a_result_stands_beside_the_row_of_the_paper_and_what_timm_leads_to_expect() -> None:
    scores: dict[str, dict[str, Any]] = {
        "a": {"top1": 24.0},
        "c": {"mce": 53.0, "mean_error": 40.0},
        "v2": {"top1": 71},
    }
    suites = [
        PlannedSuite(name, name, RELEASED, "config", "", (ImageSet(name, {}, None),), "top1", name == "c")
        for name in scores
    ]
    summaries = {name: {"scores": found} for name, found in scores.items()}
    assert score_rows(suites, summaries, rows_of("convnext_tiny", 224), "this checkpoint") == [
        ["", "a", "c mCE", "v2"],
        ["this checkpoint", "24.0", "53.0", "71.0"],
        ["Table 2.8, ConvNeXt-T trained on 1K, 224²", "24.2", "53.2", "-"],
        ["expected (timm), convnext_tiny trained on 1K, 224²", "24.1", "-", "70.9"],
    ]
    regenerated = [replace(suite, kind=MADE_HERE) for suite in suites[1:2]]
    rows = score_rows(regenerated, summaries, rows_of("convnext_base", 384), "this checkpoint")
    assert [row[1] for row in rows] == ["c mCE *", "53.0", "-", "-"]
    assert [row[0] for row in rows[2:]] == [
        "Table 2.8, ConvNeXt-B trained on 22K, 384²",
        "expected (timm, --protocol crop), convnext_base trained on 22K, 384²",
    ]
