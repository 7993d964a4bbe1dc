"""Fused kernels against float64, in Triton's interpreter on any machine and compiled where there is a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from backbones.convnext import ConvNeXt
from backbones.kernels.autotune import autotuner
from backbones.kernels.cuda import (
    dwconv_norm,
    dwconv_norm_triton,
    grn,
    grn_triton,
    launch,
    maps_triton,
    mlp,
    mlp_triton,
    packed_dwconv,
    packed_dwconv_triton,
)
from backbones.masked import PackedLayout
from tests.triton_interpreter import interpreted

KERNELS = (dwconv_norm_triton, grn_triton, maps_triton, mlp_triton, packed_dwconv_triton)
EPS = torch.finfo(torch.float32).eps
Call = Callable[..., Tensor]


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[str]:
    """Where kernels run: on the CPU one NumPy operation after another, or on a GPU."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    autotuner.clear()
    if request.param == "interpreter":
        with interpreted(*KERNELS):
            yield "cpu"
    else:
        yield "cuda"
    autotuner.clear()


@pytest.fixture
def without_tf32() -> Iterator[None]:
    """PyTorch's own products of float32 in float32; monkeypatch cannot restore these settings."""
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [one.allow_tf32 for one in settings]
    for one in settings:
        one.allow_tf32 = False
    yield
    for one, allowed in zip(settings, before, strict=True):
        one.allow_tf32 = allowed


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape) + seed))


