"""Checks of the machine: GPUs and driver, precision, cores, memory, disk, limits."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from analysis.doctor.examination import CheckResult, Checks, DoctorOptions, bad, describe_failure, notice, ok
from engine.launch.pool import usable_cores
from engine.report.environment import driver_version, machine, memory_limit, read_text
from engine.report.html import GIB, memory

_MIB = 2**20
SHARED_MEMORY_DIR = Path("/dev/shm")


@dataclass(frozen=True)
class Gpus:
    """GPUs and driver of this machine.

    Attributes:
        built_for: CUDA version that torch was built with; ``None`` for a build without.
        present: Number of GPUs that the driver knows, whether torch can use them or not.
        driver: Version of the driver.
        supports: Newest CUDA version that the driver supports, such as 13000.
        usable: ``name``, ``memory_bytes``, ``free_bytes``, ``capability`` and ``trouble`` of each GPU that torch sees.
        error: Reason why torch sees none.
        hidden: Value of ``CUDA_VISIBLE_DEVICES``.
        architectures: Architectures that torch has kernels for, such as ``sm_90``.
    """

    built_for: str | None
    present: int = 0
    driver: str | None = None
    supports: int = 0
    usable: Sequence[Mapping[str, Any]] = ()
    error: str = ""
    hidden: str | None = None
    architectures: Sequence[str] = ()

    @classmethod
    def detect(cls) -> Gpus:
        """The GPUs of this machine."""
        error, usable = "", []
        if torch.version.cuda:
            try:
                torch.cuda.init()
                usable = [_test_gpu(index) for index in range(torch.cuda.device_count())]
            except (RuntimeError, AssertionError) as reason:
                error = describe_failure(reason)
        return cls(
            built_for=torch.version.cuda,
            present=len(list(Path("/proc/driver/nvidia/gpus").glob("*"))),
            driver=driver_version(),
            supports=newest_cuda(),
            usable=usable,
            error=error,
            hidden=os.environ.get("CUDA_VISIBLE_DEVICES"),
            architectures=torch.cuda.get_arch_list() if usable else (),
        )


def newest_cuda() -> int:
    """Newest CUDA version that the driver supports, such as 13000; 0 without a driver."""
    version = ctypes.c_int(0)
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return 0
    return version.value


def _test_gpu(index: int) -> dict[str, Any]:
    gpu = torch.cuda.get_device_properties(index)
    seen = {"name": gpu.name, "memory_bytes": gpu.total_memory, "capability": (gpu.major, gpu.minor), "trouble": ""}
    try:
        value = (torch.ones(8, 8, device=f"cuda:{index}") @ torch.ones(8, 8, device=f"cuda:{index}")).sum().item()
        trouble = "" if value == 512 else f"8 x 8 ones multiply to a sum of {value}, not 512"
        return seen | {"free_bytes": torch.cuda.mem_get_info(index)[0], "trouble": trouble}
    except RuntimeError as reason:
        return seen | {"free_bytes": 0, "trouble": describe_failure(reason)}


def hardware_checks(options: DoctorOptions) -> Checks:
    """Checks of GPUs, precision, cores, memory and limits."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    listed = re.search(r"^(?:flags|Features)\s*:(.*)$", read_text(Path("/proc/cpuinfo")), re.MULTILINE)
    flags = set(listed[1].split()) if listed else set()
    text = read_text(Path("/proc/sys/vm/max_map_count")).strip()
    maps = int(text) if text.isdecimal() else None
    return {
        "GPU": lambda: check_gpus(Gpus.detect(), local),
        "precision": lambda: check_precision([gpu["capability"] for gpu in Gpus.detect().usable], flags),
        "cores": lambda: check_cores(usable_cores(), os.environ.get("OMP_NUM_THREADS"), cpu_quota(), local),
        "memory": lambda: check_memory(memory_limit(), str(machine()["cpu"])),
        "shared memory": lambda: check_shared_memory(_shared_memory()),
        "limits": lambda: check_limits(resource.getrlimit(resource.RLIMIT_NOFILE)[0], maps),
    }


