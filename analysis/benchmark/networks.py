"""Throughput of our networks beside others', measured in turns in one process.

All sides get the same images and the same weights. Their outputs (in training also the gradient of the first
convolution) are compared with those of our plain PyTorch blocks in float32 before any time is taken; networks that
compute different things are not compared in speed.

In training a step is forward, a fixed weighting of the outputs as the loss, and backward; the optimizer, which is the
same for all, is left out. Peers are measured as they come and at their best settings.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from analysis.benchmark.memory import gpu_step_memory
from analysis.benchmark.peers import MEMORY_FORMATS, NETWORK_PEERS, OUR_SIDE, Contender, contenders
from analysis.benchmark.request import BenchmarkRequest, benchmark_environment, check_benchmark_request
from analysis.benchmark.timing import (
    DTYPES,
    MismatchError,
    Speedup,
    autocast,
    rates,
    relative_error,
    synchronize,
    take_turns,
    warm_up,
)
from backbones.errors import UserError, describe_error
from backbones.kernels.autotune import autotuner

# Largest relative error (norm of the difference over norm) against our plain blocks in float32. Rounding of each
# precision, through the depth of the largest network; TF32 has ten bits.
OUTPUT_TOLERANCE = {"fp32": 1e-5, "tf32": 5e-3, "bf16": 5e-2, "fp16": 1e-2}
GRADIENT_TOLERANCE_FACTOR = 10  # gradients pass through the network twice
PLAIN_FORMS = dict.fromkeys(("cpu_block", "cpu_downsample", "dwconv_norm", "mlp", "packed_dwconv"), "plain")
_ROW = "{:28} {:26} {:>8} {:>15} {:>9} {:>18} {:>9}"


@dataclass(frozen=True)
class SideTiming:
    """Times of one side.

    Attributes:
        name: Name of the side.
        how: Memory format and mode, such as ``channels_last, eager``.
        seconds: Seconds of one step in each round.
        error: Relative error of its output against our plain blocks in float32.
        failure: Reason why there are no times.
        peak_memory_bytes: On a GPU, peak memory of a step beyond what is held before it.
    """

    name: str
    how: str
    seconds: tuple[float, ...] = ()
    error: float | None = None
    failure: str | None = None
    peak_memory_bytes: int | None = None


@dataclass(frozen=True)
class ThroughputResult:
    """Throughput of a network or of a config's whole model.

    Attributes:
        request: Measured network or config, batch, shape, precision and device.
        environment: Device, versions and date, in words.
        sides: Times of all sides, ours first.
        notes: Further lines for the reader.
    """

    request: BenchmarkRequest
    environment: dict[str, str]
    sides: tuple[SideTiming, ...]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The result as plain data."""
        rows = []
        for side in self.sides:
            row: dict[str, Any] = asdict(side)
            if side.seconds:
                row["images_per_second"], between = rates(side.seconds, self.request.batch)
                row["images_per_second_quartiles"] = list(between)
                row |= Speedup.between(self.sides[0].seconds, side.seconds).as_dict()
            rows.append(row)
        return {"request": asdict(self.request), "place": self.environment, "sides": rows, "notes": list(self.notes)}

    def as_text(self) -> str:
        """The result as a table for people."""
        asked = self.request
        work = "training (forward and backward, no optimizer)" if asked.train else "inference"
        pixels = f"{asked.shape[0]} x {asked.shape[1]} pixels (H x W)"
        lines = [
            f"{asked.name}, {work}, batch {asked.batch}, {pixels}, {asked.rounds} rounds in turns",
            *(f"  {key}: {value}" for key, value in self.environment.items()),
            "",
            _ROW.format("", "", "img/s", "quartiles", "s/step", "ours is x faster", "error").rstrip(),
        ]
        ours = self.sides[0]
        for side in self.sides:
            if side.failure:
                lines.append(f"{side.name:28} {side.how:26} does not run: {side.failure}")
                continue
            rate, (low, high) = rates(side.seconds, asked.batch)
            speedup = "" if side is ours else str(Speedup.between(ours.seconds, side.seconds))
            error = "" if side.error is None else f"{side.error:.1e}"
            error += "" if side.peak_memory_bytes is None else f", {side.peak_memory_bytes / 2**20:,.0f} MiB"
            numbers = (f"{rate:.1f}", f"{low:.1f}-{high:.1f}", f"{statistics.median(side.seconds):.4f}")
            lines.append(_ROW.format(side.name, side.how, *numbers, speedup, error).rstrip())
        return "\n".join([*lines, *self.notes])


def measure_network(request: BenchmarkRequest, clock: Callable[[], float] = time.perf_counter) -> ThroughputResult:
    """Compare the outputs of all sides, then time them.

    Args:
        request: Request with the registered name of a network.
        clock: Function that returns the present time in seconds.

    Raises:
        MismatchError: If a side's output or gradient is not ours.
        UserError: If the request is impossible.
    """
    check_benchmark_request(request)
    sides = contenders(request.name, request.peers, request.layout, request.compiled)
    images = random_images(request)
    expected = _expected(request, sides[0], images)
    steps: dict[str, Callable[[], object]] = {}
    found: dict[str, SideTiming] = {}
    for one in sides:
        try:
            step, error = _prepare(request, one, images, expected)
            warm_up(step)
        except Exception as failure:
            if isinstance(failure, UserError) or one.name == OUR_SIDE:
                raise
            found[one.name] = SideTiming(one.name, one.how, failure=describe_error(failure, 120))
            continue
        memory = gpu_step_memory(step) if request.device == "cuda" else None
        steps[one.name] = step
        found[one.name] = SideTiming(one.name, one.how, error=error, peak_memory_bytes=memory)
    for name, seconds in take_turns(steps, request.rounds, lambda: synchronize(request.device), clock).items():
        found[name] = replace(found[name], seconds=seconds)
    return ThroughputResult(request, benchmark_environment(request), tuple(found[one.name] for one in sides))


