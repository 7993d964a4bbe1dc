"""A shuffled order that reads few shards at a time: random blocks of shards, and a random order within each block.

The order of an epoch follows from the seed of the run and the epoch alone, so that a run resumes in the middle of one,
also with another number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

from backbones.errors import ConfigError
from engine.config.schema import is_whole
from engine.data.shards import ShardLayout
from engine.data.stores import ReadAhead

DEFAULT_OPEN_SHARDS = 64
MIXING_SAMPLES = 2_000_000  # of an epoch, whose batches are counted


class BlockOrder:
    """The order of the samples of a data set, block by block.

    Args:
        layout: Shards of the samples.
        open_shards: Shards of a block.
        shuffle: Whether shards and samples are in a random order; otherwise both are in theirs.
    """

    def __init__(self, layout: ShardLayout, open_shards: int, shuffle: bool = True) -> None:
        self.open_shards, self.shuffle = open_shards, shuffle
        counts = np.bincount(layout.numbers, minlength=len(layout.shards))
        self._used = np.flatnonzero(counts)  # a list may have shards of no class of the config
        self._numbers, self._counts = layout.numbers, counts

    def __len__(self) -> int:
        return len(self._numbers)

    def size(self, block: np.ndarray) -> int:
        """Number of the samples of a block."""
        return int(self._counts[block].sum())

    def blocks(self, seed: int, epoch: int) -> list[np.ndarray]:
        """Numbers of the shards of each block of an epoch; the blocks have the same number of shards, or one less."""
        order = np.random.default_rng([seed, epoch]).permutation(self._used) if self.shuffle else self._used
        return np.array_split(order, math.ceil(len(order) / self.open_shards)) if len(order) else []

    def samples(self, block: np.ndarray, number: int, seed: int, epoch: int) -> np.ndarray:
        """Samples of a block in their order.

        Args:
            block: Shards of the block.
            number: Number of the block in the epoch.
            seed: Seed of the run.
            epoch: The epoch.
        """
        # Searched for at each block: a sorted list of all samples would take twice the memory of the numbers.
        places = np.full(len(self._counts), len(block))
        places[block] = np.arange(len(block))
        samples = np.flatnonzero((places < len(block))[self._numbers]).astype(np.uint32)
        samples = samples[np.argsort(places[self._numbers[samples]], kind="stable")]
        return np.random.default_rng([seed, epoch, number + 1]).permutation(samples) if self.shuffle else samples


@DATA_SAMPLERS.register_module()
class BlockShuffleSampler(Sampler[int]):
    """Samples in shards by blocks; process ``r`` of ``n`` takes each ``n``-th of the order, as with ``DefaultSampler``.

    Each process fetches the shards of this block and the next ahead, where they lie in a store.

    Args:
        dataset: Data set with a method ``shard_layout``.
        shuffle: Whether the order is random. Otherwise it is that of the shards, for a validation.
        seed: Seed of the run, the same in all processes; drawn and shared without one.
        open_shards: Shards of a block. With more, batches differ less from those of a shuffle of all samples.
        round_up: Whether to repeat the first samples at the end, so that all processes have the same number.

    Raises:
        ConfigError: If ``open_shards`` is no positive number, the images are in folders, or the cache is too small.
    """

    def __init__(
        self,
        dataset: Any,
        shuffle: bool = True,
        seed: int | None = None,
        open_shards: int = DEFAULT_OPEN_SHARDS,
        round_up: bool = True,
    ) -> None:
        if not is_whole(open_shards, 1):
            raise ConfigError(f"BlockShuffleSampler.open_shards={open_shards}: a whole number from 1 up is needed")
        if not hasattr(dataset, "shard_layout"):
            raise ConfigError(f"BlockShuffleSampler: {type(dataset).__name__} has no shards; take DefaultSampler")
        self.rank, self.world_size = get_dist_info()
        self.seed = sync_random_seed() if seed is None else seed
        self.epoch, self.round_up, self._start = 0, round_up, 0
        layout = dataset.shard_layout()
        self._shards = layout.shards
        self.order = BlockOrder(layout, open_shards, shuffle)
        size = len(self.order)
        share = math.ceil(size / self.world_size) if round_up else math.ceil((size - self.rank) / self.world_size)
        self.num_samples = share
        self.total_size = share * self.world_size if round_up else size
        self._ahead = self._reader()

    def _reader(self) -> ReadAhead | None:
        """What fetches shards ahead, if there are any to fetch.

        Raises:
            ConfigError: If the cache holds less than the two blocks that it takes.
        """
        stored = [shard for shard in self._shards if shard.cache is not None]
        if not stored:
            return None
        cache, sizes = stored[0].cache, sorted((shard.size for shard in stored), reverse=True)
        assert cache is not None
        if (needed := sum(sizes[: 2 * self.order.open_shards])) > cache.size:
            text = (
                f"two blocks of {self.order.open_shards} shards have up to {needed:,} bytes, shard_cache {cache.size:,}"
            )
            raise ConfigError(f"BlockShuffleSampler: {text}: set a larger shard_cache.size, or fewer open_shards")
        return ReadAhead(cache)

    def set_epoch(self, epoch: int) -> None:
        """Order the next iteration as that of an epoch."""
        self.epoch = epoch

    def seek_sample(self, sample: int) -> None:
        """Start the next iteration, and no later one, after so many samples of this process."""
        self._start = sample

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        """Yield the samples of this process."""
        start, self._start = self._start, 0
        blocks = self.order.blocks(self.seed, self.epoch)
        place = 0  # of the block's first sample in the epoch
        for number, block in enumerate(blocks):
            first, size = (self.rank - place) % self.world_size, self.order.size(block)
            place += size
            if start >= (count := len(range(first, size, self.world_size))):
                start -= count  # the block is not shuffled, nor fetched
                continue
            self._fetch(blocks, number)
            samples = self.order.samples(block, number, self.seed, self.epoch)
            yield from samples[first :: self.world_size][start:].tolist()
            start = 0
        while place < self.total_size:  # more than once, where there are fewer samples than processes
            first = self.order.samples(blocks[0], 0, self.seed, self.epoch)[: self.total_size - place]
            mine = first[(self.rank - place) % self.world_size :: self.world_size]
            yield from mine[start:].tolist()
            start = max(start - len(mine), 0)
            place += len(first)

    def _fetch(self, blocks: list[np.ndarray], number: int) -> None:
        """Have the shards of a block and the next one fetched; after the last that is the first of the next epoch."""
        if self._ahead is None:
            return
        later = blocks[number + 1 : number + 2] or self.order.blocks(self.seed, self.epoch + self.order.shuffle)[:1]
        wanted = [self._shards[one] for one in np.concatenate([blocks[number], *later])]
        self._ahead.want([shard for shard in wanted if shard.cache is not None])


def label_mixing(layout: ShardLayout, labels: np.ndarray, open_shards: int, batch: int) -> tuple[float, float]:
    """Mean number of classes in a batch of a block shuffle, and of a shuffle of all samples.

    The first is counted in the first batches of an epoch. The second is the expectation for ``N`` samples, ``n`` of
    them of a class: the class is absent with probability ``C(N - n, b) / C(N, b)``.

    Args:
        layout: Shards of the samples.
        labels: Label of each sample, from 0.
        open_shards: Shards of a block.
        batch: Samples of a batch, of all processes.
    """
    order = BlockOrder(layout, open_shards)
    batch = min(batch, len(labels))
    left: np.ndarray = np.empty(0, np.uint32)
    counted: list[int] = []
    for number, block in enumerate(order.blocks(0, 0)):
        left = np.concatenate([left, order.samples(block, number, 0, 0)])
        whole = len(left) // batch * batch
        counted += [len(np.unique(labels[one])) for one in left[:whole].reshape(-1, batch)]
        left = left[whole:]
        if len(counted) * batch >= MIXING_SAMPLES:
            break
    return float(np.mean(counted)), _expected_classes(np.bincount(labels), batch)


def _expected_classes(counts: np.ndarray, batch: int) -> float:
    """Expected number of classes in a batch that is drawn without replacement."""
    from scipy.special import gammaln

    total = counts.sum()
    others = total - counts
    possible = others >= batch
    logs = gammaln(others + 1) - gammaln(np.where(possible, others - batch, 0) + 1)
    logs -= gammaln(total + 1) - gammaln(total - batch + 1)
    return float(np.sum(1 - np.where(possible, np.exp(logs), 0)))
