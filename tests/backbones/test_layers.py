"""Layers of ConvNeXt against those of timm."""

from __future__ import annotations

import pytest
import torch
from timm.layers import DropPath as TimmDropPath

from backbones.layers import DropPath


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(64, 3), (64, 3, 5, 2)])
@pytest.mark.parametrize("training", [True, False])
def test_branches_are_dropped_as_by_timm(rate: float, shape: tuple[int, ...], training: bool) -> None:
    x = torch.randn(shape)
    ours, theirs = DropPath(rate).train(training), TimmDropPath(rate).train(training)
    torch.manual_seed(1)
    expected = theirs(x)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(ours(x), expected)
    assert torch.equal(torch.rand(1), after)  # no random number more, none less


def test_the_rate_is_printed() -> None:
    assert repr(DropPath(0.25)) == "DropPath(drop_prob=0.250)"
