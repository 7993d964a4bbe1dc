"""The block after its norm: linear, bias and GELU (and GRN), linear, bias, layer scale, stochastic depth, residual.

The two products are cuBLAS's. The steps between and after them are bound by memory, and take as few passes as there
are products: one that adds the bias and applies the GELU (V2: one that reads for the statistics, one that normalises),
and one that adds bias, scale, mask and shortcut.

Saved for the backward pass are the normalised map, the output of the first product (four times as wide) and, for the
gradient of the layer scale, that of the second. The GELU, as wide as the first product, is not saved: its backward pass
reads its input anyway, and recomputes it for the gradient of the second weight, while its own gradient overwrites the
incoming one. For C channels in bfloat16 that is 2 C + 8 C + 2 C = 12 C bytes per pixel, and 4 C in
:mod:`backbones.kernels.cuda.dwconv_norm`. In autocast, PyTorch's steps save 26 C: the map, the convolution's output
(in float32, for the norm), the normalised map, input and output of the GELU, and the scaled output.

The gradients of biases and layer scale are sums over all pixels. They are computed in the passes that have the values
in registers, in float32 and in a fixed order, without a pass of their own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.kernels.cuda import grn
from backbones.kernels.cuda.launch import FLOATS, on_device, runs_kernels

Grads = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def mlp_reference(
    shortcut: Tensor,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    gamma: Tensor | None = None,
    keep: Tensor | None = None,
    grn_gamma: Tensor | None = None,
    grn_beta: Tensor | None = None,
) -> Tensor:
    """The block after its norm by PyTorch: the definition of the operation.

    Args:
        shortcut: Input of the block, to which the branch is added, ``(N, H, W, C)``.
        x: Normalised map, ``(N, H, W, C)``.
        weight1: Weight of the first linear layer, ``(hidden, C)``.
        bias1: Bias of the first linear layer, ``(hidden,)``.
        weight2: Weight of the second linear layer, ``(C, hidden)``.
        bias2: Bias of the second linear layer, ``(C,)``.
        gamma: Layer scale, ``(C,)``; ``None`` leaves it out.
        keep: Factors of stochastic depth, ``(N,)``, without a gradient; ``None`` leaves it out.
        grn_gamma: Scale of the response normalisation, ``(1, 1, 1, hidden)``; ``None`` leaves it out.
        grn_beta: Shift of the response normalisation, ``(1, 1, 1, hidden)``.

    Returns:
        ``(N, H, W, C)``, in the higher precision of shortcut and layer scale.
    """
    y = F.gelu(F.linear(x, weight1, bias1))
    if grn_gamma is not None and grn_beta is not None:
        y = grn.grn_reference(y, grn_gamma, grn_beta)
    y = F.linear(y, weight2, bias2)
    if gamma is not None:
        y = gamma * y
    return shortcut + (y if keep is None else y * keep.to(y.dtype)[:, None, None, None])


def mlp(
    shortcut: Tensor,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    gamma: Tensor | None = None,
    keep: Tensor | None = None,
    grn_gamma: Tensor | None = None,
    grn_beta: Tensor | None = None,
) -> Tensor:
    """Compute :func:`mlp_reference` with fused kernels on a GPU, differentiable once in all tensors but ``keep``.

    The products are in the precision of ``x``, or in autocast's; weights are cast to it, as autocast does, and
    everything else is computed in float32 before it is rounded to the precision of the map.

    Raises:
        TypeError: If a tensor is neither float32, bfloat16 nor float16 (float64 has the plain steps on CPU alone).
        ValueError: If the shapes do not match.
    """
    if torch.is_autocast_enabled(x.device.type) and x.is_floating_point():
        x = x.to(torch.get_autocast_dtype(x.device.type))
    tensors = (shortcut, x, weight1, bias1, weight2, bias2, gamma, keep, grn_gamma, grn_beta)
    _check(*tensors)
    save = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    arguments = (shortcut.contiguous(), x.contiguous(), *tensors[2:])
    return _forward(*arguments, save)[0]


def _check(
    shortcut: Tensor, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, *others: Tensor | None
) -> None:
    """Raise an error of one line if the tensors of a call do not match."""
    allowed = FLOATS if x.is_cuda else (*FLOATS, torch.float64)
    gamma, keep, grn_gamma, grn_beta = others
    for tensor in (shortcut, x, weight1, bias1, weight2, bias2, *others):
        if tensor is not None and tensor.dtype not in allowed:
            raise TypeError(f"mlp does not take {tensor.dtype}: float32, bfloat16 or float16 is needed")
    hidden, channels = weight1.shape
    if x.ndim != 4 or x.shape != shortcut.shape or x.shape[3] != channels:
        raise ValueError(f"mlp: maps {tuple(shortcut.shape)} and {tuple(x.shape)} do not fit {channels} channels")
    sizes = {"weight2": (weight2, channels * hidden), "bias1": (bias1, hidden), "bias2": (bias2, channels)}
    sizes |= {"gamma": (gamma, channels), "keep": (keep, x.shape[0])}  # type: ignore[dict-item]
    sizes |= {"grn_gamma": (grn_gamma, hidden), "grn_beta": (grn_beta, hidden)}  # type: ignore[dict-item]
    for name, (tensor, count) in sizes.items():
        if tensor is not None and tensor.numel() != count:
            raise ValueError(f"mlp: {name} has {tensor.numel()} values, {count} are needed")
    if (grn_gamma is None) != (grn_beta is None):
        raise ValueError("mlp: grn_gamma and grn_beta go together")


@torch.library.custom_op("convnext::mlp", mutates_args=())
def _forward(
    shortcut: Tensor,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    gamma: Tensor | None,
    keep: Tensor | None,
    grn_gamma: Tensor | None,
    grn_beta: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, and for the backward pass both products and the norms of GRN, empty where they are not needed."""
    with on_device(x), torch.autocast(x.device.type, enabled=False):
        hidden = x @ weight1.to(x.dtype).t()
        gains = None if grn_gamma is None else grn.compute_gains(hidden, bias1, grn_gamma)
        a = grn.activate(hidden, bias1, gains, grn_beta)
        z = a @ weight2.to(x.dtype).t()
        out = _residual(shortcut, z, bias2, gamma, keep)
        hidden = hidden if save else x.new_empty(0)
        z = z if save and gamma is not None else x.new_empty(0)
        norm = gains.norm if save and gains is not None else x.new_empty(0, dtype=_precise(x))
        return out, hidden, z, norm


