"""Feature maps of each stage: some channels, and the mean over all."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import Tensor

from analysis.explain.network import TrainedNetwork, enlarge, recorded, unpadded_size, with_progress
from engine.report.html import note, pixels_figure

SHOWN_CHANNELS = 4
MAP_SIDE = 200  # pixels


def stage_maps(network: TrainedNetwork, batch: dict[str, Any]) -> list[Tensor]:
    """Output of each stage for an image, (C, H, W), without positions that are padding alone.

    Raises:
        ConfigError: If its blocks give tokens.
    """
    layers = network.stage_layers()
    with recorded(layers) as found:
        network.backbone(batch["inputs"])
    maps = [network.backbone.as_map(found[layer].output) for layer in layers]
    sides, kept = batch["inputs"].shape[-2:], unpadded_size(batch)
    return [
        one[0, :, : -(-kept[0] * one.shape[-2] // sides[0]), : -(-kept[1] * one.shape[-1] // sides[1])].float().cpu()
        for one in maps
    ]


def choose_channels(values: Tensor, count: int = SHOWN_CHANNELS) -> list[int]:
    """The channels of a map, (C, H, W), that vary most over the image, by their standard deviation."""
    spread = values.flatten(1).std(1, correction=0)
    chosen: list[int] = spread.sort(descending=True, stable=True).indices[:count].tolist()
    return chosen


def map_picture(values: Tensor) -> np.ndarray:
    """A map, (H, W), in colours from its smallest to its largest value, RGB, uint8."""
    low, high = values.min(), values.max()
    scaled = (255 * (values - low) / (high - low).clamp_min(1e-12)).byte().numpy()
    return np.ascontiguousarray(cv2.applyColorMap(scaled, cv2.COLORMAP_VIRIDIS)[..., ::-1])


def feature_section(network: TrainedNetwork, images: Sequence[Path]) -> tuple[str, list[dict[str, Any]]]:
    """Draw the feature maps of images.

    Returns:
        HTML; and for JSON the channels that are shown.
    """
    words = f"Of each stage the mean over its channels, and the {SHOWN_CHANNELS} channels with the largest standard"
    parts = [
        note(f"{words} deviation over this image, the largest first; each from its smallest value to its largest.")
    ]
    numbers = []
    for path in with_progress(images, "feature maps"):
        batch = network.batch(str(path))
        shown = pixels_figure(enlarge(network.picture(batch), MAP_SIDE), "input", f"input of {path.name}")
        parts.append(f"<h3>{escape(path.name)}</h3>")
        for stage, values in enumerate(stage_maps(network, batch), start=1):
            channels = choose_channels(values)
            size = f"stage {stage}: {values.shape[1]} x {values.shape[2]}, {len(values)} channels"
            numbers.append({"image": path.name, "stage": stage, "channels": channels})
            if values[0].numel() == 1:
                parts.append(f'<p class="label">{size}: one position, no map</p>')
                continue
            maps = {"mean": values.mean(0), **{f"channel {channel}": values[channel] for channel in channels}}
            figures = [
                pixels_figure(
                    enlarge(map_picture(one), MAP_SIDE, cv2.INTER_NEAREST), name, f"stage {stage}, {name}, {path.name}"
                )
                for name, one in maps.items()
            ]
            parts.append(f'<p class="label">{size}</p><div class="gallery tiles">{"".join([shown, *figures])}</div>')
    return "".join(parts), numbers
