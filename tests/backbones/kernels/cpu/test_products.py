"""Products in float32 under autocast to bfloat16: the results, and the choice by what is measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backbones.convnext import Block, Downsampling
from backbones.errors import ConfigError
from backbones.kernels import autotune
from backbones.kernels.autotune import autotuner
from backbones.kernels.cpu import block as block_module
from backbones.kernels.cpu import products
from backbones.kernels.cpu.dispatch import compute_dtype

FORMS = ["fused_float32", pytest.param("native_float32", marks=pytest.mark.native)]
CHANNELS = 32


def made(grn: bool = False, **settings: Any) -> Block:
    block = Block(CHANNELS, layer_scale_init_value=0.0 if grn else 0.5, use_grn=grn, **settings)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block


def maps() -> Tensor:
    return torch.randn(4, CHANNELS, 9, 9).contiguous(memory_format=torch.channels_last)


def bfloat16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def error(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth.double()).norm() / truth.double().norm())


@pytest.fixture(autouse=True)
def supported() -> None:
    with bfloat16():
        if compute_dtype(maps()) is None:
            pytest.skip("oneDNN has no bfloat16 here")


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing was measured so far."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    autotuner.clear()
    yield
    autotuner.clear()


def pretend(monkeypatch: pytest.MonkeyPatch, slow: str) -> list[str]:
    """Forms whose names end with ``slow`` take ten times as long; returns the names of all that are timed."""
    timed: list[str] = []

    def times(candidates: dict[str, Any], device: torch.device) -> dict[str, float]:
        timed.extend(candidates)
        return {name: 10.0 if name.endswith(slow) else 1.0 + i for i, name in enumerate(candidates)}

    monkeypatch.setattr(autotune, "time_candidates", times)
    return timed


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("grn", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_inference_has_the_precision_of_the_plain_steps_and_less_error(form: str, grn: bool, narrow: bool) -> None:
    block, x = made(grn).eval(), maps().to(torch.bfloat16 if narrow else torch.float32)
    found = {}
    for name in ("plain", form):
        with torch.no_grad(), bfloat16(), autotuner.use(cpu_block=name):
            found[name] = block(x)
    with torch.no_grad(), autotuner.use(cpu_block="plain"):
        truth = block.double()(x.double())
    assert found[form].dtype == found["plain"].dtype
    bound = torch.finfo(torch.bfloat16).eps / 2 if found[form].dtype == torch.bfloat16 else 1e-5
    assert error(found[form], truth) < bound
    assert error(found["plain"], truth) > 5e-4


@pytest.mark.native
def test_a_downsampling_with_products_in_float32() -> None:
    layer, x = Downsampling(CHANNELS, 48), maps()
    with torch.no_grad(), bfloat16(), autotuner.use(cpu_downsample="native_float32"):
        found = layer(x)
    with torch.no_grad():
        truth = layer.double()(x.double())
    assert found.dtype == torch.bfloat16
    assert error(found, truth) < torch.finfo(torch.bfloat16).eps / 2


@pytest.mark.parametrize("grn", [False, True])
@pytest.mark.parametrize("narrow", [False, True])
def test_training_has_the_precisions_of_the_plain_steps_and_less_error(grn: bool, narrow: bool) -> None:
    block, x = made(grn, drop_path=0.5).train(), maps().to(torch.bfloat16 if narrow else torch.float32)
    found = {}
    for name in ("truth", "plain", "fused_float32"):
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=name != "truth")
        leaf = x.to(torch.float32 if name == "truth" else x.dtype, copy=True).requires_grad_()
        block.zero_grad()
        torch.manual_seed(7)
        with autocast, autotuner.use(cpu_block="plain" if name == "truth" else name):
            out = block(leaf)
        out.float().square().sum().backward()
        found[name] = [out.detach(), leaf.grad, *(one.grad for one in block.parameters())]
    for ours, theirs, truth in zip(found["fused_float32"], found["plain"], found["truth"], strict=True):
        assert ours.dtype == theirs.dtype
        assert error(ours, truth) < (1e-2 if narrow else 1e-5)
    assert error(found["plain"][-1], found["truth"][-1]) > 5e-4


@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize(("slow", "expected"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_training_goes_by_what_is_measured_once(slow: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "simd_name", lambda: "AVX512")
    timed = pretend(monkeypatch, slow)
    assert products.select_training_products() == expected
    autotuner.clear()  # another process of this machine
    assert products.select_training_products() == expected
    assert timed == ["bfloat16", "float32"]
    with autotuner.without_measuring():
        assert products.select_training_products() == "bfloat16", "as the first of two runs with one seed"
    with autotuner.use(cpu_products="float32"):
        assert products.training_suffix() == "_float32"
    with autotuner.use(cpu_products="float64"), pytest.raises(ConfigError, match="cpu_products=float64 is none of"):
        products.select_training_products()


@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize(("slow", "expected"), [("fused", "_float32"), ("float32", "")])
def test_inference_goes_by_what_is_measured(slow: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_module, "MIN_MULTIPLY_ADDS", 1)
    monkeypatch.setattr(block_module, "_native_forms", lambda weights, dtype: [])
    timed = pretend(monkeypatch, slow)
    chosen: list[str] = []
    cached = block_module._cached_layout
    monkeypatch.setattr(block_module, "_cached_layout", lambda *given: (chosen.append(given[-1]), cached(*given))[1])
    block, x = made().eval(), maps()
    with torch.no_grad():
        block(x)
        with bfloat16():
            block(x)
    assert chosen[-1] == f"fused{expected}"
    assert timed == ["fused", "plain", "fused", "fused_float32", "plain"], (
        "in float32 there is no choice of a precision"
    )


def test_every_product_and_gradient_is_timed_in_both_precisions() -> None:
    for multiply in products._PRODUCTS.values():
        multiply()
