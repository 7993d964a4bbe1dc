"""The networks that a benchmark compares: ours, and those of other libraries with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from backbones.convnext import ConvNeXt
from backbones.errors import ConfigError
from backbones.layouts import from_ours
from backbones.registry import build_backbone

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
NETWORK_PEERS = ("timm", "timm-compiled", "torchvision")
OUR_SIDE = "ours"
LAYER_SCALES = ("gamma", "layer_scale")  # names of the parameters


@dataclass(frozen=True)
class Contender:
    """One side of a benchmark.

    Attributes:
        name: Name in the table of results.
        build: Function that builds the network, in evaluation mode and on the CPU.
        layout: Memory format of its weights and images, a key of ``MEMORY_FORMATS``.
        compiled: True if it runs under :func:`torch.compile`.
    """

    name: str
    build: Callable[[], nn.Module]
    layout: str
    compiled: bool = False

    @property
    def how(self) -> str:
        """Memory format and mode in words."""
        return f"{self.layout}, {'compiled' if self.compiled else 'eager'}"


def randomize_weights(network: nn.Module, seed: int = 0) -> None:
    """Draw weights with which every layer affects the output.

    As initialised, layer scale is 1e-6 and V2's response normalisation is 0: the blocks of two networks could differ in
    everything, and the outputs would still agree.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if any(part in LAYER_SCALES for part in name.split(".")):
            fresh = 0.3 + 0.1 * noise
        elif value.ndim > 1:
            fresh = noise / value[0].numel() ** 0.5
        else:
            fresh = 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
        value.data.copy_(fresh)


def contenders(name: str, peers: tuple[str, ...], layout: str | None, compiled: bool) -> list[Contender]:
    """Our network first, then each peer as it comes and at its best settings.

    Args:
        name: Registered name of the network.
        peers: Names out of ``NETWORK_PEERS``.
        layout: Memory format of all sides; by default channels_last for ours and for each peer's best settings, and
            contiguous for peers as they come.
        compiled: True to compile ours.

    Raises:
        ConfigError: If a peer does not have the network.
    """
    ours = build_backbone(name)
    randomize_weights(ours)
    state = ours.state_dict()

    def build_ours() -> nn.Module:
        network: nn.Module = build_backbone(name)
        network.load_state_dict(state)
        return network.eval()

    if peers and not isinstance(ours, ConvNeXt):
        raise ConfigError(f"--peer: {name} has no peer with the same weights; ConvNeXt V1 and V2 have")
    found = [Contender(OUR_SIDE, build_ours, layout or "channels_last", compiled)]
    for peer in peers:
        found += _torchvision(name, state, layout) if peer == "torchvision" else _timm(name, state, layout, peer)
    return found


def _timm(name: str, state: dict[str, Tensor], layout: str | None, peer: str) -> list[Contender]:
    if name not in timm.list_models():
        raise ConfigError(f"--peer {peer}: timm has no {name!r}")
    weights = from_ours(state, "timm")

    def build(**settings: Any) -> nn.Module:
        return _filled(timm.create_model(name, pretrained=False, num_classes=0, **settings), weights)

    compiled = peer == "timm-compiled"
    return [
        Contender(peer, build, layout or "contiguous", compiled),
        Contender(f"{peer}, conv_mlp", partial(build, conv_mlp=True), layout or "channels_last", compiled),
    ]


def _torchvision(name: str, state: dict[str, Tensor], layout: str | None) -> list[Contender]:
    if name not in torchvision.models.list_models(torchvision.models):
        raise ConfigError(f"--peer torchvision: torchvision has no {name!r}")
    weights = from_ours(state, "torchvision")

    def build() -> nn.Module:
        network = torchvision.models.get_model(name, weights=None, stochastic_depth_prob=0.0)
        network.classifier[2] = nn.Identity()
        return _filled(network, weights)

    return [
        Contender("torchvision", build, layout or "contiguous"),
        *([] if layout else [Contender("torchvision, channels_last", build, "channels_last")]),
    ]


def _filled(network: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """The network with our weights, none missing or unexpected; its linear layers may be 1 x 1 convolutions."""
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    network.load_state_dict({key: value.view(shapes.get(key, value.shape)) for key, value in weights.items()})
    return network.eval()
