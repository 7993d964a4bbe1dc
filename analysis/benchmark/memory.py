"""Peak memory of a step beyond what is held before it: on a GPU of PyTorch's allocator, on a CPU the resident size."""

from __future__ import annotations

import ctypes
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from backbones.errors import MachineError

_KIB = 2**10


def memory_apart(build_step: Callable[[], Callable[[], object]], device: str) -> int:
    """Peak memory in bytes, measured in a fresh process, since a process does not return all its memory.

    Args:
        build_step: Picklable function that builds what the step needs and returns the step.
        device: ``cpu`` or ``cuda``.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(step_memory, (build_step, device, torch.get_num_threads()))


def step_memory(build_step: Callable[[], Callable[[], object]], device: str, threads: int) -> int:
    """Peak memory in bytes, measured in this process with a number of CPU threads."""
    torch.set_num_threads(threads)
    step = build_step()
    step()  # memory that stays allocated after the first step, such as the compiler's, does not count
    if device == "cuda":
        return gpu_step_memory(step)
    ctypes.CDLL(None).malloc_trim(0)  # otherwise freed memory would count
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    before = _resident("VmRSS")
    step()
    return _resident("VmHWM") - before


def gpu_step_memory(step: Callable[[], object]) -> int:
    """Peak memory in bytes of PyTorch's allocator in a warmed-up step, beyond what is held before it."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before


def check_memory_is_told(device: str) -> None:
    """Refuse a system that does not tell the memory of a process.

    Raises:
        MachineError: On a CPU elsewhere than on Linux.
    """
    if device == "cpu" and sys.platform != "linux":
        raise MachineError("memory on CPU is measured on Linux alone; take --device cuda")


def _resident(field: str) -> int:
    """Resident size of this process in bytes: at present (``VmRSS``) or at its peak (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * _KIB for line in lines if line.startswith(f"{field}:"))


def process_memory(pid: int, mapped: str = "") -> tuple[int, int]:
    """Resident bytes of a process, and those where what ``n`` processes share counts as 1/n (PSS).

    Args:
        pid: Process id.
        mapped: End of the names of mapped files, of which alone the bytes are meant; empty for all memory.
    """
    rss, pss, counts = 0, 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        field, *rest = line.split()
        if not field.endswith(":"):  # the range of addresses with which the lines of a mapping begin
            counts = line.endswith(mapped)
        elif counts and field == "Rss:":
            rss += int(rest[0]) * _KIB
        elif counts and field == "Pss:":
            pss += int(rest[0]) * _KIB
    return rss, pss
