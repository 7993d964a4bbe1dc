"""Swap a backbone of ours into the model of a config, and let what follows have its channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS

from backbones import build_backbone
from engine.config.datasets import mappings

PROBE = 64  # side of the image on which a backbone tells its channels and strides
STAGES = 4


@dataclass(frozen=True)
class Levels:
    """Maps that a backbone returns.

    Attributes:
        channels: Channels of each map.
        strides: Stride of each map relative to the image; empty if it is not known.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...] = ()


def _maps(outputs: Any) -> Iterator[torch.Tensor]:
    """The feature maps among what a backbone returned."""
    if isinstance(outputs, torch.Tensor):
        if outputs.ndim == 4:
            yield outputs
    elif isinstance(outputs, Sequence):
        for output in outputs:
            yield from _maps(output)


def stated_levels(node: ConfigDict) -> Levels:
    """What the neck, or the heads, say that they take: by their ``in_index``, or the longest of their ``in_channels``.

    Args:
        node: The part of the config with ``backbone``.

    Returns:
        Channels of the maps, 0 for a map that nothing takes.
    """
    readers = node.get("neck") or [part for key, part in node.items() if key.endswith("head")]
    longest: tuple[int, ...] = ()
    indexed: dict[int, int] = {}
    for part in (part for part in mappings(readers) if "in_channels" in part):
        stated, index = part["in_channels"], part.get("in_index", ())
        channels = (stated,) if isinstance(stated, int) else tuple(stated)
        indexed.update(zip((index,) if isinstance(index, int) else index, channels, strict=False))
        longest = max(longest, channels, key=len)
    if min(indexed, default=-1) < 0:  # none, or counted from the end
        return Levels(longest)
    return Levels(tuple(indexed.get(place, 0) for place in range(max(indexed) + 1)))


def original_levels(node: ConfigDict) -> Levels:
    """Maps of the backbone that a config states, found by running it without memory.

    Args:
        node: The part of the config with ``backbone``.

    Returns:
        Its maps; what neck or head take where the backbone cannot be built here.
    """
    try:
        with torch.device("meta"), torch.no_grad():
            backbone = MODELS.build(node["backbone"])
            backbone.train(False)  # which returns None in some libraries
            maps = list(_maps(backbone(torch.zeros(1, 3, PROBE, PROBE))))
    except Exception:  # any library's backbone may fail in any way; the config then speaks for it
        return stated_levels(node)
    return Levels(tuple(m.shape[1] for m in maps), tuple(round(PROBE / m.shape[-1]) for m in maps))


def our_levels(name: str) -> Levels:
    """Channels and strides of the four stages of a registered backbone.

    Args:
        name: Its name.

    Raises:
        ConfigError: If there is none of this name.
    """
    with torch.device("meta"):
        backbone = build_backbone(name, out_indices=range(STAGES))
    return Levels(tuple(backbone.out_channels), tuple(backbone.strides))


def chosen_stages(levels: Levels, ours: Levels) -> tuple[int, ...]:
    """Index of our stage in the place of each map: that of its stride, else the last ones in their order.

    Args:
        levels: The maps that are replaced.
        ours: The maps of our stages.
    """
    ascending = sorted(set(levels.strides)) == list(levels.strides)
    if levels.strides and ascending and set(levels.strides) <= set(ours.strides):
        return tuple(ours.strides.index(stride) for stride in levels.strides)
    count = len(levels.channels)
    return tuple(max(0, STAGES - count + i) for i in range(count))


