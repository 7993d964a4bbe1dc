"""Order and augmentation of training data as a function of the step: a run resumes without reading past data.

mmengine's workers draw random numbers as they go: a sample depends on the number of workers and on what each did
before. Here the augmentation of a sample follows from the seed of the run, the pass over the data and the sample's
index. The numbers of workers and of processes do not matter, and no sampler state needs to be saved.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from threading import Thread
from typing import Any

import torch
from mmengine.dataset import DefaultSampler, worker_init_fn
from mmengine.dist import get_rank, get_world_size
from mmengine.registry import DATA_SAMPLERS, DATASETS, FUNCTIONS
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Sampler

from backbones.errors import ConfigError, describe_error
from engine.checkpoint.rng import seed_of
from engine.data.worker_watch import NotingCollate, WatchedLoader, note_begun, note_samples
from engine.launch.leftovers import share_temporary_folder
from engine.launch.parent import end_with_parent

INDICES_AT_ONCE = 2**16  # of an epoch, as Python's numbers


class SeededIndex(int):
    """An index into a data set, with the seed of everything random about this sample.

    Attributes:
        seed: Seed for :func:`engine.checkpoint.rng.seeded`.
    """

    seed: int

    def __new__(cls, index: int, seed: int) -> SeededIndex:
        seeded_index = super().__new__(cls, index)
        seeded_index.seed = seed
        return seeded_index

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]
        """Arguments from which pickle makes the index again in a worker."""
        return int(self), self.seed


class ResumableBatchSampler(Sampler[list[int]]):
    """Batches of :class:`SeededIndex`, starting at any batch of an epoch or of an endless stream.

    A sampler without epochs has a method ``skip`` to an absolute position, as mmengine's ``InfiniteSampler``; one whose
    order depends on the epoch has ``set_epoch``, as its ``DefaultSampler``. One with ``seek_sample`` begins its next
    iteration after so many samples of this process; of others the batches before are made and dropped.

    Args:
        batches: Batches of plain indices of this process.
        sampler: Sampler that ``batches`` reads.
        dataset_size: Number of samples in the data set.
        seed: Seed of the run.
    """

    def __init__(self, batches: Sampler[list[int]], sampler: Sampler[int], dataset_size: int, seed: int) -> None:
        self.batches, self.sampler, self._dataset_size, self._seed = batches, sampler, dataset_size, seed
        self._start = 0

    def seek_batch(self, batch: int) -> None:
        """Start the next iteration, and no later one, after so many batches."""
        self._start = batch

    def seek_step(self, step: int) -> None:
        """Start the next iteration where a training of so many steps is, in an endless stream or in an epoch."""
        if not hasattr(self.sampler, "skip"):
            epoch, step = divmod(step, len(self))
            if hasattr(self.sampler, "set_epoch"):
                self.sampler.set_epoch(epoch)
        self.seek_batch(step)

    def reseed(self, seed: int, shared_order: bool) -> None:
        """Continue with the order and the augmentation of a run with another seed.

        Args:
            seed: Seed of that run.
            shared_order: Whether all processes share the order; otherwise the order stays as it is.
        """
        self._seed = seed
        if shared_order and hasattr(self.sampler, "seed"):
            self.sampler.seed = seed

    def __iter__(self) -> Iterator[list[int]]:
        """Yield batches of seeded indices."""
        start, self._start = self._start, 0
        if hasattr(self.sampler, "skip"):
            self.sampler.skip(0)  # else the stream would go on where the previous iterator stopped
        epoch = getattr(self.sampler, "epoch", 0)
        for number, batch in enumerate(self._batches_from(start), start):
            # An endless stream has no epochs: count its passes over the data.
            passes = epoch + number * len(batch) * get_world_size() // self._dataset_size
            yield [SeededIndex(index, seed_of(self._seed, passes, index)) for index in batch]

    def _batches_from(self, start: int) -> Iterator[list[int]]:
        if type(self.batches) is not BatchSampler:
            return islice(iter(self.batches), start, None)
        if hasattr(self.sampler, "seek_sample"):
            self.sampler.seek_sample(start * self.batches.batch_size)
            return iter(self.batches)
        if type(self.sampler) is not DefaultSampler:
            return islice(iter(self.batches), start, None)
        size, drop_last = self.batches.batch_size, self.batches.drop_last
        return iter(BatchSampler(shuffled_indices(self.sampler, start * size), size, drop_last))

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]


def shuffled_indices(sampler: DefaultSampler, start: int) -> Iterator[int]:
    """Indices that mmengine's ``DefaultSampler`` gives, without the first ones, and without a list of all.

    Its lists of 14 million numbers take a second and 0.5 GB in each process. Here a process keeps the numbers that it
    will give, 4 bytes each.

    Args:
        sampler: The sampler.
        start: Number of indices of this process that are left out.
    """
    count = len(sampler.dataset)
    generator = torch.Generator().manual_seed(sampler.seed + sampler.epoch)
    narrow = torch.int32 if count <= torch.iinfo(torch.int32).max else torch.int64  # the same order, half as large
    if sampler.shuffle:
        order = torch.randperm(count, generator=generator, dtype=narrow)
    else:
        order = torch.arange(count, dtype=narrow)
    places = range(sampler.rank + start * sampler.world_size, sampler.total_size, sampler.world_size)
    own = order[places.start : count : sampler.world_size]
    again = torch.tensor(places[len(own) :], dtype=torch.int64) % count  # from the beginning, at the end
    own = torch.cat([own, order[again]])
    del order
    for begin in range(0, len(own), INDICES_AT_ONCE):
        yield from own[begin : begin + INDICES_AT_ONCE].tolist()


def build_train_loader(
    loader: dict[str, Any], seed: int, shared_order: bool, wrap_dataset: Callable[[Any], Any] = lambda dataset: dataset
) -> DataLoader:
    """Build a training data loader that can start at any step.

    Args:
        loader: Config of the loader; its parts are popped.
        seed: Seed of the run.
        shared_order: Whether all processes share the order, as they must unless each has data of its own.
        wrap_dataset: Applied to the built data set.

    Raises:
        ConfigError: If the collate function is not registered.
    """
    dataset = DATASETS.build(loader.pop("dataset"))
    if hasattr(dataset, "full_init"):
        dataset.full_init()
    dataset = wrap_dataset(dataset)
    sampler_args = dict(dataset=dataset, seed=seed if shared_order else None)
    sampler = DATA_SAMPLERS.build(loader.pop("sampler"), default_args=sampler_args)
    batches = _build_batches(loader, sampler)
    collate = loader.pop("collate_fn", dict(type="pseudo_collate"))
    name = collate.pop("type")
    if (function := FUNCTIONS.get(name)) is None:
        raise ConfigError(f"train_dataloader.collate_fn: {name!r} is no registered function")
    loader["collate_fn"] = partial(function, **collate)
    built = DataLoader(dataset, batch_sampler=ResumableBatchSampler(batches, sampler, len(dataset), seed), **loader)
    configure_workers(built, seed)
    return built


def _build_batches(loader: dict[str, Any], sampler: Sampler[int]) -> Sampler[list[int]]:
    batch_size, drop_last = loader.pop("batch_size"), loader.pop("drop_last", False)
    config = loader.pop("batch_sampler", None)
    if config is None:
        return BatchSampler(sampler, batch_size, drop_last)
    batches: Sampler[list[int]] = DATA_SAMPLERS.build(config, default_args=dict(sampler=sampler, batch_size=batch_size))
    return batches


def configure_workers(loader: DataLoader, seed: int) -> None:
    """Give a loader its own random generator, and let its workers outlive the signals that end a job, but not the job.

    The loader's workers must not have started.
    """
    if loader.num_workers:
        share_temporary_folder()
    exiting = torch.zeros(1, dtype=torch.uint8).share_memory_()
    atexit.register(exiting.fill_, 1)  # before the interpreter ends the workers
    watched: Any = loader
    watched.__class__ = WatchedLoader
    watched.notes = torch.zeros(max(loader.num_workers, 1), 3, dtype=torch.int64).share_memory_()
    if loader.num_workers:
        loader.collate_fn = NotingCollate(loader.collate_fn, watched.notes)
    loader.generator = torch.Generator().manual_seed(seed)
    shared = {"exiting": exiting, "notes": watched.notes}
    settings = {"num_workers": loader.num_workers, "rank": get_rank(), "seed": seed}
    loader.worker_init_fn = partial(_init_worker, **shared, **settings)


def _init_worker(worker_id: int, exiting: Tensor, notes: Tensor, **settings: Any) -> None:
    """Prepare a worker process.

    Ctrl-C, SIGTERM and SIGHUP reach all processes of a job, but the main process still needs data until it has saved: a
    worker ends only when the main process is exiting, or was killed.
    """

    def terminate(*_: Any) -> None:
        if exiting.item():
            os._exit(0)

    end_with_parent()
    with suppress(OSError):  # a full disk
        note_samples(notes)
    sys.excepthook = partial(_report_thread, exiting)
    worker_init_fn(worker_id, **settings)
    for ignored in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, terminate)
    note_begun(notes, worker_id)


def _report_thread(exiting: Tensor, kind: type[BaseException], error: BaseException, stack: Any) -> None:
    """Report an error of the thread that passes tensors on: nothing where the process that they are for has ended."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, stack)
    elif not exiting.item():
        print(f"a worker of a data loader lost a connection: {describe_error(error)}", file=sys.stderr)


def shutdown_workers(loaders: Iterable[DataLoader], timeout: float) -> None:
    """Shut down the workers that loaders keep between iterations.

    A runner is part of reference cycles. Where the garbage collector frees it, queues may be closed before torch has
    told the workers through them; at interpreter exit torch waits for the workers of a loader that pins memory and
    tells them nothing. Both cost 5 seconds per worker, as :func:`_init_worker` lets none obey the SIGTERM that follows.

    Threads do it, since torch waits forever where a killed worker has left half a message, and the error that ended
    the run must still be reported.

    Args:
        loaders: Loaders; they start new workers when they are used again.
        timeout: Seconds to wait for the workers of each loader; busy workers end after their batch in any case.
    """
    threads = []
    for loader in loaders:
        # torch has no public way to end persistent workers, nor to reach the iterator that holds them.
        iterator, loader._iterator = loader._iterator, None
        if iterator is not None:
            threads.append(Thread(target=iterator._shutdown_workers, daemon=True))  # type: ignore[attr-defined]
    # torch raises wherever this process is when a worker is killed; its data is not needed any more.
    with suppress(RuntimeError):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout)
