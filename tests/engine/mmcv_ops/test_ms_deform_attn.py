"""Fused deformable attention against loops in float64, in Triton's interpreter and compiled where there is a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from backbones.kernels.autotune import autotuner
from engine import mmcv_ops
from engine.mmcv_ops import ms_deform_attn, ms_deform_attn_triton
from tests.triton_interpreter import interpreted

mmcv_ops.install()

from mmcv.ops.multi_scale_deform_attn import (  # noqa: E402
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)

Inputs = tuple[Tensor, Tensor, Tensor]
FUSED = {ms_deform_attn.FORWARD: "fused", ms_deform_attn.BACKWARD: "fused"}


def not_to_be_called(*inputs: object) -> None:
    raise AssertionError("the plain form is not what is tested")


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Where the kernels run, and nothing but the kernels."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("_plain_forward", "_plain_backward"):
        monkeypatch.setattr(ms_deform_attn, name, not_to_be_called)
    with autotuner.use(**FUSED):
        if request.param == "interpreter":
            with interpreted(ms_deform_attn_triton):
                yield "cpu"
        else:
            yield "cuda"


def draw(shapes: Sequence[tuple[int, int]], queries: int, heads: int, points: int, channels: int) -> Inputs:
    """Values, locations and weights of two images in float64; some points lie outside, none next to a kink."""
    generator = torch.Generator().manual_seed(queries + channels)
    keys = sum(height * width for height, width in shapes)
    sizes = (2, keys, heads, channels), (2, queries, heads, len(shapes), points)
    value = torch.randn(sizes[0], generator=generator, dtype=torch.float64)
    size = torch.tensor(shapes, dtype=torch.float64).flip(1)[:, None]
    pixels = (torch.rand((*sizes[1], 2), generator=generator, dtype=torch.float64) * (size + 3) - 2).floor()
    locations = (pixels + 0.65 + 0.7 * torch.rand(pixels.shape, generator=generator, dtype=torch.float64)) / size
    return value, locations, torch.rand(sizes[1], generator=generator, dtype=torch.float64)


def reference(shapes: Sequence[tuple[int, int]], value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Sums over all pixels of each level, each weighted by the tents of equation 3's bilinear samples."""
    total = value.new_zeros(*locations.shape[:3], value.shape[3])
    for level, (height, width) in enumerate(shapes):
        start = sum(h * w for h, w in shapes[:level])
        x, y = locations[:, :, :, level, :, 0] * width - 0.5, locations[:, :, :, level, :, 1] * height - 0.5
        for row in range(height):
            for column in range(width):
                near = (1 - (y - row).abs()).clamp(min=0) * (1 - (x - column).abs()).clamp(min=0)
                pixel = value[:, start + row * width + column]
                total = total + (near * weights[:, :, :, level]).sum(3, keepdim=True) * pixel[:, None]
    return total.flatten(2)