def check_gpus(gpus: Gpus, processes: int = 1) -> Iterator[CheckResult]:
    """GPUs, driver, and whether they suit this torch.

    Args:
        gpus: GPUs and driver.
        processes: Number of processes on this machine, each of which needs a GPU.
    """
    if not gpus.usable:
        yield _without_gpu(gpus)
        return
    yield ok("GPU driver", f"driver {gpus.driver or 'of unknown version'}, torch built for CUDA {gpus.built_for}")
    for index, gpu in enumerate(gpus.usable):
        yield from _check_gpu(index, gpu, gpus.architectures)
    if processes > len(gpus.usable):
        yield bad("GPU", f"{len(gpus.usable)} for {processes} processes", "start no more processes than there are GPUs")
    if len({gpu["name"] for gpu in gpus.usable}) > 1:
        yield notice("GPU", "of several kinds", "the slowest sets the pace: choose with CUDA_VISIBLE_DEVICES")


def _without_gpu(gpus: Gpus) -> CheckResult:
    if gpus.hidden is not None and gpus.hidden.strip() in ("", "-1"):
        return notice("GPU", "hidden by CUDA_VISIBLE_DEVICES", "all runs on the CPU: unset it to use GPUs")
    if not gpus.present and not gpus.driver:
        return notice("GPU", "none", "all runs on the CPU: enough for the demo, not for the real experiments")
    if gpus.built_for is None:
        return bad("GPU", f"{gpus.present} present, torch is a build without CUDA", "pip install torch with CUDA")
    if gpus.supports and gpus.supports // 1000 < int(gpus.built_for.partition(".")[0]):
        has = f"the driver {gpus.driver} supports CUDA {gpus.supports // 1000}.{gpus.supports % 1000 // 10}"
        return bad("GPU", f"{has}, torch is built for {gpus.built_for}", "update the driver, or install an older build")
    reason = gpus.error or "torch sees none of them"
    return bad("GPU", f"{gpus.present} present, driver {gpus.driver}: {reason}", "look at nvidia-smi and dmesg")


