"""Table 2.9 of the dissertation: the layers of ResNet-50, ConvNeXt-T and Swin-T, read from the built networks."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import torch
from timm.models.resnet import Bottleneck
from timm.models.swin_transformer import WindowAttention
from torch import nn

from backbones.convnext import Block
from backbones.registry import build_backbone
from backbones.timm_backbones import WindowBlock

STAGE_NAMES = ("res2", "res3", "res4", "res5")


def _printed(stem: str, block: str, width: int, blocks: tuple[int, ...]) -> dict[str, str]:
    """Printed stem and stages; the width doubles with each stage, and a head of attention has 32 channels."""
    stages = {}
    for name, count in zip(STAGE_NAMES, blocks, strict=True):
        stages[name] = f"[{block.format(width=width, wide=4 * width, heads=width // 32)}] × {count}"
        width *= 2
    return {"stem": stem, **stages}


_SWIN_BLOCK = "1×1, {width}×3 | MSA, w7×7, H={heads}, rel. pos. | 1×1, {width} | 1×1, {wide} | 1×1, {width}"
_RESNET_STEM, _PATCHES = "7×7, 64, stride 2 | 3×3 max pool, stride 2", "4×4, 96, stride 4"
PRINTED_STAGES = {
    "resnet50": _printed(_RESNET_STEM, "1×1, {width} | 3×3, {width} | 1×1, {wide}", 64, (3, 4, 6, 3)),
    "convnext_tiny": _printed(_PATCHES, "d7×7, {width} | 1×1, {wide} | 1×1, {width}", 96, (3, 3, 9, 3)),
    "swin_tiny": _printed(_PATCHES, _SWIN_BLOCK, 96, (2, 2, 6, 2)),
}


def stage_layers(name: str) -> dict[str, str]:
    """Stem and stages of a registered network in the notation of Table 2.9.

    Args:
        name: Registered name of a network with blocks of ConvNeXt, ResNet or Swin.
    """
    with torch.device("meta"):
        network = build_backbone(name)
    blocks = [cell for module in network.modules() if (cell := _block(module))]
    stages = [f"[{cell}] × {len(list(equal))}" for cell, equal in groupby(blocks)]
    return {"stem": _stem(network), **dict(zip(STAGE_NAMES, stages, strict=True))}


def _stem(network: nn.Module) -> str:
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    pools = [
        f"{module.kernel_size}×{module.kernel_size} max pool, stride {module.stride}"
        for module in network.modules()
        if isinstance(module, nn.MaxPool2d)
    ]
    return " | ".join([f"{_layer(first)}, stride {first.stride[0]}", *pools])


def _block(module: nn.Module) -> str | None:
    """Layers of a residual block in execution order; ``None`` for any other module."""
    layers: tuple[Any, ...]
    if isinstance(module, Block):
        layers = (module.dwconv, module.pwconv1, module.pwconv2)
    elif isinstance(module, Bottleneck):
        layers = (module.conv1, module.conv2, module.conv3)
    elif isinstance(module, WindowBlock):
        attention: Any = module.attn
        layers = (attention.qkv, attention, attention.proj, module.mlp.fc1, module.mlp.fc2)
    else:
        return None
    return " | ".join(map(_layer, layers))


def _layer(layer: Any) -> str:
    if isinstance(layer, WindowAttention):
        height, width = layer.window_size
        return f"MSA, w{height}×{width}, H={layer.num_heads}, rel. pos."
    if isinstance(layer, nn.Linear):
        fused = layer.out_features == 3 * layer.in_features  # queries, keys and values
        return f"1×1, {layer.in_features}×3" if fused else f"1×1, {layer.out_features}"
    depthwise = "d" if layer.groups == layer.in_channels > 1 else ""
    height, width = layer.kernel_size
    return f"{depthwise}{height}×{width}, {layer.out_channels}"
