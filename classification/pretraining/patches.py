"""Images as the pixels of their units, and what a masked autoencoder has to predict of them."""

from __future__ import annotations

import torch
from torch import Tensor

PATCH_EPS = 1e-6  # added to the variance of a patch


def to_patches(images: Tensor, unit: int) -> Tensor:
    """Pixels of each unit in the order row, column, channel: ``(N, C, H, W) -> (N, units, unit * unit * C)``.

    Args:
        images: Images; what is left over beyond whole units is ignored.
        unit: Side of a unit in pixels.
    """
    rows, columns = images.shape[-2] // unit, images.shape[-1] // unit
    whole = images[..., : rows * unit, : columns * unit]
    blocks = whole.unflatten(3, (columns, unit)).unflatten(2, (rows, unit))
    return blocks.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def to_images(patches: Tensor, grid: tuple[int, int], unit: int) -> Tensor:
    """Images ``(N, C, rows * unit, columns * unit)``, the reverse of :func:`to_patches`.

    Args:
        patches: Pixels of each unit, ``(N, units, unit * unit * C)``.
        grid: Rows and columns of units.
        unit: Side of a unit in pixels.
    """
    blocks = patches.unflatten(2, (unit, unit, -1)).unflatten(1, grid)
    return blocks.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def patch_targets(patches: Tensor, normalized: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What is to be predicted, and the mean and the standard deviation that were taken out of it, or 0 and 1.

    Args:
        patches: Pixels of each unit, ``(N, units, D)``.
        normalized: Whether each unit is normalised by its mean and unbiased variance.

    Returns:
        Targets, ``(N, units, D)``, means and deviations, ``(N, units, 1)`` or a single number.
    """
    if not normalized:
        return patches, patches.new_zeros(()), patches.new_ones(())
    variance, mean = torch.var_mean(patches, -1, keepdim=True)
    std = (variance + PATCH_EPS).sqrt()
    return (patches - mean) / std, mean, std
