"""Products of a linear layer and its gradients on CPU, each by the operator of oneDNN that is fastest at it.

``F.linear`` gives products of float32 to MKL, which reaches half of oneDNN's speed on CPUs that are not Intel's. The
forms below were measured on a Zen 5 with 2 threads, ``docs/performance.md`` has the figures: a 1 x 1 convolution where
there are more rows than channels, an inner product elsewhere and for the gradient of the input, and the weight gradient
by convolution for float32 alone, where the rows are divided into pieces that oneDNN takes for images.

PyTorch has no public names for oneDNN's operators; they are used in this module alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

# Rows that the weight gradient takes for one image: with fewer the overhead of calls dominates, with more the
# transposed rows leave the cache.
ROWS_PER_IMAGE = range(200, 63, -1)
# Arguments of a 1 x 1 convolution: padding, stride, dilation and groups; and those of its gradient's operator: no bias,
# stride, padding and dilation, not transposed, no output padding, one group.
POINTWISE = ([0, 0], [1, 1], [1, 1], 1)
POINTWISE_BACKWARD = (None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)


@cache
def has_onednn_products(dtype: torch.dtype) -> bool:
    """Whether this build and CPU have oneDNN's products in a precision."""
    try:
        torch.ops.aten.mkldnn_reorder_conv2d_weight(torch.ones(1, 1, 1, 1, dtype=dtype).to_mkldnn())
    except RuntimeError:  # by which PyTorch's operators refuse a precision
        return False
    return True


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """``x @ weight.T + bias``, followed by GELU (by erf) if asked for.

    Args:
        x: Map, ``(n, h, w, K)``, contiguous.
        weight: ``(N, K)``, in the precision of ``x``; or one from :func:`reorder_weight`.
        bias: ``(N,)``, in the same precision.
        gelu: Apply GELU to the result.

    Returns:
        ``(n, h, w, N)``, contiguous.
    """
    post: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")
    if weight.ndim == 2 and (weight.is_mkldnn or has_few_rows(x, weight)):
        return _inner_product(x, weight, bias, *post)
    maps, kernel = x.permute(0, 3, 1, 2), weight[:, :, None, None] if weight.ndim == 2 else weight
    y = torch.ops.mkldnn._convolution_pointwise(maps, kernel, bias, *POINTWISE, *post)
    return y.permute(0, 2, 3, 1).contiguous()


def _inner_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    post: str = "none",
    scalars: Sequence[float] = (),
    algorithm: str = "",
) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, post, scalars, algorithm)


def has_few_rows(rows: Tensor, weight: Tensor) -> bool:
    """Whether rows ``(..., K)`` are too few for a convolution with a weight ``(N, K)``."""
    return rows.shape[:-1].numel() <= min(weight.shape)


def reorder_weight(weight: Tensor, shape: torch.Size, by_convolution: bool) -> Tensor:
    """A weight in a layout that :func:`linear` need not reorder: worth it for more than one product.

    Args:
        weight: ``(N, K)``.
        shape: Expected shape of the maps, ``(n, h, w, K)`` with any ``K``; others are accepted as well, only slower.
        by_convolution: Lay it out for the convolution, not for the inner product.
    """
    if not by_convolution:
        return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    kernel, maps = weight.contiguous()[:, :, None, None], [shape[0], weight.shape[1], *shape[1:3]]
    return torch.ops.aten.mkldnn_reorder_conv2d_weight(kernel.to_mkldnn(), *POINTWISE, maps)


def input_gradient(grad_out: Tensor, weight: Tensor) -> Tensor:
    """``grad_out @ weight``, ``(n, h, w, N) -> (n, h, w, K)``."""
    if grad_out.dtype == torch.float32 or has_few_rows(grad_out, weight):
        return _inner_product(grad_out, weight.t(), None)
    # The operator requires the input, and reads no value of it.
    x = grad_out.new_empty(*grad_out.shape[:-1], weight.shape[1])
    maps, kernel = [one.permute(0, 3, 1, 2) for one in (grad_out, x)], weight[:, :, None, None]
    grad_x, _, _ = torch.ops.aten.convolution_backward(*maps, kernel, *POINTWISE_BACKWARD, [True, False, False])
    return grad_x.permute(0, 2, 3, 1).contiguous()


def weight_gradient(grad_out: Tensor, x: Tensor) -> Tensor:
    """``grad_out.T @ x`` over all rows.

    Args:
        grad_out: Gradient of the output, ``(n, h, w, N)``.
        x: Input, ``(n, h, w, K)``.

    Returns:
        ``(N, K)`` in float32.
    """
    grad_out, x = grad_out.flatten(0, -2), x.flatten(0, -2)
    if x.dtype != torch.float32:
        return (grad_out.t() @ x).float()
    # The operators require the weight, and read no value of it.
    weight = torch.empty(grad_out.shape[1], x.shape[1])
    side = next((side for side in ROWS_PER_IMAGE if len(x) % side == 0), None)
    if side is None or has_few_rows(x, weight):
        grad, _ = torch.ops.aten.mkldnn_linear_backward_weights(grad_out.to_mkldnn(), x.to_mkldnn(), weight, False)
        return grad.to_dense()
    maps = [one.view(-1, side, 1, one.shape[1]).permute(0, 3, 1, 2) for one in (grad_out, x)]
    _, grad, _ = torch.ops.aten.convolution_backward(
        *maps, weight[:, :, None, None], *POINTWISE_BACKWARD, [False, True, False]
    )
    return grad.flatten(1)


def column_sums(rows: Tensor) -> Tensor:
    """``(n, h, w, N) -> (N,)`` in float32: the gradient of a bias."""
    return rows.flatten(0, -2).sum(0).float()