def _check_gpu(index: int, gpu: Mapping[str, Any], architectures: Sequence[str]) -> Iterator[CheckResult]:
    name = f"GPU {index}"
    major, minor = gpu["capability"]
    if gpu["trouble"]:
        fix = "another process may hold it alone (compute mode), or it needs a reset: look at nvidia-smi"
        yield bad(name, f"{gpu['name']} cannot compute: {gpu['trouble']}", fix)
        return
    # Code for an architecture (sm) runs on the later ones of the same generation; the driver can compile intermediate
    # code (compute) for all later ones.
    built = [(kind, int(one)) for kind, one in re.findall(r"\b(sm|compute)_(\d+)", " ".join(architectures))]
    fits = any(one <= 10 * major + minor and (kind == "compute" or one // 10 == major) for kind, one in built)
    if any(kind == "sm" for kind, _ in built) and not fits:
        yield bad(name, f"{gpu['name']}, compute capability {major}.{minor}: torch has no code for it", "another torch")
        return
    text = f"{gpu['name']}, {memory(gpu['memory_bytes'])}, compute capability {major}.{minor}"
    if "MIG" in gpu["name"]:
        yield notice(name, f"{text}: a slice (MIG)", "one process per slice: NCCL cannot join several in one training")
    elif gpu["free_bytes"] < 0.8 * gpu["memory_bytes"]:
        yield notice(name, f"{text}, {memory(gpu['free_bytes'])} free", "another process holds memory: see nvidia-smi")
    else:
        yield ok(name, text)


def check_precision(capabilities: Sequence[tuple[int, int]], flags: set[str]) -> Iterator[CheckResult]:
    """Formats that are fast on GPUs of these compute capabilities and a CPU with these flags; all are correct."""
    if capabilities:
        major, minor = min(capabilities)
        if major >= 8:
            yield ok("precision, GPU", "float16, bfloat16 and TF32")
        else:
            found = f"compute capability {major}.{minor}: no bfloat16, no TF32"
            yield notice("precision, GPU", found, "train with optim_wrapper.dtype=float16")
    fast = {"amx_bf16": "bfloat16 (AMX)", "avx512_bf16": "bfloat16 (AVX-512)", "amx_fp16": "float16 (AMX)"}
    wide = {"avx512f": "AVX-512", "avx2": "AVX2", "asimd": "NEON"}
    names = [name for flag, name in fast.items() if flag in flags] or ["float32 only"]
    names += [name for flag, name in wide.items() if flag in flags][:1]
    yield ok("precision, CPU", ", ".join(names))


def check_cores(cores: int, threads: str | None, quota: float | None, processes: int) -> Iterator[CheckResult]:
    """Cores compared with the threads that will use them.

    Args:
        cores: Number of cores that this process may run on.
        threads: Value of ``OMP_NUM_THREADS``.
        quota: CPU time that the container may use, in cores; ``None`` for no limit.
        processes: Number of processes on this machine.
    """
    text = f"{cores} core{'s' if cores > 1 else ''}"
    if quota is not None and quota < cores:
        fix = f"set OMP_NUM_THREADS={max(1, int(quota / processes))}, and no more workers than that"
        yield notice("cores", f"{text}, of which the container may use the time of {quota:g}", fix)
    elif threads is not None and not (threads.isdecimal() and int(threads)):
        yield bad("cores", f"OMP_NUM_THREADS={threads}", "set it to a number from 1, or unset it")
    elif threads is not None and int(threads) * processes > cores:
        found = f"{text} for {processes} x OMP_NUM_THREADS={threads}"
        yield notice("cores", found, f"threads get into each other's way: set it to {max(1, cores // processes)}")
    elif cores < 2:
        yield notice("cores", text, "loading data and training take turns")
    else:
        yield ok("cores", f"{text}, OMP_NUM_THREADS {threads or 'not set'}")


def cpu_quota(cgroup: Path = Path("/sys/fs/cgroup")) -> float | None:
    """CPU time that the container may use, in cores; ``None`` for no limit."""
    quota, _, period = read_text(cgroup / "cpu.max").strip().partition(" ")
    if not quota:
        quota = read_text(cgroup / "cpu" / "cpu.cfs_quota_us").strip()
        period = read_text(cgroup / "cpu" / "cpu.cfs_period_us").strip()
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def check_memory(limit: int | None, cpu: str) -> Iterator[CheckResult]:
    """Main memory."""
    if limit is None:
        yield notice("memory", f"size unknown ({cpu})")
    elif limit < 4 * GIB:
        yield bad("memory", memory(limit), "a training with its loaders needs 4 GiB and more: raise the limit")
    elif limit < 15 * GIB:
        yield notice("memory", memory(limit), "enough for the demo; detectors at full size want 8 GiB a process")
    else:
        yield ok("memory", f"{memory(limit)}, {cpu}")


def check_shared_memory(size: int | None) -> Iterator[CheckResult]:
    """Shared memory, through which workers pass their batches: bytes of ``/dev/shm``, ``None`` if it does not exist."""
    fix = "start the container with --shm-size=16g or --ipc=host; or train with train_dataloader.num_workers=0"
    if size is None:
        yield notice("shared memory", "no /dev/shm", "loaders use files instead")
    elif size < 256 * _MIB:
        yield bad("shared memory", f"{size / _MIB:.0f} MiB: workers would die of bus errors", fix)
    elif size < 2 * GIB:
        yield notice("shared memory", f"{size / _MIB:.0f} MiB: little for large batches with many workers", fix)
    else:
        yield ok("shared memory", memory(size))


def check_limits(files: int, maps: int | None) -> Iterator[CheckResult]:
    """Limits on the open files (negative for no limit) and memory maps (``None`` if unknown) of one process."""
    fix = "raise it: ulimit -n 65536"
    if 0 <= files < 512:
        yield bad("open files", f"{files} at most: loaders with workers fail", fix)
    elif 0 <= files < 4096:
        yield notice("open files", f"{files} at most: many workers may need more", fix)
    else:
        yield ok("open files", f"{files} at most" if files >= 0 else "no limit")
    if maps is not None and maps < 65530:
        yield notice("memory maps", f"{maps} at most", "raise it: sysctl vm.max_map_count=65530")


def _shared_memory() -> int | None:
    return shutil.disk_usage(SHARED_MEMORY_DIR).total if SHARED_MEMORY_DIR.is_dir() else None
