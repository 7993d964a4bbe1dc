"""What the processes of a job must have in common, compared before they wait for each other for ever."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import PrefixStore, TCPStore

from backbones.errors import UserError

SAMPLES_COMPARED = 5
ANSWER = timedelta(seconds=60)


def check_devices(device: str) -> None:
    """See that this process works on the same kind of device as those that came before it.

    One that sees no GPU would wait for the others in another kind of group, until both give up after half an hour.

    Args:
        device: ``cuda`` or ``cpu``.

    Raises:
        UserError: If it does not.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True):
        return  # no launcher keeps a store yet
    server = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), None, False, ANSWER, False)
    mine = f"{device} {os.environ['RANK']} {socket.gethostname()}"
    first = PrefixStore("alike", server).compare_set("device", "", mine).decode()
    theirs, rank, host = first.split(" ", 2)
    if theirs == device:
        return
    if device == "cuda":
        raise UserError(f"rank {rank} on {host} sees no GPU, this one does: see what nvidia-smi says there")
    raise UserError(
        f"no GPU is to be seen here on {socket.gethostname()}, rank {rank} on {host} sees one: see what nvidia-smi and "
        "CUDA_VISIBLE_DEVICES say here"
    )


def describe_loader(loader: Any, identity: bool = True) -> dict[str, Any]:
    """What must be equal for a data loader in all processes.

    Args:
        loader: With ``dataset``.
        identity: Whether all read the same data, or each its own and only the number of batches counts.

    Returns:
        ``batches`` and, with ``identity``, ``samples`` and ``names``, a digest of the files of a few samples. Folders
        above the last one do not count: machines may have the data in different places.
    """
    told: dict[str, Any] = {"batches": len(loader)}
    if identity:
        dataset = loader.dataset
        count = len(dataset)
        told["samples"] = count
        chosen = sorted({i * (count - 1) // (SAMPLES_COMPARED - 1) for i in range(SAMPLES_COMPARED)}) if count else []
        if hasattr(dataset, "get_data_info"):
            paths = [Path(str(dataset.get_data_info(index).get("img_path", ""))) for index in chosen]
            text = "\n".join("/".join(path.parts[-2:]) for path in paths)
            told["names"] = hashlib.sha256(text.encode()).hexdigest()[:8]
    return told


def check_same_data(what: str, told: Sequence[dict[str, Any]]) -> None:
    """See that no process waits for a batch that another one does not have.

    Args:
        what: Such as ``training``.
        told: What :func:`describe_loader` says in each process, in the order of their ranks.

    Raises:
        UserError: If there is a difference; it says who has what.
    """
    for key in told[0]:
        ranks: dict[Any, list[int]] = {}
        for rank, one in enumerate(told):
            ranks.setdefault(one.get(key), []).append(rank)
        if len(ranks) > 1:
            unit = {"batches": "{} batches", "samples": "{} samples", "names": "other files (digest {})"}[key]
            who = "; ".join(f"{_ranks(some)}: {unit.format(value)}" for value, some in ranks.items())
            raise UserError(f"{what} data differs between the processes ({who}): every machine needs the same files")


def _ranks(some: list[int]) -> str:
    shown = ", ".join(map(str, some[:4])) + (f" and {len(some) - 4} more" if len(some) > 4 else "")
    return f"rank{'s' if len(some) > 1 else ''} {shown}"
