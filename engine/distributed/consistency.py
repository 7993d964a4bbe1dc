"""Checks that all processes of a job have the same kind of device and the same data."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import PrefixStore, TCPStore
from torch.utils.data import DataLoader

from backbones.errors import DataError, MachineError

SAMPLES_COMPARED = 5
DEVICE_CHECK_TIMEOUT = timedelta(seconds=60)


def check_devices(device: str) -> None:
    """Check that this process runs on the same kind of device as the first process of the job.

    A process without a GPU would join a gloo group while the others wait in an NCCL group until the timeout.

    Args:
        device: Device of this process, ``cuda`` or ``cpu``.

    Raises:
        MachineError: If the devices differ.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True):
        return  # no launcher, no store
    server = TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), None, False, DEVICE_CHECK_TIMEOUT, False
    )
    mine = f"{device} {os.environ['RANK']} {socket.gethostname()}"
    first = PrefixStore("alike", server).compare_set("device", "", mine).decode()
    theirs, rank, host = first.split(" ", 2)
    if theirs == device:
        return
    if device == "cuda":
        raise MachineError(f"rank {rank} on {host} sees no GPU, this one does: see what nvidia-smi says there")
    raise MachineError(
        f"no GPU is to be seen here on {socket.gethostname()}, rank {rank} on {host} sees one: see what nvidia-smi and "
        "CUDA_VISIBLE_DEVICES say here"
    )


def describe_loader(loader: DataLoader, identity: bool = True) -> dict[str, Any]:
    """Describe a data loader by what must be equal in all processes.

    Args:
        loader: Data loader.
        identity: Whether all processes read the same data; if each has its own, only the number of batches counts.

    Returns:
        ``batches`` and, with ``identity``, ``samples`` and ``names``, a digest of the file names of a few samples with
        their last folder: machines may keep the data in different places.
    """
    told: dict[str, Any] = {"batches": len(loader)}
    if identity:
        dataset: Any = loader.dataset
        count = len(dataset)
        told["samples"] = count
        chosen = sorted({i * (count - 1) // (SAMPLES_COMPARED - 1) for i in range(SAMPLES_COMPARED)}) if count else []
        if hasattr(dataset, "get_data_info"):
            paths = [Path(str(dataset.get_data_info(index).get("img_path", ""))) for index in chosen]
            text = "\n".join("/".join(path.parts[-2:]) for path in paths)
            told["names"] = hashlib.sha256(text.encode()).hexdigest()[:8]
    return told


def check_same_data(split: str, described: Sequence[dict[str, Any]]) -> None:
    """Check that all processes have the same data, so that none waits for a batch that another does not have.

    Args:
        split: Name of the split, such as ``training``, for error messages.
        described: Result of :func:`describe_loader` of each process, in the order of their ranks.

    Raises:
        DataError: If there is a difference, with the ranks and their values.
    """
    for key in described[0]:
        ranks: dict[Any, list[int]] = {}
        for rank, one in enumerate(described):
            ranks.setdefault(one.get(key), []).append(rank)
        if len(ranks) > 1:
            unit = {"batches": "{} batches", "samples": "{} samples", "names": "other files (digest {})"}.get(key, "{}")
            who = "; ".join(f"{_ranks(some)}: {unit.format(value)}" for value, some in ranks.items())
            raise DataError(f"{split} data differs between the processes ({who}): every machine needs the same files")


def _ranks(some: list[int]) -> str:
    shown = ", ".join(map(str, some[:4])) + (f" and {len(some) - 4} more" if len(some) > 4 else "")
    return f"rank{'s' if len(some) > 1 else ''} {shown}"
