"""What a benchmark is asked to measure, and the environment that it is measured in."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version

import torch

from analysis.flops import SMALLEST_SIDE, Shape
from backbones.errors import ConfigError, MachineError
from backbones.kernels.cpu.dispatch import cpu_name


@dataclass(frozen=True)
class BenchmarkRequest:
    """What to measure.

    Attributes:
        name: Registered name of a network, or path of a config.
        train: True for steps of forward and backward, False for forward alone.
        batch: Images of a step.
        shape: Height and width of the images in pixels.
        dtype: ``fp32``, or ``bf16`` or ``fp16`` by autocast.
        device: ``cpu`` or ``cuda``.
        peers: Names out of ``analysis.benchmark.peers.NETWORK_PEERS``.
        layout: Memory format of images and weights for all sides; ``None`` for that of each side.
        compiled: True to run our side under :func:`torch.compile`.
        rounds: Number of turns of each side.
    """

    name: str
    train: bool = False
    batch: int = 8
    shape: Shape = (224, 224)
    dtype: str = "fp32"
    device: str = "cpu"
    peers: tuple[str, ...] = ("timm",)
    layout: str | None = None
    compiled: bool = False
    rounds: int = 10


def check_benchmark_request(request: BenchmarkRequest) -> None:
    """Refuse what cannot be measured.

    Raises:
        MachineError: If there is no GPU, or the CPU does not compute in this precision.
        ConfigError: If a number is too small.
    """
    if request.device == "cuda" and not torch.cuda.is_available():
        raise MachineError("--device cuda: no GPU is found here")
    if request.device == "cpu" and request.dtype == "fp16":
        raise MachineError("--dtype fp16: CPUs compute in fp32 or bf16")
    for option, value in (("--batch", request.batch), ("--rounds", request.rounds)):
        if value < 1:
            raise ConfigError(f"{option} {value}: a positive number is needed")
    if min(request.shape) < SMALLEST_SIDE:
        raise ConfigError(f"--size {min(request.shape)}: images of at least {SMALLEST_SIDE} pixels are needed")


def benchmark_environment(request: BenchmarkRequest) -> dict[str, str]:
    """Device, precision, versions and date, in words."""
    gpu = torch.cuda.get_device_name() if request.device == "cuda" else ""
    found = {
        "device": gpu or f"{cpu_name()}, {torch.get_num_threads()} threads",
        "precision": request.dtype if request.dtype == "fp32" else f"{request.dtype} autocast",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": f"torch {torch.__version__}, torchvision {version('torchvision')}, timm {version('timm')}",
        "date": date.today().isoformat(),
    }
    if gpu:
        found["TF32"] = (
            f"convolutions {torch.backends.cudnn.allow_tf32}, products {torch.backends.cuda.matmul.allow_tf32}"
        )
    return found
