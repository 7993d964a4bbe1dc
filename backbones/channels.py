"""Networks for images with another number of channels than three: their weights, and normalisation of the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

COLOUR_CHANNELS = 3


def image_channels(network: nn.Module) -> int:
    """Number of channels of the images that a network or a model with a backbone takes: those of its first layer."""
    modules = getattr(network, "backbone", network).modules()
    return next((one.in_channels for one in modules if isinstance(one, nn.Conv2d)), COLOUR_CHANNELS)


def configured_channels(model: Mapping[str, Any]) -> int:
    """Number of channels of the images that the config of a model asks for."""
    channels: int = (model.get("backbone") or {}).get("in_channels", COLOUR_CHANNELS)
    return channels


def stated_channels(pipeline: Any) -> int | None:
    """Number of channels that the reader of a pipeline read; ``None`` for colour images."""
    return next((step["channels"] for step in pipeline or () if step.get("channels")), None)


def adapt_input_layer(tensors: dict[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Map the first layer of a network for three channels to the number that a network has, in place.

    The rule is timm's (``adapt_input_conv``): for one channel the weights of the three are added up; for any other
    number they are repeated in their order and scaled by 3/N.

    Args:
        tensors: Tensors of a file by the names of the network.
        expected: Tensors of the network.

    Returns:
        Description for the load report; empty if no layer has three channels there and another number here.
    """
    from timm.models import adapt_input_conv  # imported here: a network without such a file needs nothing of timm

    for name, ours in expected.items():
        theirs, count = tensors.get(name), ours.shape[1] if ours.ndim == 4 else COLOUR_CHANNELS
        if theirs is None or count == COLOUR_CHANNELS:
            continue
        if theirs.shape == (ours.shape[0], COLOUR_CHANNELS, *ours.shape[2:]):
            tensors[name] = adapt_input_conv(count, theirs)
            rule = "added up" if count == 1 else f"repeated and scaled by {COLOUR_CHANNELS}/{count}"
            return f"{name} of {COLOUR_CHANNELS} channels {rule} for {count}"
    return ""


class ChannelStatistics:
    """Mixin before mmengine's ``ImgDataPreprocessor``, which allows one or three values: any number of them.

    Args:
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        **settings: Further arguments of the data preprocessor.
    """

    def __init__(self, *, mean: Sequence[float], std: Sequence[float], **settings: Any) -> None:
        super().__init__(mean=[0.0], std=[1.0], **settings)  # type: ignore[call-arg]
        self.mean, self.std = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std))
