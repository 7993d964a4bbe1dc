"""What the forms of a block have in common: the layers they read, and when they may replace the plain steps."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from backbones.layers import GRN, DropPath
from backbones.masked import MaskedLayout

# The forms of an operation: C code in one pass, fused operators or kernels, PyTorch's operators one after another.
NATIVE_FORM, FUSED_FORM, PLAIN_FORM = "native", "fused", "plain"
# PyTorch has no public way to ask for a module's hooks; it keeps each kind in an attribute that is named after it.
HOOK_ATTRIBUTES = tuple(name for name in vars(nn.Module()) if name.endswith(("ward_hooks", "ward_pre_hooks")))


class BlockLayers(Protocol):
    """Layers and plain steps of a ConvNeXt block, as :class:`backbones.convnext.Block` has them."""

    training: bool
    dwconv: nn.Conv2d
    norm: nn.LayerNorm
    pwconv1: nn.Linear
    act: nn.GELU
    grn: GRN | nn.Identity
    pwconv2: nn.Linear
    gamma: nn.Parameter | None
    drop_path: DropPath

    def forward_dwconv_norm(self, x: Tensor, layout: MaskedLayout | None = None) -> Tensor:
        """Depthwise convolution and norm: ``(N, C, H, W) -> (N, H, W, C)``."""

    def forward_branch(self, y: Tensor, layout: MaskedLayout | None = None) -> Tensor:
        """MLP and layer scale, before stochastic depth: ``(N, H, W, C) -> (N, C, H, W)``."""

    def forward_mlp(self, x: Tensor, y: Tensor, layout: MaskedLayout | None = None) -> Tensor:
        """The block's output from its input ``(N, C, H, W)`` and the normalised map ``(N, H, W, C)``."""


class BlockForm(Protocol):
    """A function that computes a block faster on one type of device."""

    def __call__(self, block: BlockLayers, x: Tensor, layout: MaskedLayout | None = None) -> Tensor | None:
        """Output for a map ``(N, C, H, W)``; ``None`` where the plain steps are to be taken.

        Args:
            block: A block of ConvNeXt V1 or V2.
            x: Map; in ``layout``, if that is given.
            layout: Arrangement of the visible units of images in maps, in a masked autoencoder.
        """


class DownsampleForm(Protocol):
    """A function that computes the downsampling between two stages faster on one type of device."""

    def __call__(self, layer: nn.Sequential, x: Tensor) -> Tensor | None:
        """Output for a map ``(N, C, H, W)``; ``None`` where the plain steps are to be taken."""


def is_unmodified(layer: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a layer is of exactly one of these classes and has no hooks, so that its parameters say all of it."""
    return type(layer) in kinds and not any(getattr(layer, name) for name in HOOK_ATTRIBUTES)


def draw_drop_path(drop_path: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Draw the factors of stochastic depth, from the same random numbers as the plain steps.

    Args:
        drop_path: The block's stochastic depth.
        x: Map, ``(N, ...)``.
        dtype: Precision of the branch that the factors multiply.

    Returns:
        ``(N, 1, 1, 1)``, or ``None`` where every branch is kept as it is.
    """
    idle = isinstance(drop_path, nn.Identity) or (isinstance(drop_path, DropPath) and not drop_path.drop_prob)
    if idle or not drop_path.training:
        return None
    factors: Tensor = drop_path(x.new_ones((x.shape[0], 1, 1, 1), dtype=dtype))
    return factors
