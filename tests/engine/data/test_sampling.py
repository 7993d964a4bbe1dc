"""Resumable sampling: order and random numbers of training data follow from the step alone."""

from __future__ import annotations

import copy
import os
import pickle
import random
import signal
from itertools import chain, islice
from multiprocessing.connection import wait
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import BatchSampler, DataLoader

from engine.checkpoint.rng import RandomState, seed_of, seed_process, seeded
from engine.data import sampling
from engine.data.sampling import (
    ResumableBatchSampler,
    SeededIndex,
    build_train_loader,
    shuffled_indices,
    shutdown_workers,
)
from engine.training.loops import IterationLoop
from tests.programs import PATIENCE

SAMPLES = 10


def batches(sampler: Any, size: int = 2, seed: int = 3) -> ResumableBatchSampler:
    return ResumableBatchSampler(BatchSampler(sampler, size, False), sampler, SAMPLES, seed)


def seeded_indices(found: Any) -> list[list[tuple[int, int]]]:
    return [[(int(index), index.seed) for index in batch] for batch in found]


def test_seek_batch_resumes_an_epoch_at_any_batch() -> None:
    sampler = DefaultSampler(range(SAMPLES), seed=1)
    whole = seeded_indices(batches(sampler))
    assert len(whole) == 5
    for begin in range(6):
        part = batches(sampler)
        part.seek_batch(begin)
        assert seeded_indices(part) == whole[begin:]
        assert seeded_indices(part) == whole  # the epoch after it is whole


def test_seek_batch_resumes_an_endless_stream_at_any_batch() -> None:
    whole = seeded_indices(islice(batches(InfiniteSampler(range(SAMPLES), seed=1)), 20))
    part = batches(InfiniteSampler(range(SAMPLES), seed=1))
    part.seek_batch(13)
    assert seeded_indices(islice(part, 7)) == whole[13:]


def test_seek_step_starts_the_next_epoch_in_a_training_of_steps() -> None:
    def stream(begin: int, count: int) -> list[list[int]]:
        sampler = DefaultSampler(range(SAMPLES), seed=1)
        loop = object.__new__(IterationLoop)
        loop.dataloader = DataLoader(range(SAMPLES), batch_sampler=batches(sampler), collate_fn=list)
        found, loop._iter = [], begin
        for batch in islice(loop._batches(), count):
            found.append(batch)
            loop._iter += 1
        return found

    whole = stream(0, 13)
    for epoch in (0, 5):
        assert sorted(chain(*whole[epoch : epoch + 5])) == list(range(SAMPLES))
    assert whole[:5] != whole[5:10]
    for begin in (3, 5, 8):
        assert stream(begin, 13 - begin) == whole[begin:]


@pytest.mark.parametrize("make", [DefaultSampler, InfiniteSampler])
def test_reseed_gives_the_order_of_another_seed(make: Any) -> None:
    whole = seeded_indices(islice(batches(make(range(SAMPLES), seed=3), seed=3), 5))
    other = batches(make(range(SAMPLES), seed=8), seed=8)
    assert seeded_indices(islice(other, 5)) != whole
    other.reseed(3, True)
    assert seeded_indices(islice(other, 5)) == whole


def test_each_pass_over_the_data_has_its_own_seeds() -> None:
    sampler = DefaultSampler(range(SAMPLES), seed=1)
    seeds = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        seeds += [index.seed for batch in batches(sampler) for index in batch]
    endless = islice(batches(InfiniteSampler(range(SAMPLES), seed=1)), 15)
    for found in (seeds, [index.seed for batch in endless for index in batch]):
        assert len(set(found)) == 3 * SAMPLES


def test_another_seed_gives_other_samples() -> None:
    sampler = DefaultSampler(range(SAMPLES), seed=1)
    one, two = (seeded_indices(batches(sampler, seed=seed)) for seed in (3, 4))
    assert [[index for index, _ in batch] for batch in one] == [[index for index, _ in batch] for batch in two]
    assert not {seed for batch in one for _, seed in batch} & {seed for batch in two for _, seed in batch}


