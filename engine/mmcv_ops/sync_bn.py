"""The steps of mmcv's synchronised batch norm between its exchanges of statistics, forward and backward.

The wrapper passes maps with their places flattened, (N, C, L), and averages over processes what these steps write.
"""

from __future__ import annotations

from torch import Tensor

__all__ = [
    "sync_bn_backward_data",
    "sync_bn_backward_param",
    "sync_bn_forward_mean",
    "sync_bn_forward_output",
    "sync_bn_forward_var",
]


def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Mean of each channel of ``input`` (N, C, L), written into ``mean`` (C,)."""
    mean.copy_(input.float().mean(dim=(0, 2)))


def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Mean square distance of each channel of ``input`` (N, C, L) from ``mean`` (C,), written into ``var`` (C,)."""
    var.copy_((input.float() - mean[:, None]).square().mean(dim=(0, 2)))


def sync_bn_forward_output(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    norm: Tensor,
    std: Tensor,
    output: Tensor,
    eps: float,
    momentum: Tensor | float,
    group_size: int,
) -> None:
    """Batch norm by given statistics (Ioffe and Szegedy 2015, arXiv:1502.03167).

    Args:
        input: Maps of this process, (N, C, L).
        mean: Mean over all processes, (C,).
        var: Biased variance over all processes, (C,).
        weight: Scale of each channel, (C,); ``None`` for 1.
        bias: Shift of each channel, (C,); ``None`` for 0.
        running_mean: Running mean, (C,), updated; ``None`` to keep none.
        running_var: Running variance, (C,), updated by the unbiased one; ``None`` to keep none.
        norm: Output buffer for the normalised maps, float32, (N, C, L).
        std: Output buffer for the standard deviation, (C,).
        output: Output buffer, (N, C, L).
        eps: Term added to the variance.
        momentum: Share of the new statistics in the running ones.
        group_size: Number of processes.
    """
    std.copy_((var + eps).sqrt())
    norm.copy_((input.float() - mean[:, None]) / std[:, None])
    output.copy_(norm if weight is None or bias is None else norm * weight[:, None] + bias[:, None])
    if running_mean is not None and running_var is not None:
        count = input.shape[0] * input.shape[2] * group_size
        unbiased = var * count / (count - 1) if count > 1 else var
        running_mean.copy_(momentum * mean + (1 - momentum) * running_mean)
        running_var.copy_(momentum * unbiased + (1 - momentum) * running_var)


def sync_bn_backward_param(grad_output: Tensor, norm: Tensor, grad_weight: Tensor, grad_bias: Tensor) -> None:
    """Gradients of scale and shift from those of the output and the normalised maps (N, C, L), written into (C,)."""
    grad_weight.copy_((grad_output.float() * norm).sum(dim=(0, 2)))
    grad_bias.copy_(grad_output.float().sum(dim=(0, 2)))


def sync_bn_backward_data(
    grad_output: Tensor,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    norm: Tensor,
    std: Tensor,
    grad_input: Tensor,
) -> None:
    """Gradient of the input, written into ``grad_input``.

    Args:
        grad_output: Gradient of the output, (N, C, L).
        weight: Scale of each channel, (C,).
        grad_weight: Gradient of the scale, averaged over the processes, (C,).
        grad_bias: Gradient of the shift, averaged over the processes, (C,).
        norm: Normalised maps, (N, C, L).
        std: Standard deviation, (C,).
        grad_input: Output buffer, (N, C, L).
    """
    count = norm.shape[0] * norm.shape[2]
    through_statistics = (grad_weight[:, None] * norm + grad_bias[:, None]) / count
    grad_input.copy_((weight / std)[:, None] * (grad_output.float() - through_statistics))
