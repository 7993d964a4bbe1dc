"""Random states: of a process, to be saved and restored; of a sample, which depends on nothing but the sample."""

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
    """The generators of Python, NumPy and torch in one process, that of its current GPU included.

    Attributes:
        python: Of the module ``random``.
        numpy: Of NumPy's global generator.
        torch: Of torch on the CPU.
        cuda: Of torch on the current GPU; ``None`` without one.
    """

    python: tuple[Any, ...]
    numpy: tuple[Any, ...]
    torch: Tensor
    cuda: Tensor | None = None

    @classmethod
    def capture(cls) -> RandomState:
        """Take the present states, in some 30 microseconds."""
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        numpy: Any = np.random.get_state()
        return cls(random.getstate(), numpy, torch.get_rng_state(), cuda)

    def restore(self) -> None:
        """Make these the present states."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        if self.cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.cuda)

    def as_dict(self) -> dict[str, Any]:
        """As tensors, numbers and tuples: what a checkpoint may hold."""
        kind, keys, *rest = self.numpy
        numpy = (kind, torch.from_numpy(keys.astype(np.int64)), *rest)
        return {"python": self.python, "numpy": numpy, "torch": self.torch, "cuda": self.cuda}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> RandomState:
        """The state that :meth:`as_dict` described."""
        kind, keys, *rest = saved["numpy"]
        version, words, gauss = saved["python"]
        python = (version, tuple(words), gauss)
        return cls(python, (kind, keys.numpy().astype(np.uint32), *rest), saved["torch"], saved["cuda"])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside of this context the CPU generators of Python, NumPy and torch begin at a seed, afterwards as if untouched.

    Args:
        seed: Any number from 0 up to 2**64 - 1.
    """
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)


def seed_of(*parts: int) -> int:
    """A seed for each combination of numbers, such as (seed of the run, epoch, index of the sample).

    Returns:
        63 bits of a hash: neighbours have nothing in common.
    """
    digest = hashlib.blake2b(":".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
