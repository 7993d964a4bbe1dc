"""Checks of what several processes need: names, ports, and a sum over two real processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

from analysis.doctor.examination import Check, Request, Result, bad, note, ok
from engine.report.environment import ROOT

LOOPBACK = "127.0.0.1"
PORT = 29500  # of the launchers on several machines, unless MASTER_PORT says otherwise
PATIENCE = 60  # seconds for two processes to meet; on a busy machine importing torch takes a while


def checks(request: Request) -> list[Check]:
    """The checks of this group."""
    gpus = torch.cuda.device_count()
    return [
        Check("host name", lambda: check_name(lambda: socket.gethostbyname(socket.gethostname()))),
        Check("ports", lambda: check_port(int(os.environ.get("MASTER_PORT", PORT)), bind)),
        Check("gloo", lambda: check_sum("gloo", lambda: sum_over_two("gloo"), dist.is_gloo_available())),
        Check("NCCL", lambda: check_nccl(gpus, dist.is_nccl_available(), lambda: sum_over_two("nccl"))),
    ]


def check_name(resolve: Callable[[], str]) -> Iterator[Result]:
    """Whether the machine finds itself by its name, which several machines need.

    Args:
        resolve: Gives the address, or raises ``OSError``.
    """
    try:
        address = resolve()
    except OSError:
        mend = "on one machine all is well; for several give MASTER_ADDR as a number"
        yield note("host name", "does not resolve", mend)
        return
    if address.startswith("127."):
        yield note(
            "host name", f"resolves to {address}", "other machines cannot use that: give MASTER_ADDR as a number"
        )
    else:
        yield ok("host name", "resolves")


def check_port(port: int, take: Callable[[int], None]) -> Iterator[Result]:
    """Whether processes can meet on ports of this machine.

    Args:
        port: The one that several machines meet on.
        take: Opens a port, 0 for any, and lets it go; raises ``OSError``.
    """
    try:
        take(0)
    except OSError as error:
        reason = error.strerror or error
        yield bad("ports", f"no port of {LOOPBACK} can be opened: {reason}", "allow local connections in the sandbox")
        return
    try:
        take(port)
    except OSError:
        yield note("ports", f"{port} is in use", "one machine takes a free one; for several set MASTER_PORT")
        return
    yield ok("ports", f"{port} and others are free")


def bind(port: int) -> None:
    """Open a port on the loopback and let it go."""
    with socket.socket() as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((LOOPBACK, port))
        opened.listen(1)


def check_sum(backend: str, total: Callable[[], str], available: bool) -> Iterator[Result]:
    """Whether two processes can add a number.

    Args:
        backend: Of torch.distributed.
        total: Has two processes do it; gives what went wrong, empty for nothing.
        available: Whether torch was built with it.
    """
    if not available:
        yield bad(backend, "torch was built without", "install one of torch's own builds")
        return
    wrong = total()
    if wrong:
        variable = f"{backend.upper()}_SOCKET_IFNAME"
        mend = f"{variable}=lo names the interface; a firewall may be in the way"
        yield bad(backend, f"two processes cannot add a number: {wrong}", mend)
    else:
        yield ok(backend, "two processes add a number")


def check_nccl(gpus: int, available: bool, total: Callable[[], str]) -> Iterator[Result]:
    """The same among GPUs.

    Args:
        gpus: How many there are.
        available: Whether torch was built with NCCL.
        total: As for :func:`check_sum`.
    """
    if gpus >= 2:
        yield from check_sum("nccl", total, available)
    elif gpus:
        yield ok("nccl", f"{'present' if available else 'absent'}, of use with several GPUs")


def sum_over_two(backend: str, patience: float = PATIENCE) -> str:
    """Have two processes add a number.

    Args:
        backend: Of torch.distributed.
        patience: Seconds until they are ended.

    Returns:
        What went wrong; empty for nothing.
    """
    with socket.socket() as opened:
        opened.bind((LOOPBACK, 0))
        port = opened.getsockname()[1]
    commands = [[sys.executable, "-m", __name__, backend, str(rank), str(port), str(patience)] for rank in (0, 1)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen(command, cwd=ROOT, env=environ, text=True, **pipes) for command in commands]  # type: ignore[call-overload]
    try:
        for rank, process in enumerate(processes):
            errors = process.communicate(timeout=patience)[1]
            if process.returncode:
                last = (errors.strip().splitlines() or ["it said nothing"])[-1]
                return f"rank {rank} ended with code {process.returncode}: {last}"
    except subprocess.TimeoutExpired:
        return f"they did not meet within {patience:g} s"
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return ""


def add_up(backend: str, rank: int, port: int, patience: float) -> None:
    """One of the two processes.

    Raises:
        RuntimeError: If they do not meet, or the sum is wrong.
    """
    timeout = timedelta(seconds=patience)
    dist.init_process_group(backend, f"tcp://{LOOPBACK}:{port}", timeout=timeout, rank=rank, world_size=2)
    value = torch.full((1000,), float(rank + 1), device=f"cuda:{rank}" if backend == "nccl" else "cpu")
    dist.all_reduce(value)
    if not bool((value == 3).all()):
        raise RuntimeError(f"1 + 2 gives {value[0].item()}")
    dist.destroy_process_group()


if __name__ == "__main__":
    add_up(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
