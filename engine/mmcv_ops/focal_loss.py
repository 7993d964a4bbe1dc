"""Focal loss of sigmoids and of a softmax, forward and backward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.mmcv_ops.extension import at_least_float32

__all__ = [
    "sigmoid_focal_loss_backward",
    "sigmoid_focal_loss_forward",
    "softmax_focal_loss_backward",
    "softmax_focal_loss_forward",
]


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


def _true_class(input: Tensor, target: Tensor, weight: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Probability of each sample's class, the logarithm of it, and the factor of its loss, all (N,)."""
    probability = at_least_float32(input)
    label = target.clamp(min=0)
    chosen = probability.gather(1, label[:, None])[:, 0]
    factor = alpha * (target >= 0).to(chosen.dtype)
    if weight.numel():
        factor = factor * weight.to(chosen.dtype)[label]
    return chosen, chosen.clamp(min=torch.finfo(torch.float32).tiny).log(), factor


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss of the probability of the true class among all.

    Args:
        input: Probabilities, the softmax of the logits, (N, C).
        target: Class indices, negative for samples without loss, (N,), int64.
        weight: Class weights, (C,); empty for none.
        output: Output buffer, (N,).
        gamma: Focusing exponent: how much well-classified samples are down-weighted.
        alpha: Factor of the loss.
    """
    chosen, log, factor = _true_class(input, target, weight, alpha)
    output.copy_(-factor * (1 - chosen) ** gamma * log)


def softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Gradient of :func:`softmax_focal_loss_forward` with respect to the logits, written into ``grad_input`` (N, C).

    Args:
        input: Probabilities, (N, C).
        target: Class indices, (N,).
        weight: Class weights, (C,); empty for none.
        buff: Output buffer for the derivative by the true class's logit over one less its probability, (N,).
        grad_input: Output buffer, (N, C).
        gamma: Focusing exponent.
        alpha: Factor of the loss.
    """
    chosen, log, factor = _true_class(input, target, weight, alpha)
    rest = 1 - chosen
    # At certainty the derivative of rest**gamma times the logarithm, which is 0 there, vanishes.
    power = torch.where(rest > 0, rest.clamp(min=torch.finfo(rest.dtype).tiny) ** (gamma - 1), 0)
    slope = factor * (gamma * power * chosen * log - rest**gamma)
    buff.copy_(slope)
    true = target[:, None] == torch.arange(input.shape[1], device=input.device)
    grad_input.copy_(slope[:, None] * (true.to(slope.dtype) - at_least_float32(input)))
