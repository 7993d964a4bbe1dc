"""What stands between a backbone and a head of mmdet where one of the two asks for more than maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class ContiguousMaps(nn.Module):
    """Maps in PyTorch's own layout of memory, as the last neck: ``neck=[dict(...), dict(type="ContiguousMaps")]``.

    Our backbones compute in ``channels_last``, and convolutions keep it. mmdet's CenterNet looks at its heat map by
    ``view``, which refuses that layout.
    """

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Copies of the maps, each (N, C, H, W), where they are not contiguous."""
        return tuple(one.contiguous(memory_format=torch.contiguous_format) for one in maps)