def _expected(request: BenchmarkRequest, ours: Contender, images: Tensor) -> list[Tensor]:
    """Output, and in training the gradient, of our plain blocks in float32 on this device."""
    with autotuner.use(**PLAIN_FORMS):
        return _outcome(request, ours.build().to(request.device), images.to(request.device), torch.float32)


def _prepare(
    request: BenchmarkRequest, one: Contender, images: Tensor, expected: Sequence[Tensor]
) -> tuple[Callable[[], object], float]:
    """A side's step and the relative error of its output.

    Raises:
        MismatchError: If the error is beyond the rounding of the precision.
    """
    network, images = placed(request, one, images)
    found = _outcome(request, network, images, DTYPES[request.dtype])
    _compare(request, one.name, found, expected)
    return network_step(request, network, images), relative_error(found[0], expected[0])


def placed(request: BenchmarkRequest, one: Contender, images: Tensor) -> tuple[nn.Module, Tensor]:
    """A side's network and the images on the device, in its memory format, compiled where it is."""
    memory_format = MEMORY_FORMATS[one.layout]
    network = one.build().to(request.device).to(memory_format=memory_format)  # type: ignore[call-overload]
    if one.compiled:
        network.compile()
    return network, images.to(device=request.device, memory_format=memory_format)


def random_images(request: BenchmarkRequest) -> Tensor:
    """Images of a step, the same ones whenever they are drawn, (N, 3, H, W)."""
    return torch.randn(request.batch, 3, *request.shape, generator=torch.Generator().manual_seed(1))


def network_step(request: BenchmarkRequest, network: nn.Module, images: Tensor) -> Callable[[], object]:
    """A step of a network on the device: forward, in training also backward, no optimizer."""
    dtype = DTYPES[request.dtype]

    def infer() -> object:
        with torch.inference_mode(), autocast(request.device, dtype):
            return network(images)

    def train() -> None:
        _loss(network, images, request.device, dtype).backward()
        network.zero_grad(set_to_none=True)

    network.train(request.train)
    return train if request.train else infer


def _compare(request: BenchmarkRequest, side: str, found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    tf32 = request.device == "cuda" and request.dtype == "fp32" and torch.backends.cudnn.allow_tf32
    factors = (1, GRADIENT_TOLERANCE_FACTOR)
    for kind, value, truth, factor in zip(("outputs", "gradients"), found, expected, factors, strict=False):
        error, allowed = relative_error(value, truth), factor * OUTPUT_TOLERANCE["tf32" if tf32 else request.dtype]
        if not error <= allowed:
            raise MismatchError(
                f"{side} computes something else than {request.name} here: {kind} differ by {error:.1e} "
                f"(allowed in {request.dtype}: {allowed:.0e}); nothing was measured"
            )


def _outcome(request: BenchmarkRequest, network: nn.Module, images: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Output of a network, and in training the gradient of its first convolution."""
    with torch.no_grad(), autocast(request.device, dtype):
        outcome = [network(images).flatten(1).float()]
    if request.train:
        network.train()
        _loss(network, images, request.device, dtype).backward()
        first = next(one for one in network.parameters() if one.ndim == 4)
        assert first.grad is not None
        outcome.append(first.grad.float().clone())
        network.zero_grad(set_to_none=True)
        network.eval()
    return outcome


def _loss(network: nn.Module, images: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    with autocast(device, dtype):
        output: Tensor = network(images)
    # Not the mean of squares: those of a normalised vector are constant, and their gradient is rounding.
    return (output.flatten(1).float() * torch.linspace(-1, 1, output[0].numel(), device=output.device)).mean()


def chosen_peers(text: str) -> tuple[str, ...]:
    """The peers that the value of ``--peer`` names: ``all``, ``none`` or one of ``NETWORK_PEERS``."""
    return NETWORK_PEERS if text == "all" else () if text == "none" else (text,)


def plot_throughput(results: Sequence[ThroughputResult]) -> Figure:
    """Images per second of all sides, against the batch for each size, and against the size for each batch."""
    figure = Figure(figsize=(10, 4), dpi=150, layout="constrained")
    for axes, axis in zip(figure.subplots(1, 2), ("batch", "size"), strict=True):
        lines: dict[tuple[str, int], list[tuple[int, float]]] = {}
        for result in results:
            batch, size = result.request.batch, result.request.shape[0]
            x, other = (batch, size) if axis == "batch" else (size, batch)
            for side in result.sides:
                if side.seconds:
                    lines.setdefault((side.name, other), []).append((x, rates(side.seconds, batch)[0]))
        several = len({other for _, other in lines}) > 1
        label, unit = ("images in a batch", "pixels") if axis == "batch" else ("side in pixels", "images")
        for (name, other), points in lines.items():
            axes.plot(*zip(*sorted(points)), marker="o", label=f"{name}, {other} {unit}" if several else name)
        axes.set(xlabel=label, ylabel="images / s", ylim=(0, None))
        axes.legend(fontsize="small")
    asked, where = results[0].request, results[0].environment
    work = "training" if asked.train else "inference"
    figure.suptitle(f"{asked.name}, {work}, {asked.dtype}; {where['device']}; {where['date']}", fontsize="small")
    return figure
