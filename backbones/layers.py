"""Layers of ConvNeXt that differ from those of PyTorch and timm, and initialisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
        channels: Channels ``C``.
        eps: Epsilon added to the variance; 1e-6 as in the released code.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training the whole branch of an image is dropped at random.

    The branches that are kept are scaled by 1 / (1 - rate). It draws the random numbers that timm's layer of this name
    draws. timm's own takes two seconds to import, and a ConvNeXt needs nothing else of timm.

    Args:
        drop_prob: Probability that the branch of an image is dropped.
    """

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """The branch ``(N, ...)``, each image of it dropped or scaled in training."""
        if not self.training or not self.drop_prob:
            return x
        keep = 1 - self.drop_prob
        factors = x.new_empty((x.shape[0], *[1] * (x.ndim - 1))).bernoulli_(keep)
        return x * (factors.div_(keep) if keep else factors)

    def extra_repr(self) -> str:
        """The rate, in the network's printed form."""
        return f"drop_prob={self.drop_prob:.3f}"


class ContiguousMaps(nn.Module):
    """Feature maps in PyTorch's own layout of memory, as the last neck of a config: ``dict(type="ContiguousMaps")``.

    Backbones compute in ``channels_last``, and convolutions keep it. A few heads (mmdet's CenterNet, mmseg's DMNet)
    look at maps by ``view``, which refuses that layout.
    """

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The maps, each ``(N, C, H, W)``; copies of those that are not contiguous."""
        return tuple(one.contiguous() for one in maps)


class GRN(nn.Module):
    """Global response normalisation (Woo et al., "ConvNeXt V2", section 3, algorithm 1).

    Input and output are ``(N, H, W, C)``. Each channel is scaled by its response over the whole map against the mean
    response of all channels, with a learned scale and shift that begin at zero, and added to the input.

    It is computed in float32 also for half-precision input: a norm over a whole map can exceed 65504, the largest
    float16, and bfloat16 would round the ratio of responses to three digits.

    Args:
        channels: Channels ``C``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """Normalise a map.

        Args:
            x: Map, ``(N, H, W, C)``.
            visible: Positions whose response counts, bool ``(N, H, W, 1)``; all without it.
        """
        precise = torch.promote_types(x.dtype, torch.float32)
        counted = x if visible is None else torch.where(visible, x, x.new_zeros(()))
        factors = self.factors(torch.linalg.vector_norm(counted, dim=(1, 2), keepdim=True, dtype=precise))
        return torch.addcmul(self.beta, x, factors).to(x.dtype)

    def factors(self, response: Tensor) -> Tensor:
        """Factor of each channel, ``(N, 1, 1, C)``, from the norm of each channel over the map, ``(N, 1, 1, C)``.

        The residual is included: ``x + gamma * x * relative`` takes one pass over the map instead of three.
        """
        relative = response / (response.mean(-1, keepdim=True) + 1e-6)
        return 1 + self.gamma * relative


def check_kernel_size(kernel_size: int) -> None:
    """Check that the kernel size is odd, so that the size of the map does not change.

    Raises:
        ConfigError: If it is even or not positive.
    """
    if kernel_size % 2 == 0 or kernel_size < 1:
        raise ConfigError(f"kernel_size={kernel_size}: an odd number is needed (the paper uses 7)")


def init_trunc_normal(module: nn.Module, std: float = 0.02) -> None:
    """Initialise convolution and linear weights from a normal distribution truncated at +-2, and biases with zero.

    Table 2.5 of the dissertation prints "trunc. normal (0.2)", a misprint of the 0.02 of the released code.

    Raises:
        ConfigError: If ``std`` is not a positive number.
    """
    if not 0 < std < math.inf:
        raise ConfigError(f"init_std={std}: a positive number is needed, such as 0.02")
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def layer_scale(channels: int, initial: float) -> nn.Parameter | None:
    """Layer scale, factors ``(C,)`` of a residual branch (Touvron et al., 2021); ``None`` for an initial value of 0.

    Raises:
        ConfigError: If the initial value is not finite.
    """
    if not math.isfinite(initial):
        raise ConfigError(f"layer_scale_init_value={initial}: a finite number is needed, such as 1e-6")
    return nn.Parameter(torch.full((channels,), float(initial))) if initial else None


def drop_path_rates(rate: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Stochastic depth of each block, linear from 0 in the first to ``rate`` in the last (Huang et al., 2016).

    Args:
        rate: Probability of the last block.
        depths: Blocks per stage.

    Returns:
        One list of probabilities for each stage.
    """
    last = max(sum(depths) - 1, 1)
    starts = accumulate(depths, initial=0)
    return [[rate * (start + i) / last for i in range(depth)] for start, depth in zip(starts, depths, strict=False)]
