"""Products of a linear layer and its gradients on CPU, each by the operator of oneDNN that is fastest at it.

``F.linear`` gives products of float32 to MKL, which reaches half of oneDNN's speed on CPUs that are not Intel's. The
forms below were measured on a Zen 5 with 2 threads, ``docs/performance.md`` has the figures: a convolution of side 1
where there are more rows than channels, an inner product elsewhere and for the gradient of the input, and the weight's
gradient by convolution for float32 alone, where the rows are divided into what oneDNN takes for images.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Rows that the weight's gradient takes for one image: with fewer the calls cost, with more the transposed rows leave
# the cache.
ROWS = range(200, 63, -1)
# Of a convolution of side 1: its padding, stride, dilation and groups; and as the gradient's operator has it, with no
# bias, stride, padding and dilation, not transposed, no padding of that, one group.
SIDE_1 = ([0, 0], [1, 1], [1, 1], 1)
SIDE_1_BACK = (None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """``x @ weight.T + bias``, and GELU (by erf) of it.

    Args:
        x: ``(n, h, w, K)``, contiguous.
        weight: ``(N, K)``, of the precision of ``x``; or one of :func:`packed`.
        bias: ``(N,)``, of the same precision.
        gelu: Whether GELU follows.

    Returns:
        ``(n, h, w, N)``, contiguous.
    """
    then: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")
    if weight.ndim == 2 and (weight.is_mkldnn or few(x, weight)):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *then)
    maps, kernel = x.permute(0, 3, 1, 2), weight[:, :, None, None] if weight.ndim == 2 else weight
    y = torch.ops.mkldnn._convolution_pointwise(maps, kernel, bias, *SIDE_1, *then)
    return y.permute(0, 2, 3, 1).contiguous()


def few(rows: Tensor, weight: Tensor) -> bool:
    """Whether rows ``(..., K)`` are too few for a convolution with a weight ``(N, K)``."""
    return rows.shape[:-1].numel() <= min(weight.shape)


def packed(weight: Tensor, shape: torch.Size, by_convolution: bool) -> Tensor:
    """A weight in a layout that :func:`linear` need not reorder: worth it for more products than one.

    Args:
        weight: ``(N, K)``.
        shape: Of the maps that it will meet, ``(n, h, w, K)`` with any ``K``; others are met as well, if less quickly.
        by_convolution: The operator for which it is laid out.
    """
    if not by_convolution:
        return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    kernel, maps = weight.contiguous()[:, :, None, None], [shape[0], weight.shape[1], *shape[1:3]]
    return torch.ops.mkldnn._reorder_convolution_weight(kernel, *SIDE_1, maps)


def input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """``gradient @ weight``, ``(n, h, w, N) -> (n, h, w, K)``."""
    if gradient.dtype == torch.float32 or few(gradient, weight):
        return torch.ops.mkldnn._linear_pointwise(gradient, weight.t(), None, "none", [], "")
    # The operator asks for the input, and takes no value of it.
    x = gradient.new_empty(*gradient.shape[:-1], weight.shape[1])
    maps, kernel = [one.permute(0, 3, 1, 2) for one in (gradient, x)], weight[:, :, None, None]
    found, _, _ = torch.ops.aten.convolution_backward(*maps, kernel, *SIDE_1_BACK, [True, False, False])
    return found.permute(0, 2, 3, 1).contiguous()


def weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """``gradient.T @ x`` over all rows.

    Args:
        gradient: Of the output, ``(n, h, w, N)``.
        x: Input, ``(n, h, w, K)``.

    Returns:
        ``(N, K)`` in float32.
    """
    gradient, x = gradient.flatten(0, -2), x.flatten(0, -2)
    if x.dtype != torch.float32:
        return (gradient.t() @ x).float()
    shape = torch.empty(gradient.shape[1], x.shape[1])  # the operators ask for the weight, and take no value of it
    side = next((side for side in ROWS if len(x) % side == 0), None)
    if side is None or few(x, shape):
        found, _ = torch.ops.aten.mkldnn_linear_backward_weights(gradient.to_mkldnn(), x.to_mkldnn(), shape, False)
        return found.to_dense()
    maps = [one.view(-1, side, 1, one.shape[1]).permute(0, 3, 1, 2) for one in (gradient, x)]
    _, found, _ = torch.ops.aten.convolution_backward(
        *maps, shape[:, :, None, None], *SIDE_1_BACK, [False, True, False]
    )
    return found.flatten(1)


def column_sums(rows: Tensor) -> Tensor:
    """``(n, h, w, N) -> (N,)`` in float32: the gradient of a bias."""
    return rows.flatten(0, -2).sum(0).float()
