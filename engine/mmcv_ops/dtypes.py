"""The number format that the ops compute in."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor itself if it is float32 or float64, else a float32 copy (exact for half precision)."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
