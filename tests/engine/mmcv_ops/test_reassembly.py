"""CARAFE, PSANet's masks, masked convolution, deformable attention, softmax focal loss and NMS of lanes by loops.

Synchronised batch norm is compared with torch's batch norm.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine import mmcv_ops

mmcv_ops.install()

from mmcv import ops  # noqa: E402

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def draw(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def places(*sizes: int) -> list[list[int]]:
    return torch.cartesian_prod(*map(torch.arange, sizes)).tolist()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("kernel", "groups", "scale"), [(3, 2, 2), (5, 1, 3), (1, 1, 1)])
def test_carafe(kernel: int, groups: int, scale: int, device: str) -> None:
    image, masks = draw(2, 4, 3, 4), draw(2, groups * kernel**2, 3 * scale, 4 * scale, seed=6)
    expected = torch.zeros(2, 4, 3 * scale, 4 * scale, dtype=torch.float64)
    for b, c, i, j in places(*expected.shape):
        for tap, (p, q) in enumerate(places(kernel, kernel)):
            y, x = i // scale + p - kernel // 2, j // scale + q - kernel // 2
            if 0 <= y < 3 and 0 <= x < 4:
                group = c // (4 // groups)
                expected[b, c, i, j] += image[b, c, y, x] * masks[b, group * kernel**2 + tap, i, j]
    served = ops.carafe(image.to(device), masks.to(device), kernel, groups, scale)
    torch.testing.assert_close(served.cpu(), expected)
    naive = ops.CARAFENaive(kernel, groups, scale)(image.to(device), masks.to(device))
    torch.testing.assert_close(naive.cpu(), expected)
    leaves = image.requires_grad_(), masks.requires_grad_()
    torch.autograd.gradcheck(lambda x, m: ops.carafe(x, m, kernel, groups, scale), leaves, fast_mode=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(3, 5), (7, 3)])
@pytest.mark.parametrize("kind", ["collect", "distribute"])
def test_psa_mask(kind: str, size: tuple[int, int], device: str) -> None:
    height, width = 3, 4
    masks = draw(2, size[0] * size[1], height, width)
    expected = torch.zeros(2, height * width, height, width, dtype=torch.float64)
    for b, i, j, p, q in places(2, height, width, height, width):
        row, column = p - i + (size[0] - 1) // 2, q - j + (size[1] - 1) // 2
        if 0 <= row < size[0] and 0 <= column < size[1]:
            value = masks[b, row * size[1] + column, i, j]
            if kind == "collect":
                expected[b, p * width + q, i, j] = value
            else:
                expected[b, i * width + j, p, q] = value
    served = ops.PSAMask(kind, size)(masks.to(device))
    assert torch.equal(served.cpu(), expected)
    torch.autograd.gradcheck(ops.PSAMask(kind, size), masks.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("device", DEVICES)
def test_masked_conv(device: str) -> None:
    torch.manual_seed(0)
    layer = ops.MaskedConv2d(3, 4, 3, padding=1).to(device)
    image = torch.randn(1, 3, 5, 6, device=device)
    mask = torch.zeros(1, 5, 6, device=device)
    mask[0, [0, 2, 4], [5, 3, 0]] = 1
    full = F.conv2d(image, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(image, mask), full * mask)
    assert torch.equal(layer(image, torch.zeros_like(mask)), torch.zeros_like(full))
    torch.testing.assert_close(layer(image), full)


@pytest.mark.parametrize("device", DEVICES)
def test_ms_deform_attn(device: str) -> None:
    shapes = [(3, 4), (2, 2)]
    value, weights = draw(2, 16, 2, 3), draw(2, 5, 2, 2, 3, seed=7)
    locations = draw(2, 5, 2, 2, 3, 2, seed=8) / 2 + 0.5  # some fall outside
    expected = torch.zeros(2, 5, 6, dtype=torch.float64)
    starts = [0, 12]
    for b, query, head, level, point in places(2, 5, 2, 2, 3):
        height, width = shapes[level]
        x, y = (locations[b, query, head, level, point] * torch.tensor([width, height]) - 0.5).tolist()
        for row, column in places(height, width):
            near = max(0.0, 1 - abs(y - row)) * max(0.0, 1 - abs(x - column))
            pixel = value[b, starts[level] + row * width + column, head]
            expected[b, query, 3 * head : 3 * head + 3] += weights[b, query, head, level, point] * near * pixel
    function = ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply

    def served(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        fixed = torch.tensor(shapes, device=value.device), torch.tensor(starts, device=value.device)
        return function(value, *fixed, locations, weights, 64)

    inputs = [tensor.to(device) for tensor in (value, locations, weights)]
    torch.testing.assert_close(served(*inputs).cpu(), expected)
    torch.autograd.gradcheck(served, [tensor.requires_grad_() for tensor in inputs], fast_mode=True)
    assert served(*(tensor.detach().half() for tensor in inputs)).dtype == torch.float16


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("gamma", [2.0, 0.5, 0.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_softmax_focal_loss(weighted: bool, gamma: float, device: str) -> None:
    logits, target = draw(5, 3).requires_grad_(), torch.tensor([2, 0, 1, 1, 0])
    weight = torch.tensor([0.5, 1.0, 2.0]).double() if weighted else None
    rows = []
    for row, label in zip(logits, target.tolist(), strict=True):
        p = torch.exp(row[label]) / torch.exp(row).sum()
        rows.append(-0.25 * (1 - p) ** gamma * torch.log(p) * (1 if weight is None else weight[label]))
    expected = torch.stack(rows)
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    leaf = logits.detach().to(device).requires_grad_()
    given = None if weight is None else weight.to(device)
    function = ops.softmax_focal_loss  # mmcv's backward of reduction="none" fails: it mixes up (N,) and (N, C)
    torch.testing.assert_close(function(leaf, target.to(device), gamma, 0.25, given, "none").cpu(), expected)
    served = function(leaf, target.to(device), gamma, 0.25, given, "sum")
    served.backward()
    torch.testing.assert_close(leaf.grad.cpu(), gradient)


def test_softmax_focal_loss_of_certain_and_of_ignored_samples() -> None:
    logits = torch.tensor([[100.0, -100.0], [-100.0, 100.0], [1.0, 2.0]], requires_grad=True)
    loss = ops.softmax_focal_loss(logits, torch.tensor([0, 0, -1]), 0.5, 0.25, None, "none")
    assert loss[0] == 0
    assert loss[1] > 20
    assert loss[2] == 0
    ops.softmax_focal_loss(logits, torch.tensor([0, 0, -1]), 0.5, 0.25, None, "sum").backward()
    assert torch.isfinite(logits.grad).all()
    assert torch.equal(logits.grad[2], torch.zeros(2))


def reference_line_nms(lanes: Tensor, scores: Tensor, overlap: float, top_k: int) -> list[int]:
    kept: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        for other in kept:
            starts = [round(lanes[k, 2].item() * 71) for k in (i, other)]
            ends = [start + int(lanes[k, 4].item()) - 1 for start, k in zip(starts, (i, other), strict=True)]
            common = range(max(starts), min(*ends, 71) + 1)
            distance = sum(abs(lanes[i, 5 + p] - lanes[other, 5 + p]).item() for p in common)
            if common and distance / len(common) < overlap:
                break
        else:
            kept.append(i)
    return kept[:top_k]


@pytest.mark.parametrize("device", DEVICES)
def test_line_nms(device: str) -> None:
    generator = torch.Generator().manual_seed(9)
    lanes, scores = torch.zeros(30, 77), torch.rand(30, generator=generator)
    lanes[:, 2] = torch.randint(0, 40, (30,), generator=generator) / 71
    lanes[:, 4] = torch.randint(0, 60, (30,), generator=generator)
    lanes[:, 5:] = 20 * torch.rand(30, 1, generator=generator) + torch.rand(30, 72, generator=generator)
    for top_k in (30, 4):
        expected = reference_line_nms(lanes, scores, 3.0, top_k)
        assert 1 < len(expected) < 30
        keep, count, parents = ops.line_nms(lanes.to(device), scores.to(device), 3.0, top_k)
        assert keep[: int(count)].tolist() == expected
        assert [int(parents[i]) for i in expected] == list(range(1, len(expected) + 1))
    assert int(ops.line_nms(lanes[:0], scores[:0], 3.0, 4)[1]) == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", ["default", "N"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_sync_bn_of_one_process(dtype: torch.dtype, mode: str, device: str) -> None:
    image = (3 * draw(2, 3, 4, 5) + 1).to(dtype)
    weight, bias, running = draw(3, seed=6).float(), draw(3, seed=7).float(), (torch.zeros(3), torch.ones(3))
    leaves = [tensor.clone().double().requires_grad_() for tensor in (image, weight, bias)]
    statistics = [tensor.clone().double() for tensor in running]
    expected = F.batch_norm(leaves[0], *statistics, leaves[1], leaves[2], training=True, momentum=0.3, eps=1e-5)
    upstream = draw(2, 3, 4, 5, seed=8)
    expected.backward(upstream)

    served = [tensor.clone().to(device).requires_grad_() for tensor in (image, weight, bias)]
    kept = [tensor.clone().to(device) for tensor in running]
    function = ops.sync_bn.SyncBatchNormFunction.apply
    result = function(served[0], *kept, served[1], served[2], 0.3, 1e-5, None, 1, mode)
    assert result.dtype == dtype
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.float16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(result.double().cpu(), expected, **tolerance)
    result.backward(upstream.to(dtype).to(device))
    for ours, theirs in zip(
        (*[leaf.grad for leaf in served], *kept), (*[leaf.grad for leaf in leaves], *statistics), strict=True
    ):
        torch.testing.assert_close(ours.double().cpu(), theirs, **tolerance)


def test_sync_bn_counts_the_places_of_all_processes() -> None:
    from engine.mmcv_ops.sync_bn import sync_bn_forward_output

    image, buffers = torch.zeros(1, 2, 3), [torch.zeros(1, 2, 3), torch.zeros(2), torch.zeros(1, 2, 3)]
    running = torch.zeros(2), torch.zeros(2)
    sync_bn_forward_output(image, torch.ones(2), torch.full((2,), 7.0), None, None, *running, *buffers, 0.0, 0.5, 2)
    torch.testing.assert_close(running[1], torch.full((2,), 0.5 * 7 * 6 / 5))
    torch.testing.assert_close(buffers[2], torch.full((1, 2, 3), -(7**-0.5)))
