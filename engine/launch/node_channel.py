"""Messages between the launchers of several machines: signs of life, stalled ranks, the end of the job."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

from torch.distributed import PrefixStore, Store

from engine.launch.exit_codes import EXIT_HUNG
from engine.launch.hang_detector import StalledRank

EXCHANGE_SECONDS = 1.0
MAX_SILENCE_SECONDS = 40.0  # without a sign of life from another machine
LAST_READ_SECONDS = 2.0  # for the other machines to read the last messages before the first one, with the store, exits


@dataclass(frozen=True)
class JobEnd:
    """The end of a job that did not succeed.

    Attributes:
        message: One line for the terminal, without ``error:``.
        exit_code: Exit code of the launcher.
        retry: Whether starting the processes again can help.
    """

    message: str
    exit_code: int
    retry: bool


class NodeChannel:
    """This machine's end of the channel; it runs in a thread so that a silent machine cannot block the launcher.

    Args:
        store: Store in the first machine's launcher; used by the thread alone.
        node: Number of this machine.
        nodes: Number of machines.
        attempt: Number of restarts of the processes so far.

    Attributes:
        stalled: Ranks of this machine if all of them are stalled, else ``None``; the launcher sets it.
        stalled_everywhere: On the first machine: all ranks of the job if all of them are stalled, else none.
    """

    def __init__(self, store: Store, node: int, nodes: int, attempt: int) -> None:
        self._store = PrefixStore(f"channel/{attempt}", store)
        self._node, self._nodes = node, nodes
        self.stalled: list[StalledRank] | None = None
        self.stalled_everywhere: list[StalledRank] = []
        self._posted: JobEnd | None = None
        self._received: JobEnd | None = None
        self._exit_code: int | None = None
        self._all_left = threading.Event()
        self._closed = threading.Event()
        self._heard = time.monotonic()
        self._beats: dict[int, tuple[int, float]] = dict.fromkeys(range(1, nodes), (-1, self._heard))
        threading.Thread(target=self._run, daemon=True).start()

    def post(self, end: JobEnd) -> None:
        """Tell all machines the end of the job; the first message counts."""
        self._posted = self._posted or end

    def received(self) -> JobEnd | None:
        """The end of the job that another machine has posted."""
        if self._received is None and self._node and time.monotonic() - self._heard > MAX_SILENCE_SECONDS:
            return _silent(0)
        return self._received

    def wait_for_exit(self, exit_code: int, timeout: float) -> None:
        """Wait until all machines are about to exit, so that none is killed because another one has exited.

        Each tells the others the exit code of its launcher; the timeout is in seconds.
        """
        self._exit_code = exit_code
        self._all_left.wait(timeout)
        if self._node == 0:
            time.sleep(LAST_READ_SECONDS)

    def close(self) -> None:
        """End the thread after one more exchange."""
        self._closed.set()

    def _run(self) -> None:
        for beat in count():
            closed = self._closed.is_set()
            with suppress(RuntimeError):  # of the connection; only a long silence counts
                self._exchange(beat)
                self._heard = time.monotonic()
            if closed:
                return
            self._closed.wait(EXCHANGE_SECONDS if self._exit_code is None else EXCHANGE_SECONDS / 5)

    def _exchange(self, beat: int) -> None:
        store = self._store
        if self._posted is not None:
            store.compare_set("end", "", json.dumps(asdict(self._posted)))
        if self._exit_code is not None:
            store.set(f"left/{self._node}", str(self._exit_code))
            if store.check([f"left/{node}" for node in range(self._nodes)]):
                self._all_left.set()
        store.set(f"status/{self._node}", json.dumps({"beat": beat, "stalled": self.stalled}, default=asdict))
        if self._node == 0:
            self._read_statuses()
        if self._received is None and store.check(["end"]):
            self._received = JobEnd(**json.loads(store.get("end")))

    def _read_statuses(self) -> None:
        stalled = [self.stalled]
        now = time.monotonic()
        for node, (before, at) in self._beats.items():
            key = f"status/{node}"
            found = self._store.check([key])
            status: dict[str, Any] = json.loads(self._store.get(key)) if found else {"beat": -1, "stalled": None}
            if status["beat"] != before:
                self._beats[node] = (status["beat"], now)
            elif now - at > MAX_SILENCE_SECONDS:
                self.post(_silent(node))
            stalled.append(None if status["stalled"] is None else [StalledRank(**one) for one in status["stalled"]])
        self.stalled_everywhere = [] if None in stalled else [one for part in stalled for one in part or ()]


def _silent(node: int) -> JobEnd:
    message = f"the launcher of NODE_RANK={node} gave no sign of life for {MAX_SILENCE_SECONDS:.0f} s"
    return JobEnd(message, EXIT_HUNG, retry=False)
