"""Where a run takes place: how many processes, on which kind of device."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from backbones.errors import UserError

GPUS_PER_MACHINE = 8


@dataclass(frozen=True)
class Launch:
    """Where a run takes place.

    Attributes:
        processes: World size.
        device: ``cuda`` or ``cpu``.
        local_processes: Processes on this machine, which share its cores.
    """

    processes: int = 1
    device: str = "cpu"
    local_processes: int = 1

    @classmethod
    def from_environment(cls) -> Launch:
        """Read torchrun's variables; one process where there are none."""
        return cls(
            processes=int(os.environ.get("WORLD_SIZE", 1)),
            device="cuda" if torch.cuda.is_available() else "cpu",
            local_processes=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        )

    @classmethod
    def on_gpus(cls, count: int) -> Launch:
        """A launch on that many GPUs, at most eight in a machine, whatever this machine has.

        Raises:
            UserError: If there is none.
        """
        if count < 1:
            raise UserError(f"--gpus {count}: at least one is needed")
        return cls(count, "cuda", min(count, GPUS_PER_MACHINE))
