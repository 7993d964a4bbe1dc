"""The benchmark of masked pre-training: what it compares before it measures, and its ratios. No time is asserted."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from analysis.benchmark import masked
from analysis.benchmark.masked import MASKED_SIDES, MaskedResult, MaskedSide, masked_sides, measure_masked
from analysis.benchmark.request import BenchmarkRequest
from analysis.benchmark.timing import MismatchError
from backbones.errors import ConfigError
from backbones.kernels.cuda import block, packed_dwconv
from backbones.masked import PackedLayout

TINY = BenchmarkRequest("convnextv2_atto", True, 2, (96, 96), rounds=2)


def test_both_layouts_are_compared_and_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked, "memory_apart", lambda build, device: 2**20)
    seconds = itertools.count()
    result = measure_masked(TINY, clock=lambda: float(next(seconds)))
    assert 0 < result.largest_difference < 1e-4
    assert [side.name for side in result.sides] == list(MASKED_SIDES)
    packed, _, dense = result.sides
    # 3 of 9 units are visible; the decoder and the depthwise convolutions see the whole map.
    assert 1 / 3 < packed.flops / dense.flops < 0.6


def test_a_gpu_is_measured_with_both_convolutions_of_the_visible_units(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = masked_sides("cuda")
    assert sides == ["packed", "packed, Triton", "packed, scattered", "packed, plain blocks", "dense"]
    called = []
    operation = packed_dwconv.packed_dwconv
    monkeypatch.setattr(block, "packed_dwconv", lambda *inputs: (called.append(side), operation(*inputs))[1])
    losses = []
    for side in sides:  # on a CPU the operation computes its plain steps
        losses.append(masked._outcome(TINY, side)[0])
    assert set(called) == {"packed, Triton"}
    assert len(called) == 12  # blocks of the encoder
    torch.testing.assert_close(torch.stack(losses), losses[-1].expand(len(losses)))


def test_a_wrong_layout_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(self: PackedLayout, x: torch.Tensor) -> torch.Tensor:
        return original(self, x).roll(1, 0)

    original = PackedLayout.pack_rows
    monkeypatch.setattr(PackedLayout, "pack_rows", shifted)
    with pytest.raises(MismatchError, match="packed computes something else than dense here"):
        measure_masked(TINY)


def test_what_has_no_masked_form_is_named() -> None:
    with pytest.raises(ConfigError, match="masked pre-training needs a ConvNeXt"):
        measure_masked(BenchmarkRequest("resnet50", True, 1, (64, 64)))


def test_ratios_are_those_of_packed_to_dense() -> None:
    sides = [MaskedSide(name, seconds, 2**20 * memory, flops) for name, seconds, memory, flops in ROWS]
    result = MaskedResult(TINY, {"device": "a CPU"}, 1e-6, tuple(sides))
    data: dict[str, Any] = result.as_dict()
    assert (data["ratio"], data["memory_ratio"], data["flops_ratio"]) == (3.0, 0.5, 0.4)
    assert result.as_text().splitlines()[-3].split()[-6:] == ["3.00", "(2.50-3.50)", "5", "50%", "0.00", "40%"]


ROWS = (
    ("packed", (1.0, 2.0), 5, 40),
    ("packed, plain blocks", (2.0, 2.0), 5, 40),
    ("dense", (2.0, 8.0), 10, 100),
)
