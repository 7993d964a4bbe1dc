"""mmseg's methods, as :mod:`analysis.zoo` tries them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.structures import PixelData
from torch import nn

from engine.config.datasets import mappings
from engine.task import ZooSpec

# Networks of two paths, one of which is a backbone: they read the maps of strides 4 to 32.
WRAPPERS = ("BiSeNetV1", "STDCContextPathNet")


def _before_swap(folder: str, cfg: Config) -> None:
    """Take the backbone within a network of two paths; drop a pyramid that a plain vision transformer needs."""
    backbone, neck = cfg.model.backbone, cfg.model.get("neck")
    if backbone.type in WRAPPERS:
        # The heads read the network, not the backbone in it: out of sight meanwhile.
        heads = {key: cfg.model.pop(key) for key in ("decode_head", "auxiliary_head")}
        cfg.model.wrapper, cfg.model.backbone = {"network": backbone, **heads}, backbone.pop("backbone_cfg")
    if neck and neck.type == "Feature2Pyramid":
        del cfg.model["neck"]


def _after_swap(folder: str, cfg: Config, channels: Sequence[int]) -> None:
    """Put the backbone into its network of two paths; tell the heads behind a JPU, which also passes maps on."""
    model = cfg.model
    if (model.get("neck") or {}).get("type") == "JPU":
        passed = model.neck.in_channels[model.neck.start_level : -1]
        for head in mappings([model.decode_head, model.get("auxiliary_head")]):
            if isinstance(head.get("in_index"), int) and head.in_index < len(passed):
                head.in_channels = passed[head.in_index]
            elif isinstance(head.get("in_index"), list | tuple):
                head.in_channels = [*passed, head.in_channels[-1]]
    for head in mappings([model.get("decode_head"), model.get("auxiliary_head")]):
        if head.get("type") == "FCNHead" and head.get("num_convs") == 0:
            head.channels = head.in_channels  # its classifier reads the map itself
        if "c1_in_channels" in head:
            head.c1_in_channels = channels[0]  # of the finest map, which it reads beside
    if folder == "dmnet":
        model.neck = {"type": "ContiguousMaps"}
    wrapper = model.pop("wrapper", None)
    if wrapper is None:
        return
    network = wrapper.pop("network")
    model.update(wrapper)
    network.backbone_cfg, model.backbone = model.backbone, network
    if network.type == "BiSeNetV1":
        network.backbone_cfg.out_indices = (0, 1, 2, 3)
        # The fusion takes the maps of both paths together for the second number of channels.
        network.context_channels = tuple(channels[1:])
        network.spatial_channels = (*network.spatial_channels[:-1], channels[2] - channels[1])
        for head in model.auxiliary_head:
            head.in_channels = channels[1]
    else:
        network.backbone_cfg.out_indices = (1, 2, 3)
        network.last_in_channels = (channels[3], channels[2])
        network.ffm_cfg.in_channels = channels[1] + network.out_channels
        for head in model.auxiliary_head:
            if head.in_index == 0:
                head.in_channels = channels[1]


def _complete_batch(folder: str, model: nn.Module, batch: dict[str, Any], training: bool) -> dict[str, Any]:
    """Add the edges of the label maps, which a few heads learn from."""
    for sample in batch["data_samples"]:
        labels = sample.gt_sem_seg.data
        sample.gt_edge_map = PixelData(data=torch.zeros_like(labels))
    return batch


SEGMENTATION_ZOO = ZooSpec(
    package="mmseg",
    out_of_scope={
        "dsdl": "only names data sets; the method has a folder of its own",
        "san": "segments by text: its network is CLIP's, whose weights and vocabulary are a download",
        "vpd": "depth from a diffusion model, which is a download",
    },
    kinds=dict.fromkeys(
        (
            *("beit", "bisenetv2", "cgnet", "convnext", "erfnet", "fastscnn", "hrnet", "icnet", "mae", "mobilenet_v2"),
            *("poolformer", "resnest", "swin", "twins", "unet", "vit"),
        ),
        "backbone",
    ),
    bound={
        "ddrnet": "its head reads the two branches of its own network",
        "dpt": "its head reads the class token of a plain vision transformer",
        "pidnet": "its head reads the three branches of its own network",
    },
    configs={
        # MLA adds maps of one size, as a plain vision transformer has them.
        "setr": "setr_vit-l_naive_8xb2-160k_ade20k-512x512.py",
        "swin": "swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py",
        # That of ResNet-18 states no size of padding, and fails on its own backbone too.
        "upernet": "upernet_r50_4xb4-80k_ade20k-512x512.py",
    },
    # LR-ASPP takes averages of 49 x 49 places of the last map, of stride 8 in its own network.
    stages={"mobilenet_v3": (0, 1, 2)},
    shapes={"mobilenet_v3": (784, 784)},
    before_swap=_before_swap,
    after_swap=_after_swap,
    complete_batch=_complete_batch,
)
