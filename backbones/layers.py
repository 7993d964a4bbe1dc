"""Layers of ConvNeXt that PyTorch and timm do not have in the form we need."""

from __future__ import annotations

from itertools import accumulate

import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels of a feature map.

    Input and output are ``(N, C, H, W)``. With ``channels_last`` strides both permutations are views, so that the
    fused kernel of :func:`torch.nn.functional.layer_norm` runs without a copy; contiguous input is copied once.

    Args:
        channels: ``C``.
        eps: Added to the variance; 1e-6 as in the released code.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


def init_trunc_normal(module: nn.Module, std: float = 0.02) -> None:
    """Draw convolution and linear weights from a normal cut at +-2, and zero their biases.

    Table 2.5 of the dissertation prints "trunc. normal (0.2)"; the released code uses 0.02, which is meant.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def drop_path_rates(rate: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Stochastic depth of each block: linear from 0 at the first to ``rate`` at the last (Huang et al., 2016).

    Args:
        rate: Probability of dropping the last block.
        depths: Blocks per stage.

    Returns:
        One list of probabilities for each stage.
    """
    last = max(sum(depths) - 1, 1)
    starts = accumulate(depths, initial=0)
    return [[rate * (start + i) / last for i in range(depth)] for start, depth in zip(starts, depths, strict=False)]
