"""Time and memory of a training step with gradient checkpointing and ``torch.compile``.

Memory is the peak of a step above what is held before it (the weights), of each setting in a fresh process. Times are
taken in turns in one process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure

from analysis.benchmark.memory import check_memory_is_told, memory_apart
from analysis.benchmark.networks import PLAIN_FORMS
from analysis.benchmark.request import BenchmarkRequest, benchmark_environment, check_benchmark_request
from analysis.benchmark.timing import DTYPES, Speedup, autocast, quartiles, synchronize, take_turns, warm_up
from backbones.base import Backbone
from backbones.errors import ConfigError
from backbones.kernels.autotune import autotuner
from backbones.registry import build_backbone

# The blocks' own choice for the device; plain PyTorch blocks; torch.compile.
EXECUTION_MODES = ("eager", "plain", "compiled")
_MIB = 2**20
_ROW = "{:26} {:>7} {:>9} {:>17} {:>18} {:>11} {:>7}"


@dataclass(frozen=True)
class CheckpointingSetting:
    """One way to run the same training step.

    Attributes:
        share: Share of the blocks that are recomputed, beginning with the first block.
        mode: One of ``EXECUTION_MODES``.
    """

    share: float
    mode: str

    def __str__(self) -> str:
        return f"{self.share:.0%} recomputed, {self.mode}"


@dataclass(frozen=True)
class CheckpointingPoint:
    """Time and memory of one setting.

    Attributes:
        setting: The measured setting.
        blocks: Number of recomputed blocks.
        seconds: Seconds of a step in each round.
        memory: Peak memory of a step beyond the weights in bytes.
    """

    setting: CheckpointingSetting
    blocks: int
    seconds: tuple[float, ...]
    memory: int


@dataclass(frozen=True)
class CheckpointingResult:
    """Time and memory of all settings; ratios are against the first one.

    Attributes:
        request: Measured network, batch, shape, precision and device.
        environment: Device, versions and date, in words.
        points: Time and memory of each setting.
    """

    request: BenchmarkRequest
    environment: dict[str, str]
    points: tuple[CheckpointingPoint, ...]

    def as_dict(self) -> dict[str, Any]:
        """The result as plain data."""
        return {"place": self.environment, "points": [asdict(one) for one in self.points]}

    def as_text(self) -> str:
        """The result as a table for people."""
        request, first = self.request, self.points[0]
        shape = f"{request.shape[0]} x {request.shape[1]}"
        lines = [
            f"{request.name}, training step without the optimizer, batch {request.batch}, {shape} pixels (H x W), "
            f"{request.rounds} rounds in turns",
            *(f"  {key}: {value}" for key, value in self.environment.items()),
            "",
            _ROW.format("", "blocks", "s/step", "quartiles", "x the first's time", "memory MiB", "share"),
        ]
        lines += [
            _ROW.format(
                str(one.setting),
                one.blocks,
                f"{statistics.median(one.seconds):.3f}",
                "{:.3f}-{:.3f}".format(*quartiles(one.seconds)),
                str(Speedup.between(first.seconds, one.seconds)),
                f"{one.memory / _MIB:.0f}",
                f"{one.memory / first.memory:.0%}",
            )
            for one in self.points
        ]
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Time and memory of a step against the share of recomputed blocks."""
        figure = Figure(figsize=(8, 3.2), dpi=110, layout="constrained")
        time_axes, memory_axes = figure.subplots(1, 2)
        for mode in sorted({one.setting.mode for one in self.points}, key=EXECUTION_MODES.index):
            chosen = sorted((one for one in self.points if one.setting.mode == mode), key=lambda p: p.setting.share)
            shares = [100 * p.setting.share for p in chosen]
            time_axes.plot(shares, [statistics.median(p.seconds) for p in chosen], marker="o", label=mode)
            memory_axes.plot(shares, [p.memory / _MIB for p in chosen], marker="o", label=mode)
        for axes, label in ((time_axes, "s / step"), (memory_axes, "MiB")):
            axes.set(xlabel="recomputed blocks in %", ylabel=label, ylim=(0, None))
            axes.legend(fontsize="small")
        where = "; ".join(self.environment[key] for key in ("precision", "device", "date"))
        figure.suptitle(f"{self.request.name}, batch {self.request.batch}, {where}", fontsize="small")
        return figure


def measure_checkpointing(
    request: BenchmarkRequest,
    shares: Sequence[float],
    modes: Sequence[str],
    clock: Callable[[], float] = time.perf_counter,
) -> CheckpointingResult:
    """Measure every share in every mode.

    Args:
        request: Name of a network, batch, shape, precision, device and rounds.
        shares: Shares of the blocks that are recomputed, from 0 to 1.
        modes: Names out of ``EXECUTION_MODES``.
        clock: Function that returns the present time in seconds.

    Raises:
        ConfigError: If a share is impossible.
        MachineError: If the system does not tell the memory of a process.
    """
    check_benchmark_request(request)
    if wrong := [share for share in shares if not 0 <= share <= 1]:
        raise ConfigError(f"--shares {wrong[0]}: between 0 and 1")
    check_memory_is_told(request.device)
    settings = [CheckpointingSetting(float(share), mode) for mode in modes for share in shares]
    memory = {setting: _memory_apart(request, setting) for setting in settings}
    networks = {setting: _network(request, setting) for setting in settings}
    steps = {str(setting): _step(networks[setting], request, setting) for setting in settings}
    for step in steps.values():
        warm_up(step)
    taken = take_turns(steps, request.rounds, lambda: synchronize(request.device), clock)
    points = tuple(
        CheckpointingPoint(one, len(networks[one].recomputed_blocks()), taken[str(one)], memory[one])
        for one in settings
    )
    return CheckpointingResult(request, benchmark_environment(request), points)


def _network(request: BenchmarkRequest, setting: CheckpointingSetting) -> Backbone:
    torch.manual_seed(0)
    network: Backbone = build_backbone(request.name, grad_checkpointing=setting.share)
    network.to(request.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    if setting.mode == "compiled":
        network.compile()
    return network


def _step(network: Backbone, request: BenchmarkRequest, setting: CheckpointingSetting) -> Callable[[], None]:
    images = torch.randn(request.batch, 3, *request.shape, device=request.device)

    def step() -> None:
        with autotuner.use(**PLAIN_FORMS) if setting.mode == "plain" else nullcontext():
            with autocast(request.device, DTYPES[request.dtype]):
                output = network(images)
            output.float().square().sum().backward()
        network.zero_grad(set_to_none=True)

    return step


def _built_step(request: BenchmarkRequest, setting: CheckpointingSetting) -> Callable[[], None]:
    return _step(_network(request, setting), request, setting)


def _memory_apart(request: BenchmarkRequest, setting: CheckpointingSetting) -> int:
    """Memory of a step, measured in a fresh process."""
    return memory_apart(partial(_built_step, request, setting), request.device)
