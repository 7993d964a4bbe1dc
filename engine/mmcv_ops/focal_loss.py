"""Sigmoid focal loss, forward and backward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.mmcv_ops.extension import at_least_float32

__all__ = ["sigmoid_focal_loss_backward", "sigmoid_focal_loss_forward"]


def _focal_terms(input: Tensor, target: Tensor, weight: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logits in float32 or float64, mask of the true classes and weight of each entry, all (N, C)."""
    logits = at_least_float32(input)
    # Target C is background: no class is true.
    positive = target[:, None] == torch.arange(logits.shape[1], device=logits.device)
    factor = torch.where(positive, alpha, 1 - alpha).to(logits.dtype)
    if weight.numel():
        factor = factor * weight.to(logits.dtype)[target][:, None]
    return logits, positive, factor


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss (Lin et al. 2017, arXiv:1708.02002), one sigmoid for each class.

    Args:
        input: Logits, (N, C).
        target: Class indices, C for background, (N,), int64.
        weight: Class weights, (C,), by the target's class, which then must not be background; empty for none.
        output: Output buffer, (N, C).
        gamma: Focusing exponent: how much well-classified entries are down-weighted.
        alpha: Weight of the true class; the others have ``1 - alpha``.
    """
    logits, positive, factor = _focal_terms(input, target, weight, alpha)
    # One formula for true and false classes: s is the logit of the right answer.
    s = torch.where(positive, logits, -logits)
    output.copy_(-factor * torch.sigmoid(-s) ** gamma * F.logsigmoid(s))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Gradient of :func:`sigmoid_focal_loss_forward` with respect to the logits, written into ``grad_input`` (N, C)."""
    logits, positive, factor = _focal_terms(input, target, weight, alpha)
    s = torch.where(positive, logits, -logits)
    right, wrong = torch.sigmoid(s), torch.sigmoid(-s)
    slope = factor * wrong**gamma * (gamma * right * F.logsigmoid(s) - wrong)
    grad_input.copy_(torch.where(positive, slope, -slope))