class _Fitting:
    """The layers that read a backbone's maps, told of those of another.

    Args:
        levels: The maps that are replaced.
        channels: Channels of our stages.
        stages: Index of our stage in the place of each map.
        out: Indices of the stages that are returned.
    """

    def __init__(
        self, levels: Levels, channels: tuple[int, ...], stages: tuple[int, ...], out: tuple[int, ...]
    ) -> None:
        self.levels, self.channels, self.stages, self.out = levels, channels, stages, out

    def apply(self, node: ConfigDict) -> None:
        """Give the neck, and the heads that read the backbone, our channels and indices."""
        neck = node.get("neck")
        first = neck[0] if isinstance(neck, list) else neck
        heads = [part for key, part in node.items() if key.endswith("head") and part]
        if first:
            for part in mappings(first):
                self._channels(part)
        # A single number deep in a head is of a layer of its own.
        outer = [part for head in heads for part in (head if isinstance(head, list) else [head])]
        for part in mappings(outer):
            whole = isinstance(part.get("in_channels"), list | tuple) and "in_index" not in part
            if whole or (not first and ("in_index" in part or any(part is one for one in outer))):
                self._channels(part)
            if not first and self.levels.channels[:1] == (part.get("c1_in_channels"),):
                part["c1_in_channels"] = self._new(0)  # the finest map, which DeepLabV3+ reads beside

    def _new(self, index: int) -> int:
        return self.channels[self.stages[index]]

    def _channels(self, part: ConfigDict) -> None:
        """Replace ``in_channels``, and ``in_index`` with it, of a layer that reads maps of the backbone."""
        stated, old = part.get("in_channels"), self.levels.channels
        if not isinstance(stated, int | list | tuple):  # none, or a name that stands for channels
            return
        if isinstance(stated, int):
            index = part.get("in_index", max((i for i, c in enumerate(old) if c == stated), default=None))
            if index is not None and index < len(old) and old[index] == stated:
                part["in_channels"] = self._new(index)
                if "in_index" in part:
                    part["in_index"] = self.out.index(self.stages[index])
            return
        indices = part.get("in_index")
        if isinstance(indices, list | tuple):
            part["in_channels"] = type(stated)(self._new(i) for i in indices)
            part["in_index"] = [self.out.index(self.stages[i]) for i in indices]
            return
        # All maps or neighbours among them, from either end.
        for order in (range(len(old)), range(len(old) - 1, -1, -1)):
            for first in range(len(old) - len(stated), -1, -1):
                places = list(order)[first : first + len(stated)]
                if [old[i] for i in places] == list(stated):
                    part["in_channels"] = type(stated)(self._new(i) for i in places)
                    return


def fit_channels(
    node: ConfigDict, levels: Levels, ours: Levels, stages: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Give what reads the maps of a backbone the channels of ours.

    Args:
        node: The part of the config with the neck and the heads; changed.
        levels: The maps that are replaced.
        ours: The maps of our stages.
        stages: Index of our stage in the place of each map of the old one; ``None`` for the one of the same stride.

    Returns:
        Indices of the stages that are read.
    """
    chosen = tuple(stages or chosen_stages(levels, ours)) or (STAGES - 1,)
    out = tuple(sorted(set(chosen)))
    _Fitting(levels, ours.channels, chosen, out).apply(node)
    return out


def swap_backbones(model: ConfigDict, name: str, stages: Sequence[int] | None = None) -> None:
    """Swap a backbone of ours in wherever the model of a config has one.

    Args:
        model: ``model`` of a config; changed.
        name: Name of a registered backbone.
        stages: Index of our stage in the place of each map of the old one; ``None`` for the one of the same stride.
    """
    ours = our_levels(name)
    for node in list(mappings(model)):
        if isinstance(node.get("backbone"), dict):
            out = fit_channels(node, original_levels(node), ours, stages)
            node["backbone"] = ConfigDict(type=name, out_indices=out)


def without_downloads(model: ConfigDict) -> None:
    """Drop the pretrained weights that the model of a config names; changed."""
    for node in mappings(model):
        for key in [key for key in node if key == "pretrained" or key.endswith("_ckpt")]:
            node[key] = None
        if isinstance(init := node.get("init_cfg"), dict) and init.get("type") == "Pretrained":
            node["init_cfg"] = None
