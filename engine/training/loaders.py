"""The data loaders of a run: built, compared between the processes, and their workers ended with the run."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from engine.data.fault_tolerance import FaultTolerantDataset
from engine.data.sampling import build_train_loader, shutdown_workers
from engine.distributed.agreement import Agreement
from engine.distributed.consistency import check_same_data, describe_loader

WORKER_SHUTDOWN_SECONDS = 1.0  # at the regular end of a run, for workers that are still preparing a batch


def resumable_loader(settings: dict[str, Any], seed: int, same_order: bool, work_dir: str | Path) -> DataLoader:
    """Build the data loader of a training: it can start at any step, and damaged images do not end it.

    Args:
        settings: Config of the loader; it is not changed.
        seed: Seed of the run.
        same_order: Whether all processes draw from one common order of the samples.
        work_dir: Folder for the list of images that were replaced.
    """
    return build_train_loader(
        copy.deepcopy(settings), seed, same_order, lambda dataset: FaultTolerantDataset(dataset, work_dir)
    )


def compare_loaders(split: str, loader: DataLoader, same_data: bool, agreement: Agreement) -> None:
    """Check that a loader gives all processes the same data.

    Args:
        split: Name of the data for messages, such as ``training``.
        loader: This process's loader.
        same_data: Whether all processes share one data set, or only the number of batches has to agree.
        agreement: The processes.

    Raises:
        UserError: If they differ; it says which process has what.
    """
    check_same_data(split, agreement.gather(describe_loader(loader, same_data)))


@contextmanager
def workers_ended(loaders: Sequence[DataLoader]) -> Iterator[None]:
    """Context at whose end the workers of all loaders end; an error or a stop does not wait for them.

    Args:
        loaders: Loaders; those that are added while the context is open count too.
    """
    patience = 0.0
    try:
        yield
        patience = WORKER_SHUTDOWN_SECONDS
    finally:
        shutdown_workers(loaders, patience)
