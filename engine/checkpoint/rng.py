"""Random states of a process: seeded, saved, restored; seeds of samples that depend on run, epoch and index alone."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """State of the random generators of one process, that of its current GPU included.

    Attributes:
        python: State of the module ``random``.
        numpy: State of NumPy's global generator.
        torch: State of torch's CPU generator, uint8, (5056,).
        cuda: State of torch's generator on the current GPU, uint8, (16,); ``None`` without a GPU.
    """

    python: tuple[Any, ...]
    numpy: tuple[Any, ...]
    torch: Tensor
    cuda: Tensor | None = None

    @classmethod
    def capture(cls) -> RandomState:
        """Read the current states, which takes some 30 microseconds."""
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        numpy: Any = np.random.get_state()
        return cls(random.getstate(), numpy, torch.get_rng_state(), cuda)

    def restore(self) -> None:
        """Set the generators to these states."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        if self.cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.cuda)

    def as_dict(self) -> dict[str, Any]:
        """Convert to tensors, numbers and tuples, which a checkpoint may hold."""
        kind, keys, *rest = self.numpy
        numpy = (kind, torch.from_numpy(keys.astype(np.int64)), *rest)
        return {"python": self.python, "numpy": numpy, "torch": self.torch, "cuda": self.cuda}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> RandomState:
        """Restore the state from the result of :meth:`as_dict`."""
        kind, keys, *rest = saved["numpy"]
        version, words, gauss = saved["python"]
        python = (version, tuple(words), gauss)
        return cls(python, (kind, keys.numpy().astype(np.uint32), *rest), saved["torch"], saved["cuda"])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the CPU generators of Python, NumPy and torch inside of this context, and restore their states after it.

    Args:
        seed: Number from 0 to 2**64 - 1.
    """
    with kept_random_state():
        seed_cpu(seed)
        yield


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Restore the states of the CPU generators of Python, NumPy and torch at the end of this context."""
    numpy: Any = np.random.get_state()
    before = RandomState(random.getstate(), numpy, torch.get_rng_state())
    try:
        yield
    finally:
        before.restore()


def seed_cpu(seed: int) -> None:
    """Seed the CPU generators of Python, NumPy and torch.

    Args:
        seed: Number from 0 to 2**64 - 1.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def seed_process(*parts: int) -> None:
    """Seed the generators of Python, NumPy and torch in this process, those of its GPUs included.

    Args:
        parts: Integers, such as the seed of the run and the rank; :func:`seed_of` makes one number of them.
    """
    seed = seed_of(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_of(*parts: int) -> int:
    """Hash numbers to a seed, such as (seed of the run, epoch, index of the sample).

    Args:
        parts: Integers; each combination has a seed of its own.

    Returns:
        63 bits of a BLAKE2b hash, so that seeds of neighbours are unrelated.
    """
    digest = hashlib.blake2b(":".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
