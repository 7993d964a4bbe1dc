"""How the launchers of several machines find each other where any port may be taken.

The first machine's launcher listens on any free port, which nobody can know beforehand. It tells the number to those
who ask with the right run id on the first free one of a few agreed ports. The others try the agreed ports in turn:
whoever else listens there says nothing, or something else. One line each way: ``greeting run-id node token`` and
``greeting run-id answer``.
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

PORTS = 16
GREETING = "meet-launcher-1"
ONE_ANSWER = 3.0  # seconds for one connection to say its line
PAUSE = 1.0  # seconds between two rounds over the ports
LONGEST = 256  # bytes of a line


class RendezvousError(Exception):
    """The machines cannot find each other; one line that says what to mend."""


def run_id(nodes: int, processes: int, program: str, arguments: Sequence[str]) -> str:
    """What the launchers of one job have in common, and those of another have not.

    Args:
        nodes: Machines.
        processes: Processes on each of them.
        program: Path of the program, of which the name counts: machines may have it in different places.
        arguments: Its arguments.
    """
    parts = [str(nodes), str(processes), os.path.basename(program), *arguments, os.environ.get("SLURM_JOB_ID", "")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


class Meeting:
    """The first machine's side: answers until it is closed.

    Args:
        job: From :func:`run_id`.
        first_port: First of the agreed ports.
        answer: Port to tell.

    Attributes:
        port: The agreed port that was free.

    Raises:
        MeetingError: If none of them is free.
    """

    def __init__(self, job: str, first_port: int, answer: int) -> None:
        self._job, self._answer = job, answer
        self._came: dict[str, str] = {}
        self._socket = _listen(first_port)
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Let the agreed port go."""
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
        return str(self._answer) if self._came.setdefault(node, token) == token else "twice"


def ask(address: str, first_port: int, job: str, node: int, patience: float) -> int:
    """Another machine's side.

    Args:
        address: Of the first machine.
        first_port: First of the agreed ports.
        job: From :func:`run_id`.
        node: Number of this machine.
        patience: Seconds to wait for the first machine.

    Returns:
        The port that its launcher listens on.

    Raises:
        MeetingError: If it does not answer in time, or another machine has come with the same number.
    """
    token = secrets.token_hex(8)
    until = time.monotonic() + patience
    others: set[int] = set()
    while True:
        for port in range(first_port, first_port + PORTS):
            answer = _ask_one(address, port, job, node, token)
            if answer == "twice":
                raise RendezvousError(f"another machine has come with NODE_RANK={node}: each needs a number of its own")
            if answer.isdecimal():
                return int(answer)
            if answer:
                others.add(port)
        if time.monotonic() > until:
            break
        time.sleep(PAUSE)
    found = f" (on port {min(others)} waits a launch with another command line)" if others else ""
    raise RendezvousError(
        f"NODE_RANK=0 did not answer at MASTER_ADDR={address}, ports {first_port} to {first_port + PORTS - 1}, within "
        f"{patience:.0f} s{found}: start the same line there, and see that a firewall lets these ports through"
    )


def _listen(first_port: int) -> socket.socket:
    for port in range(first_port, first_port + PORTS):
        if socket.has_dualstack_ipv6():
            with suppress(OSError):
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        with suppress(OSError):
            return socket.create_server(("", port))
    raise RendezvousError(f"ports {first_port} to {first_port + PORTS - 1} are all in use: give another MASTER_PORT")


def _ask_one(address: str, port: int, job: str, node: int, token: str) -> str:
    """The answer at one port; empty where nobody or somebody else is."""
    with suppress(OSError), socket.create_connection((address, port), timeout=ONE_ANSWER) as connection:
        connection.sendall(f"{GREETING} {job} {node} {token}\n".encode())
        words = _line(connection).split()
        if len(words) == 3 and words[0] == GREETING:
            return words[2] if words[1] == job else "another"
    return ""


def _line(connection: socket.socket) -> str:
    """One line, or what came of it before the other side closed.

    Raises:
        TimeoutError: If nothing more comes.
    """
    until, text = time.monotonic() + ONE_ANSWER, b""
    while b"\n" not in text and len(text) < LONGEST and (left := until - time.monotonic()) > 0:
        connection.settimeout(left)
        piece = connection.recv(LONGEST)
        if not piece:
            break
        text += piece
    return text.decode(errors="replace").partition("\n")[0]