@_forward.register_fake
def _(shortcut: Tensor, x: Tensor, weight1: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *_, gamma, _, grn_gamma, _, save = others
    wide = (*x.shape[:3], weight1.shape[0])
    norm = (x.shape[0], weight1.shape[0]) if save and grn_gamma is not None else (0,)
    return (
        x.new_empty(x.shape, dtype=_out_dtype(shortcut, x, gamma)),
        x.new_empty(wide if save else (0,)),
        x.new_empty(x.shape if save and gamma is not None else (0,)),
        x.new_empty(norm, dtype=_precise(x)),
    )


@torch.library.custom_op("convnext::mlp_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    hidden: Tensor,
    z: Tensor,
    norm: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    gamma: Tensor | None,
    keep: Tensor | None,
    grn_gamma: Tensor | None,
    grn_beta: Tensor | None,
) -> Grads:
    """Gradients of map, weight1, bias1, weight2, bias2, gamma, grn_gamma and grn_beta; empty for absent ones."""
    with on_device(x), torch.autocast(x.device.type, enabled=False):
        down, grad_bias2, grad_gamma = _residual_grad(grad.contiguous(), z, bias2, gamma, keep, x.dtype)
        wide = down @ weight2.to(x.dtype)
        gains = pull = None
        grad_scale, grad_shift = grad_bias2.new_empty(0), grad_bias2.new_empty(0)
        if grn_gamma is not None:
            gains = grn.gains_from_norms(norm, grn_gamma)
            pull, grad_scale, grad_shift = grn.sum_gradients(wide, hidden, bias1, gains, grn_gamma)
        inner, a, grad_bias1 = grn.backward_activation(wide, hidden, bias1, gains, pull, grn_beta, inplace=True)
        grad_weight2 = down.flatten(0, 2).t() @ a.flatten(0, 2)
        grad_weight1 = inner.flatten(0, 2).t() @ x.flatten(0, 2)
        grad_x = inner @ weight1.to(x.dtype)
        return grad_x, grad_weight1, grad_bias1, grad_weight2, grad_bias2, grad_gamma, grad_scale, grad_shift


@_backward.register_fake
def _(grad: Tensor, x: Tensor, hidden: Tensor, z: Tensor, norm: Tensor, *parameters: Any) -> Grads:
    weight1, bias1, weight2, bias2, gamma, _, grn_gamma, _ = parameters
    wide = 0 if grn_gamma is None else weight1.shape[0]
    return (
        x.new_empty(x.shape),
        x.new_empty(weight1.shape),
        norm.new_empty(bias1.shape),
        x.new_empty(weight2.shape),
        norm.new_empty(bias2.shape),
        norm.new_empty(bias2.shape if gamma is not None else (0,)),
        norm.new_empty(wide),
        norm.new_empty(wide),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, save = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.shortcut = tensors[0].dtype
    if save:
        ctx.save_for_backward(tensors[1], *output[1:], *tensors[2:])


def _autograd_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, hidden, z, norm, *parameters = ctx.saved_tensors
    grad_x, *found = _backward(grad, x, hidden, z, norm, *parameters)
    found.insert(5, None)  # keep
    grads = (
        None if parameter is None or gradient is None else gradient.to(parameter.dtype).view_as(parameter)
        for parameter, gradient in zip(parameters, found, strict=True)
    )
    return grad.to(ctx.shortcut), grad_x, *grads, None


_forward.register_autograd(_autograd_backward, setup_context=_setup_context)


def _precise(x: Tensor) -> torch.dtype:
    """Precision of sums."""
    return torch.promote_types(x.dtype, torch.float32)


def _out_dtype(shortcut: Tensor, x: Tensor, gamma: Tensor | None) -> torch.dtype:
    """Precision of ``shortcut + gamma * y``."""
    branch = x.dtype if gamma is None else torch.promote_types(x.dtype, gamma.dtype)
    return torch.promote_types(shortcut.dtype, branch)


def _residual(shortcut: Tensor, z: Tensor, bias: Tensor, gamma: Tensor | None, keep: Tensor | None) -> Tensor:
    """``shortcut + keep * gamma * (z + bias)``."""
    dtype = _out_dtype(shortcut, z, gamma)
    if not runs_kernels(z):
        y = z.to(_precise(z)) + bias
        y = y if gamma is None else y * gamma
        y = y if keep is None else y * keep[:, None, None, None]
        return (shortcut.to(y.dtype) + y).to(dtype)
    from backbones.kernels.cuda.mlp_triton import residual_kernel

    out = torch.empty_like(z, dtype=dtype)
    images = 1 if keep is None else z.shape[0]
    grid, steps, shape = grn.launch_grid(z, images)
    if z.numel():
        flags = dict(GAMMA=gamma is not None, KEEP=keep is not None, **shape)
        tensors = (shortcut, z, bias, gamma, keep, out)
        residual_kernel[grid](*tensors, grn.pixels_per_image(z, images), steps, **flags, num_warps=grn.TILE_WARPS)
    return out


def _residual_grad(
    grad: Tensor, z: Tensor, bias: Tensor, gamma: Tensor | None, keep: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``z``, in the precision ``dtype``, of the bias and of the layer scale."""
    if not runs_kernels(grad):
        g = grad.to(_precise(grad))
        g = g if keep is None else g * keep[:, None, None, None]
        grad_gamma = g.new_empty(0) if gamma is None else (g * (z.to(g.dtype) + bias)).sum((0, 1, 2))
        g = g if gamma is None else g * gamma
        return g.to(dtype), g.sum((0, 1, 2)), grad_gamma
    from backbones.kernels.cuda.mlp_triton import residual_grad_kernel

    images = 1 if keep is None else grad.shape[0]
    grid, steps, shape = grn.launch_grid(grad, images)
    same = gamma is None and keep is None and grad.dtype == dtype
    out = grad if same else torch.empty_like(grad, dtype=dtype)
    partial = grad.new_zeros((1 if gamma is None else 2, *grid[:2], grad.shape[-1]), dtype=torch.float32)
    if grad.numel():
        flags = dict(GAMMA=gamma is not None, KEEP=keep is not None, STORE=not same, **shape)
        tensors = (grad, z, bias, gamma, keep, out, partial)
        pixels = grn.pixels_per_image(grad, images)
        residual_grad_kernel[grid](*tensors, pixels, steps, **flags, num_warps=grn.TILE_WARPS)
    return out, partial[0].sum((0, 1)), partial.new_empty(0) if gamma is None else partial[1].sum((0, 1))
