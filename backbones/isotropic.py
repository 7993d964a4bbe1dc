"""Isotropic ConvNeXt: ConvNeXt blocks arranged as in a ViT, with one resolution at all depths.

Paper: Liu et al., "A ConvNet for the 2020s", section 3.3 and Table 2. Parameter names are those of the released
checkpoints (``stem.weight``, ``blocks.3.dwconv.weight``, ``norm.weight``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from backbones.base import STAGE_INDICES, Backbone, Group, Stage
from backbones.convnext import Block
from backbones.errors import ConfigError
from backbones.layers import check_kernel_size, drop_path_rates, init_trunc_normal

PATCH_SIZE = 16


def quarter_bounds(depth: int) -> list[int]:
    """Index of the first block of each quarter of a depth, and the depth."""
    return [i * depth // len(STAGE_INDICES) for i in (*STAGE_INDICES, len(STAGE_INDICES))]


def quarter_groups(depth: int) -> dict[str, Group]:
    """Groups of equal blocks: each is a layer group, as in a ViT, and a quarter of them a stage."""
    starts = quarter_bounds(depth)[:-1]
    return {f"blocks.{i}": Group(i + 1, sum(i >= start for start in starts), i + 1) for i in range(depth)}


class IsotropicConvNeXt(Backbone):
    """A stem that embeds 16 x 16 patches, followed by equal blocks at stride 16, without a head.

    The stem drops rows and columns of an image beyond a multiple of 16.

    Args:
        depth: Number of blocks.
        dim: Channels of the blocks.
        in_channels: Channels of the images.
        kernel_size: Odd side of the depthwise kernels.
        mlp_ratio: Hidden channels of the blocks' MLP relative to ``dim``.
        drop_path_rate: Probability of stochastic depth in the last block, growing linearly from 0 in the first.
        layer_scale_init_value: Initial layer scale; the paper leaves it out (0) for S and B.
        out_indices: ``None`` for one pooled and normalised vector, or quarters of the depth (0 to 3) for the map after
            each, all at stride 16, normalised by ``norm{i}``.
        grad_checkpointing: Blocks to recompute in the backward pass, see :class:`backbones.base.Backbone`; a stage is
            a quarter of the depth.
        init_std: Standard deviation of the initial weights.
        weights: Path or URL of a checkpoint, loaded by :meth:`init_weights`.

    Raises:
        ConfigError: If an argument is invalid.
    """

    min_image_side = PATCH_SIZE
    described_as = "an isotropic ConvNeXt"

    def __init__(
        self,
        depth: int,
        dim: int,
        in_channels: int = 3,
        kernel_size: int = 7,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 0.0,
        out_indices: Sequence[int] | None = None,
        grad_checkpointing: bool | float | Sequence[int] = False,
        init_std: float = 0.02,
        weights: str | None = None,
    ) -> None:
        super().__init__(out_indices, drop_path_rate, grad_checkpointing, weights)
        if depth < len(STAGE_INDICES) or dim < 1:
            raise ConfigError(f"depth={depth}, dim={dim}: at least 4 blocks of at least one channel are needed")
        check_kernel_size(kernel_size)
        self.depth = depth
        self.groups["stem"] = Group(0, 0, 0)
        self.groups |= quarter_groups(depth)
        self._bounds = quarter_bounds(depth)
        self.set_outputs((dim,) * len(STAGE_INDICES), (PATCH_SIZE,) * len(STAGE_INDICES), dim)
        self.stem = nn.Conv2d(in_channels, dim, PATCH_SIZE, stride=PATCH_SIZE)
        (rates,) = drop_path_rates(drop_path_rate, (depth,))
        self.blocks = Stage(*(Block(dim, kernel_size, mlp_ratio, rate, layer_scale_init_value) for rate in rates))
        self.add_norms((dim,) * len(STAGE_INDICES))
        self.apply(partial(init_trunc_normal, std=init_std))

    def run_stem(self, x: Tensor) -> Tensor:
        """Embedded patches, ``(N, C, H, W) -> (N, dim, H // 16, W // 16)``."""
        return self.stem(x)

    def run_stage(self, stage: int, x: Tensor) -> Tensor:
        """The blocks of a quarter of the depth; all at once, as the module ``blocks``, if no map is returned."""
        if self.out_indices is None:
            return self.run_blocks(self.blocks, x) if stage == 0 else x
        return self.run_blocks(self.blocks[self._bounds[stage] : self._bounds[stage + 1]], x)
