"""Time, memory and FLOPs of a training step of masked pre-training, packed against dense.

Both layouts compute the same (:mod:`backbones.masked`); losses and gradients are compared before anything is measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from analysis.benchmark.memory import check_memory_is_told, memory_apart
from analysis.benchmark.networks import GRADIENT_TOLERANCE_FACTOR, OUTPUT_TOLERANCE, PLAIN_FORMS
from analysis.benchmark.peers import randomize_weights
from analysis.benchmark.request import BenchmarkRequest, benchmark_environment, check_benchmark_request
from analysis.benchmark.timing import (
    DTYPES,
    MismatchError,
    Speedup,
    autocast,
    quartiles,
    relative_error,
    synchronize,
    take_turns,
    warm_up,
)
from analysis.flops import count_model
from backbones.kernels.autotune import autotuner
from backbones.masked import MaskedForm
from classification.pretraining.model import MaskedAutoencoder
from engine.task import task_of_model

# Layout of the encoder's maps, and forms that its blocks are held to. That of a training is first, the definition last.
MASKED_SIDES: dict[str, tuple[MaskedForm, dict[str, str]]] = {
    "packed": ("packed", {}),
    "packed, plain blocks": ("packed", PLAIN_FORMS),
    "dense": ("dense", {}),
}
# On a GPU also: the convolution of the visible units by its Triton kernels, and on a whole map of zeros.
GPU_SIDES: dict[str, tuple[MaskedForm, dict[str, str]]] = {
    "packed, Triton": ("packed", {"packed_dwconv": "fused"}),
    "packed, scattered": ("packed", {"packed_dwconv": "plain"}),
}
_MIB = 2**20


@dataclass(frozen=True)
class MaskedSide:
    """One way to compute a step.

    Attributes:
        name: A key of ``MASKED_SIDES`` or ``GPU_SIDES``.
        seconds: Seconds of a step in each round.
        memory: Peak memory of a step beyond the weights in bytes.
        flops: Multiply-adds of the forward pass of one image.
    """

    name: str
    seconds: tuple[float, ...]
    memory: int
    flops: int


@dataclass(frozen=True)
class MaskedResult:
    """What was measured; the first side is that of a training, the last one the definition.

    Attributes:
        request: Measured network, batch, shape, precision and device.
        environment: Device, versions and date, in words.
        largest_difference: Largest relative error of loss and gradients between any side and the dense one, in float32.
        sides: Every side.
    """

    request: BenchmarkRequest
    environment: dict[str, str]
    largest_difference: float
    sides: tuple[MaskedSide, ...]

    def as_dict(self) -> dict[str, Any]:
        """The result as plain data."""
        packed, dense = self.sides[0], self.sides[-1]
        speedup = Speedup.between(packed.seconds, dense.seconds)
        return {
            "ratio": speedup.median,
            "ratio_quartiles": list(speedup.quartiles),
            "largest_difference": self.largest_difference,
            "memory_ratio": packed.memory / dense.memory,
            "flops_ratio": packed.flops / dense.flops,
            "place": self.environment,
            "request": asdict(self.request),
            "sides": [asdict(side) for side in self.sides],
        }

    def as_text(self) -> str:
        """The result as a table for people."""
        request, dense = self.request, self.sides[-1]
        row = "{:22} {:>8} {:>15} {:>20} {:>12} {:>12}"
        lines = [
            f"masked pre-training of {request.name}, training step without the optimizer, batch {request.batch}, "
            f"{request.shape[0]} x {request.shape[1]} pixels (H x W), {request.rounds} rounds in turns",
            *(f"  {key}: {value}" for key, value in self.environment.items()),
            f"  largest difference of loss and gradients, float32: {self.largest_difference:.1e}",
            "",
            row.format("", "s/step", "quartiles", "x faster than dense", "memory MiB", "FLOPs G"),
        ]
        for side in self.sides:
            lines.append(
                row.format(
                    side.name,
                    f"{statistics.median(side.seconds):.3f}",
                    "{:.3f}-{:.3f}".format(*quartiles(side.seconds)),
                    str(Speedup.between(side.seconds, dense.seconds)),
                    f"{side.memory / _MIB:.0f} {side.memory / dense.memory:4.0%}",
                    f"{side.flops / 1e9:.2f} {side.flops / dense.flops:4.0%}",
                )
            )
        return "\n".join(lines)


def measure_masked(request: BenchmarkRequest, clock: Callable[[], float] = time.perf_counter) -> MaskedResult:
    """Measure all sides.

    Args:
        request: Name of a ConvNeXt, batch, shape, precision, device and rounds.
        clock: Function that returns the present time in seconds.

    Raises:
        MismatchError: If the layouts compute different things.
        ConfigError: If the network is no ConvNeXt, or a number is wrong.
        MachineError: If there is no such device, or the system does not tell the memory of a process.
    """
    check_benchmark_request(request)
    check_memory_is_told(request.device)
    sides = masked_sides(request.device)
    expected = _outcome(request, "dense")
    difference = max(_difference(_outcome(request, side), expected) for side in sides[:-1])
    allowed = GRADIENT_TOLERANCE_FACTOR * OUTPUT_TOLERANCE["tf32" if request.device == "cuda" else "fp32"]
    if not difference <= allowed:
        raise MismatchError(
            f"packed computes something else than dense here: loss or gradients differ by {difference:.1e} "
            f"(allowed in fp32: {allowed:.0e}); nothing was measured"
        )
    memory = {side: memory_apart(partial(masked_step, request, side), request.device) for side in sides}
    steps = {side: masked_step(request, side) for side in sides}
    for step in steps.values():
        warm_up(step)
    seconds = take_turns(steps, request.rounds, lambda: synchronize(request.device), clock)
    measured = (MaskedSide(side, seconds[side], memory[side], _flops(request, side)) for side in sides)
    return MaskedResult(request, benchmark_environment(request), difference, tuple(measured))


def masked_sides(device: str) -> list[str]:
    """Names of the sides that are measured on a device (``cpu`` or ``cuda``), in the order of the result."""
    first, *others = MASKED_SIDES
    return [first, *(GPU_SIDES if device == "cuda" else {}), *others]


def masked_step(request: BenchmarkRequest, side: str) -> Callable[[], None]:
    """Build the model and its images, and return a training step without the optimizer."""
    model, batch = _model(request, side), _batch(request)

    def step() -> None:
        _loss(model, batch, request, side, DTYPES[request.dtype]).backward()
        model.zero_grad(set_to_none=True)

    return step


def _model(request: BenchmarkRequest, side: str) -> MaskedAutoencoder:
    form, _ = (MASKED_SIDES | GPU_SIDES)[side]
    model = MaskedAutoencoder({"type": request.name}, form=form)
    randomize_weights(model)
    return model.to(request.device).to(memory_format=torch.channels_last).train()


def _batch(request: BenchmarkRequest) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(request.batch, 3, *request.shape, generator=generator)
    units = (request.shape[0] // 32) * (request.shape[1] // 32)
    order = torch.stack([torch.randperm(units, generator=generator) for _ in images]).to(request.device)
    images = images.to(device=request.device, memory_format=torch.channels_last)
    return {"inputs": images, "data_samples": {"order": order}}


def _loss(
    model: MaskedAutoencoder, batch: dict[str, Any], request: BenchmarkRequest, side: str, dtype: torch.dtype
) -> Tensor:
    _, forms = (MASKED_SIDES | GPU_SIDES)[side]
    with autotuner.use(**forms), autocast(request.device, dtype):
        loss: Tensor = model(**batch, mode="loss")["loss"]
        return loss


def _outcome(request: BenchmarkRequest, side: str) -> list[Tensor]:
    """Loss and gradient of every parameter, in float32."""
    model = _model(request, side)
    loss = _loss(model, _batch(request), request, side, torch.float32)
    loss.backward()
    return [loss.detach(), *(one.grad for one in model.parameters() if one.grad is not None)]


def _difference(found: list[Tensor], expected: list[Tensor]) -> float:
    return max(relative_error(one, other) for one, other in zip(found, expected, strict=True))


def _flops(request: BenchmarkRequest, side: str) -> int:
    """Multiply-adds of the plain blocks: fused operations cannot be counted."""
    model = _model(request, side).eval()
    run = task_of_model(model).count_forward
    images = torch.zeros(1, 3, *request.shape, device=request.device)
    with autotuner.use(**PLAIN_FORMS):
        return count_model(request.name, model, images, run).flops
