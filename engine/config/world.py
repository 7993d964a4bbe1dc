"""Processes and device of a run."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from backbones.errors import ConfigError

GPUS_PER_MACHINE = 8


@dataclass(frozen=True)
class Launch:
    """Processes and device of a run.

    Attributes:
        processes: World size.
        device: ``cuda`` or ``cpu``.
        local_processes: Processes on this machine, which share its CPU cores.
    """

    processes: int = 1
    device: str = "cpu"
    local_processes: int = 1

    @classmethod
    def from_environment(cls) -> Launch:
        """Read torchrun's environment variables; without them it is one process."""
        return cls(
            processes=int(os.environ.get("WORLD_SIZE", 1)),
            device="cuda" if torch.cuda.is_available() else "cpu",
            local_processes=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        )

    @classmethod
    def on_gpus(cls, count: int) -> Launch:
        """Describe a launch on other machines with eight GPUs each.

        Args:
            count: Number of GPUs, one for each process.

        Raises:
            ConfigError: If the number is not positive.
        """
        if count < 1:
            raise ConfigError(f"--gpus {count}: at least one is needed")
        return cls(count, "cuda", min(count, GPUS_PER_MACHINE))
