"""Isotropic ConvNeXt: ConvNeXt blocks arranged as in a ViT, with one resolution at all depths.

Paper: Liu et al., "A ConvNet for the 2020s", section 3.3 and Table 2. Parameter names are those of the released
checkpoints (``stem.weight``, ``blocks.3.dwconv.weight``, ``norm.weight``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from backbones.base import STAGE_INDICES, Backbone
from backbones.convnext import Block
from backbones.errors import ConfigError
from backbones.layers import check_kernel_size, drop_path_rates, init_trunc_normal

PATCH_SIZE = 16


class IsotropicConvNeXt(Backbone):
    """A stem that embeds 16 x 16 patches, followed by equal blocks at stride 16, without a head.

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
        self.num_features = dim
        self.out_channels = (dim,) * len(self.out_indices or (3,))
        self.strides = (PATCH_SIZE,) * len(self.out_channels)
        self.stem = nn.Conv2d(in_channels, dim, PATCH_SIZE, stride=PATCH_SIZE)
        (rates,) = drop_path_rates(drop_path_rate, (depth,))
        self.blocks = nn.Sequential(
            *(Block(dim, kernel_size, mlp_ratio, rate, layer_scale_init_value) for rate in rates)
        )
        self.add_norms((dim,) * len(STAGE_INDICES))
        self.apply(partial(init_trunc_normal, std=init_std))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Compute features.

        Args:
            x: Batch of normalised images, ``(N, in_channels, H, W)``. The stem drops rows and columns beyond a multiple
                of 16.

        Returns:
            ``(N, dim)`` without ``out_indices``, else one map ``(N, dim, H // 16, W // 16)`` for each index.

        Raises:
            ConfigError: If an image is smaller than 16 x 16, or ``weights`` were requested and never loaded.
        """
        x = self.stem(self.prepare(x))
        blocks = list(self.blocks.children())
        outputs: list[Tensor] = []
        for i in STAGE_INDICES:
            x = self.run_blocks(blocks[self._quarter(i) : self._quarter(i + 1)], x)
            self.collect(outputs, i, x)
        return self.finish(outputs, x)

    def _quarter(self, i: int) -> int:
        """Index of the first block of a quarter."""
        return i * self.depth // len(STAGE_INDICES)

    @property
    def num_layers(self) -> int:
        """Layer groups before the head: each block is one, as in a ViT."""
        return self.depth

    def layer_id(self, name: str) -> int:
        """Layer group of a parameter: 0 for the stem, number of the block from 1, ``num_layers + 1`` for the norms."""
        block = self._block_index(name)
        return self.num_layers + 1 if block is None else block + 1

    def stage_id(self, name: str) -> int | None:
        """Quarter of a parameter, from 1; 0 for the stem, ``None`` for the output norms."""
        block = self._block_index(name)
        if block is None:
            return None
        return sum(block >= self._quarter(i) for i in STAGE_INDICES) if block >= 0 else 0

    @staticmethod
    def _block_index(name: str) -> int | None:
        """Index of a parameter's block; -1 for the stem, ``None`` for a norm."""
        if match := re.match(r"blocks\.(\d+)\.", name):
            return int(match[1])
        if name.startswith("stem."):
            return -1
        if re.match(r"norm[0-3]?\.", name):
            return None
        raise ConfigError(f"{name!r} is not a parameter of an isotropic ConvNeXt")