def served(shapes: Sequence[tuple[int, int]], value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """The attention as mmcv's layers call it."""
    starts = [0, *accumulate(height * width for height, width in shapes)][:-1]
    fixed = (torch.tensor(numbers, dtype=torch.int64, device=value.device) for numbers in (shapes, starts))
    out: Tensor = MultiScaleDeformableAttnFunction.apply(value, *fixed, locations, weights, 64)
    return out


def results(call: object, shapes: Sequence[tuple[int, int]], inputs: Inputs, grad: Tensor) -> list[Tensor]:
    """Output and the three gradients, in float64 on the CPU."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    out = call(shapes, *leaves)  # type: ignore[operator]
    found = (out, *torch.autograd.grad(out, leaves, grad.to(out)))
    return [tensor.detach().double().cpu() for tensor in found]


# Levels, queries, heads, points, channels: no power of two, one of each, more channels than a block has, many rows.
CASES = [
    ([(3, 4), (2, 2), (1, 1)], 5, 2, 3, 5),
    ([(1, 3)], 1, 1, 1, 1),
    ([(2, 3), (4, 1)], 3, 1, 2, 130),
    ([(5, 4)], 20, 3, 1, 32),
]


@pytest.mark.parametrize(
    ("shapes", "queries", "heads", "points", "channels", "dtype"),
    [(*case, torch.float32) for case in CASES] + [(*CASES[0], dtype) for dtype in (torch.bfloat16, torch.float16)],
)
def test_output_and_gradients(
    shapes: list[tuple[int, int]], queries: int, heads: int, points: int, channels: int, dtype: torch.dtype, device: str
) -> None:
    inputs = tuple(tensor.to(device, dtype) for tensor in draw(shapes, queries, heads, points, channels))
    grad = torch.randn(2, queries, heads * channels, generator=torch.Generator().manual_seed(3)).to(device, dtype)
    truth = results(reference, shapes, tuple(tensor.double().cpu() for tensor in inputs), grad.cpu())  # type: ignore[arg-type]
    found = results(served, shapes, inputs, grad)  # type: ignore[arg-type]
    terms = len(shapes) * points * channels * max(queries * heads, 1)
    # Half precision rounds once, at the end; float32 rounds each term, and the position of a point in its map.
    tolerance = torch.finfo(dtype).eps * (1 if dtype != torch.float32 else 8 + terms**0.5)
    for mine, true in zip(found, truth, strict=True):
        assert mine.shape == true.shape
        assert (mine - true).abs().max() <= tolerance * true.abs().max()


def test_points_on_the_border_and_far_outside(device: str) -> None:
    shapes = [(4, 2)]
    value, locations, weights = draw(shapes, 6, 1, 2, 3)
    edges = torch.tensor([-0.125, 1.125, 0.125, 0.875, 0.0, 1.0, -1e30, 1e30, float("inf"), -float("inf")])
    places = torch.cartesian_prod(edges, edges).double()
    locations = places[: 2 * 12].view(2, 6, 1, 1, 2, 2)
    inputs = tuple(tensor.to(device, torch.float32) for tensor in (value, locations, weights))
    leaves = [tensor.requires_grad_() for tensor in inputs]
    out = served(shapes, *leaves)
    found = torch.autograd.grad(out.sum(), leaves)
    finite = locations.clamp(-9, 9).float()
    leaves = [tensor.detach().cpu().requires_grad_() for tensor in (inputs[0], finite, inputs[2])]
    plain = multi_scale_deformable_attn_pytorch(leaves[0], shapes, *leaves[1:])
    for mine, theirs in zip((out, *found), (plain, *torch.autograd.grad(plain.sum(), leaves)), strict=True):
        torch.testing.assert_close(mine.cpu(), theirs)


@pytest.mark.parametrize("empty", ["images", "queries", "points", "channels"])
def test_nothing_to_attend_to(empty: str, device: str) -> None:
    sizes = {"images": 2, "queries": 3, "points": 2, "channels": 4} | {empty: 0}
    b, q, p, c = sizes.values()
    leaves = [
        torch.ones(shape, device=device).requires_grad_()
        for shape in ((b, 4, 2, c), (b, q, 2, 1, p, 2), (b, q, 2, 1, p))
    ]
    out = served([(2, 2)], *leaves)
    assert out.shape == (b, q, 2 * c)
    assert not out.count_nonzero()
    assert not any(gradient.count_nonzero() for gradient in torch.autograd.grad(out.sum(), leaves))


def test_views_are_read_in_their_order(device: str) -> None:
    shapes = [(3, 2)]
    inputs = [tensor.to(device, torch.float32) for tensor in draw(shapes, 4, 2, 2, 3)]
    views = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in inputs]
    assert not any(view.is_contiguous() for view in views)
    grad = torch.ones(2, 4, 6)
    for one, other in zip(
        results(served, shapes, tuple(inputs), grad), results(served, shapes, tuple(views), grad), strict=True
    ):  # type: ignore[arg-type]
        torch.testing.assert_close(one, other)


def test_float64_and_deterministic_gradients_take_the_plain_form(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("_fused_forward", "_plain_forward", "_fused_backward", "_plain_backward"):
        form = getattr(ms_deform_attn, name)

        def noted(*inputs: object, name: str = name, form: object = form) -> object:
            calls.append(name)
            return form(*inputs)  # type: ignore[operator]

        monkeypatch.setattr(ms_deform_attn, name, noted)
    shapes = [(2, 2)]
    inputs = draw(shapes, 2, 1, 1, 2)
    grad = torch.ones(2, 2, 2)
    single = tuple(tensor.float() for tensor in inputs)
    with autotuner.use(**FUSED), interpreted(ms_deform_attn_triton):
        results(served, shapes, inputs, grad)
        assert calls == ["_plain_forward", "_plain_backward"]
        results(served, shapes, single, grad)  # type: ignore[arg-type]
        assert calls[2:] == ["_fused_forward", "_fused_backward"]
        with monkeypatch.context() as patch:
            patch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
            results(served, shapes, single, grad)  # type: ignore[arg-type]
        assert calls[4:] == ["_fused_forward", "_plain_backward"]
    results(served, shapes, single, grad)  # type: ignore[arg-type]
    assert calls[6:] == ["_plain_forward", "_plain_backward"]
