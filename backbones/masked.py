"""ConvNeXt on the visible part of an image, for masked autoencoders (Woo et al., "ConvNeXt V2", section 3).

An image is divided into units of the network's stride, 32 x 32 pixels, of which some are hidden. The encoder computes
what a sparse convolutional network would: no value at a hidden position reaches a visible one. Only two layers of a
block look beyond their own position, and the units are aligned to every downsampling, so two rules define the whole:

* hidden positions are zero in the input of each depthwise convolution,
* the response normalisation (V2) sums over the visible positions of each image.

:class:`DenseLayout` does just that on whole maps. :class:`PackedLayout` keeps the visible units alone, stacked into a
map ``(N, C, visible * side, side)``, on which norm, products, normalisation and downsampling are the same layers as on
any map; only the depthwise convolution sees the units at their places: in a map with zeros at the hidden positions, or
on NVIDIA GPUs through a table of the units (:mod:`backbones.kernels.cuda.packed_dwconv`). At a mask ratio of 0.6, that
leaves 40 % of the products and of the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from backbones.layers import GRN

MaskedForm = Literal["dense", "packed"]


class MaskedLayout(Protocol):
    """How the maps of one stage hold the visible positions."""

    def unpack(self, x: Tensor) -> Tensor:
        """The whole map ``(N, C, H, W)``, zero at hidden positions."""

    def pack(self, x: Tensor) -> Tensor:
        """The map in this layout, of a whole map ``(N, C, H, W)``."""

    def normalize(self, grn: nn.Module, y: Tensor) -> Tensor:
        """Response normalisation of the visible positions, ``(N, H', W', C)`` in this layout; any other layer as is."""


@dataclass(frozen=True)
class DenseLayout:
    """Whole maps, in which hidden positions hold anything.

    Attributes:
        visible: Whether each position is visible, bool ``(N, 1, H, W)``.
    """

    visible: Tensor

    @classmethod
    def of(cls, units: Tensor, grid: tuple[int, int], side: int) -> DenseLayout:
        """Layout of a stage.

        Args:
            units: Numbers of the visible units of each image, row by row, int64 ``(N, visible)``.
            grid: Units in a column and in a row of the image.
            side: Positions of the stage along a unit.
        """
        visible = ~hidden_mask(units, grid)
        return cls(visible.repeat_interleave(side, 1).repeat_interleave(side, 2).unsqueeze(1))

    def unpack(self, x: Tensor) -> Tensor:
        """The map ``(N, C, H, W)`` with zeros at hidden positions."""
        return torch.where(self.visible, x, x.new_zeros(()))

    def pack(self, x: Tensor) -> Tensor:
        """The same map."""
        return x

    def normalize(self, grn: nn.Module, y: Tensor) -> Tensor:
        """Response normalisation of ``(N, H, W, C)`` with the response of the visible positions."""
        return grn(y, self.visible.permute(0, 2, 3, 1)) if isinstance(grn, GRN) else y


@dataclass(frozen=True)
class PackedLayout:
    """The visible units alone, one below the other: ``(N, C, visible * side, side)``.

    Attributes:
        rows: Row of each position in a whole map flattened to ``(N * H * W, C)``, int64 ``(N, visible * side * side)``.
        units: Numbers of the visible units of each image, row by row, int64 ``(N, visible)``.
        slots: Place of each unit of an image among its visible ones, -1 if it is hidden, int32 ``(N, units)``.
        size: Height and width of the whole map.
        side: Positions of the stage along a unit.
    """

    rows: Tensor
    units: Tensor
    slots: Tensor
    size: tuple[int, int]
    side: int

    @classmethod
    def of(cls, units: Tensor, grid: tuple[int, int], side: int) -> PackedLayout:
        """Layout of a stage.

        Args:
            units: Numbers of the visible units of each image, row by row, int64 ``(N, visible)``.
            grid: Units in a column and in a row of the image.
            side: Positions of the stage along a unit.
        """
        height, width = grid[0] * side, grid[1] * side
        along = torch.arange(side, device=units.device)
        images = torch.arange(len(units), device=units.device)[:, None]
        corners = (images * height + units // grid[1] * side) * width + units % grid[1] * side
        rows = corners[:, :, None, None] + along[:, None] * width + along
        places = torch.arange(units.shape[1], dtype=torch.int32, device=units.device).expand(units.shape)
        slots = places.new_full((len(units), grid[0] * grid[1]), -1).scatter(1, units, places)
        return cls(rows.flatten(1), units, slots, (height, width), side)

    def of_images(self, images: Any) -> PackedLayout:
        """Layout of some of the images.

        Args:
            images: Slice or indices of images.
        """
        numbers = torch.arange(len(self.rows), device=self.rows.device)[images]
        shift = (numbers - torch.arange(len(numbers), device=numbers.device)) * (self.size[0] * self.size[1])
        rows = self.rows[images] - shift[:, None]
        return PackedLayout(rows, self.units[images], self.slots[images], self.size, self.side)

    def unpack(self, x: Tensor) -> Tensor:
        """The whole map ``(N, C, H, W)`` of ``(N, C, visible * side, side)``, zero at hidden positions."""
        return _Unpack.apply(x.permute(0, 2, 3, 1), self).permute(0, 3, 1, 2)

    def pack(self, x: Tensor) -> Tensor:
        """The visible units ``(N, C, visible * side, side)`` of a whole map ``(N, C, H, W)``."""
        return _Pack.apply(x.permute(0, 2, 3, 1), self).permute(0, 3, 1, 2)

    def normalize(self, grn: nn.Module, y: Tensor) -> Tensor:
        """Response normalisation of ``(N, visible * side, side, C)``, which holds the visible positions alone."""
        return grn(y)

    def unpack_rows(self, x: Tensor) -> Tensor:
        """Like :meth:`unpack` for ``(N, visible * side, side, C) -> (N, H, W, C)``, without a gradient."""
        whole = x.new_zeros(len(x) * self.size[0] * self.size[1], x.shape[3])
        whole.index_copy_(0, self.rows.flatten(), x.reshape(-1, x.shape[3]))
        return whole.view(len(x), *self.size, x.shape[3])

    def pack_rows(self, x: Tensor) -> Tensor:
        """Like :meth:`pack` for ``(N, H, W, C) -> (N, visible * side, side, C)``, without a gradient."""
        rows = x.reshape(-1, x.shape[3]).index_select(0, self.rows.flatten())
        return rows.view(len(x), -1, self.side, x.shape[3])


class _Unpack(torch.autograd.Function):
    """Its gradient is the packed gradient: a copy, where that of ``index_copy`` would be one and a sum more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: PackedLayout) -> Tensor:
        ctx.layout = layout
        return layout.unpack_rows(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.layout.pack_rows(grad), None


class _Pack(torch.autograd.Function):
    """Its gradient is the unpacked gradient: each position is read once, so nothing has to be summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: PackedLayout) -> Tensor:
        ctx.layout = layout
        return layout.pack_rows(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.layout.unpack_rows(grad), None


def hidden_mask(units: Tensor, grid: tuple[int, int]) -> Tensor:
    """Whether each unit of an image is hidden, bool ``(N, rows, columns)``.

    Args:
        units: Numbers of the visible units of each image, row by row, int64 ``(N, visible)``.
        grid: Units in a column and in a row of the image.
    """
    hidden = torch.ones(len(units), grid[0] * grid[1], dtype=torch.bool, device=units.device)
    return hidden.scatter(1, units, False).unflatten(1, grid)


LAYOUTS: dict[MaskedForm, Callable[[Tensor, tuple[int, int], int], MaskedLayout]] = {
    "dense": DenseLayout.of,
    "packed": PackedLayout.of,
}
