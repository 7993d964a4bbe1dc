"""Whether Triton kernels run here, and the few numbers that all launches share."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# Programs of a reduction: some for each multiprocessor of today's largest GPUs. A constant, not a property of the
# device, so that the order of a sum, and with it its last bit, does not depend on the number of multiprocessors.
PROGRAMS = 2048
# Triton comes with the CUDA builds of PyTorch for Linux; it is not imported to know.
HAS_TRITON = find_spec("triton") is not None


def runs_kernels(x: Tensor) -> bool:
    """Whether an operation on this tensor launches kernels: on a GPU, or where ``TRITON_INTERPRET=1`` interprets them.

    Elsewhere the operations compute the plain PyTorch steps that define them.
    """
    return HAS_TRITON and (x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1")


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's GPU the current one: Triton launches there, whatever the tensor."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def next_power(count: int) -> int:
    """The least power of two that is not below a count."""
    return 1 << max(count - 1, 0).bit_length()


def ceil_div(count: int, size: int) -> int:
    """Pieces of a size that hold a count."""
    return -(-count // size)


def split_reduction(rows: int, tile: int, others: int, programs: int = PROGRAMS) -> tuple[int, int]:
    """Spread the tiles of a reduction over programs.

    Args:
        rows: Rows to be added up.
        tile: Rows that a program takes at a time.
        others: Programs that there are anyway for each share of the rows.
        programs: How many are wanted in all.

    Returns:
        Shares of the rows, and the tiles in each.
    """
    tiles = max(ceil_div(rows, tile), 1)
    steps = ceil_div(tiles, max(min(programs // max(others, 1), tiles), 1))
    return ceil_div(tiles, steps), steps
