"""ConvNeXt V1 and V2: convolutional networks in four stages.

Papers: Liu, Mao, Wu, Feichtenhofer, Darrell, Xie. "A ConvNet for the 2020s". CVPR 2022 (V1). Woo, Debnath, Hu, Chen,
Liu, Kweon, Xie. "ConvNeXt V2: Co-designing and Scaling ConvNets with Masked Autoencoders". CVPR 2023 (V2).
Parameter names are those of the released checkpoints (``downsample_layers.0.0.weight``,
``stages.2.5.dwconv.weight``, ``norm0.weight``...), so that these load without renaming.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from math import ceil

from torch import Tensor, nn

from backbones.base import PYRAMID_STRIDES, Backbone, Group, Stage, run_recomputed
from backbones.errors import ConfigError
from backbones.kernels.dispatch import run_block, run_downsample
from backbones.layers import (
    GRN,
    DropPath,
    LayerNorm2d,
    check_kernel_size,
    drop_path_rates,
    init_trunc_normal,
    layer_scale,
)
from backbones.masked import LAYOUTS, MaskedForm, MaskedLayout

STEM_STRIDE = 4
BLOCKS_PER_GROUP = 3


def pyramid_groups(depths: Sequence[int]) -> dict[str, Group]:
    """Groups of four stages and the downsampling before each, as in the released code.

    The stem is layer group 0; the third stage has a group for each 3 blocks, every other stage one. ConvNeXt-T has 6
    of them, from S on there are 12. With one group per block, ``single`` in the released fine-tuning code of V2, stem
    and downsampling have the number of the block after them.

    Args:
        depths: Blocks per stage.
    """
    last = 3 + ceil(depths[2] / BLOCKS_PER_GROUP)
    groups = {}
    for stage, (depth, before) in enumerate(zip(depths, accumulate(depths, initial=1), strict=False)):
        groups[f"downsample_layers.{stage}"] = Group((0, 2, 3, last)[stage], 0, before)
        for block in range(depth):
            layer = (1, 2, 3 + block // BLOCKS_PER_GROUP, last)[stage]
            groups[f"stages.{stage}.{block}"] = Group(layer, stage + 1, before + block)
    return groups


class Block(nn.Module):
    """Depthwise convolution, LayerNorm, inverted-bottleneck MLP, layer scale, residual (Figure 4 of the paper).

    ``(N, C, H, W) -> (N, C, H, W)``. The MLP is written with linear layers over the last axis: on ``channels_last``
    maps every permutation here is a view and the products run as one large matrix multiplication. Where
    :mod:`backbones.kernels` has a faster form for the device, it takes the place of these steps.

    Args:
        dim: Channels ``C``.
        kernel_size: Odd side of the depthwise kernel.
        mlp_ratio: Hidden channels of the MLP relative to ``dim``.
        drop_path: Probability of skipping the block in training.
        layer_scale_init_value: Initial layer scale; 0 for none.
        use_grn: Global response normalisation of the hidden channels (V2).

    Raises:
        ConfigError: If ``mlp_ratio`` leaves no hidden channel.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 7,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        use_grn: bool = False,
    ) -> None:
        super().__init__()
        hidden = int(mlp_ratio * dim)
        if hidden < 1:
            raise ConfigError(f"mlp_ratio={mlp_ratio}: with {dim} channels the block would have no hidden channel")
        self.dwconv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.grn = GRN(hidden) if use_grn else nn.Identity()
        self.pwconv2 = nn.Linear(hidden, dim)
        self.layer_scale_init_value = layer_scale_init_value
        self.gamma = layer_scale(dim, layer_scale_init_value)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, layout: MaskedLayout | None = None) -> Tensor:
        """Compute ``(N, C, H, W) -> (N, C, H, W)``.

        Args:
            x: Map; in ``layout``, if that is given.
            layout: Arrangement of the visible units of images in maps, in a masked autoencoder.
        """
        out = run_block(self, x, layout)
        return self.forward_mlp(x, self.forward_dwconv_norm(x, layout), layout) if out is None else out

    def forward_dwconv_norm(self, x: Tensor, layout: MaskedLayout | None = None) -> Tensor:
        """First half, convolution and norm: ``(N, C, H, W) -> (N, H, W, C)``."""
        y = self.dwconv(x) if layout is None else layout.pack(self.dwconv(layout.unpack(x)))
        return self.norm(y.permute(0, 2, 3, 1))

    def forward_mlp(self, x: Tensor, y: Tensor, layout: MaskedLayout | None = None) -> Tensor:
        """Second half, MLP and residual: output ``(N, C, H, W)``.

        Args:
            x: Input of the block, ``(N, C, H, W)``.
            y: Output of the first half, ``(N, H, W, C)``.
            layout: Arrangement of the visible units in maps.
        """
        return x + self.drop_path(self.forward_branch(y, layout))

    def forward_branch(self, y: Tensor, layout: MaskedLayout | None = None) -> Tensor:
        """MLP and layer scale: ``(N, H, W, C) -> (N, C, H, W)``, the residual branch before stochastic depth."""
        y = self.act(self.pwconv1(y))
        y = self.pwconv2(self.grn(y) if layout is None else layout.normalize(self.grn, y))
        if self.gamma is not None:
            y = self.gamma * y
        return y.permute(0, 3, 1, 2)


