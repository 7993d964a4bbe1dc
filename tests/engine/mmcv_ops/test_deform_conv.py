"""Deformable convolutions against loops over taps, and their gradients against finite differences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from engine import mmcv_ops

mmcv_ops.install()

from mmcv import ops  # noqa: E402

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def value_at(plane: Tensor, y: float, x: float) -> Tensor:
    """Bilinear value of (H, W); pixels outside are zero."""
    total = plane.new_zeros(())
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
                total = total + plane[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def reference(
    image: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    sizes: tuple[tuple[int, int], tuple[int, int], tuple[int, int]],
    groups: int,
    deform_groups: int,
) -> Tensor:
    """Sum over channels and taps at displaced places: equations 2 of both papers."""
    stride, padding, dilation = sizes
    outputs, per_group, kh, kw = weight.shape
    channels = image.shape[1]
    result = image.new_zeros(len(image), outputs, *offset.shape[2:])
    for b, o, i, j in torch.cartesian_prod(*map(torch.arange, result.shape)).tolist():
        total = image.new_zeros(()) if bias is None else bias[o]
        for c in range(per_group):
            channel = o // (outputs // groups) * per_group + c
            group = channel // (channels // deform_groups)
            for p in range(kh):
                for q in range(kw):
                    tap = p * kw + q
                    dy, dx = offset[b, 2 * (group * kh * kw + tap) :, i, j][:2].tolist()
                    y = i * stride[0] - padding[0] + p * dilation[0] + dy
                    x = j * stride[1] - padding[1] + q * dilation[1] + dx
                    factor = 1.0 if mask is None else mask[b, group * kh * kw + tap, i, j]
                    total = total + weight[o, c, p, q] * factor * value_at(image[b, channel], y, x)
        result[b, o, i, j] = total
    return result


CASES: dict[str, dict[str, Any]] = {
    "plain": {"kernel": (3, 3), "sizes": ((1, 1), (1, 1), (1, 1)), "groups": 1, "deform_groups": 1},
    "uneven": {"kernel": (2, 3), "sizes": ((2, 1), (0, 2), (1, 2)), "groups": 1, "deform_groups": 2},
    "grouped": {"kernel": (1, 1), "sizes": ((1, 2), (1, 0), (1, 1)), "groups": 2, "deform_groups": 1},
}


def tensors(case: dict[str, Any]) -> dict[str, Tensor]:
    """Random float64 inputs of two images of four channels; displacements reach over the border."""
    generator = torch.Generator().manual_seed(1)
    (kh, kw), (stride, padding, dilation) = case["kernel"], case["sizes"]
    size = [
        (full + 2 * padding[i] - dilation[i] * (k - 1) - 1) // stride[i] + 1
        for i, (full, k) in enumerate(((4, kh), (5, kw)))
    ]
    taps = case["deform_groups"] * kh * kw
    draw = {
        "image": (2, 4, 4, 5),
        "offset": (2, 2 * taps, *size),
        "mask": (2, taps, *size),
        "weight": (2, 4 // case["groups"], kh, kw),
        "bias": (2,),
    }
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in draw.items()}


def options(case: dict[str, Any]) -> list[Any]:
    return [*case["sizes"], case["groups"], case["deform_groups"]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_deform_conv(name: str, device: str) -> None:
    case = CASES[name]
    made = tensors(case)
    expected = reference(made["image"], made["offset"], None, made["weight"], None, *options_of(case))
    inputs = [made[key].to(device) for key in ("image", "offset", "weight")]
    torch.testing.assert_close(ops.deform_conv2d(*inputs, *options(case)).cpu(), expected)
    single = ops.deform_conv2d(*(tensor.float() for tensor in inputs), *options(case))
    torch.testing.assert_close(single.cpu(), expected.float())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_modulated_deform_conv(name: str, with_bias: bool, device: str) -> None:
    case = CASES[name]
    made = tensors(case)
    bias = made["bias"] if with_bias else None
    expected = reference(made["image"], made["offset"], made["mask"], made["weight"], bias, *options_of(case))
    inputs = [made[key].to(device) for key in ("image", "offset", "mask", "weight")]
    given = None if bias is None else bias.to(device)
    torch.testing.assert_close(ops.modulated_deform_conv2d(*inputs, given, *options(case)).cpu(), expected)


def test_maps_larger_than_the_output_are_read_from_their_beginning() -> None:
    """As the compiled op does, which mmdet's DyHead relies on: it gives displacements of the next finer level."""
    case = CASES["uneven"]
    made = tensors(case)
    expected = reference(made["image"], made["offset"], made["mask"], made["weight"], None, *options_of(case))
    for key in ("offset", "mask"):
        height, width = made[key].shape[2:]
        buffer = torch.full((2, made[key][0].numel() * 4), torch.nan, dtype=torch.float64)
        buffer[:, : made[key][0].numel()] = made[key].flatten(1)
        made[key] = buffer.view(2, -1, 2 * height, 2 * width).requires_grad_()
    inputs = [made[key] for key in ("image", "offset", "mask", "weight")]
    found = ops.modulated_deform_conv2d(*inputs, None, *options(case))
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    for key in ("offset", "mask"):
        used, unused = made[key].grad.flatten(1).tensor_split([made[key][0].numel() // 4], dim=1)
        assert used.count_nonzero() > 0
        assert unused.count_nonzero() == 0


def options_of(case: dict[str, Any]) -> tuple[Any, int, int]:
    return case["sizes"], case["groups"], case["deform_groups"]


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_deform_convs(name: str) -> None:
    case = CASES[name]
    made = {key: tensor[:1] if key in ("image", "offset", "mask") else tensor for key, tensor in tensors(case).items()}
    leaves = {key: tensor.requires_grad_() for key, tensor in made.items()}

    def first(image: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
        return ops.deform_conv2d(image, offset, weight, *options(case))

    def second(image: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.modulated_deform_conv2d(image, offset, mask, weight, bias, *options(case))

    torch.autograd.gradcheck(first, [leaves[key] for key in ("image", "offset", "weight")], fast_mode=True)
    torch.autograd.gradcheck(
        second, [leaves[key] for key in ("image", "offset", "mask", "weight", "bias")], fast_mode=True
    )


def test_frozen_weights_of_deform_convs_get_no_gradient() -> None:
    made = tensors(CASES["plain"])
    image, offset = (made[key].requires_grad_() for key in ("image", "offset"))
    ops.deform_conv2d(image, offset, made["weight"], 1, 1).sum().backward()
    assert made["weight"].grad is None
    assert image.grad.abs().sum() > 0
    assert offset.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_deform_conv_in_half_precision(dtype: torch.dtype) -> None:
    made = {key: tensor.to(dtype).requires_grad_() for key, tensor in tensors(CASES["plain"]).items()}
    inputs = [made[key] for key in ("image", "offset", "weight")]
    result = ops.deform_conv2d(*inputs, 1, 1)
    assert result.dtype == dtype
    expected = ops.deform_conv2d(*(tensor.detach().double() for tensor in inputs), 1, 1)
    torch.testing.assert_close(result, expected.to(dtype))
    result.sum().backward()
    assert made["offset"].grad.dtype == dtype


@pytest.mark.parametrize("kind", ["DCN", "DCNv2", "SAC"])
def test_layers_built_on_deform_convs_learn(kind: str) -> None:
    from mmcv.cnn import build_conv_layer

    torch.manual_seed(0)
    options_ = {"use_deform": True} if kind == "SAC" else {}
    layer = build_conv_layer({"type": kind, **options_}, 4, 6, 3, padding=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = layer(torch.randn(2, 4, 7, 6))
    assert result.shape == (2, 6, 7, 6)
    result.float().square().sum().backward()
    unused = {"bias"} if kind == "SAC" else set()
    assert {name for name, parameter in layer.named_parameters() if parameter.grad is None} == unused
    assert layer.weight.grad.abs().sum() > 0
