"""Baselines built by timm, with the interface of :class:`backbones.base.Backbone`.

Each class takes the modules of a timm model that it needs, under timm's own parameter names and without the head. The
forward pass is written here, so that each network runs at any image size, returns maps, and supports gradient
checkpointing block by block.

timm takes two seconds to import, and is imported when the first of these networks is built: most programs build none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from math import isqrt
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.base import PYRAMID_STRIDES, STAGE_INDICES, Backbone, Group
from backbones.channels import COLOUR_CHANNELS
from backbones.isotropic import quarter_bounds, quarter_groups
from backbones.layers import init_trunc_normal

if TYPE_CHECKING:
    from timm.layers import PatchEmbed
    from timm.models.swin_transformer import SwinTransformerBlock

CLASSIFIER = re.compile(r"(?:head\.fc|head|fc|classifier)\.(weight|bias)")
RELATIVE_TABLE = "relative_position_bias_table"
MASK_VALUE = -100.0  # added by the released Swin to attention scores of positions that are masked from each other


class TimmBackbone(Backbone):
    """Base class of the networks from timm: building, layer groups, and names in checkpoints.

    A subclass takes modules of ``self.build_timm(...)`` and enters each into ``groups``.

    Args:
        timm_name: Name of the architecture in timm.
        timm_options: Further arguments of timm's model.
        out_indices: ``None`` for one pooled vector, or indices of the stages whose maps are returned.
        drop_path_rate: Probability of stochastic depth in the last block, growing linearly from 0 in the first.
        grad_checkpointing: Blocks to recompute in the backward pass, see :class:`backbones.base.Backbone`.
        weights: Path or URL of a checkpoint, loaded by ``init_weights``.
        in_channels: Channels of the images.
    """

    def __init__(
        self,
        timm_name: str,
        timm_options: Mapping[str, Any] | None = None,
        out_indices: Sequence[int] | None = None,
        drop_path_rate: float = 0.0,
        grad_checkpointing: bool | float | Sequence[int] = False,
        weights: str | None = None,
        in_channels: int = COLOUR_CHANNELS,
    ) -> None:
        super().__init__(out_indices, drop_path_rate, grad_checkpointing, weights)
        self.in_channels = in_channels
        self.timm_name, self.timm_options = timm_name, dict(timm_options or {})
        self.drop_path_rate = drop_path_rate
        self.described_as = f"this {timm_name}"

    def build_timm(self, **options: Any) -> Any:
        """Build timm's model without a classifier and without downloading anything."""
        import timm

        options = {**options, **self.timm_options, "drop_path_rate": self.drop_path_rate, "in_chans": self.in_channels}
        return timm.create_model(self.timm_name, pretrained=False, num_classes=0, **options)

    def adopt(self, model: nn.Module, names: Sequence[str], layer: int, stage: int | None) -> None:
        """Take modules or parameters of timm's model, and enter them as one layer group of one stage."""
        for name in names:
            setattr(self, name, getattr(model, name))
            self.groups[name] = Group(layer, stage, layer)

    def no_weight_decay(self, name: str) -> bool:
        """Whether a parameter gets no weight decay: position embeddings and the class token, as released."""
        return name in ("pos_embed", "cls_token") or name.endswith("relative_position_bias_table")

    def may_be_missing(self, name: str) -> bool:
        """Whether a tensor may be missing: those of output norms, and a counter that old files do not have."""
        return super().may_be_missing(name) or name.endswith(".num_batches_tracked")

    def rename_weights(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename and resize the tensors of a checkpoint of this architecture for this network.

        Args:
            tensors: Tensors of a checkpoint of timm, the official release or this project, without a prefix.

        Returns:
            Tensors under the names of ``state_dict()``, a classifier as ``head.weight`` ``(classes, num_features)`` and
            ``head.bias``. A tensor that does not exist here keeps its name.
        """
        renamed = {}
        for name, value in tensors.items():
            if match := CLASSIFIER.fullmatch(name):  # a convolution of 1 x 1 in timm's BiT
                renamed[f"head.{match[1]}"] = value.flatten(1) if value.ndim == 4 else value
            else:
                renamed[name] = value
        return renamed


@dataclass(frozen=True)
class _ConvNetParts:
    """Names of a ConvNet's modules in the order of execution; the children of a stage's modules are its blocks."""

    stem: tuple[str, ...]
    stages: tuple[tuple[str, ...], ...]
    tail: tuple[str, ...] = ()


# By class of timm. A stage ends before the next halving of the map.
CONVNET_PARTS = {
    "ResNet": _ConvNetParts(("conv1", "bn1", "act1", "maxpool"), (("layer1",), ("layer2",), ("layer3",), ("layer4",))),
    "RegNet": _ConvNetParts(("stem",), (("s1",), ("s2",), ("s3",), ("s4",)), ("final_conv",)),
    "EfficientNet": _ConvNetParts(
        ("conv_stem", "bn1"),
        (("blocks.0", "blocks.1"), ("blocks.2",), ("blocks.3", "blocks.4"), ("blocks.5", "blocks.6")),
        ("conv_head", "bn2"),
    ),
    "ResNetV2": _ConvNetParts(("stem",), tuple((f"stages.{i}.blocks",) for i in STAGE_INDICES), ("norm",)),
}


class TimmConvNet(TimmBackbone):
    """ResNet, ResNeXt, RegNet, EfficientNet (V2) and BiT: maps at strides 4, 8, 16 and 32, without added norms.

    Each halving rounds an odd side up. With ``grad_checkpointing`` batch norms update their running statistics twice in
    a step.

    Args:
        norm_eval: Keep batch norms in evaluation mode, for detection, whose two images per GPU are too few to estimate
            statistics.
        init_std: Standard deviation of the initial weights, truncated at +-2, as in ConvNeXt, with all batch norms at
            1; ``None`` for timm's own initialisation.
        **options: Options of :class:`TimmBackbone`.

    Raises:
        ConfigError: If an argument is invalid.
    """

    def __init__(
        self,
        timm_name: str,
        *,
        norm_eval: bool = False,
        init_std: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(timm_name, **options)
        self.norm_eval = norm_eval
        model = self.build_timm()
        self._layout = layout = CONVNET_PARTS[type(model).__name__]
        self.adopt(model, layout.stem, 0, 0)
        blocks = 0
        for stage, parts in enumerate(layout.stages, start=1):
            for part in parts:
                root = part.partition(".")[0]
                setattr(self, root, getattr(model, root))
                for name, _ in self.get_submodule(part).named_children():
                    blocks += 1
                    self.groups[f"{part}.{name}"] = Group(blocks, stage, blocks)
        if self.out_indices is None:
            self.adopt(model, layout.tail, blocks + 1, None)
        channels = {info["reduction"]: info["num_chs"] for info in model.feature_info}
        self.set_outputs([channels[stride] for stride in PYRAMID_STRIDES], PYRAMID_STRIDES, model.num_features)
        if init_std is not None:
            self._init_like_convnext(init_std)

    def run_stem(self, x: Tensor) -> Tensor:
        """The layers before the first block: ``(N, 3, H, W) -> (N, C, H', W')``."""
        return self._run(self._layout.stem, x)

    def run_stage(self, stage: int, x: Tensor) -> Tensor:
        """The blocks of a stage: ``(N, C, H, W) -> (N, C', H', W')``."""
        for part in self._layout.stages[stage]:
            x = self.run_blocks(self.get_submodule(part), x)
        return x

    def pool(self, x: Tensor) -> Tensor:
        """Mean over the map, after the network's last layers."""
        return self._run(self._layout.tail, x).mean((2, 3))

    def train(self, mode: bool = True) -> TimmConvNet:
        """Set training mode; what is frozen, and with ``norm_eval`` every batch norm, stays in evaluation mode."""
        super().train(mode)
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
                    module.eval()
        return self

    def _init_like_convnext(self, std: float) -> None:
        self.apply(partial(init_trunc_normal, std=std))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)  # timm starts the last one of each block at 0

    def _run(self, names: Sequence[str], x: Tensor) -> Tensor:
        for name in names:
            x = self.get_submodule(name)(x)
        return x


class TimmVisionTransformer(TimmBackbone):
    """ViT and DeiT with a class token: maps at stride 16 after each quarter of the blocks, as in isotropic ConvNeXts.

    Position embeddings are interpolated if an image has another size than the network was built for.

    Args:
        **options: Options of :class:`TimmBackbone`.
    """

    min_image_side = 16
    patch_embed: PatchEmbed
    cls_token: nn.Parameter
    pos_embed: nn.Parameter
    norm: nn.LayerNorm

    def __init__(self, timm_name: str, **options: Any) -> None:
        super().__init__(timm_name, **options)
        model = self.build_timm()
        self.adopt(model, ("patch_embed", "cls_token", "pos_embed"), 0, 0)
        self.blocks = model.blocks
        depth = len(self.blocks)
        self._bounds = quarter_bounds(depth)
        self.groups |= quarter_groups(depth)
        patch = self.patch_embed.patch_size[0]
        self.set_outputs((model.num_features,) * len(STAGE_INDICES), (patch,) * len(STAGE_INDICES), model.num_features)
        if self.out_indices is None:
            self.adopt(model, ("norm",), depth + 1, None)
        else:
            self.add_norms((model.num_features,) * len(STAGE_INDICES), model.norm.eps)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Compute features.

        Args:
            x: Batch of normalised images, ``(N, 3, H, W)``. Rows and columns beyond a multiple of 16 are dropped.

        Returns:
            The normalised class token ``(N, num_features)`` without ``out_indices``, else one map
            ``(N, num_features, H // 16, W // 16)`` for each index.

        Raises:
            ConfigError: If an image is smaller than 16 x 16, or ``weights`` were requested and never loaded.
        """
        x = self.patch_embed.proj(self.prepare(x))
        size = x.shape[-2:]
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        x = x + resampled_positions(self.pos_embed, size)
        if self.out_indices is None:
            return self.norm(self.run_blocks(self.blocks, x)[:, 0])
        outputs = []
        for i in STAGE_INDICES:
            x = self.run_blocks(self.blocks[self._bounds[i] : self._bounds[i + 1]], x)
            if i in self.out_indices:
                outputs.append(self.get_submodule(f"norm{i}")(x[:, 1:].transpose(1, 2).unflatten(2, size)))
        return tuple(outputs)

    def rename_weights(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the tensors, and interpolate position embeddings of another square grid."""
        renamed = super().rename_weights(tensors)
        embedding = renamed.get("pos_embed")
        if embedding is not None and embedding.ndim == 3 and embedding.shape != self.pos_embed.shape:
            positions = max(embedding.shape[1] - 1, 0)
            if positions and isqrt(positions) ** 2 == positions:  # else of another network: the loader raises an error
                renamed["pos_embed"] = resampled_positions(embedding, self.patch_embed.grid_size)
        return renamed


def resampled_positions(embedding: Tensor, size: Sequence[int]) -> Tensor:
    """Position embeddings ``(1, 1 + positions, C)`` of a class token and a square grid, for a grid of another size."""
    from timm.layers import resample_abs_pos_embed

    resampled: Tensor = resample_abs_pos_embed(embedding, list(size))
    return resampled


class WindowBlock(nn.Module):
    """Swin's block for maps of any size: ``(N, H, W, C) -> (N, H, W, C)``.

    The map is first padded to whole windows and then shifted, with the mask of the padded map, as in the released code
    for detection; timm shifts first, so that its masks are misplaced if the size is not a multiple of the window.

    Args:
        block: Block of timm whose layers are used.
        always_shift: Shift also if the map fits into one window. The released detection and segmentation code does, the
            released classifier does not.
    """

    def __init__(self, block: SwinTransformerBlock, always_shift: bool) -> None:
        super().__init__()
        self.norm1, self.attn, self.drop_path1 = block.norm1, block.attn, block.drop_path1
        self.norm2, self.mlp, self.drop_path2 = block.norm2, block.mlp, block.drop_path2
        self.window: int = block.attn.window_size[0]
        self.shift: int = block.target_shift_size[0]
        self.always_shift = always_shift

    def forward(self, x: Tensor) -> Tensor:
        """Attend within windows, then mix the channels."""
        x = x + self.drop_path1(self._attend(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        window = self.window
        shift = self.shift if self.always_shift or min(height, width) > window else 0
        x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
        mask = None
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
            mask = shift_mask(x, window, shift)
        grid = (x.shape[0], x.shape[1] // window, x.shape[2] // window)
        windows = self.attn(windows_of(x, window), mask)
        x = windows.unflatten(1, (window, window)).unflatten(0, grid).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if shift:
            x = x.roll((shift, shift), (1, 2))
        return x[:, :height, :width]


def windows_of(x: Tensor, window: int) -> Tensor:
    """Windows of maps ``(N, H, W, C)``: ``(windows of all maps, window ** 2, C)``, row by row within a map.

    Args:
        x: Maps; H and W are multiples of ``window``.
        window: Side of a window, in positions.
    """
    return x.unflatten(2, (-1, window)).unflatten(1, (-1, window)).transpose(2, 3).flatten(0, 2).flatten(1, 2)


def shift_mask(x: Tensor, window: int, shift: int) -> Tensor:
    """Attention mask of a shifted map, for positions that the shift brought together from opposite sides.

    Args:
        x: Padded and shifted map, ``(N, H, W, C)``.
        window: Side of a window, a divisor of H and W.
        shift: Shift of the map towards the upper left, in positions.

    Returns:
        Mask of 0 and -100 that is added to the scores, ``(windows, window ** 2, window ** 2)``.
    """
    below, right = (torch.arange(length, device=x.device) >= length - shift for length in x.shape[1:3])
    region = 2 * below[:, None] + right  # index of the region between the seams of the shift
    region = windows_of(region[None, ..., None], window).flatten(1)
    return (region[:, :, None] != region[:, None, :]).to(x.dtype) * MASK_VALUE


class TimmSwin(TimmBackbone):
    """Swin Transformer at any image size: maps at strides 4, 8, 16 and 32, each with its own norm.

    With ``out_indices`` it computes the same as the released code for detection and segmentation, without the same as
    the released classifier; they differ in the last stage, see :class:`WindowBlock`. Layer groups are those of the
    authors' SimMIM: a downsampling belongs to the group of the block before it. Images are padded to whole patches, and
    each halving rounds up.

    Args:
        **options: Options of :class:`TimmBackbone`.
    """

    patch_embed: PatchEmbed
    layers: Any
    norm: nn.LayerNorm

    def __init__(self, timm_name: str, **options: Any) -> None:
        super().__init__(timm_name, **options)
        model = self.build_timm(always_partition=True, dynamic_img_size=True)
        self.adopt(model, ("patch_embed",), 0, 0)
        self.layers = model.layers
        depths = [len(stage.blocks) for stage in self.layers]
        for i, (stage, before) in enumerate(zip(self.layers, accumulate(depths, initial=0), strict=False)):
            self.groups[f"layers.{i}.downsample"] = Group(before, 0, before)
            for j, block in enumerate(stage.blocks):
                stage.blocks[j] = WindowBlock(block, always_shift=self.out_indices is not None)
                self.groups[f"layers.{i}.blocks.{j}"] = Group(before + j + 1, i + 1, before + j + 1)
        dims = [info["num_chs"] for info in model.feature_info]
        self.set_outputs(dims, PYRAMID_STRIDES, model.num_features)
        if self.out_indices is None:
            self.adopt(model, ("norm",), self.num_layers + 1, None)
        else:
            self.add_norms(dims, model.norm.eps)

    def run_stem(self, x: Tensor) -> Tensor:
        """Embedded patches, ``(N, 3, H, W) -> (N, H', W', C)``."""
        patch = PYRAMID_STRIDES[0]
        x = F.pad(x, (0, -x.shape[-1] % patch, 0, -x.shape[-2] % patch))
        return self.patch_embed.norm(self.patch_embed.proj(x).permute(0, 2, 3, 1))

    def run_stage(self, stage: int, x: Tensor) -> Tensor:
        """Downsampling and blocks of a stage: ``(N, H, W, C) -> (N, H', W', C')``."""
        layer = self.layers[stage]
        return self.run_blocks(layer.blocks, layer.downsample(x)) if self.is_recomputing() else layer(x)

    def as_map(self, x: Tensor) -> Tensor:
        """The output of a block or stage as a map, ``(N, H, W, C) -> (N, C, H, W)``."""
        return x.permute(0, 3, 1, 2)

    def output_map(self, stage: int, x: Tensor) -> Tensor:
        """The normalised map, ``(N, H, W, C) -> (N, C, H, W)``."""
        return super().output_map(stage, self.as_map(x))

    def pool(self, x: Tensor) -> Tensor:
        """Mean over the normalised map ``(N, H, W, C)``."""
        return self.norm(x).mean((1, 2))

    def rename_weights(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the tensors of timm or of the released files, and interpolate relative positions of another window.

        The released files have a downsampling in the stage before it, and buffers that are computed here.
        """
        released = "layers.0.downsample.reduction.weight" in tensors
        renamed, own = {}, dict(self.named_parameters())
        for name, value in super().rename_weights(tensors).items():
            if name.endswith((".relative_position_index", ".attn_mask")):
                continue
            if released and (match := re.match(r"layers\.(\d+)(\.downsample\..+)", name)):
                name = f"layers.{int(match[1]) + 1}{match[2]}"
            table = own.get(name) if name.endswith(RELATIVE_TABLE) else None
            if table is not None and value.shape != table.shape:
                value = resize_position_table(value, table)
            renamed[name] = value
        return renamed


def resize_position_table(table: Tensor, target: Tensor) -> Tensor:
    """Interpolate a table of relative positions for another window, as the released code does.

    Args:
        table: Table of the checkpoint, ``((2 * window - 1) ** 2, heads)``.
        target: Table of the network, ``((2 * new_window - 1) ** 2, heads)``.

    Returns:
        The table in the size of the target; unchanged if it belongs to another network, for which the loader raises an
        error.
    """
    if table.shape[1:] != target.shape[1:] or not table.is_floating_point():
        return table
    old, new = isqrt(table.shape[0]), isqrt(target.shape[0])
    if old == 0 or old * old != table.shape[0]:
        return table
    grid = F.interpolate(table.T.unflatten(1, (old, old))[None], size=(new, new), mode="bicubic")
    return grid[0].flatten(1).T
