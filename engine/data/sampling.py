"""The order of the training data, known from the step alone: a run goes on anywhere without reading what is past.

In mmengine's loaders workers draw random numbers as they go: what a sample looks like depends on how many there are and
on what they did before. Here the augmentation of a sample follows from the seed of the run, the pass over the data and
the sample's index. The numbers of workers and of processes do not matter, and nothing needs to be saved.
"""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from threading import Thread
from typing import Any

import torch
from mmengine.dataset import worker_init_fn
from mmengine.dist import get_rank, get_world_size
from mmengine.registry import DATA_SAMPLERS, DATASETS, FUNCTIONS
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from backbones.errors import UserError
from engine.checkpoint.rng import seed_of


class SeededIndex(int):
    """An index into a data set, with the seed for all that is random about this sample.

    Attributes:
        seed: For :func:`engine.checkpoint.rng.seeded`.
    """

    seed: int

    def __new__(cls, index: int, seed: int) -> SeededIndex:
        """Make one."""
        draw = super().__new__(cls, index)
        draw.seed = seed
        return draw

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]
        """What workers make it from."""
        return int(self), self.seed


class ResumableBatchSampler(Sampler[list[int]]):
    """Batches of :class:`SeededIndex`, from any batch of an epoch or of an endless stream on.

    Args:
        batches: Batches of plain indices of this process.
        sampler: What ``batches`` reads; its ``set_epoch``, if it has one, decides the order of an epoch.
        samples: Images in the data set.
        seed: Seed of the run.
    """

    def __init__(self, batches: Any, sampler: Any, samples: int, seed: int) -> None:
        self.batches, self.sampler, self._samples, self._seed = batches, sampler, samples, seed
        self._passed = 0

    def begin_at(self, batch: int) -> None:
        """Let the next iteration leave out this many batches; the one after it begins at the start again."""
        self._passed = batch

    def begin_at_step(self, step: int) -> None:
        """Let the next iteration begin where a training of so many steps is: in an endless stream, or in an epoch."""
        if hasattr(self.sampler, "skip"):
            self.begin_at(step)
            return
        epoch, inside = divmod(step, len(self))
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)
        self.begin_at(inside)

    def reseed(self, seed: int, same_order: bool) -> None:
        """Draw as a run with this seed does.

        Args:
            seed: Seed of the run.
            same_order: Whether all processes share the order; otherwise it stays as it is.
        """
        self._seed = seed
        if same_order and hasattr(self.sampler, "seed"):
            self.sampler.seed = seed

    def __iter__(self) -> Iterator[list[int]]:
        """Yield batches of draws."""
        start, self._passed = self._passed, 0
        if hasattr(self.sampler, "skip"):
            self.sampler.skip(0)  # an endless stream would go on, or has ended with the iterator before this one
        epoch = getattr(self.sampler, "epoch", 0)
        world = get_world_size()
        for number, batch in enumerate(islice(iter(self.batches), start, None), start):
            # An endless stream has no epochs: count how often it has gone over the data.
            passes = epoch + number * len(batch) * world // self._samples
            yield [SeededIndex(index, seed_of(self._seed, passes, index)) for index in batch]

    def __len__(self) -> int:
        return len(self.batches)


def training_loader(
    loader: dict[str, Any], seed: int, same_order: bool, wrap: Callable[[Any], Any] = lambda dataset: dataset
) -> DataLoader:
    """Build the data loader of a training, which can begin at any step.

    Args:
        loader: Its config; parts of it are taken out.
        seed: Seed of the run.
        same_order: Whether all processes share the order, as they must unless each has data of its own.
        wrap: What to put around the data set.
    """
    dataset = DATASETS.build(loader.pop("dataset"))
    if hasattr(dataset, "full_init"):
        dataset.full_init()
    dataset = wrap(dataset)
    order = dict(dataset=dataset, seed=seed if same_order else None)
    sampler = DATA_SAMPLERS.build(loader.pop("sampler"), default_args=order)
    size, drop_last = loader.pop("batch_size"), loader.pop("drop_last", False)
    chosen = loader.pop("batch_sampler", None)
    if chosen is None:
        batches: Any = BatchSampler(sampler, size, drop_last)
    else:
        batches = DATA_SAMPLERS.build(chosen, default_args=dict(sampler=sampler, batch_size=size))
    collate = loader.pop("collate_fn", dict(type="pseudo_collate"))
    name = collate.pop("type")
    if (function := FUNCTIONS.get(name)) is None:
        raise UserError(f"train_dataloader.collate_fn: {name!r} is no registered function")
    loader["collate_fn"] = partial(function, **collate)
    built = DataLoader(dataset, batch_sampler=ResumableBatchSampler(batches, sampler, len(dataset), seed), **loader)
    leave_main_process_alone(built, seed)
    return built


def leave_main_process_alone(loader: DataLoader, seed: int) -> None:
    """Let a loader draw its seeds from a generator of its own, and its workers outlive the signals that end a job."""
    ending = torch.zeros(1, dtype=torch.uint8).share_memory_()
    atexit.register(ending.fill_, 1)  # before the interpreter ends the workers
    loader.generator = torch.Generator().manual_seed(seed)
    loader.worker_init_fn = partial(
        _start_worker, ending=ending, num_workers=loader.num_workers, rank=get_rank(), seed=seed
    )


def _start_worker(worker_id: int, ending: Tensor, **settings: Any) -> None:
    """Prepare a worker.

    Ctrl-C and SIGTERM reach all processes of a job, but the main process still needs data until it has saved: a worker
    ends when the main process says that it does.
    """

    def terminate(*_: Any) -> None:
        if ending.item():
            os._exit(0)

    worker_init_fn(worker_id, **settings)
    for warning in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(warning, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, terminate)


def end_workers(loaders: Iterable[DataLoader], patience: float) -> None:
    """End the workers that loaders keep from one iteration to the next.

    A runner is part of cycles. Where the garbage collector takes it, queues may be closed before torch has told the
    workers through them; at the interpreter's end torch waits for those of a loader that pins memory and tells them
    nothing. Both cost 5 seconds for each worker, and :func:`_start_worker` lets none heed the SIGTERM that follows.

    Threads do it, as torch waits without end where a killed worker has left half a message: whatever ended the run is
    heard of all the same.

    Args:
        loaders: They start new workers when they are used again.
        patience: Seconds to wait for the workers of each; those that are at work on a batch end after it in any case.
    """
    iterators = []
    for loader in loaders:
        if isinstance(loader._iterator, _MultiProcessingDataLoaderIter):
            iterators.append(loader._iterator)
            loader._iterator = None
    threads = [Thread(target=iterator._shutdown_workers, daemon=True) for iterator in iterators]
    # torch raises wherever this process is when a worker is killed; nobody needs its data any more.
    with suppress(RuntimeError):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(patience)
