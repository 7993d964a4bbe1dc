"""Products on CPU beside those in float64, in each of their forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from backbones.kernels.cpu import linear

# Images, height, width, and channels in and out: few rows, many rows, a number of rows that is prime.
SHAPES = {
    "few rows": (1, 2, 3, 16, 24),
    "many rows": (2, 14, 14, 16, 40),
    "many rows, narrower": (3, 10, 20, 48, 16),
    "a prime number of rows": (1, 1, 127, 16, 8),
    "a large prime": (1, 1, 401, 8, 16),
    "one row": (1, 1, 1, 8, 8),
}
BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 4e-3}


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    assert found.is_contiguous()
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_and_gradients_are_right(shape: str, dtype: torch.dtype) -> None:
    *place, into, out = SHAPES[shape]
    x, gradient = drawn(*place, into, dtype=dtype), drawn(*place, out, dtype=dtype)
    weight, bias = drawn(out, into, dtype=dtype), drawn(out, dtype=dtype)
    expected = x.double() @ weight.double().t() + bias.double()
    rows = gradient.flatten(0, 2).double()
    bound = BOUNDS[dtype]
    other = torch.Size((1, 20, 20, 1))  # not the size that it was packed for
    layouts = (linear.reorder_weight(weight, size, way) for way in (False, True) for size in (x.shape, other))
    for one in (weight, *layouts):
        assert error(linear.linear(x, one, bias), expected) < bound
        assert error(linear.linear(x, one, bias, gelu=True), torch.nn.functional.gelu(expected)) < bound
    assert error(linear.linear(x, weight, None), expected - bias.double()) < bound
    assert error(linear.input_gradient(gradient, weight), gradient.double() @ weight.double()) < bound
    found = linear.weight_gradient(gradient, x)
    assert found.dtype == torch.float32
    assert error(found, rows.t() @ x.flatten(0, 2).double()) < bound
    sums = linear.column_sums(gradient)
    assert sums.dtype == torch.float32
    assert error(sums, rows.sum(0)) < bound
