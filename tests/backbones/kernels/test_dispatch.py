"""Networks reach the forms of their layers through one place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import backbones
from backbones.convnext import Block, Downsampling
from backbones.kernels import dispatch, run_block, run_downsample
from backbones.kernels.protocol import draw_drop_path, is_unmodified
from backbones.layers import DropPath
from backbones.masked import MaskedLayout

X = torch.randn(2, 8, 6, 6)


def test_model_files_import_the_dispatch_alone() -> None:
    for name in ("convnext", "isotropic"):
        text = (Path(backbones.__file__).parent / f"{name}.py").read_text()
        modules = set(re.findall(r"^from backbones\.kernels(\S*) import", text, re.MULTILINE))
        assert modules <= {".dispatch"}
        assert "cuda" not in text


def test_the_first_form_with_a_result_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def absent(layer: nn.Module, x: Tensor, layout: MaskedLayout | None = None) -> None:
        asked.append("absent")

    def zeros(layer: nn.Module, x: Tensor, layout: MaskedLayout | None = None) -> Tensor:
        asked.append("zeros")
        return torch.zeros_like(x)

    block, layer = Block(8), Downsampling(8, 4)
    for forms, run, module in (("BLOCK_FORMS", run_block, block), ("DOWNSAMPLE_FORMS", run_downsample, layer)):
        plain = module(X)
        monkeypatch.setattr(dispatch, forms, (absent, zeros, absent))
        assert torch.equal(run(module, X), torch.zeros_like(X))
        assert torch.equal(module(X), torch.zeros_like(X))
        assert asked == ["absent", "zeros"] * 2
        asked.clear()
        monkeypatch.setattr(dispatch, forms, (absent,))
        assert run(module, X) is None
        assert torch.equal(module(X), plain)
        asked.clear()


def test_factors_of_stochastic_depth_are_those_of_the_layer() -> None:
    drop_path = DropPath(0.5)
    torch.manual_seed(0)
    expected = drop_path(torch.ones(64, 1, 1, 1))
    torch.manual_seed(0)
    factors = draw_drop_path(drop_path, torch.zeros(64, 3), torch.float32)
    assert factors is not None
    assert torch.equal(factors, expected)
    state = torch.get_rng_state()
    for idle in (DropPath(0.0), nn.Identity(), DropPath(0.5).eval()):
        assert draw_drop_path(idle, X, torch.float32) is None
    assert torch.equal(torch.get_rng_state(), state)


def test_layers_with_hooks_or_of_a_subclass_are_modified() -> None:
    assert is_unmodified(nn.Linear(2, 2), nn.Linear, nn.Identity)
    assert not is_unmodified(nn.Linear(2, 2), nn.Identity)
    assert not is_unmodified(nn.modules.linear.NonDynamicallyQuantizableLinear(2, 2), nn.Linear)
    for register in ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"):
        layer = nn.Linear(2, 2)
        getattr(layer, f"register_{register}")(lambda *_: None)
        assert not is_unmodified(layer, nn.Linear), register