class Downsampling(nn.Sequential):
    """Norm and convolution of side and stride 2 between two stages: ``(N, C, H, W) -> (N, outputs, H // 2, W // 2)``.

    Args:
        channels: Channels ``C`` of the stage before.
        outputs: Channels of the stage after.
    """

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__(LayerNorm2d(channels), nn.Conv2d(channels, outputs, 2, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        out = run_downsample(self, x)
        return super().forward(x) if out is None else out


class ConvNeXt(Backbone):
    """The network: four stages at strides 4, 8, 16 and 32, without a head.

    The sides of images need not be multiples of 32: as in the released network, each downsampling drops an odd last row
    or column.

    Args:
        depths: Blocks per stage.
        dims: Channels per stage.
        in_channels: Channels of the images.
        kernel_size: Odd side of the depthwise kernels (7 in the paper; 3 to 11 in its ablations).
        mlp_ratio: Hidden channels of the blocks' MLP relative to their channels.
        drop_path_rate: Probability of stochastic depth in the last block, growing linearly from 0 in the first.
        layer_scale_init_value: Initial layer scale; 1e-6 for training from scratch, 1.0 where detectors and
            segmentors overwrite it with pretrained weights, 0 for none (V2).
        use_grn: Global response normalisation in the blocks (V2).
        out_indices: ``None`` for one pooled and normalised vector (classification), or stage indices for one map each,
            normalised by ``norm{i}`` (dense prediction).
        grad_checkpointing: Blocks to recompute in the backward pass, see :class:`backbones.base.Backbone`.
        init_std: Standard deviation of the initial weights. The released 0.02 suits widths from 96 on; the narrow
            networks of the demo stay at chance level for hundreds of steps with it and need about 0.06.
        weights: Path or URL of a checkpoint, loaded by :meth:`init_weights`.

    Raises:
        ConfigError: If an argument is invalid.
    """

    described_as = "a ConvNeXt"

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        in_channels: int = 3,
        kernel_size: int = 7,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        use_grn: bool = False,
        out_indices: Sequence[int] | None = None,
        grad_checkpointing: bool | float | Sequence[int] = False,
        init_std: float = 0.02,
        weights: str | None = None,
    ) -> None:
        super().__init__(out_indices, drop_path_rate, grad_checkpointing, weights)
        if len(depths) != 4 or len(dims) != 4 or min(*depths, *dims) < 1:
            raise ConfigError(f"depths and dims need four positive numbers each, not {depths} and {dims}")
        check_kernel_size(kernel_size)
        self.depths, self.dims = tuple(depths), tuple(dims)
        self.groups |= pyramid_groups(self.depths)
        self.set_outputs(self.dims, PYRAMID_STRIDES, self.dims[-1])

        stem = nn.Sequential(nn.Conv2d(in_channels, dims[0], STEM_STRIDE, stride=STEM_STRIDE), LayerNorm2d(dims[0]))
        downsampling = (Downsampling(dims[i], dims[i + 1]) for i in range(3))
        self.downsample_layers = nn.ModuleList([stem, *downsampling])
        rates = drop_path_rates(drop_path_rate, self.depths)
        self.stages = nn.ModuleList(
            Stage(*(Block(dim, kernel_size, mlp_ratio, rate, layer_scale_init_value, use_grn) for rate in stage))
            for dim, stage in zip(dims, rates, strict=True)
        )
        self.add_norms(dims)
        self.apply(partial(init_trunc_normal, std=init_std))

    def forward(
        self, x: Tensor, visible: Tensor | None = None, form: MaskedForm = "packed"
    ) -> Tensor | tuple[Tensor, ...]:
        """Compute features.

        Args:
            x: Batch of normalised images, ``(N, in_channels, H, W)``.
            visible: Numbers of the visible 32 x 32 units of each image, row by row, int64 ``(N, V)``, in a masked
                autoencoder.
            form: Layout of the maps with ``visible``; the result is the same.

        Returns:
            As :meth:`backbones.base.Backbone.forward`; with ``visible`` the last stage's map without norm,
            ``(N, C, H // 32, W // 32)``, zero at hidden units.

        Raises:
            ConfigError: If an image is smaller than ``min_image_side``, or ``weights`` were requested and never loaded.
        """
        # torch.fx passes a proxy for every argument, also for those that are left out.
        if isinstance(visible, Tensor):
            return self._encode_visible(self.prepare(x), visible, form)
        return super().forward(x)

    def _encode_visible(self, x: Tensor, visible: Tensor, form: MaskedForm) -> Tensor:
        """The last stage's map of the visible units."""
        unit = PYRAMID_STRIDES[-1]
        grid = (x.shape[2] // unit, x.shape[3] // unit)
        # What is left over beyond the last whole unit is cut off.
        x = LAYOUTS[form](visible, grid, unit).pack(x[..., : grid[0] * unit, : grid[1] * unit])
        for stage, stride in enumerate(PYRAMID_STRIDES):
            layout = LAYOUTS[form](visible, grid, unit // stride)
            x = self.downsample_layers[stage](x)
            x = run_recomputed(
                self.stages[stage], x, self.recomputed_blocks() if self.is_recomputing() else set(), layout
            )
        return layout.unpack(x)

    def run_stage(self, stage: int, x: Tensor) -> Tensor:
        """Stem or downsampling, and the blocks of a stage: ``(N, C, H, W) -> (N, C', H', W')``."""
        return self.run_blocks(self.stages[stage], self.downsample_layers[stage](x))

    def no_weight_decay(self, name: str) -> bool:
        """Whether a parameter gets no weight decay: scale and shift of the response normalisation, as released."""
        return ".grn." in name
