"""What the launchers of several machines tell each other: signs of life, whether ranks hang, how the job ended."""

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
from engine.launch.hang_detector import Status

EVERY = 1.0  # seconds
SILENCE = 40.0  # seconds without a sign of life from another machine
LAST_READING = 2.0  # seconds that the first machine, which keeps the mail, waits for the others to have read it


@dataclass(frozen=True)
class Ended:
    """How a job ended badly.

    Attributes:
        line: For a person, without ``error:``.
        code: Exit code of the launcher.
        again: Whether another try can do better.
    """

    line: str
    code: int
    again: bool


class Mail:
    """One machine's side, in a thread of its own: a machine that does not answer must not hold up the others.

    Args:
        store: Kept by the first machine's launcher; used by the thread alone.
        node: Number of this machine.
        nodes: How many there are.
        attempt: How often the processes have been started again.
    """

    def __init__(self, store: Store, node: int, nodes: int, attempt: int) -> None:
        self._store = PrefixStore(f"mail/{attempt}", store)
        self._node, self._nodes = node, nodes
        self._status: list[dict[str, Any]] | None = None
        self._post: Ended | None = None
        self._received: Ended | None = None
        self._hung: list[Status] = []
        self._code: int | None = None
        self._all_left = threading.Event()
        self._closed = threading.Event()
        self._heard = time.monotonic()
        self._beats: dict[int, tuple[int, float]] = dict.fromkeys(range(1, nodes), (-1, self._heard))
        threading.Thread(target=self._run, daemon=True).start()

    def publish(self, statuses: list[Status] | None) -> None:
        """Say which ranks of this machine hang: all of them, or ``None``."""
        self._status = None if statuses is None else [status.plain() for status in statuses]

    def post(self, ended: Ended) -> None:
        """Tell all machines how the job ended; the first to tell is believed."""
        self._post = self._post or ended

    def received(self) -> Ended | None:
        """How the job ended elsewhere."""
        if self._received is None and self._node and time.monotonic() - self._heard > SILENCE:
            return Ended(
                f"the launcher of NODE_RANK=0 gave no sign of life for {SILENCE:.0f} s", EXIT_HUNG, again=False
            )
        return self._received

    def hung(self) -> list[Status]:
        """On the first machine: all ranks of the job where all of them hang."""
        return self._hung

    def leave(self, code: int, patience: float) -> None:
        """Wait until all machines are about to leave, so that none is killed for another one's exit code.

        Args:
            code: Of this one.
            patience: Seconds.
        """
        self._code = code
        self._all_left.wait(patience)
        if self._node == 0:
            time.sleep(LAST_READING)

    def close(self) -> None:
        """End the thread, once what was posted is told."""
        self._closed.set()

    def _run(self) -> None:
        for beat in count():
            closed = self._closed.is_set()
            with suppress(RuntimeError):  # any failure of the connection; silence is what counts
                self._exchange(beat)
                self._heard = time.monotonic()
            if closed:
                return
            self._closed.wait(EVERY if self._code is None else EVERY / 5)

    def _exchange(self, beat: int) -> None:
        store = self._store
        if self._post is not None:
            store.compare_set("ended", "", json.dumps(asdict(self._post)))
        if self._code is not None:
            store.set(f"left/{self._node}", str(self._code))
            if store.check([f"left/{node}" for node in range(self._nodes)]):
                self._all_left.set()
        store.set(f"status/{self._node}", json.dumps({"beat": beat, "hang": self._status}))
        if self._node == 0:
            self._judge()
        if self._received is None and store.check(["ended"]):
            self._received = Ended(**json.loads(store.get("ended")))

    def _judge(self) -> None:
        hang: list[list[dict[str, Any]] | None] = [self._status]
        now = time.monotonic()
        for node, (before, at) in self._beats.items():
            key = f"status/{node}"
            told: dict[str, Any] = {"beat": -1, "hang": None}
            if self._store.check([key]):
                told = json.loads(self._store.get(key))
            if told["beat"] != before:
                self._beats[node] = (told["beat"], now)
            elif now - at > SILENCE:
                line = f"the launcher of NODE_RANK={node} gave no sign of life for {SILENCE:.0f} s"
                self.post(Ended(line, EXIT_HUNG, again=False))
            hang.append(told["hang"])
        all_hang = None not in hang
        self._hung = [Status.from_plain(one) for part in hang if part for one in part] if all_hang else []
