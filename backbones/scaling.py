"""Depth and width of a ConvNeXt for a budget of parameters or multiply-adds.

The family has two ratios of blocks per stage, 1:1:3:1 (T and smaller) and 1:1:9:1 (S and larger), and doubles the width
from stage to stage (Liu et al., "A ConvNet for the 2020s", sections 2.2 and 4). Either depth or width is given, and the
budget determines the other. The cost is computed in closed form, by the rules of ``analysis/flops.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from backbones.base import Backbone
from backbones.errors import ConfigError
from backbones.layers import check_kernel_size

RATIOS = {"1:1:3:1": (1, 1, 3, 1), "1:1:9:1": (1, 1, 9, 1)}
WIDTH_STEP = 8  # all widths of the family are multiples of 8, as matrix units require
MAX_WIDTH, MAX_DEPTH = 4096, 512
LAYER_NORM_FLOPS = 5  # multiply-adds per element, as fvcore counts an affine layer norm
STEM_KERNEL, DOWNSAMPLE_KERNEL = 4, 2


@dataclass(frozen=True)
class ConvNeXtShape:
    """Depths and widths of one ConvNeXt, and its cost.

    Attributes:
        depths: Blocks per stage.
        dims: Channels per stage.
        kernel_size: Side of the depthwise kernels.
        mlp_ratio: Hidden channels of the blocks' MLP relative to their channels.
    """

    depths: tuple[int, int, int, int]
    dims: tuple[int, int, int, int]
    kernel_size: int = 7
    mlp_ratio: float = 4.0

    def params(self, classes: int = 1000) -> int:
        """Number of parameters with V1 blocks (with layer scale) and a linear head."""
        first, last = self.dims[0], self.dims[-1]
        total = (STEM_KERNEL**2 * 3 + 3) * first + 2 * last + (last + 1) * classes
        for narrow, wide in pairwise(self.dims):
            total += 2 * narrow + (DOWNSAMPLE_KERNEL**2 * narrow + 1) * wide
        for depth, dim in zip(self.depths, self.dims, strict=True):
            hidden = int(self.mlp_ratio * dim)
            # depthwise kernel and bias, norm, both layers of the MLP, layer scale
            block = (self.kernel_size**2 + 1) * dim + 2 * dim + 2 * hidden * dim + hidden + dim + dim
            total += depth * block
        return total

    def flops(self, side: int = 224, classes: int = 1000) -> int:
        """Number of multiply-adds on one image of ``side`` x ``side`` pixels, with a linear head."""
        side //= STEM_KERNEL
        total = (STEM_KERNEL**2 * 3 + LAYER_NORM_FLOPS) * self.dims[0] * side**2
        for stage, (depth, dim) in enumerate(zip(self.depths, self.dims, strict=True)):
            if stage:
                narrow = self.dims[stage - 1]
                total += LAYER_NORM_FLOPS * narrow * side**2
                side //= DOWNSAMPLE_KERNEL
                total += DOWNSAMPLE_KERNEL**2 * narrow * dim * side**2
            hidden = int(self.mlp_ratio * dim)
            total += depth * side**2 * dim * (self.kernel_size**2 + LAYER_NORM_FLOPS + 2 * hidden)
        return total + (LAYER_NORM_FLOPS + classes) * self.dims[-1]


def shape_for_budget(
    *,
    gflops: float | None = None,
    params: float | None = None,
    ratio: str = "1:1:3:1",
    blocks: int | None = None,
    width: int | None = None,
    kernel_size: int = 7,
    mlp_ratio: float = 4.0,
    side: int = 224,
) -> ConvNeXtShape:
    """The ConvNeXt of the family's proportions whose cost is nearest to a budget.

    Args:
        gflops: Budget in billions of multiply-adds at ``side`` pixels; either this or ``params``.
        params: Budget in millions of parameters, with a head of 1,000 classes.
        ratio: Ratio of blocks of the four stages, ``1:1:3:1`` or ``1:1:9:1``.
        blocks: Blocks of the first stage; the width is determined, in steps of 8 channels. 3, as in T to XL, if neither
            this nor ``width`` is given.
        width: Channels of the first stage; the depth is determined.
        kernel_size: Side of the depthwise kernels.
        mlp_ratio: Hidden channels of the blocks' MLP relative to their channels.
        side: Side of the image in pixels.

    Raises:
        ConfigError: If an argument is invalid, two contradict each other, or no network comes within a factor of two of
            the budget.
    """
    if (gflops is None) == (params is None):
        raise ConfigError("a budget is needed: either gflops or params (millions), not both")
    if ratio not in RATIOS:
        raise ConfigError(f"ratio={ratio!r}: choose from {', '.join(RATIOS)}")
    _check_sizes(blocks, width, kernel_size, mlp_ratio, side)
    if blocks is not None and width is not None:
        raise ConfigError("blocks and width are both given: leave one of them to the budget")
    budget = gflops if gflops is not None else params
    if budget is None or budget <= 0:
        raise ConfigError(f"budget {budget}: a positive number is needed")

    def shaped(unit: int, channels: int) -> ConvNeXtShape:
        first, second, third, last = (unit * share for share in RATIOS[ratio])
        dims = (channels, 2 * channels, 4 * channels, 8 * channels)
        return ConvNeXtShape((first, second, third, last), dims, kernel_size, mlp_ratio)

    def cost(shape: ConvNeXtShape) -> float:
        return shape.flops(side) / 1e9 if gflops is not None else shape.params() / 1e6

    if width is not None:
        candidates = [shaped(unit, width) for unit in range(1, MAX_DEPTH + 1)]
    else:
        candidates = [shaped(blocks or 3, channels) for channels in range(WIDTH_STEP, MAX_WIDTH + 1, WIDTH_STEP)]
    best = min(candidates, key=lambda shape: abs(cost(shape) - budget))
    if not budget / 2 <= cost(best) <= budget * 2:
        unit = "G" if gflops is not None else "M"
        raise ConfigError(
            f"no such network costs about {budget:g} {unit}: the nearest, depths {best.depths} and dims {best.dims}, "
            f"has {cost(best):.3g} {unit}; choose other blocks, width or ratio"
        )
    return best


def _check_sizes(blocks: int | None, width: int | None, kernel_size: int, mlp_ratio: float, side: int) -> None:
    for name, number, least in (("blocks", blocks, 1), ("width", width, 1), ("side", side, Backbone.min_image_side)):
        if number is not None and number < least:
            raise ConfigError(f"{name}={number}: at least {least} is needed")
    if not mlp_ratio > 0:
        raise ConfigError(f"mlp_ratio={mlp_ratio:g}: a positive number is needed")
    check_kernel_size(kernel_size)
