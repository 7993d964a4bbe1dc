"""The end of the data loaders' workers with their run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch.utils.data import DataLoader

from engine.data.sampling import shutdown_workers

WORKER_SHUTDOWN_SECONDS = 1.0  # at the regular end of a run, for workers that are still preparing a batch


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
