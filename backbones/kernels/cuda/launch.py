"""When Triton kernels run, and helpers that all launches share."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# Programs of a reduction: several for each multiprocessor of today's largest GPUs. A constant, not a property of the
# device, so that the order of a sum, and with it its last bit, does not depend on the number of multiprocessors.
REDUCTION_PROGRAMS = 2048
# Triton comes with the CUDA builds of PyTorch for Linux; looked up without importing it.
HAS_TRITON = find_spec("triton") is not None


def runs_kernels(x: Tensor) -> bool:
    """Whether an operation on this tensor launches kernels: on a GPU, or interpreted with ``TRITON_INTERPRET=1``.

    Elsewhere the operations compute the plain PyTorch steps that define them.
    """
    return HAS_TRITON and (x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1")


@cache
def is_capable(device: torch.device) -> bool:
    """Whether the kernels are tried on a device without being forced: GPUs with bfloat16, from Ampere on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's GPU the current device, on which Triton launches."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def next_power(count: int) -> int:
    """The smallest power of two that is at least ``count``."""
    return 1 << max(count - 1, 0).bit_length()


def ceil_div(count: int, size: int) -> int:
    """``count / size``, rounded up."""
    return -(-count // size)


def split_reduction(rows: int, tile: int, others: int, programs: int = REDUCTION_PROGRAMS) -> tuple[int, int]:
    """Split the rows of a reduction between programs.

    Args:
        rows: Number of rows to be summed.
        tile: Number of rows that a program takes at a time.
        others: Number of programs for each share of the rows, such as blocks of channels.
        programs: Desired number of programs in total.

    Returns:
        Number of shares of the rows, and number of tiles in each.
    """
    tiles = max(ceil_div(rows, tile), 1)
    steps = ceil_div(tiles, max(min(programs // max(others, 1), tiles), 1))
    return ceil_div(tiles, steps), steps
