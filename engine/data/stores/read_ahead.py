"""Fetches the shards that come next, in a process of its own: its network and its threads are no part of a training."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from backbones.errors import ConfigError, DataError, MachineError
from engine.data.stores.cache import ShardCache
from engine.launch.parent import end_with_parent

if TYPE_CHECKING:
    from engine.data.stored_image import ShardState

PARALLEL_SHARDS = 4  # fetched at once by a process
WISH_POLL_SECONDS = 0.2


class ReadAhead:
    """Fetches shards before they are read; the process begins with the first wish and ends with its parent.

    Args:
        cache: Cache in which they are kept.
    """

    def __init__(self, cache: ShardCache) -> None:
        self._cache = cache
        self._wishes: Connection | None = None
        self._owner = 0

    def want(self, shards: Sequence[ShardState]) -> None:
        """Fetch shards, in this order, and no more those of an earlier call.

        Args:
            shards: Shards that will be read.
        """
        if self._wishes is None or self._owner != os.getpid():
            context = get_context("fork")
            here, there = context.Pipe()
            context.Process(target=_fetch_ahead, args=(there, self._cache), name="read-ahead", daemon=True).start()
            there.close()
            self._wishes, self._owner = here, os.getpid()
        with suppress(OSError):  # it was killed: shards are then fetched when they are read
            self._wishes.send([tuple(shard) for shard in shards])


def _fetch_ahead(wishes: Connection, cache: ShardCache) -> None:
    """Serve wishes until the parent ends; the latest counts."""
    from engine.data.stored_image import ShardState

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for ignored in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    end_with_parent()
    waiting: deque[ShardState] = deque()
    running: set[Future[None]] = set()
    with ThreadPoolExecutor(PARALLEL_SHARDS) as pool:
        while True:
            if wishes.poll(None if not (waiting or running) else 0):
                try:
                    waiting = deque(ShardState(*one) for one in wishes.recv())
                except EOFError:
                    os._exit(0)
                continue
            while waiting and len(running) < PARALLEL_SHARDS:
                running.add(pool.submit(_fetch_one, cache, waiting.popleft()))
            running = wait(running, WISH_POLL_SECONDS, FIRST_COMPLETED).not_done


def _fetch_one(cache: ShardCache, shard: ShardState) -> None:
    # Whoever reads the shard meets the same error, and says it.
    with suppress(ConfigError, DataError, MachineError):
        cache.prefetch(shard)
