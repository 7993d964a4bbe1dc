"""The environment of a run: versions of packages, machine, environment variables, state of the code."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from backbones.files import open_file
from backbones.kernels.cpu.dispatch import cpu_model
from engine.launch.pool import usable_cores

ROOT = Path(__file__).resolve().parents[2]
# Distribution names of each package; the first one that is installed counts.
PACKAGES = (
    *(("torch",), ("torchvision",), ("timm",)),
    *(("onedl-mmengine", "mmengine"), ("onedl-mmcv", "mmcv", "mmcv-lite")),
    *(("onedl-mmdetection", "mmdet"), ("onedl-mmsegmentation", "mmsegmentation")),
    *(("faster-coco-eval",), ("pycocotools",), ("numpy",), ("pillow",)),
    *(("opencv-python-headless", "opencv-python"), ("triton",)),
)
VARIABLES = re.compile(
    r"(OMP|MKL|OPENBLAS|KMP|CUDA|CUBLAS|CUDNN|NVIDIA|NCCL|GLOO|UCX|TORCH\w*|PYTORCH|TRITON)_\w+"
    r"|WORLD_SIZE|LOCAL_WORLD_SIZE|NNODES|SLURM_(JOB_ID|NNODES|NTASKS|CPUS_PER_TASK|RESTART_COUNT)|PYTHONHASHSEED"
)
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)
CACHE_SUFFIX = "_CACHE_DIR"  # where a cache lies changes no result, and torch names its own after the user
LOGIN = re.compile(r"(://)[^/\s@]+@")
SIGNED = re.compile(r"([?&][\w-]*(?:token|key|secret|sig|signature|credential)[\w-]*=)[^&\s'\"]+", re.IGNORECASE)
MAX_DIFF_BYTES = 2**20  # changes of code are smaller, notebooks with pictures are not
GIT_TIMEOUT_SECONDS = 20  # a checkout on a slow disk must not delay a training
MAX_UNTRACKED_FILES = 20  # that are listed


def environment(gpus: bool = True) -> dict[str, Any]:
    """Return the whole environment as plain data; the GPUs in it initialise CUDA in this process."""
    return {
        "versions": versions(),
        "machine": machine() | ({"gpus": list_gpus(), "driver": driver_version()} if gpus else {}),
        "variables": variables(os.environ),
        "threads": torch.get_num_threads(),
        "code": code_state(),
    }


def versions() -> dict[str, str]:
    """Versions of Python, of the packages that results depend on, and of what torch was built with."""
    found = {"python": platform.python_version()}
    for names in PACKAGES:
        for name in names:
            with suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(name)
                break
    if torch.version.cuda:
        found["CUDA"] = torch.version.cuda
    if cudnn := torch.backends.cudnn.version():
        found["cuDNN"] = f"{cudnn // 10000}.{cudnn // 100 % 100}.{cudnn % 100}"
    if torch.version.cuda and torch.distributed.is_nccl_available():
        found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in bytes, system; neither host nor user."""
    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory_bytes": memory_limit(),
        "system": f"{platform.system()} {platform.machine()}",
        "kernel": platform.release(),
    }


def memory_limit(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes of memory that this machine has, or that its container may use where that is less; ``None`` if unknown."""
    total = re.search(r"^MemTotal:\s*(\d+) kB", read_text(proc / "meminfo"), re.MULTILINE)
    limits = [int(total[1]) * 1024] if total else []
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        text = read_text(cgroup / name).strip()
        limits += [int(text)] if text.isdecimal() else []
    return min(limits, default=None)


def list_gpus() -> list[dict[str, Any]]:
    """Name, memory in bytes and compute capability of each GPU that this process sees."""
    return [
        {"name": gpu.name, "memory_bytes": gpu.total_memory, "capability": f"{gpu.major}.{gpu.minor}"}
        for gpu in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    ]


def driver_version() -> str | None:
    """Version of NVIDIA's driver; ``None`` where there is none."""
    match = re.search(r"(?:Kernel Module\D*?|for \w+\s+)(\d+\.[\d.]+)", read_text(Path("/proc/driver/nvidia/version")))
    return match[1] if match else None


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that change how a run computes or how its processes meet; no secrets, and no names of users."""
    names = [name for name in environ if VARIABLES.fullmatch(name) and not name.endswith(CACHE_SUFFIX)]
    kept = {name: environ[name] for name in names if not SECRET.search(name)}
    return {name: without_secrets(kept[name]) for name in sorted(kept)}


def without_secrets(text: str) -> str:
    """The text with logins and signatures in its addresses masked."""
    return SIGNED.sub(r"\1***", LOGIN.sub(r"\1***@", text))


def plain_value(value: Any) -> Any:
    """The value of a setting as JSON, with logins and signatures masked."""
    if isinstance(value, Mapping):
        return {str(key): plain_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(inner) for inner in value]
    if isinstance(value, str):
        return without_secrets(value)
    return value if value is None or isinstance(value, bool | int | float) else repr(value)


def code_state(folder: Path = ROOT) -> dict[str, Any]:
    """Return the state of the code in git.

    Returns:
        ``commit``, ``branch`` (``None`` for a detached head), ``dirty`` (whether tracked files differ from the commit)
        and ``untracked`` (the first names of files that git neither tracks nor ignores); or ``commit`` of ``None`` and
        the ``reason``.
    """
    try:
        # Another project's checkout may hold this folder, such as the one that an environment lies in.
        if Path(_git(folder, "rev-parse", "--show-toplevel").strip()).resolve() != folder.resolve():
            return {"commit": None, "reason": "not a git checkout"}
        commit, branch = _git(folder, "rev-parse", "HEAD", "--abbrev-ref", "HEAD").split()
        lines = _git(folder, "status", "--porcelain").splitlines()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return {"commit": None, "reason": _git_reason(error)}
    untracked = [line[3:] for line in lines if line.startswith("??")]
    return {
        "commit": commit,
        "branch": None if branch == "HEAD" else branch,
        "dirty": len(untracked) < len(lines),
        "untracked": untracked[:MAX_UNTRACKED_FILES],
    }


def code_diff(folder: Path = ROOT, limit: int = MAX_DIFF_BYTES) -> str:
    """The uncommitted changes of tracked files, at most ``limit`` bytes; empty where git is not available."""
    try:
        raw = _git(folder, "diff", "HEAD", "--no-color", "--no-ext-diff").encode()
    except (OSError, subprocess.SubprocessError):
        return ""
    if len(raw) <= limit:
        return raw.decode()
    return raw[:limit].decode(errors="ignore") + f"\n# cut: {limit} of {len(raw)} bytes\n"


def commit_line(state: Mapping[str, Any]) -> str:
    """The state of the code as text, such as ``0123456789ab on main with changes``."""
    if not state.get("commit"):
        return str(state.get("reason", "no record"))
    branch = f" on {state['branch']}" if state.get("branch") else ""
    return f"{state['commit'][:12]}{branch}{' with changes' if state.get('dirty') else ''}"


def read_text(path: Path) -> str:
    """The content of a file; empty where it cannot be read."""
    try:
        with open_file(path) as file:
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _git(folder: Path, *arguments: str) -> str:
    # Without its optional locks: a person may be at work in the same checkout.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, timeout=GIT_TIMEOUT_SECONDS, check=True)
    return done.stdout.decode(errors="replace")


def _git_reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "git is not installed"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"git did not answer within {GIT_TIMEOUT_SECONDS} s"
    words = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().splitlines()
    if not words or "not a git repository" in words[0]:
        return "not a git checkout"
    return f"git: {words[0]}"
