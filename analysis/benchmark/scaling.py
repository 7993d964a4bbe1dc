"""Scaling over processes: throughput of a data-parallel training step on 1, 2, 4, ... processes of one machine.

Every process computes a batch of its own (weak scaling), and DDP averages the gradients. All counts take turns among
the same processes, of which the ones that are not needed wait, so that a machine that is busy for a while is busy for
all of them. The efficiency is the throughput over that of as many single processes, taken within a round.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from analysis.benchmark.request import BenchmarkRequest, benchmark_environment, check_benchmark_request
from analysis.benchmark.timing import DTYPES, autocast, quartiles, rates, synchronize, warm_up
from backbones.errors import ConfigError, MachineError
from backbones.registry import build_backbone

PROCESS_COUNTS = (1, 2, 4, 8)
_ROW = "{:>9} {:>10} {:>17} {:>10} {:>17} {}"


@dataclass(frozen=True)
class ScalingPoint:
    """A training step on so many processes.

    Attributes:
        processes: Number of processes.
        seconds: Seconds of a step in each round.
        images_per_second: Images per second of all processes together, median over the rounds.
        efficiency: Throughput over that of as many single processes, median over the rounds.
        efficiency_quartiles: Its first and third quartile.
        oversubscribed: Whether the processes have more threads than the machine has cores, so that they share cores,
            and the efficiency says nothing about the exchange of gradients.
    """

    processes: int
    seconds: tuple[float, ...]
    images_per_second: float
    efficiency: float
    efficiency_quartiles: tuple[float, float]
    oversubscribed: bool


@dataclass(frozen=True)
class ScalingResult:
    """Throughput and efficiency for each number of processes.

    Attributes:
        request: Measured network, batch of each process, shape, precision and device.
        environment: Device, versions and date, in words.
        points: Measurements, one process first.
    """

    request: BenchmarkRequest
    environment: dict[str, str]
    points: tuple[ScalingPoint, ...]

    def as_dict(self) -> dict[str, Any]:
        """The result as plain data."""
        points = [asdict(one) for one in self.points]
        return {"place": self.environment, "request": asdict(self.request), "points": points}

    def as_text(self) -> str:
        """The result as a table for people."""
        request = self.request
        lines = [
            f"{request.name}, forward, backward and exchange of gradients, batch {request.batch} in each process, "
            f"{request.shape[0]} x {request.shape[1]} pixels (H x W), {request.rounds} rounds in turns",
            *(f"  {key}: {value}" for key, value in self.environment.items()),
            "",
            _ROW.format("processes", "images/s", "quartiles", "efficiency", "quartiles", ""),
        ]
        for one in self.points:
            low, high = rates(one.seconds, one.processes * request.batch)[1]
            lines.append(
                _ROW.format(
                    one.processes,
                    f"{one.images_per_second:.2f}",
                    f"{low:.2f}-{high:.2f}",
                    f"{one.efficiency:.0%}",
                    "{:.0%}-{:.0%}".format(*one.efficiency_quartiles),
                    "oversubscribed: more threads than cores" if one.oversubscribed else "",
                ).rstrip()
            )
        return "\n".join(lines)


def measure_scaling(request: BenchmarkRequest, counts: Sequence[int] = PROCESS_COUNTS) -> ScalingResult:
    """Measure a training step on several numbers of processes: gloo on CPUs, NCCL on GPUs.

    Args:
        request: Registered network, batch of each process, shape, precision, device and rounds.
        counts: Numbers of processes; one process is always measured.

    Raises:
        ConfigError: If a number is too small.
        MachineError: If the machine has fewer GPUs than processes.
    """
    check_benchmark_request(request)
    if min(counts, default=0) < 1:
        raise ConfigError(f"--processes {' '.join(map(str, counts))}: positive numbers are needed")
    wanted = sorted({1, *counts})
    if request.device == "cuda" and wanted[-1] > torch.cuda.device_count():
        raise MachineError(f"--processes {wanted[-1]}: this machine has {torch.cuda.device_count()} GPUs")
    build_backbone(request.name)  # an unknown name is one line here, and a stack trace in each process
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_measure, (request, wanted, threads, folder), nprocs=wanted[-1])
        seconds = {int(count): times for count, times in json.loads((Path(folder) / "seconds").read_text()).items()}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    points = []
    for count in wanted:
        # With as much work in each process, a step should take as long as that of a single process.
        shares = [alone / together for alone, together in zip(seconds[1], seconds[count], strict=True)]
        points.append(
            ScalingPoint(
                count,
                tuple(seconds[count]),
                rates(seconds[count], count * request.batch)[0],
                statistics.median(shares),
                quartiles(shares),
                request.device == "cpu" and count * threads > cores,
            )
        )
    environment = benchmark_environment(request) | {"cores": str(cores)}
    return ScalingResult(request, environment, tuple(points))


def _measure(rank: int, request: BenchmarkRequest, counts: Sequence[int], threads: int, folder: str) -> None:
    """One of the processes; the first one writes the seconds of each round by the number of processes."""
    torch.set_num_threads(threads)
    if request.device == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if request.device == "cuda" else "gloo"
    meeting = f"file://{Path(folder) / 'meeting'}"
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=counts[-1])
    groups = {count: dist.new_group(list(range(count))) for count in counts}
    steps = {count: _step(request, group) for count, group in groups.items() if rank < count}
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for count, step in steps.items():
        dist.barrier(groups[count])
        warm_up(step)
    for _ in range(request.rounds):
        for count in counts:
            dist.barrier()  # processes that are not needed wait for the others here
            if count in steps:
                synchronize(request.device)
                begin = time.perf_counter()
                steps[count]()
                synchronize(request.device)
                dist.barrier(groups[count])
                seconds[count].append(time.perf_counter() - begin)
    if rank == 0:
        (Path(folder) / "seconds").write_text(json.dumps(seconds))
    dist.barrier()
    dist.destroy_process_group()


def _step(request: BenchmarkRequest, group: Any) -> Callable[[], None]:
    network = build_backbone(request.name).to(request.device).train()
    images = torch.randn(request.batch, 3, *request.shape, device=request.device)
    model = DistributedDataParallel(network, process_group=group, broadcast_buffers=False)

    def step() -> None:
        with autocast(request.device, DTYPES[request.dtype]):
            loss = model(images)[-1].float().mean()
        loss.backward()
        model.zero_grad(set_to_none=True)

    return step
