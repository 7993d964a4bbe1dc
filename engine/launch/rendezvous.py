"""Rendezvous of the launchers of several machines, where any port may be in use already.

The store of the first machine's launcher listens on any free port, which is not known beforehand. A server on the first
free one of a few agreed ports tells it to the launchers that ask with the same run id. These try the agreed ports in
turn: another program that listens there answers nothing, or something else. One line each way: ``greeting run-id node
token`` and ``greeting run-id answer``.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

PORT_COUNT = 16
GREETING = "meet-launcher-1"
ANSWER_SECONDS = 3.0  # for one line of one connection
RETRY_SECONDS = 1.0  # between two rounds over the ports
MAX_LINE_BYTES = 256


class RendezvousError(Exception):
    """The machines cannot find each other; one line with the fix.

    Not a ``MachineError``: :func:`engine.launch.job.launch` handles it, and to import ``backbones.errors`` would double
    the time in which the launcher starts.
    """


def run_id(nodes: int, processes: int, program: str, arguments: Sequence[str]) -> str:
    """Identifier that is the same for all launchers of a job and differs between jobs.

    Of the program's path only the file name counts: the machines may have it in different folders.
    """
    parts = [str(nodes), str(processes), os.path.basename(program), *arguments, os.environ.get("SLURM_JOB_ID", "")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


class RendezvousServer:
    """Tells the port of the first machine's store to the other machines, until it is closed.

    Args:
        job: Identifier from :func:`run_id`.
        first_port: First of the agreed ports.
        answer: Port of the store.

    Attributes:
        port: The agreed port that the server listens on.

    Raises:
        RendezvousError: If none of the agreed ports is free.
    """

    def __init__(self, job: str, first_port: int, answer: int) -> None:
        self._job, self._answer = job, answer
        self._tokens: dict[str, str] = {}
        self._socket = _listen(first_port)
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Release the agreed port."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread, which close alone does not
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                greeting, job, node, token = (_line(connection).split() + [""] * 4)[:4]
                if greeting == GREETING:
                    answer = self._reply(job, node, token)
                    connection.sendall(f"{GREETING} {self._job} {answer}\n".encode())

    def _reply(self, job: str, node: str, token: str) -> str:
        if job != self._job:
            return "another"
        return str(self._answer) if self._tokens.setdefault(node, token) == token else "twice"


def request_port(address: str, first_port: int, job: str, node: int, patience: float) -> int:
    """Ask the first machine's :class:`RendezvousServer` for the port of its store.

    Args:
        address: Address of the first machine.
        first_port: First of the agreed ports.
        job: Identifier from :func:`run_id`.
        node: Number of this machine.
        patience: Seconds to wait for the first machine.

    Returns:
        The port of the store.

    Raises:
        RendezvousError: If the first machine does not answer in time, or another machine has the same number.
    """
    token = secrets.token_hex(8)
    until = time.monotonic() + patience
    others: set[int] = set()
    while True:
        for port in range(first_port, first_port + PORT_COUNT):
            answer = _request(address, port, job, node, token)
            if answer == "twice":
                raise RendezvousError(f"another machine has come with NODE_RANK={node}: each needs a number of its own")
            if answer.isdecimal():
                return int(answer)
            if answer:
                others.add(port)
        if time.monotonic() > until:
            break
        time.sleep(RETRY_SECONDS)
    other = f" (on port {min(others)} waits a launch with another command line)" if others else ""
    raise RendezvousError(
        f"NODE_RANK=0 did not answer at MASTER_ADDR={address}, {_ports(first_port)}, within "
        f"{patience:.0f} s{other}: start the same line there, and see that a firewall lets these ports through"
    )


def _ports(first_port: int) -> str:
    return f"ports {first_port} to {first_port + PORT_COUNT - 1}"


def _listen(first_port: int) -> socket.socket:
    for port in range(first_port, first_port + PORT_COUNT):
        if socket.has_dualstack_ipv6():
            with suppress(OSError):
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        with suppress(OSError):
            return socket.create_server(("", port))
    raise RendezvousError(f"{_ports(first_port)} are all in use: give another MASTER_PORT")


def _request(address: str, port: int, job: str, node: int, token: str) -> str:
    """The answer at one port; empty if nothing or another program listens there."""
    with suppress(OSError), socket.create_connection((address, port), timeout=ANSWER_SECONDS) as connection:
        connection.sendall(f"{GREETING} {job} {node} {token}\n".encode())
        words = _line(connection).split()
        if len(words) == 3 and words[0] == GREETING:
            return words[2] if words[1] == job else "another"
    return ""


def _line(connection: socket.socket) -> str:
    """One line, or the part of it that arrived before the other side closed.

    Raises:
        TimeoutError: If no data arrives in time.
    """
    until, text = time.monotonic() + ANSWER_SECONDS, b""
    while b"\n" not in text and len(text) < MAX_LINE_BYTES and (left := until - time.monotonic()) > 0:
        connection.settimeout(left)
        piece = connection.recv(MAX_LINE_BYTES)
        if not piece:
            break
        text += piece
    return text.decode(errors="replace").partition("\n")[0]
