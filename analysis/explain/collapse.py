"""Feature collapse: how different the channels of each block are, before and after V2's response normalisation.

Source: Woo et al., "ConvNeXt V2", 2023 (arXiv 2301.00808), section 3 and Figure 4: of the expanded features of a block,
(H, W, C), the mean cosine distance of pairs of channels, ``sum_ij (1 - cos(x_i, x_j)) / 2 / C ** 2``, of each image,
averaged over images, over the depth of the block from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from analysis.explain.network import TrainedNetwork, recorded, with_progress
from backbones.convnext import Block
from backbones.errors import ConfigError
from backbones.layers import GRN
from engine.report.html import CURVE_COLOURS, CurveLine, note, plot, table

BEFORE, AFTER = "before GRN", "after GRN"


@dataclass(frozen=True)
class Collapse:
    """Distances of the channels of a network.

    Attributes:
        network: Names of the config and of the backbone.
        distances: Mean distance in each block, in their order; of a network with response normalisation
            before and after it.
        single: Number of blocks whose map has one position, of which the distance knows the signs alone.
    """

    network: str
    distances: Mapping[str, Sequence[float]]
    single: int = 0


def channel_distance(features: Tensor) -> Tensor:
    """Mean cosine distance of pairs of channels, each channel with itself included, of each image, (N,), 0 to 1.

    A channel that is zero everywhere has a cosine of 0 to every channel.

    Args:
        features: Features, (N, H, W, C).
    """
    channels = features.shape[-1]
    # The cosines of all pairs add up to the squared length of the sum of the unit vectors.
    total = F.normalize(features.flatten(1, 2).double(), dim=1).sum(2).square().sum(1)
    return (1 - total / channels**2) / 2


def measure_collapse(network: TrainedNetwork, images: Sequence[Path]) -> Collapse:
    """Distances of the channels of a network's blocks, averaged over images.

    Raises:
        ConfigError: If the network has no blocks of ConvNeXt.
    """
    blocks = [module for module in network.backbone.modules() if isinstance(module, Block)]
    if not blocks:
        raise ConfigError(f"--parts collapse: {network.name} has no blocks of ConvNeXt, whose features are compared")
    layers = [block.grn for block in blocks]  # nothing in V1, but a layer that is called
    sums: Tensor | float = 0.0
    single = 0
    for path in with_progress(images, f"feature collapse of {network.label}"):
        with recorded(layers) as found:
            network.backbone(network.batch(str(path))["inputs"])
            pairs = [torch.stack([channel_distance(x) for x in found[layer]]).squeeze(1) for layer in layers]
        sums = sums + torch.stack(pairs, 1)
        single = max(single, sum(found[layer].output.shape[1:3].numel() == 1 for layer in layers))
    before, after = (torch.as_tensor(sums) / len(images)).tolist()
    normalises = any(isinstance(layer, GRN) for layer in layers)
    return Collapse(network.label, {BEFORE: before, AFTER: after} if normalises else {"": after}, single)


def collapse_section(found: Sequence[Collapse], images: int) -> str:
    """Draw the distances of networks over their depth, as HTML."""
    several = len({one.network for one in found}) == len(found)
    lines: dict[str, CurveLine] = {}
    rows = []
    for place, one in enumerate(found, start=1):
        name = one.network if several else f"{place}: {one.network}"
        for when, distances in one.distances.items():
            label = f"{name}, {when}" if when else name
            last = max(1, len(distances) - 1)
            points = [(block / last, value) for block, value in enumerate(distances)]
            lines[label] = CurveLine(CURVE_COLOURS[len(lines) % len(CURVE_COLOURS)], points)
            lowest = min(range(len(distances)), key=distances.__getitem__)
            mean = sum(distances) / len(distances)
            rows.append((label, f"{mean:.3f}", f"{distances[lowest]:.3f}", f"{lowest + 1} of {len(distances)}"))
    words = (
        f"Mean cosine distance of pairs of channels after the expansion (GELU) of each block, over {images} images: 0 "
        "where all channels are the same, 0.5 where they have nothing in common. As Figure 4 of the ConvNeXt V2 paper."
    )
    for one in found:
        if one.single:
            words += f" {one.network}: of {one.single} blocks the map has one position, and signs alone count."
    chart = plot("Feature collapse", "distance of channels", lines, "depth, from the first block (0) to the last (1)")
    return note(words) + chart + table(("network", "mean", "lowest", "in block"), rows)