@pytest.mark.parametrize("settings", [{}, {"round_up": False}, {"shuffle": False}], ids=str)
@pytest.mark.parametrize("world", [1, 3, 16])
def test_the_order_is_that_of_mmengine(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], world: int) -> None:
    monkeypatch.setattr(sampling, "INDICES_AT_ONCE", 3)
    for rank in range(world):
        monkeypatch.setattr("mmengine.dataset.sampler.get_dist_info", lambda rank=rank: (rank, world))
        sampler = DefaultSampler(range(SAMPLES), seed=5, **settings)
        sampler.set_epoch(2)
        expected = list(BatchSampler(sampler, 2, False))
        for start in range(len(expected) + 1):
            found = batches(sampler)
            found.seek_batch(start)
            assert [list(map(int, batch)) for batch in found] == expected[start:]


@pytest.mark.parametrize("make", [DefaultSampler, InfiniteSampler])
def test_two_processes_share_the_samples_of_one(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of two processes with batches of 2 has the images and seeds of one process with a batch of 4."""
    alone = seeded_indices(islice(batches(make(range(SAMPLES), seed=1), size=4), 2))
    monkeypatch.setattr(sampling, "get_world_size", lambda: 2)
    shared = []
    for rank in (0, 1):
        monkeypatch.setattr("mmengine.dataset.sampler.get_dist_info", lambda rank=rank: (rank, 2))
        shared.append(seeded_indices(islice(batches(make(range(SAMPLES), seed=1)), 2)))
    for step in (0, 1):
        assert sorted(alone[step]) == sorted(shared[0][step] + shared[1][step])


@pytest.mark.parametrize("make", [DefaultSampler, InfiniteSampler])
def test_machines_share_the_samples_of_one_and_go_on_with_fewer(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 x 8 and 16 x 8 processes, and 8 x 8 after half of these machines were lost, with one global batch."""
    size, batch, lost_at = 5_003, 256, 7

    def steps(world: int, begin: int = 0) -> list[list[tuple[int, int]]]:
        monkeypatch.setattr(sampling, "get_world_size", lambda: world)
        shares = []
        for rank in range(world):
            monkeypatch.setattr("mmengine.dataset.sampler.get_dist_info", lambda rank=rank: (rank, world))
            sampler = make(range(size), seed=1)
            found = ResumableBatchSampler(BatchSampler(sampler, batch // world, False), sampler, size, 3)
            found.seek_step(begin)
            shares.append(seeded_indices(islice(found, 2 * size // batch - begin)))
        assert all(len({len(share[step]) for share in shares}) == 1 for step in range(len(shares[0])))
        return [sorted(chain(*parts)) for parts in zip(*shares, strict=True)]

    alone = steps(1)
    for world in (16, 128):
        found = steps(world)
        assert found[:-1] == alone[:-1]
        assert set(alone[-1]) <= set(found[-1])  # which every process fills up to the same number of images
    assert steps(64, lost_at)[:-1] == alone[lost_at:-1]
    if make is DefaultSampler:
        assert {index for step in alone for index, _ in step} == set(range(size))


def test_seeded_index_survives_pickling_and_copying() -> None:
    index = SeededIndex(7, 2**62 + 1)
    for same in (index, pickle.loads(pickle.dumps(index)), copy.deepcopy(index)):
        assert same == 7
        assert same.seed == 2**62 + 1
        assert list(range(10))[same] == 7


def test_seed_of_gives_distinct_seeds() -> None:
    seeds = [seed_of(*parts) for parts in ((0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 11), (0, 0, 1, 1), (10, 0, 1))]
    assert len(set(seeds)) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(0, 0, 1) == seeds[0]


def numbers() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_seeded_sets_and_restores_the_random_state() -> None:
    state = RandomState.capture()
    expected = [numbers() for _ in range(2)]
    state.restore()
    first = numbers()
    with seeded(5):
        inside = numbers()
    assert [first, numbers()] == expected
    with seeded(5):
        assert numbers() == inside
    with seeded(6):
        assert not set(numbers()) & set(inside)


def test_seed_process_seeds_every_generator() -> None:
    state = RandomState.capture()
    drawn = []
    for rank in (0, 1, 0):
        seed_process(5, 2, rank, 0)
        drawn.append(numbers())
    state.restore()
    assert drawn[0] == drawn[2]
    assert all(one != other for one, other in zip(drawn[0], drawn[1], strict=True))


def test_random_state_survives_as_plain_data(tmp_path: Any) -> None:
    random.gauss(0, 1)  # leaves a second number for the next call
    state = RandomState.capture()
    expected = random.gauss(0, 1), numbers()
    torch.save(state.as_dict(), tmp_path / "state.pth")
    RandomState.from_dict(torch.load(tmp_path / "state.pth", weights_only=True)).restore()
    assert (random.gauss(0, 1), numbers()) == expected


class Noise:
    """A data set whose samples are random numbers of their process."""

    metainfo: dict[str, Any] = {}

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Any:
        with seeded(index.seed):  # type: ignore[attr-defined]
            return torch.tensor(numbers())


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_build_train_loader_gives_the_same_samples_with_workers(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling.DATASETS, "build", lambda cfg: Noise())
    loader = dict(
        dataset={},
        sampler=dict(type="DefaultSampler", shuffle=True),
        batch_size=5,
        num_workers=workers,
        collate_fn=dict(type="default_collate"),
    )
    before = torch.get_rng_state()
    built = build_train_loader(copy.deepcopy(loader), 3, True)
    found = torch.cat(list(built))
    assert torch.equal(torch.get_rng_state(), before)
    indices = [index for batch in built.batch_sampler for index in batch]
    assert torch.equal(found, torch.stack([Noise()[index] for index in indices]))


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> DataLoader:
    """A training loader with one persistent worker."""
    monkeypatch.setattr(sampling.DATASETS, "build", lambda cfg: Noise())
    settings = dict(dataset={}, sampler=dict(type="DefaultSampler", shuffle=True), batch_size=1, num_workers=1)
    settings |= dict(collate_fn=dict(type="default_collate"), persistent_workers=True)
    return build_train_loader(settings, seed=3, shared_order=True)


def test_configure_workers_lets_workers_outlive_signals(loader: DataLoader) -> None:
    found = iter(loader)
    next(found)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        os.kill(loader._iterator._workers[0].pid, number)
    assert len(list(found)) == SAMPLES - 1
    shutdown_workers([loader], timeout=PATIENCE)


def test_shutdown_workers_lets_new_workers_start(loader: DataLoader) -> None:
    shutdown_workers([loader], timeout=PATIENCE)  # there is none
    for _ in range(2):
        assert len(list(loader)) == SAMPLES
        (worker,) = loader._iterator._workers
        shutdown_workers([loader], timeout=PATIENCE)
        assert worker.exitcode == 0


def test_shutdown_workers_does_not_wait_for_stuck_or_killed_workers(
    loader: DataLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killing(Thread):
        def join(self, timeout: float | None = None) -> None:
            os.kill(second.pid, signal.SIGKILL)  # of which torch makes an error in the main thread
            os.waitid(os.P_PID, second.pid, os.WEXITED | os.WNOWAIT)
            super().join(timeout)

    monkeypatch.setattr(sampling, "Thread", Killing)
    loader.num_workers = 2
    next(iter(loader))
    first, second = loader._iterator._workers
    for worker in (first, second):
        os.kill(worker.pid, signal.SIGSTOP)
    shutdown_workers([loader], timeout=1.0)
    assert first.is_alive()
    os.kill(first.pid, signal.SIGCONT)
    assert wait([first.sentinel], timeout=PATIENCE)


def test_of_the_order_a_process_keeps_its_own_part_alone() -> None:
    for world, rank, start in ((1, 0, 0), (1, 0, 70), (4, 3, 0), (4, 0, 11)):
        sampler = DefaultSampler(range(101), shuffle=True, seed=5)
        sampler.world_size, sampler.rank, sampler.num_samples = world, rank, -(-101 // world)
        sampler.total_size = sampler.num_samples * world
        indices: Any = shuffled_indices(sampler, start)
        own = list(sampler)[start:]
        assert next(indices) == own[0]
        kept = [one for one in indices.gi_frame.f_locals.values() if isinstance(one, torch.Tensor)]
        assert sum(one.untyped_storage().nbytes() for one in kept) <= 4 * len(own) + 8  # and the repeated ones
        assert list(indices) == own[1:]
