"""Checks of what several processes need: names, ports, and a sum over two real processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from analysis.doctor.examination import CheckResult, Checks, DoctorOptions, bad, notice, ok
from engine.launch.child import ChildProcess
from engine.report.environment import ROOT, read_text

LOOPBACK = "127.0.0.1"
DEFAULT_PORT = 29500  # of the launchers on several machines without MASTER_PORT
SUM_TIMEOUT_SECONDS = 60.0  # on a busy machine importing torch takes a while


def network_checks(options: DoctorOptions) -> Checks:
    """Checks of the host name, the ports and the communication backends."""
    return {
        "host name": lambda: check_name(lambda: socket.gethostbyname(socket.gethostname())),
        "ports": lambda: check_port(int(os.environ.get("MASTER_PORT", DEFAULT_PORT)), bind),
        "gloo": lambda: check_sum("gloo", lambda: sum_over_two("gloo"), dist.is_gloo_available()),
        "NCCL": lambda: check_nccl(torch.cuda.device_count(), dist.is_nccl_available(), lambda: sum_over_two("nccl")),
    }


def check_name(resolve: Callable[[], str]) -> Iterator[CheckResult]:
    """Whether the machine finds itself by its name: ``resolve`` returns the address or raises ``OSError``."""
    try:
        address = resolve()
    except OSError:
        fix = "on one machine all is well; for several give MASTER_ADDR as a number"
        yield notice("host name", "does not resolve", fix)
        return
    if address.startswith("127."):
        fix = "other machines cannot use that: give MASTER_ADDR as a number"
        yield notice("host name", f"resolves to {address}", fix)
    else:
        yield ok("host name", "resolves")


def check_port(port: int, take: Callable[[int], None]) -> Iterator[CheckResult]:
    """Whether processes can meet on ports of this machine.

    Args:
        port: Port on which several machines meet.
        take: Function that opens a port, 0 for any, and closes it; raises ``OSError``.
    """
    try:
        take(0)
    except OSError as error:
        reason = error.strerror or error
        yield bad("ports", f"no port of {LOOPBACK} can be opened: {reason}", "allow local connections in the sandbox")
        return
    try:
        take(port)
        yield ok("ports", f"{port} and others are free")
    except OSError:
        yield notice("ports", f"{port} is in use", "one machine takes a free one; for several set MASTER_PORT")


def bind(port: int) -> None:
    """Open a port of the loopback and close it."""
    with socket.socket() as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((LOOPBACK, port))
        opened.listen(1)


def check_sum(backend: str, total: Callable[[], str], available: bool) -> Iterator[CheckResult]:
    """Whether two processes can add a number.

    Args:
        backend: Backend of torch.distributed.
        total: Function that runs the two processes and returns the error, empty if there is none.
        available: Whether torch was built with the backend.
    """
    if not available:
        yield bad(backend, "torch was built without", "install one of torch's own builds")
    elif wrong := total():
        fix = f"{backend.upper()}_SOCKET_IFNAME=lo names the interface; a firewall may be in the way"
        yield bad(backend, f"two processes cannot add a number: {wrong}", fix)
    else:
        yield ok(backend, "two processes add a number")


def check_nccl(gpus: int, available: bool, total: Callable[[], str]) -> Iterator[CheckResult]:
    """The check :func:`check_sum` of NCCL, if there are two GPUs or more."""
    if gpus >= 2:
        yield from check_sum("nccl", total, available)
    elif gpus:
        yield ok("nccl", f"{'present' if available else 'absent'}, of use with several GPUs")


def sum_over_two(backend: str, timeout: float = SUM_TIMEOUT_SECONDS) -> str:
    """Have two processes add a number.

    Args:
        backend: Backend of torch.distributed.
        timeout: Seconds until the processes are ended.

    Returns:
        The error in one line; empty if there is none.
    """
    with socket.socket() as opened:
        opened.bind((LOOPBACK, 0))
        port = opened.getsockname()[1]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        ranks = []
        for rank in (0, 1):
            command = [sys.executable, "-m", __name__, backend, str(rank), str(port), str(timeout)]
            log = Path(folder) / f"rank_{rank}.log"
            ranks.append((log, stack.enter_context(ChildProcess(command, log, env=environ, cwd=ROOT))))
        try:
            for rank, (log, child) in enumerate(ranks):
                if child.wait(timeout):
                    last = (read_text(log).strip().splitlines() or ["it printed nothing"])[-1]
                    return f"rank {rank} ended with code {child.exit_code}: {last}"
        except subprocess.TimeoutExpired:
            return f"they did not meet within {timeout:g} s"
    return ""


def run_rank(backend: str, rank: int, port: int, timeout: float) -> None:
    """Run one of the two processes.

    Raises:
        RuntimeError: If they do not meet, or the sum is wrong.
    """
    address, limit = f"tcp://{LOOPBACK}:{port}", timedelta(seconds=timeout)
    dist.init_process_group(backend, address, timeout=limit, rank=rank, world_size=2)
    value = torch.full((1000,), float(rank + 1), device=f"cuda:{rank}" if backend == "nccl" else "cpu")
    dist.all_reduce(value)
    if not bool((value == 3).all()):
        raise RuntimeError(f"1 + 2 gives {value[0].item()}")
    dist.destroy_process_group()


if __name__ == "__main__":
    run_rank(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
