"""Layers of ConvNeXt that PyTorch and timm do not have in the form we need."""

from __future__ import annotations

import math
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.errors import ConfigError


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


class GRN(nn.Module):
    """Global response normalisation (Woo et al., "ConvNeXt V2", section 3, algorithm 1).

    Input and output are ``(N, H, W, C)``. Each channel is scaled by its response over the whole map against the mean
    response of all channels, with a learned scale and shift that begin at zero, and added to the input.

    It is computed in float32 also for half-precision input: a norm over a whole map soon exceeds 65504, the largest
    float16, and bfloat16 would round the ratio of responses to three digits.

    Args:
        channels: ``C``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        precise = torch.promote_types(x.dtype, torch.float32)
        factors = self.factors(torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=precise))
        return torch.addcmul(self.beta, x, factors).to(x.dtype)

    def factors(self, response: Tensor) -> Tensor:
        """What each channel is multiplied by, ``(N, 1, 1, C)``, from the norms of the maps, ``(N, 1, 1, C)``.

        The map itself is in it: ``x + gamma * x * relative`` in one pass over the map instead of three.
        """
        relative = response / (response.mean(-1, keepdim=True) + 1e-6)
        return 1 + self.gamma * relative


def check_kernel_size(kernel_size: int) -> None:
    """Refuse an even kernel, which would change the size of the map.

    Raises:
        UserError: If the size is even or not positive.
    """
    if kernel_size % 2 == 0 or kernel_size < 1:
        raise ConfigError(f"kernel_size={kernel_size}: an odd number keeps the size of the map (the paper uses 7)")


def init_trunc_normal(module: nn.Module, std: float = 0.02) -> None:
    """Draw convolution and linear weights from a normal cut at +-2, and zero their biases.

    Table 2.5 of the dissertation prints "trunc. normal (0.2)"; the released code uses 0.02, which is meant.

    Raises:
        UserError: If ``std`` is no positive number.
    """
    if not 0 < std < math.inf:
        raise ConfigError(f"init_std={std}: a positive number is needed, such as 0.02")
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def layer_scale(channels: int, initial: float) -> nn.Parameter | None:
    """The factors on the channels of a residual branch (Touvron et al., 2021); none for an initial value of 0.

    Raises:
        UserError: If the initial value is no finite number.
    """
    if not math.isfinite(initial):
        raise ConfigError(f"layer_scale_init_value={initial}: a finite number is needed, such as 1e-6")
    return nn.Parameter(torch.full((channels,), float(initial))) if initial else None


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
