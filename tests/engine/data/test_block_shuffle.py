"""The order by blocks of shards: all samples once, few shards at a time, exact after a stop with other processes."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler

from backbones import UserError
from engine.data import block_shuffle as module
from engine.data.block_shuffle import BlockOrder, BlockShuffleSampler, label_mixing
from engine.data.sampling import ResumableBatchSampler
from engine.data.shards import ShardLayout
from engine.data.stored_image import ShardState
from engine.data.stores import ShardCache

SHARDS = 10


class Data:
    """Samples of shards, of which one is empty and those of a class lie in all shards."""

    def __init__(self, samples: int = 103, cache: ShardCache | None = None) -> None:
        numbers = np.random.default_rng(0).choice([0, 1, 2, 4, 5, 6, 7, 8, 9], samples).astype(np.uint16)
        shards = [ShardState(f"s3://b/{one}.tar", 100, 1, cache) for one in range(SHARDS)]
        self.layout = ShardLayout(shards, numbers)

    def shard_layout(self) -> ShardLayout:
        return self.layout


def order_of(data: Data, world: int, epoch: int = 0, **settings: Any) -> list[int]:
    """Samples in the order of all processes together."""
    each = []
    for rank in range(world):
        sampler = BlockShuffleSampler(data, seed=3, open_shards=4, **settings)
        sampler.rank, sampler.world_size = rank, world
        size = len(sampler.order)
        sampler.num_samples = -(-size // world)
        sampler.total_size = sampler.num_samples * world if sampler.round_up else size
        sampler.set_epoch(epoch)
        each.append(list(sampler))
    length = max(map(len, each))
    return [one[i] for i in range(length) for one in each if i < len(one)]


def test_each_sample_once_and_the_same_order_for_any_number_of_processes() -> None:
    data = Data()
    alone = order_of(data, 1)
    assert sorted(alone) == list(range(103))
    for world in (2, 3, 8):
        assert order_of(data, world) == [*alone, *alone][: -(-103 // world) * world]
        assert order_of(data, world, round_up=False) == alone
    assert order_of(data, 1, epoch=1) != alone
    assert sorted(order_of(data, 1, epoch=1)) == list(range(103))
    assert order_of(Data(3), 8) == (order_of(Data(3), 1) * 3)[:8]


@pytest.mark.parametrize("start", [0, 1, 33, 34, 51])
def test_a_start_in_the_middle_of_an_epoch(start: int) -> None:
    sampler = BlockShuffleSampler(Data(), seed=3, open_shards=4)
    sampler.rank, sampler.world_size, sampler.num_samples, sampler.total_size = 1, 2, 52, 104
    whole = list(sampler)
    batches = ResumableBatchSampler(BatchSampler(sampler, 5, False), sampler, 103, 0)
    batches.seek_batch(start // 5)
    assert [int(one) for batch in batches for one in batch] == whole[start // 5 * 5 :]
    assert [int(one) for batch in batches for one in batch] == whole
    sampler.seek_sample(start)
    assert list(sampler) == whole[start:]


def test_few_shards_at_a_time() -> None:
    data = Data()
    order = np.array(order_of(data, 1))
    numbers = data.layout.numbers[order]
    blocks = BlockOrder(data.layout, 4).blocks(3, 0)
    assert [len(one) for one in blocks] == [3, 3, 3]
    first = 0
    for block in blocks:
        end = first + np.isin(data.layout.numbers, block).sum()
        assert set(numbers[first:end]) == set(block)
        assert (np.diff(numbers[first:end]) != 0).mean() > 0.4  # mixed
        first = end
    in_order = order_of(data, 1, shuffle=False)
    assert in_order == np.argsort(data.layout.numbers, kind="stable").tolist()


def test_the_shards_of_two_blocks_are_fetched_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[list[str]] = []
    monkeypatch.setattr(module.ReadAhead, "want", lambda self, shards: wanted.append([one.path for one in shards]))
    data = Data(cache=ShardCache("/none", 10_000))
    sampler = BlockShuffleSampler(data, seed=3, open_shards=4)
    blocks = [[f"s3://b/{one}.tar" for one in block] for block in sampler.order.blocks(3, 0)]
    later = [f"s3://b/{one}.tar" for one in sampler.order.blocks(3, 1)[0]]
    list(islice(sampler, 1))
    assert wanted == [blocks[0] + blocks[1]]
    wanted.clear()
    list(sampler)
    assert wanted == [blocks[0] + blocks[1], blocks[1] + blocks[2], blocks[2] + later]


def test_bad_settings_are_one_line() -> None:
    with pytest.raises(UserError, match=r"two blocks of 4 shards have up to 800 bytes, shard_cache 799: set a larger"):
        BlockShuffleSampler(Data(cache=ShardCache("/none", 799)), open_shards=4, seed=0)
    with pytest.raises(UserError, match=r"BlockShuffleSampler\.open_shards=0: a whole number"):
        DATA_SAMPLERS.build(dict(type="BlockShuffleSampler", dataset=Data(), open_shards=0, seed=0))
    with pytest.raises(UserError, match=r"BlockShuffleSampler: list has no shards; take DefaultSampler"):
        BlockShuffleSampler([1], seed=0)


def test_mixing_of_labels() -> None:
    """Against the mean of drawn batches: in sorted shards blocks have few classes, in mixed ones nearly all."""
    samples, classes, shards, batch = 40_000, 200, 100, 256
    labels = np.sort(np.random.default_rng(0).integers(0, classes, samples))
    in_turn = ShardLayout([], (np.arange(samples) * shards // samples).astype(np.uint16))
    layout = ShardLayout([ShardState("", 0, 0)] * shards, in_turn.numbers)
    draw = np.random.default_rng(2)
    drawn = np.mean([len(set(labels[draw.choice(samples, batch, replace=False)])) for _ in range(300)])
    sorted_shards, uniform = label_mixing(layout, labels, 10, batch)
    assert abs(uniform - drawn) < 1
    assert 15 < sorted_shards < 35
    mixed_shards, same = label_mixing(layout, np.random.default_rng(1).permutation(labels), 10, batch)
    assert same == uniform
    assert abs(mixed_shards - uniform) < 1.5
    whole, _ = label_mixing(layout, labels, shards, batch)
    assert abs(whole - uniform) < 1.5