def run(call: Call, tensors: list[Tensor | None], weights: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Output, then the gradients of all tensors, as float64."""
    leaves = [None if t is None else t.detach().to(dtype).requires_grad_() for t in tensors]
    out = call(*leaves)
    gradients = torch.autograd.grad(out, [leaf for leaf in leaves if leaf is not None], weights.to(out.dtype))
    return [tensor.detach().double().cpu() for tensor in (out, *gradients)]


def check(fused: Call, plain: Call, tensors: list[Tensor | None], dtype: torch.dtype, terms: int) -> None:
    """Hold a fused operation against float64.

    float32: a sum of n terms is off by about sqrt(n) roundings, a few more come from what is done with it. Half
    precisions: on average no farther from the truth than PyTorch's own steps in that precision. Where both round once,
    it is chance whose is nearer: the ratio of two such averages over n numbers is within 3 / sqrt(n) of 1.
    """
    device = next(t.device for t in tensors if t is not None)
    tensors = [None if t is None else t.to(dtype) for t in tensors]
    shape = next(t.shape for t in tensors if t is not None)
    weights = values(*shape, seed=9).to(device, dtype)
    truth = run(plain, [None if t is None else t.double() for t in tensors], weights, torch.float64)
    ours = run(fused, tensors, weights, dtype)
    theirs = run(plain, tensors, weights, dtype)
    assert len(ours) == len(truth)
    for mine, other, true in zip(ours, theirs, truth, strict=True):
        assert mine.shape == true.shape
        if dtype == torch.float32:
            assert (mine - true).abs().max() <= (4 + terms**0.5) * EPS * true.abs().max()
        else:
            error, allowed = ((t - true).square().mean().sqrt() for t in (mine, other))
            assert error <= (1 + 3 / true.numel() ** 0.5) * allowed


def conv_tensors(n: int, h: int, w: int, c: int, k: int, device: str) -> list[Tensor | None]:
    shapes = ((n, h, w, c), (c, 1, k, k), (c,), (c,), (c,))
    return [values(*shape, seed=i).to(device) for i, shape in enumerate(shapes)]


def mlp_tensors(
    n: int, h: int, w: int, c: int, hidden: int, device: str, gamma: bool, grn: bool
) -> list[Tensor | None]:
    shapes = ((n, h, w, c), (n, h, w, c), (hidden, c), (hidden,), (c, hidden), (c,))
    found: list[Tensor | None] = [values(*shape, seed=i).to(device) for i, shape in enumerate(shapes)]
    wide = [values(1, 1, 1, hidden, seed=i).to(device) if grn else None for i in (7, 8)]
    return [*found, values(c, seed=6).to(device) if gamma else None, *wide]


def mlp_call(call: Call, keep: Tensor | None) -> Call:
    return lambda *t: call(*t[:7], keep if keep is None else keep.to(t[0].device), *t[7:])


# Rows and columns that no tile divides, one pixel, one image, channels that are no power of two, one chunk of them and
# several, kernels whose taps are split over programs (9 and more).
CONV_SHAPES = [(1, 8, 9, 20, 3), (1, 1, 1, 5, 7), (1, 3, 4, 96, 3), (1, 2, 3, 20, 9), (2, 3, 4, 7, 5)]


@pytest.mark.parametrize("shape", CONV_SHAPES)
def test_depthwise_convolution_and_norm(shape: tuple[int, ...], device: str) -> None:
    tensors = conv_tensors(*shape, device)  # type: ignore[arg-type]
    terms = max(shape[0] * shape[1] * shape[2], shape[3], shape[4] ** 2)
    check(dwconv_norm.dwconv_norm, dwconv_norm.dwconv_norm_reference, tensors, torch.float32, terms)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 5, 4, 96, 3)])
def test_depthwise_convolution_and_norm_in_half_precision(
    shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    tensors = conv_tensors(*shape, device)  # type: ignore[arg-type]
    check(dwconv_norm.dwconv_norm, dwconv_norm.dwconv_norm_reference, tensors, dtype, 0)


@pytest.mark.parametrize("name", ["tall", "wide", "low", "small", "whole"])
def test_every_tile_computes_the_same(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tile = dwconv_norm.candidate_tiles(96, 7)[name]
    monkeypatch.setattr(dwconv_norm, "candidate_tiles", lambda *_: {name: tile})
    x, *rest = (t for t in conv_tensors(1, 8, 9, 20, 3, device) if t is not None)
    fused = partial(map_gradient, dwconv_norm.dwconv_norm, rest)
    plain = partial(map_gradient, dwconv_norm.dwconv_norm_reference, rest)
    check(fused, plain, [x], torch.float32, 20)


def map_gradient(call: Call, others: list[Tensor], x: Tensor) -> Tensor:
    """An operation with tensors that take no gradient."""
    return call(x, *(other.to(x.dtype) for other in others))


def test_large_means_cost_no_digits_of_the_statistics(device: str) -> None:
    # The mean is rounded to 1000 * EPS / 2, which moves all channels alike; sums of squares would have cost 1e6 * EPS.
    x, weight, *_ = conv_tensors(1, 3, 4, 160, 1, device)
    assert x is not None
    assert weight is not None
    one, zero = torch.ones(160, device=device), torch.zeros(160, device=device)
    out = dwconv_norm.dwconv_norm(x, torch.ones_like(weight), 1000 * one, one, zero)
    y = (x + 1000 * one).double()  # the sum itself is rounded to 1000 * EPS, which is no fault of the norm
    true = dwconv_norm.dwconv_norm_reference(
        y, torch.ones_like(weight).double(), *(v.double() for v in (zero, one, zero))
    )
    assert (out - true).abs().max() <= 1000 * EPS


def test_reductions_are_spread_over_as_many_programs_as_wanted() -> None:
    assert launch.split_reduction(0, 8, 3) == (1, 1)
    for rows, others, programs in ((1000, 3, 12), (7, 1, 100), (5000, 50, 12), (64, 1, 8)):
        shares, steps = launch.split_reduction(rows, 8, others, programs)
        assert shares * others <= max(programs, others)
        assert (shares - 1) * steps * 8 < rows <= shares * steps * 8


@pytest.mark.parametrize("shape", [(2, 5, 9, 40), (3, 1, 1, 5), (1, 7, 3, 300)])
@pytest.mark.parametrize("programs", [2048, 4])
def test_response_normalisation(
    shape: tuple[int, ...], programs: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch.split_reduction, "__defaults__", (programs,))
    tensors = [values(*shape), values(1, 1, 1, shape[3], seed=1), values(1, 1, 1, shape[3], seed=2)]
    on_device: list[Tensor | None] = [t.to(device) for t in tensors]
    terms = max(shape[0] * shape[1] * shape[2], shape[3])
    check(grn.grn, grn.grn_reference, on_device, torch.float32, terms)
    check(grn.grn, grn.grn_reference, on_device, torch.bfloat16, terms)


def test_a_channel_without_response_has_a_gradient(device: str) -> None:
    x = values(2, 3, 3, 5).to(device)
    x[0, ..., 2] = 0
    x[1] = 0
    tensors: list[Tensor | None] = [x, *(values(1, 1, 1, 5, seed=i).to(device) for i in (1, 2))]
    check(grn.grn, grn.grn_reference, tensors, torch.float32, 18)


@pytest.mark.parametrize("gamma, with_grn", [(True, False), (False, True), (False, False), (True, True)])
@pytest.mark.parametrize("shape", [(2, 3, 5, 40, 150), (3, 1, 1, 5, 7), (1, 4, 7, 130, 33)])
@pytest.mark.parametrize("kept", [None, (2.0, 0.0, 1.25)])
def test_mlp(shape: tuple[int, ...], gamma: bool, with_grn: bool, kept: tuple[float, ...] | None, device: str) -> None:
    keep = None if kept is None else torch.tensor(kept[: shape[0]])
    tensors = mlp_tensors(*shape, device, gamma, with_grn)  # type: ignore[arg-type]
    fused = mlp_call(mlp.mlp, keep)
    plain = mlp_call(mlp.mlp_reference, keep)
    terms = max(shape[0] * shape[1] * shape[2], shape[3], shape[4])
    check(fused, plain, tensors, torch.float32, terms)
    if device == "cuda":  # in half precision a CPU's own steps round less than a GPU's, and are no measure
        check(fused, plain, tensors, torch.bfloat16, terms)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mlp_in_half_precision(dtype: torch.dtype, device: str) -> None:
    keep = torch.tensor([2.0, 1.0])
    for gamma, with_grn in ((True, False), (False, True)):
        tensors = mlp_tensors(2, 3, 5, 40, 160, device, gamma, with_grn)
        tensors[2:5:2] = [t / 8 for t in tensors[2:5:2] if t is not None]  # weights as large as trained ones
        check(mlp_call(mlp.mlp, keep), mlp_call(mlp.mlp_reference, keep), tensors, dtype, 0)


def test_gelu_is_the_exact_one(device: str) -> None:
    x = torch.linspace(-12, 12, 4096, device=device).reshape(1, 1, 32, 128)
    zero = torch.zeros(128, device=device)
    ours = grn.activate(x, zero, None, None).double()
    slope, again, _ = grn.backward_activation(torch.ones_like(x), x, zero, None, None, None, inplace=False)
    v = x.double()
    below = 0.5 * torch.special.erfc(-v * 0.5**0.5)  # keeps its digits in the lower tail, where 1 + erf loses them
    true, true_slope = v * below, below + v * torch.exp(-0.5 * v * v) / (2 * torch.pi) ** 0.5
    assert torch.equal(again.double(), ours)
    assert ((ours - true).abs() / true.abs().clamp_min(1)).max() <= 4 * EPS
    assert (slope - true_slope).abs().max() <= 4 * EPS
    tail = (x < -3) & (x > -9)
    assert (ours[tail] / true[tail] - 1).abs().max() <= 0.02


def test_maps_of_any_strides_and_an_expanded_gradient(device: str) -> None:
    shape = (2, 4, 5, 6)
    tensors = conv_tensors(*shape, 1, device)
    x, *rest = (t for t in tensors if t is not None)
    dense = run(lambda *t: dwconv_norm.dwconv_norm(*t).sum((0, 1)), [x, *rest], torch.ones(5, 6), torch.float32)
    for strided in (
        x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        torch.stack([x, x], 1)[:, 1],
        x.flip(2).flip(2).transpose(1, 2).contiguous().transpose(1, 2),
    ):
        again = run(
            lambda *t: dwconv_norm.dwconv_norm(*t).sum((0, 1)), [strided, *rest], torch.ones(5, 6), torch.float32
        )
        assert all(torch.equal(a, b) for a, b in zip(dense, again, strict=True))


@pytest.mark.parametrize("shape", [(0, 4, 5, 6), (2, 0, 5, 6)])
def test_empty_maps(shape: tuple[int, ...], device: str) -> None:
    tensors = conv_tensors(*shape, 3, device)  # type: ignore[arg-type]
    found = run(dwconv_norm.dwconv_norm, tensors, torch.zeros(shape, device=device), torch.float32)
    assert [t.shape for t in found] == [shape, *(t.shape for t in tensors if t is not None)]
    assert not any(t.any() for t in found)
    for gamma, with_grn in ((True, False), (False, True)):
        tensors = mlp_tensors(*shape, 9, device, gamma, with_grn)  # type: ignore[arg-type]
        found = run(mlp_call(mlp.mlp, None), tensors, torch.zeros(shape, device=device), torch.float32)
        assert not any(t.any() for t in found)


def test_frozen_tensors_cost_nothing_and_get_nothing(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, *vectors = (t for t in conv_tensors(1, 3, 4, 6, 1, device) if t is not None)
    full = run(dwconv_norm.dwconv_norm, [x, weight, *vectors], torch.ones_like(x), torch.float32)
    with monkeypatch.context() as patch:
        patch.setattr(dwconv_norm, "_launch_weight_grad", None)
        leaf = x.clone().requires_grad_()
        dwconv_norm.dwconv_norm(leaf, weight, *vectors).sum().backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad.double().cpu(), full[1])
    assert not dwconv_norm.dwconv_norm(x, weight, *vectors).requires_grad


def test_inference_keeps_nothing_and_computes_the_same(device: str) -> None:
    for channels in (20, 96):  # one chunk of channels, and several, which pass through the output
        tensors = [t for t in conv_tensors(1, 4, 9, channels, 1, device) if t is not None]
        out, conv, mean, rstd = torch.ops.convnext.dwconv_norm(*tensors, 1e-6, False)
        kept = torch.ops.convnext.dwconv_norm(*tensors, 1e-6, True)
        assert torch.equal(out, kept[0])
        assert [conv.numel(), mean.numel(), rstd.numel()] == [0, 0, 0]


def test_wide_parameters_with_a_half_precision_map(device: str) -> None:
    # As in autocast: the parameters, and their gradients, are in float32.
    tensors = [t for t in conv_tensors(1, 5, 6, 40, 3, device) if t is not None]
    x = tensors[0].bfloat16().requires_grad_()
    leaves = [t.requires_grad_() for t in tensors[1:]]
    out = dwconv_norm.dwconv_norm(x, *leaves)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert [leaf.grad.dtype for leaf in (x, *leaves) if leaf.grad is not None] == [torch.bfloat16] + [torch.float32] * 4


def packed_case(
    n: int, grid: tuple[int, int], visible: int, side: int, c: int, k: int, device: str
) -> tuple[PackedLayout, list[Tensor | None]]:
    """Layout of random units in any order, and the visible units, weight and bias."""
    generator = torch.Generator().manual_seed(n + visible + side)
    units = torch.rand(n, grid[0] * grid[1], generator=generator).argsort(1)[:, :visible]
    shapes = ((n, visible * side, side, c), (c, 1, k, k), (c,))
    tensors: list[Tensor | None] = [values(*shape, seed=i).to(device) for i, shape in enumerate(shapes)]
    return PackedLayout.of(units.to(device), grid, side), tensors


def check_packed(
    layout: PackedLayout, tensors: list[Tensor | None], dtype: torch.dtype = torch.float32, terms: int = 0
) -> None:
    fused = partial(packed_dwconv.packed_dwconv, layout=layout)
    plain = partial(packed_dwconv.packed_dwconv_reference, layout=layout)
    check(fused, plain, tensors, dtype, terms)


# Sides of the four stages and others, tiles of one unit and of several, all units visible and one, kernels that reach
# over several units, channels that fill no tile, and taps that are split over programs.
PACKED_SHAPES = [
    (1, (2, 2), 2, 8, 5, 7),
    (1, (2, 3), 3, 4, 5, 7),
    (2, (3, 3), 5, 2, 5, 7),
    (2, (4, 5), 9, 1, 5, 7),
    (1, (2, 2), 3, 3, 5, 5),
    (1, (1, 3), 2, 1, 70, 3),
    (1, (1, 2), 1, 16, 5, 3),
    (1, (2, 2), 4, 2, 5, 9),
    (2, (3, 3), 1, 4, 33, 1),
]


@pytest.mark.parametrize("shape", PACKED_SHAPES, ids=str)
def test_convolution_of_the_visible_units(shape: tuple[Any, ...], device: str) -> None:
    check_packed(*packed_case(*shape, device), terms=max(shape[0] * shape[2] * shape[3] ** 2, shape[5] ** 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_convolution_of_the_visible_units_in_half_precision(dtype: torch.dtype, device: str) -> None:
    check_packed(*packed_case(1, (2, 3), 4, 2, 40, 5, device), dtype)


@pytest.mark.parametrize("side", [8, 2, 3])
def test_every_tile_of_visible_units_computes_the_same(side: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, tensors = packed_case(1, (3, 2), 3, side, 20, 3, device)
    x, *rest = (t for t in tensors if t is not None)
    for name, tile in packed_dwconv.packed_candidate_tiles(20, side).items():
        with monkeypatch.context() as patch:
            patch.setattr(packed_dwconv, "packed_candidate_tiles", lambda *_, only={name: tile}: only)
            fused = partial(map_gradient, partial(packed_dwconv.packed_dwconv, layout=layout), rest)
            plain = partial(map_gradient, partial(packed_dwconv.packed_dwconv_reference, layout=layout), rest)
            check(fused, plain, [x], torch.float32, 20)


def test_a_packed_network_with_kernels_is_the_dense_one(
    device: str, without_tf32: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = ConvNeXt((1, 1, 1, 1), (3, 4, 5, 6), layer_scale_init_value=0.0, use_grn=True, init_std=0.3).to(device)
    for parameter in network.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    # Two units beside each other, four hidden ones, and pixels beyond the last whole unit.
    images, units = values(1, 3, 70, 101).to(device), torch.tensor([[1, 2]], device=device)
    launched = []
    launch = packed_dwconv._launch_conv
    monkeypatch.setattr(packed_dwconv, "_launch_conv", lambda *a: (launched.append(a[0].shape[2]), launch(*a))[1])
    found = {}
    for form, dtype in (("dense", torch.float64), ("packed", torch.float32)):
        network = network.to(dtype)
        with autotuner.use(dwconv_norm="plain", mlp="plain", packed_dwconv="fused" if form == "packed" else "plain"):
            out = network(images.to(dtype), units, form)
            loss = (out * torch.linspace(-1, 1, out.numel(), dtype=dtype, device=device).view_as(out)).sum()
            names = [name for name, one in network.named_parameters() if not name.startswith("norm")]
            gradients = torch.autograd.grad(loss, [network.get_parameter(name) for name in names])
        found[form] = [loss.detach().double(), *(one.double() for one in gradients)]
    assert launched == [8, 4, 2, 1, 1, 2, 4, 8]  # forward and backward, each stage's gradient of its input
    for mine, true in zip(found["packed"], found["dense"], strict=True):
        assert (mine - true).norm() <= 1e-4 * true.norm()


def test_frozen_parts_of_a_packed_convolution_are_not_computed(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, tensors = packed_case(1, (2, 2), 2, 2, 6, 3, device)
    call = partial(packed_dwconv.packed_dwconv, layout=layout)
    full = run(call, tensors, torch.ones(1, 4, 2, 6), torch.float32)
    for leaf, unused in ((0, "_launch_weight_grad"), (1, "_launch_conv"), (2, "_launch_conv")):
        leaves = [t.clone().requires_grad_(i == leaf) for i, t in enumerate(tensors) if t is not None]
        out = call(*leaves)
        with monkeypatch.context() as patch:
            patch.setattr(packed_dwconv, unused, None)
            out.sum().backward()
        assert leaves[leaf].grad is not None
        assert torch.equal(leaves[leaf].grad.double().cpu(), full[1 + leaf])


@pytest.mark.parametrize("shape", [(0, (2, 2), 2, 4, 5, 7), (2, (2, 2), 0, 4, 5, 7)], ids=str)
def test_no_visible_unit(shape: tuple[Any, ...], device: str) -> None:
    layout, tensors = packed_case(*shape, device)
    assert tensors[0] is not None
    call = partial(packed_dwconv.packed_dwconv, layout=layout)
    found = run(call, tensors, torch.zeros_like(tensors[0]), torch.float32)
    assert [t.shape for t in found[1:]] == [t.shape for t in tensors if t is not None]
    assert not any(t.any() for t in found)


@pytest.mark.gpu
@pytest.mark.parametrize("side, c", [(8, 96), (4, 192), (2, 384), (1, 768), (8, 352), (1, 2816)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_visible_units_of_real_networks(side: int, c: int, dtype: torch.dtype, without_tf32: None) -> None:
    check_packed(*packed_case(8, (7, 7), 19, side, c, 7, "cuda"), dtype, terms=8 * 19 * side**2)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "shape", [(4, 56, 56, 96), (4, 28, 28, 256), (8, 14, 14, 384), (8, 7, 7, 768), (2, 7, 9, 2816)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sizes_of_real_networks(shape: tuple[int, ...], dtype: torch.dtype, without_tf32: None) -> None:
    terms = shape[0] * shape[1] * shape[2]
    tensors = conv_tensors(*shape, 7, "cuda")  # type: ignore[arg-type]
    check(dwconv_norm.dwconv_norm, dwconv_norm.dwconv_norm_reference, tensors, dtype, terms)
    for gamma, with_grn in ((True, False), (False, True)):
        rest = mlp_tensors(*shape, 4 * shape[3], "cuda", gamma, with_grn)  # type: ignore[arg-type]
        rest[2:5:2] = [t / t.shape[1] ** 0.5 for t in rest[2:5:2] if t is not None]
        check(mlp_call(mlp.mlp, None), mlp_call(mlp.mlp_reference, None), rest, dtype, terms)


@pytest.mark.gpu
def test_two_runs_agree_to_the_bit() -> None:
    calls: list[tuple[Call, list[Tensor | None]]] = [
        (dwconv_norm.dwconv_norm, conv_tensors(8, 28, 28, 192, 7, "cuda")),
        (mlp_call(mlp.mlp, None), mlp_tensors(8, 28, 28, 192, 768, "cuda", True, True)),
    ]
    layout, visible = packed_case(8, (7, 7), 19, 4, 192, 7, "cuda")
    calls.append((partial(packed_dwconv.packed_dwconv, layout=layout), visible))
    for call, tensors in calls:
        assert tensors[0] is not None
        weights = values(*tensors[0].shape).cuda()
        first, second = (run(call, tensors, weights, torch.bfloat16) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.gpu
def test_offsets_beyond_32_bits() -> None:
    n, c = 1800, 384  # 2.17e9 elements
    x = torch.randn(n, 56, 56, c, device="cuda", dtype=torch.bfloat16)
    _, weight, *vectors = (t for t in conv_tensors(1, 1, 1, c, 7, "cuda") if t is not None)
    call = partial(dwconv_norm.dwconv_norm, weight=weight, bias=vectors[0], scale=vectors[1], shift=vectors[2])
    with torch.no_grad():
        assert torch.equal(call(x)[-1:], call(x[-1:]))
        assert torch.equal(grn.activate(x, vectors[0], None, None)[-1:], grn.activate(x[-1:], vectors[0], None, None))
        units = torch.arange(49, device="cuda").expand(n, -1)
        packed = [PackedLayout.of(one, (7, 7), 8) for one in (units, units[-1:])]
        x = x.view(n, 49 * 8, 8, c)
        outs = [
            packed_dwconv.packed_dwconv(*one, weight, vectors[0], layout)
            for one, layout in zip(((x,), (x[-1:],)), packed, strict=True)
        ]
        assert torch.equal(outs[0][-1:], outs[1])


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu_and_graphs_capture_it() -> None:
    layout, visible = packed_case(2, (7, 7), 19, 2, 96, 7, "cuda")
    calls: list[tuple[Call, list[Tensor | None]]] = [
        (dwconv_norm.dwconv_norm, conv_tensors(2, 14, 14, 96, 7, "cuda")),
        (partial(packed_dwconv.packed_dwconv, layout=layout), visible),
    ]
    for call, given in calls:
        tensors = [t.requires_grad_() for t in given if t is not None]
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                torch.autograd.grad(call(*tensors).sum(), tensors)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = torch.autograd.grad(call(*tensors).sum(), tensors)
        graph.replay()
        eager = torch.autograd.grad(call(*tensors).sum(), tensors)
        assert all(torch.equal(a, b) for a, b in zip(captured, eager, strict=True))
