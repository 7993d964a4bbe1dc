"""How far a network's step is from the limits of its device: arithmetic reached, and the kernels that take the time.

Both limits are measured, not taken from a data sheet: the rate of a large matrix product in the precision of the step,
and the rate at which a large tensor is copied. The step, the product and the copy take turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from analysis.benchmark.networks import network_step, placed, random_images
from analysis.benchmark.peers import contenders
from analysis.benchmark.request import BenchmarkRequest, benchmark_environment, check_benchmark_request
from analysis.benchmark.timing import DTYPES, quartiles, synchronize, take_turns, warm_up
from analysis.flops import count_backbone

PRODUCT_SIDE = {"cuda": 8192, "cpu": 1024}  # of the matrices
COPY_BYTES = {"cuda": 2**31, "cpu": 2**28}
OPERATIONS = 2  # of a multiply-add
FORWARD_PASSES = {False: 1, True: 3}  # of the network in forward passes, by whether it trains
SHOWN_KERNELS = 15
STEP, PRODUCT, COPY = "step", "product", "copy"


@dataclass(frozen=True)
class KernelShare:
    """A kernel, or on a CPU an operator, in one step.

    Attributes:
        name: Its name.
        seconds: Seconds of all of its calls, without those of what it calls.
        share: The same over the seconds of all kernels.
        calls: Number of calls.
    """

    name: str
    seconds: float
    share: float
    calls: int


@dataclass(frozen=True)
class RooflineResult:
    """A step beside the limits of its device.

    Attributes:
        request: Measured network, batch, shape, precision and device.
        environment: Device, versions and date, in words.
        flops: Multiply-adds of a step.
        seconds: Seconds of a step in each round.
        product_rate: Multiply-adds per second of a large matrix product, median over the rounds.
        copy_rate: Bytes per second, read and written, of a large copy, median over the rounds.
        kernels: Kernels of one step, the slowest first.
    """

    request: BenchmarkRequest
    environment: dict[str, str]
    flops: int
    seconds: tuple[float, ...]
    product_rate: float
    copy_rate: float
    kernels: tuple[KernelShare, ...]

    @property
    def fractions(self) -> list[float]:
        """Rate of the step over that of the matrix product, in each round."""
        return [self.flops / seconds / self.product_rate for seconds in self.seconds]

    def as_dict(self) -> dict[str, Any]:
        """The result as plain data."""
        found = {"place" if name == "environment" else name: value for name, value in asdict(self).items()}
        return found | {
            "fraction_of_product": statistics.median(self.fractions),
            "fraction_of_product_quartiles": list(quartiles(self.fractions)),
        }

    def as_text(self) -> str:
        """The result as a table for people."""
        asked = self.request
        low, high = quartiles(self.fractions)
        work = "training step without the optimizer" if asked.train else "inference"
        lines = [
            f"{asked.name}, {work}, batch {asked.batch}, {asked.shape[0]} x {asked.shape[1]} pixels (H x W), "
            f"{asked.rounds} rounds in turns",
            *(f"  {key}: {value}" for key, value in self.environment.items()),
            "",
            f"step                  {statistics.median(self.seconds):.4f} s, {self.flops / 1e9:,.1f} G multiply-adds",
            f"large matrix product  {OPERATIONS * self.product_rate / 1e12:,.2f} TFLOP/s",
            f"large copy            {self.copy_rate / 1e9:,.0f} GB/s read and written",
            f"the step reaches      {statistics.median(self.fractions):.1%} ({low:.1%}-{high:.1%}) of the product",
            "",
            f"{'kernel':60} {'ms':>9} {'share':>6} {'calls':>6}",
        ]
        for one in self.kernels:
            lines.append(f"{one.name[:60]:60} {1e3 * one.seconds:>9.3f} {one.share:>6.1%} {one.calls:>6}")
        return "\n".join(lines)


def measure_roofline(request: BenchmarkRequest, clock: Callable[[], float] = time.perf_counter) -> RooflineResult:
    """Measure a step of a network and the limits of the device in turns, then profile one step.

    Args:
        request: Registered network, batch, shape, precision, device and rounds; its peers are not looked at.
        clock: Function that returns the present time in seconds.

    Raises:
        MachineError: If there is no such device, or it does not compute in this precision.
        ConfigError: If a number is too small, or the network unknown.
    """
    check_benchmark_request(request)
    ours = contenders(request.name, (), request.layout, request.compiled)[0]
    flops = FORWARD_PASSES[request.train] * request.batch * count_backbone(request.name, request.shape).flops
    steps = {
        STEP: network_step(request, *placed(request, ours, random_images(request))),
        PRODUCT: _product_step(request),
        COPY: _copy_step(request.device),
    }
    for step in steps.values():
        warm_up(step)
    seconds = take_turns(steps, request.rounds, lambda: synchronize(request.device), clock)
    side = PRODUCT_SIDE[request.device]
    return RooflineResult(
        request,
        benchmark_environment(request),
        flops,
        seconds[STEP],
        side**3 / statistics.median(seconds[PRODUCT]),
        2 * COPY_BYTES[request.device] / statistics.median(seconds[COPY]),
        _profiled(steps[STEP], request.device),
    )


def _product_step(request: BenchmarkRequest) -> Callable[[], object]:
    side = PRODUCT_SIDE[request.device]
    left, right = (torch.randn(side, side, device=request.device, dtype=DTYPES[request.dtype]) for _ in range(2))
    into = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=into)


def _copy_step(device: str) -> Callable[[], object]:
    source = torch.ones(COPY_BYTES[device] // 4, device=device)
    into = torch.empty_like(source)
    return lambda: into.copy_(source)


def _profiled(step: Callable[[], object], device: str) -> tuple[KernelShare, ...]:
    """Kernels of one step; on a CPU its operators."""
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=kinds, acc_events=True) as found:
        step()
        synchronize(device)
    rows = []
    for one in found.key_averages():
        on_device = one.device_type == torch.autograd.DeviceType.CUDA
        spent = one.self_device_time_total if device == "cuda" else one.self_cpu_time_total
        if spent and on_device == (device == "cuda"):
            rows.append((one.key, 1e-6 * spent, one.count))
    total = sum(seconds for _, seconds, _ in rows)
    rows.sort(key=lambda row: -row[1])
    return tuple(KernelShare(name, seconds, seconds / total, calls) for name, seconds, calls in rows[:SHOWN_KERNELS])
