"""Closed-form costs against the built networks, and budgets that give the family back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from analysis.flops import count_backbone, count_model
from backbones import UserError
from backbones.convnext import ConvNeXt
from backbones.scaling import ConvNeXtShape, shape_for_budget
from backbones.variants import CONVNEXT_V1

FAMILY = [name for name in CONVNEXT_V1 if name != "convnext_nano"]  # nano's 2:2:8:2 has neither of the two ratios
ODD: dict[str, Any] = dict(depths=(1, 2, 3, 1), dims=(24, 32, 56, 72), kernel_size=11, mlp_ratio=2.5)


@pytest.mark.parametrize("name", CONVNEXT_V1)
@pytest.mark.parametrize("side", [224, 200])
def test_closed_form_equals_the_count_of_the_built_network(name: str, side: int) -> None:
    row, counted = CONVNEXT_V1[name], count_backbone(name, (side, side))
    shape = ConvNeXtShape(row.depths, row.dims)
    assert (shape.params(), shape.flops(side)) == (counted.params, counted.flops)


def test_closed_form_of_an_odd_shape() -> None:
    with torch.device("meta"):
        model = nn.Sequential(ConvNeXt(**ODD), nn.Linear(72, 1000))
        counted = count_model("odd", model, torch.zeros(1, 3, 96, 96), lambda model, images: model(images))
    shape = ConvNeXtShape(**ODD)
    assert (shape.params(), shape.flops(96)) == (counted.params, counted.flops)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("free", ["blocks", "width"])
@pytest.mark.parametrize("budget", ["gflops", "params"])
def test_a_member_of_the_family_is_found_from_what_it_costs(name: str, free: str, budget: str) -> None:
    row = CONVNEXT_V1[name]
    given = dict(blocks=row.depths[0]) if free == "width" else dict(width=row.dims[0])
    found = shape_for_budget(**{budget: getattr(row, budget)}, ratio=f"1:1:{row.depths[2] // row.depths[0]}:1", **given)
    assert (found.depths, found.dims) == (row.depths, row.dims)


@pytest.mark.parametrize("blocks", [1, 2, 4, 7])
@pytest.mark.parametrize("gflops", [2.0, 8.0, 30.0])
def test_any_depth_meets_the_budget_within_a_step_of_width(blocks: int, gflops: float) -> None:
    found = shape_for_budget(gflops=gflops, ratio="1:1:9:1", blocks=blocks)
    assert found.depths == (blocks, blocks, 9 * blocks, blocks)
    below, above = (ConvNeXtShape(found.depths, scaled(found.dims[0] + step)).flops() / 1e9 for step in (-8, 8))
    assert below < gflops < above


def scaled(width: int) -> tuple[int, int, int, int]:
    return (width, 2 * width, 4 * width, 8 * width)


@pytest.mark.parametrize("change", [dict(kernel_size=31), dict(mlp_ratio=2.0)], ids=str)
def test_kernel_size_and_mlp_ratio_are_paid_from_the_budget(change: dict[str, Any]) -> None:
    plain, changed = shape_for_budget(gflops=4.5), shape_for_budget(gflops=4.5, **change)
    assert changed.flops() == pytest.approx(plain.flops(), rel=0.1)
    assert (changed.dims[0] < plain.dims[0]) == ("kernel_size" in change)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "a budget is needed"),
        (dict(gflops=4, params=20), "not both"),
        (dict(gflops=4, ratio="3:4:6:3"), "ratio='3:4:6:3'"),
        (dict(gflops=4, blocks=3, width=96), "both given"),
        (dict(gflops=-4), "positive"),
        (dict(gflops=4, blocks=0), "blocks=0: at least 1"),
        (dict(gflops=4, width=-96), "width=-96: at least 1"),
        (dict(gflops=4, side=16), "side=16: at least 32"),
        (dict(gflops=4, mlp_ratio=0.0), "mlp_ratio=0: a positive"),
        (dict(gflops=4, kernel_size=4), "kernel_size=4: an odd"),
        (dict(gflops=0.001, width=96), "no such network"),
        (dict(params=1e6), "no such network"),
    ],
)
def test_an_impossible_request_is_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        shape_for_budget(**arguments)
    assert "\n" not in str(caught.value)
