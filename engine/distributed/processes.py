"""Process group of a run, and the GPU of each process."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from backbones.errors import MachineError
from engine.config.world import Launch
from engine.distributed.consistency import check_devices

COLLECTIVE_TIMEOUT = timedelta(minutes=30)


def take_gpu(launch: Launch) -> None:
    """Select the GPU of this process by its local rank.

    Raises:
        MachineError: If the machine has fewer GPUs than processes were started on it.
    """
    present = torch.cuda.device_count()
    if launch.local_processes > present:
        raise MachineError(
            f"{launch.local_processes} GPUs asked for on this machine, which has {present}: ask for no more"
        )
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))


def start_processes(launch: Launch) -> None:
    """Join the process group of a launch, if it has several processes.

    Raises:
        MachineError: If the machine has fewer GPUs than processes were started on it.
    """
    if launch.processes == 1 or dist.is_initialized():
        return
    check_devices(launch.device)
    if launch.device == "cuda":
        take_gpu(launch)
    dist.init_process_group("nccl" if launch.device == "cuda" else "gloo", timeout=COLLECTIVE_TIMEOUT)


@contextmanager
def as_one_process() -> Iterator[None]:
    """Context in which libraries exchange nothing with other processes, as without a process group.

    It holds for this thread, and for what asks ``torch.distributed.is_initialized`` first, as the heads of mmdet and
    mmseg do; a sharded model still gathers its parameters.
    """
    asked, caller = dist.is_initialized, threading.get_ident()
    dist.is_initialized = lambda: threading.get_ident() != caller and asked()
    try:
        yield
    finally:
        dist.is_initialized = asked
