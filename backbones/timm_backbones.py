"""The baselines, built by timm, under this project's interface.

Each class takes over the parts of a timm model that it needs, under timm's own parameter names, and leaves the head
behind; the way through the parts is written here, so that any of them runs at any image size, gives maps, and can be
checkpointed block by block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import isqrt
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models.swin_transformer import window_partition, window_reverse
from torch import Tensor, nn

from backbones.base import STAGE_INDICES, Backbone
from backbones.errors import ConfigError
from backbones.layers import LayerNorm2d

STRIDES = (4, 8, 16, 32)
CLASSIFIER = re.compile(r"(?:head\.fc|head|fc|classifier)\.(weight|bias)")
RELATIVE_TABLE = "relative_position_bias_table"
MASKED = -100.0  # what the released Swin adds to the scores of two places that may not see each other


class TimmBackbone(Backbone):
    """What the networks from timm share: building, ids, the names in checkpoints.

    A subclass adopts parts of ``self.build_timm(...)`` and enters each into ``places``.

    Args:
        timm_name: Name of the architecture in timm.
        timm_options: Further arguments of timm's model.
        out_indices: ``None`` for one pooled vector, or the stages whose maps are given.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0 at the first.
        grad_checkpointing: Recompute the blocks in the backward pass instead of keeping their activations.
        weights: Path or URL of a checkpoint, loaded by ``init_weights``.

    Attributes:
        places: Layer and stage of each part; a parameter belongs to the part with the longest name that it begins with.
    """

    def __init__(
        self,
        timm_name: str,
        timm_options: Mapping[str, Any] | None = None,
        out_indices: Sequence[int] | None = None,
        drop_path_rate: float = 0.0,
        grad_checkpointing: bool | float | Sequence[int] = False,
        weights: str | None = None,
    ) -> None:
        super().__init__(out_indices, drop_path_rate, grad_checkpointing, weights)
        self.timm_name, self.timm_options = timm_name, dict(timm_options or {})
        self.drop_path_rate = drop_path_rate
        self.places: dict[str, tuple[int, int | None]] = {}
        self._num_layers = 0

    def build_timm(self, **options: Any) -> Any:
        """Build timm's model without a classifier and without downloading anything."""
        options = {**options, **self.timm_options, "drop_path_rate": self.drop_path_rate}
        return timm.create_model(self.timm_name, pretrained=False, num_classes=0, **options)

    def adopt(self, model: nn.Module, names: Sequence[str], layer: int, stage: int | None) -> None:
        """Take over parts of timm's model, or parameters of its own, and enter them as one layer of one stage."""
        for name in names:
            setattr(self, name, getattr(model, name))
            self.places[name] = (layer, stage)

    def set_outputs(self, channels: Sequence[int], strides: Sequence[int], num_features: int) -> None:
        """Set the answers on outputs, from the channels and strides of the four maps."""
        self.num_features = num_features
        chosen = self.out_indices
        self.out_channels = (num_features,) if chosen is None else tuple(channels[i] for i in chosen)
        self.strides = tuple(strides[i] for i in chosen or (3,))

    def add_output_norms(self, eps: float) -> None:
        """Give each map a norm of its own, which trains with the head."""
        for i, channels in zip(self.out_indices or (), self.out_channels, strict=True):
            self.add_module(f"norm{i}", LayerNorm2d(channels, eps))
            self.places[f"norm{i}"] = (self.num_layers + 1, None)

    def no_weight_decay(self, name: str) -> bool:
        """Whether a parameter takes no weight decay: embeddings of positions and the class token, as released."""
        return name in ("pos_embed", "cls_token") or name.endswith("relative_position_bias_table")

    @property
    def num_layers(self) -> int:
        """Layer groups before the head: each block is one."""
        return self._num_layers

    def layer_id(self, name: str) -> int:
        """Depth of a parameter: 0 for the stem, a block's number from 1, ``num_layers + 1`` after the last block."""
        return self._place(name)[0]

    def stage_id(self, name: str) -> int | None:
        """Stage of a parameter from 1, 0 for the stem, ``None`` for what belongs to the head."""
        return self._place(name)[1]

    def _place(self, name: str) -> tuple[int, int | None]:
        part = name
        while part not in self.places:
            part, dot, _ = part.rpartition(".")
            if not dot:
                raise ConfigError(f"{name!r} is not a parameter of this {self.timm_name}")
        return self.places[part]

    def may_be_missing(self, name: str) -> bool:
        """Whether a checkpoint may lack a tensor: norms of the maps, and a counter that old files do not have."""
        return super().may_be_missing(name) or name.endswith(".num_batches_tracked")

    def rename_weights(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring the tensors of a checkpoint of this architecture under this network's names and sizes.

        Args:
            tensors: Tensors of timm's own checkpoint, of the official release, or of this project, without a prefix.

        Returns:
            The same under the names of ``state_dict()``, a classifier as ``head.weight`` ``(classes, num_features)``
            and ``head.bias``. A tensor without a place here keeps its name.
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
    """Names of the parts of a ConvNet in the order of execution; the children of a stage's parts are its blocks."""

    stem: tuple[str, ...]
    stages: tuple[tuple[str, ...], ...]
    tail: tuple[str, ...] = ()


# By timm's class. A stage ends before the next halving of the map.
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

    With ``grad_checkpointing`` a batch norm sees each batch twice: its running statistics follow faster.

    Args:
        norm_eval: Keep batch norms at the statistics of pre-training, for training with the two images per GPU of
            detection, too few to estimate them.
        **options: Those of :class:`TimmBackbone`.
    """

    def __init__(self, timm_name: str, *, norm_eval: bool = False, **options: Any) -> None:
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
                    self.places[f"{part}.{name}"] = (blocks, stage)
        self._num_layers = blocks
        if self.out_indices is None:
            self.adopt(model, layout.tail, blocks + 1, None)
        channels = {info["reduction"]: info["num_chs"] for info in model.feature_info}
        self.set_outputs([channels[stride] for stride in STRIDES], STRIDES, model.num_features)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Compute features.

        Args:
            x: Images ``(N, 3, H, W)``, normalised. Each halving rounds an odd side up.

        Returns:
            ``(N, num_features)`` without ``out_indices``, else one ``(N, C_i, H_i, W_i)`` for each index.

        Raises:
            UserError: If an image is smaller than 32 x 32, or ``weights`` were asked for and never loaded.
        """
        x = self._run(self._layout.stem, self.prepare(x))
        outputs = []
        for i, parts in enumerate(self._layout.stages):
            for part in parts:
                x = self.run_blocks(self.get_submodule(part).children(), x)
            if self.out_indices is not None and i in self.out_indices:
                outputs.append(x)
        if self.out_indices is None:
            return self._run(self._layout.tail, x).mean((2, 3))
        return tuple(outputs)

    def train(self, mode: bool = True) -> TimmConvNet:
        """Set the mode of training, of which ``norm_eval`` exempts the batch norms."""
        super().train(mode)
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
                    module.eval()
        return self

    def _run(self, names: Sequence[str], x: Tensor) -> Tensor:
        for name in names:
            x = self.get_submodule(name)(x)
        return x


class TimmVisionTransformer(TimmBackbone):
    """ViT and DeiT with a class token: maps at stride 16 after each quarter of the blocks, as in isotropic ConvNeXts.

    Position embeddings are interpolated where an image has another size than the network was made for.

    Args:
        **options: Those of :class:`TimmBackbone`.
    """

    min_image_side = 16
    patch_embed: Any
    cls_token: nn.Parameter
    pos_embed: nn.Parameter
    norm: nn.LayerNorm

    def __init__(self, timm_name: str, **options: Any) -> None:
        super().__init__(timm_name, **options)
        model = self.build_timm()
        self.adopt(model, ("patch_embed", "cls_token", "pos_embed"), 0, 0)
        self.blocks = model.blocks
        self._num_layers = depth = len(self.blocks)
        self._bounds = [i * depth // len(STAGE_INDICES) for i in (*STAGE_INDICES, len(STAGE_INDICES))]
        for block in range(depth):
            self.places[f"blocks.{block}"] = (block + 1, sum(block >= start for start in self._bounds[:-1]))
        patch = self.patch_embed.patch_size[0]
        self.set_outputs((model.num_features,) * len(STAGE_INDICES), (patch,) * len(STAGE_INDICES), model.num_features)
        if self.out_indices is None:
            self.adopt(model, ("norm",), depth + 1, None)
        else:
            self.add_output_norms(model.norm.eps)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Compute features.

        Args:
            x: Images ``(N, 3, H, W)``, normalised. Rows and columns beyond a multiple of 16 are dropped.

        Returns:
            The normalised class token ``(N, num_features)`` without ``out_indices``, else one
            ``(N, num_features, H / 16, W / 16)`` for each index.

        Raises:
            UserError: If an image is smaller than 16 x 16, or ``weights`` were asked for and never loaded.
        """
        x = self.patch_embed.proj(self.prepare(x))
        size = x.shape[-2:]
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        x = x + resample_abs_pos_embed(self.pos_embed, list(size))
        blocks = list(self.blocks.children())
        outputs = []
        for i in STAGE_INDICES:
            x = self.run_blocks(blocks[self._bounds[i] : self._bounds[i + 1]], x)
            if self.out_indices is not None and i in self.out_indices:
                outputs.append(self.get_submodule(f"norm{i}")(x[:, 1:].transpose(1, 2).unflatten(2, size)))
        if self.out_indices is None:
            return self.norm(x[:, 0])
        return tuple(outputs)

    def rename_weights(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """As :meth:`TimmBackbone.rename_weights`; position embeddings of another square grid are interpolated."""
        renamed = super().rename_weights(tensors)
        embedding = renamed.get("pos_embed")
        if embedding is not None and embedding.ndim == 3 and embedding.shape != self.pos_embed.shape:
            places = max(embedding.shape[1] - 1, 0)
            if places and isqrt(places) ** 2 == places:  # else of another network: the loader will say so
                renamed["pos_embed"] = resample_abs_pos_embed(embedding, list(self.patch_embed.grid_size))
        return renamed


class WindowBlock(nn.Module):
    """Swin's block for maps of any size: ``(N, H, W, C) -> (N, H, W, C)``.

    The map is padded to whole windows first and shifted then, with the mask of the padded map, as in the released code
    for detection; timm shifts first, so that at other sizes than a multiple of the window its masks lie beside the
    seam.

    Args:
        block: timm's block, whose layers are taken over.
        always_shift: Shift also where the map fits into one window. The released detection and segmentation code does,
            the released classifier does not.
    """

    def __init__(self, block: Any, always_shift: bool) -> None:
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
        windows = window_partition(x, (window, window)).flatten(1, 2)  # (windows of all images, window ** 2, C)
        windows = self.attn(windows, mask).unflatten(1, (window, window))
        x = window_reverse(windows, (window, window), x.shape[1], x.shape[2])
        if shift:
            x = x.roll((shift, shift), (1, 2))
        return x[:, :height, :width]


def shift_mask(x: Tensor, window: int, shift: int) -> Tensor:
    """What a shifted map adds to the scores: places that the shift brought together from opposite sides are masked.

    Args:
        x: The padded and shifted map ``(N, H, W, C)``.
        window: Side of a window, a divisor of H and W.
        shift: By how much the map was shifted towards the upper left.

    Returns:
        0 or -100, ``(windows, window ** 2, window ** 2)``, of the kind of ``x``.
    """
    below, right = (torch.arange(length, device=x.device) >= length - shift for length in x.shape[1:3])
    region = 2 * below[:, None] + right  # which of the four parts that the seams cut the map into
    region = window_partition(region[None, ..., None], (window, window)).flatten(1)
    return (region[:, :, None] != region[:, None, :]).to(x.dtype) * MASKED


class TimmSwin(TimmBackbone):
    """Swin Transformer at any image size: maps at strides 4, 8, 16 and 32, each with its own norm.

    With ``out_indices`` it works as the released code for detection and segmentation, without as the released
    classifier; they differ in the last stage, see :class:`WindowBlock`. Layer ids are those of the authors' SimMIM: a
    downsampling has that of the block before it.

    Args:
        **options: Those of :class:`TimmBackbone`.
    """

    patch_embed: Any
    layers: Any
    norm: nn.LayerNorm

    def __init__(self, timm_name: str, **options: Any) -> None:
        super().__init__(timm_name, **options)
        model = self.build_timm(always_partition=True, dynamic_img_size=True)
        self.adopt(model, ("patch_embed",), 0, 0)
        self.layers = model.layers
        depths = [len(stage.blocks) for stage in self.layers]
        self._num_layers = sum(depths)
        for i, (stage, before) in enumerate(zip(self.layers, accumulate(depths, initial=0), strict=False)):
            self.places[f"layers.{i}.downsample"] = (before, 0)
            for j, block in enumerate(stage.blocks):
                stage.blocks[j] = WindowBlock(block, always_shift=self.out_indices is not None)
                self.places[f"layers.{i}.blocks.{j}"] = (before + j + 1, i + 1)
        self.set_outputs([info["num_chs"] for info in model.feature_info], STRIDES, model.num_features)
        if self.out_indices is None:
            self.adopt(model, ("norm",), self.num_layers + 1, None)
        else:
            self.add_output_norms(model.norm.eps)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Compute features.

        Args:
            x: Images ``(N, 3, H, W)``, normalised. They are padded to whole patches, and each halving rounds up.

        Returns:
            ``(N, num_features)`` without ``out_indices``, else one ``(N, C_i, H_i, W_i)`` for each index.

        Raises:
            UserError: If an image is smaller than 32 x 32, or ``weights`` were asked for and never loaded.
        """
        x = self.prepare(x)
        patch = STRIDES[0]
        x = F.pad(x, (0, -x.shape[-1] % patch, 0, -x.shape[-2] % patch))
        x = self.patch_embed.norm(self.patch_embed.proj(x).permute(0, 2, 3, 1))  # (N, H, W, C) from here on
        outputs = []
        for i, stage in enumerate(self.layers):
            x = self.run_blocks(stage.blocks, stage.downsample(x))
            if self.out_indices is not None and i in self.out_indices:
                outputs.append(self.get_submodule(f"norm{i}")(x.permute(0, 3, 1, 2)))
        if self.out_indices is None:
            return self.norm(x).mean((1, 2))
        return tuple(outputs)

    def rename_weights(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """As :meth:`TimmBackbone.rename_weights`.

        The released files keep a downsampling in the stage before it, and buffers that are computed here. Relative
        positions of another window are interpolated.
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
                value = resized_table(value, table)
            renamed[name] = value
        return renamed


def resized_table(table: Tensor, wanted: Tensor) -> Tensor:
    """Interpolate a table of relative positions to another window, as the released code does.

    Args:
        table: ``((2 * window - 1) ** 2, heads)``.
        wanted: A table of the new window.

    Returns:
        The table in the new size; the same one where it cannot be of this network, which the loader will say.
    """
    if table.shape[1:] != wanted.shape[1:] or not table.is_floating_point():
        return table
    old, new = isqrt(table.shape[0]), isqrt(wanted.shape[0])
    if old == 0 or old * old != table.shape[0]:
        return table
    grid = F.interpolate(table.T.unflatten(1, (old, old))[None], size=(new, new), mode="bicubic")
    return grid[0].flatten(1).T
