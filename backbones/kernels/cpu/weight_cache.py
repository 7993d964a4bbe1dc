"""Weights of a layer in the layout of its products, made once and cached until a parameter changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_Layout = TypeVar("_Layout")
# Steps between sampled values. With a weight (N, K), K no multiple of the step and N and K no smaller than it, every
# row and every column is sampled.
SAMPLING_STEPS = (509, 251, 127, 61, 31, 13, 7, 3, 2)


class CachedLayout(NamedTuple):
    """Weights in a layout, and what tells whether they still are those of the parameters.

    Attributes:
        origin: The purpose, and address and version of each parameter.
        samples: Views of some values of each parameter.
        values: The sampled values when the layout was made, concatenated.
        layout: The weights.
    """

    origin: tuple[object, ...]
    samples: list[Tensor]
    values: Tensor
    layout: object


class WeightCache:
    """Layouts of layers' weights, one for each layer, dropped together with the layer."""

    def __init__(self) -> None:
        self.entries: WeakKeyDictionary[nn.Module, CachedLayout] = WeakKeyDictionary()

    def get(
        self, layer: nn.Module, sources: Sequence[Tensor], purpose: object, lay_out: Callable[[], _Layout]
    ) -> _Layout:
        """The weights of a layer: those of the last call, if no parameter has changed.

        Versions of the parameters tell of every change that PyTorch notices. A change through ``.data`` is not one:
        some values are compared as well, so that no row and no column can change as a whole without being noticed. All
        values would cost a tenth of the time of ConvNeXt-T with 8 images.

        Args:
            layer: The layer that holds the parameters.
            sources: All its parameters.
            purpose: Hashable key of the layout, such as its precision.
            lay_out: Makes the layout.
        """
        if sources[0].dtype != torch.float32:  # too coarse to detect a change by
            return lay_out()
        # PyTorch has no public name for a tensor's version.
        origin = (purpose, *((one.data_ptr(), 0 if one.is_inference() else one._version) for one in sources))
        entry = self.entries.get(layer)
        if entry is not None and entry.origin == origin and torch.equal(entry.values, torch.cat(entry.samples)):
            return cast(_Layout, entry.layout)
        layout, samples = lay_out(), [sample(one.detach()) for one in sources]
        self.entries[layer] = CachedLayout(origin, samples, torch.cat(samples), layout)
        return layout

    def discard(self, layer: nn.Module) -> None:
        """Free a layer's memory."""
        self.entries.pop(layer, None)


def sample(weight: Tensor) -> Tensor:
    """View of some values of a parameter: all of a vector; of a weight ``(N, ...)`` some of each row and column."""
    if weight.ndim == 1:
        return weight
    weight = weight.flatten(1)
    step = next((step for step in SAMPLING_STEPS if step <= min(weight.shape) and weight.shape[1] % step), 1)
    return weight.flatten()[::step]


weight_cache = WeightCache()
