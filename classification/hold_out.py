"""A part of the training images for validation, chosen at random, the same from folders and from shards."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backbones.errors import ConfigError
from engine.config.schema import is_whole


@dataclass(frozen=True)
class HoldOut:
    """Which images of a class are used.

    Attributes:
        one_in: Hold out one in so many images of each class, on average for classes with fewer; 0 for none.
        held: Whether those held out are used, not the others.
        seed: Seed of the choice, which also follows from the name of the class and the number of its images.

    Raises:
        ConfigError: If a number is out of its range.
    """

    one_in: int = 0
    held: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not is_whole(self.one_in, 0) or self.one_in == 1 or (self.held and not self.one_in):
            text = "30 holds out one in thirty images, 0 holds out none"
            raise ConfigError(f"dataset.hold_out={self.one_in}: {text}")
        if not is_whole(self.seed, 0):
            raise ConfigError(f"dataset.hold_out_seed={self.seed}: a whole number from 0 up is needed")

    def choose(self, images: Sequence[Any], name: str) -> Sequence[Any]:
        """The used images of a class, in their order.

        Args:
            images: Sorted images, or their row numbers.
            name: Name of the class.
        """
        if not self.one_in:
            return images
        random = np.random.default_rng([self.seed, zlib.crc32(name.encode()), len(images)])
        whole, rest = divmod(len(images), self.one_in)
        count = whole + int(random.random() * self.one_in < rest)
        used = np.zeros(len(images), bool)
        used[random.permutation(len(images))[:count]] = True
        chosen = np.flatnonzero(used == self.held)
        if isinstance(images, range):  # of millions of rows
            return images.start + images.step * chosen.astype(np.uint32)  # type: ignore[return-value]
        return [images[i] for i in chosen]
