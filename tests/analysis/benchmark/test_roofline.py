"""A step beside a large product and a large copy, with a clock that is made up."""

from __future__ import annotations

import pytest

from analysis.benchmark import roofline
from analysis.benchmark.request import BenchmarkRequest
from analysis.benchmark.roofline import measure_roofline
from analysis.flops import count_backbone


@pytest.mark.parametrize("train", [False, True])
def test_the_fraction_is_that_of_the_multiply_adds(monkeypatch: pytest.MonkeyPatch, train: bool) -> None:
    monkeypatch.setitem(roofline.PRODUCT_SIDE, "cpu", 64)
    monkeypatch.setitem(roofline.COPY_BYTES, "cpu", 4096)
    seconds = {"step": (2.0, 2.0, 4.0), "product": (1.0, 1.0, 1.0), "copy": (0.5, 0.5, 0.5)}
    monkeypatch.setattr(roofline, "take_turns", lambda *args: seconds)
    result = measure_roofline(BenchmarkRequest("convnext_atto", train, 2, (32, 32), rounds=3))
    flops = 2 * (3 if train else 1) * count_backbone("convnext_atto", (32, 32)).flops
    assert result.flops == flops
    assert (result.product_rate, result.copy_rate) == (64**3, 2 * 4096 / 0.5)
    assert result.as_dict()["fraction_of_product"] == pytest.approx(flops / 2 / 64**3)
    assert sum(one.share for one in result.kernels) <= 1.0 + 1e-9
    assert result.kernels[0].seconds >= result.kernels[-1].seconds > 0
    assert ("convolution_backward" in " ".join(one.name for one in result.kernels)) == train
    assert "of the product" in result.as_text()
