"""Throughput of our networks beside others', measured in turns in one process.

All sides get the same images and the same weights. Their outputs (in training also the gradient of the first
convolution) are compared before any time is taken, each with those of our plain steps in float32, and networks that
compute different things are not compared in speed. Then they take turns, A B A B, so that a machine
that is busy for a while is busy for all; a ratio is taken within a round and the median is over rounds.

In training a step is forward, a fixed weighting of the outputs as the loss, and backward; the optimizer, which is the
same for all, is left out. Peers are measured as they come and at their best settings.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import version
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from analysis.benchmark.peers import LAYOUTS, OURS, PEERS, Contender, contenders
from analysis.flops import SMALLEST_SIDE, Shape
from backbones.errors import UserError, described
from backbones.kernels.autotune import autotuner
from backbones.kernels.cpu.dispatch import cpu_name

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Largest relative error (norm of the difference over norm) against our plain steps in float32. Rounding of each
# precision, through the depth of the largest network; TF32 has ten bits.
TOLERANCE = {"fp32": 1e-5, "tf32": 5e-3, "bf16": 5e-2, "fp16": 1e-2}
GRADIENT = 10  # times that for gradients, which pass through the network twice
PLAIN = {"cpu_block": "plain", "cpu_downsample": "plain", "dwconv_norm": "plain", "mlp": "plain"}
WARM_UP = 2
ROUND_SECONDS = 0.1  # a round repeats a call until it lasts about so long
TEXT = "{:28} {:26} {:>8} {:>15} {:>9} {:>18} {:>9}"


class MismatchError(Exception):
    """Two networks that should be the same compute different things."""


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        name: Registered network.
        train: Forward and backward instead of forward.
        batch: Images.
        shape: Height and width in pixels.
        dtype: ``fp32``, or ``bf16`` or ``fp16`` by autocast.
        device: ``cpu`` or ``cuda``.
        peers: Of ``PEERS``.
        layout: Of images and weights, for all; ``None`` for each one's own.
        compiled: Whether ours runs under :func:`torch.compile`.
        rounds: Of taking turns.
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


@dataclass(frozen=True)
class Side:
    """One side's times.

    Attributes:
        name: Whose.
        how: Layout and mode.
        seconds: Of one step, in each round.
        error: Of its output against our plain steps in float32, relative.
        failure: Why there are no times.
    """

    name: str
    how: str
    seconds: tuple[float, ...] = ()
    error: float | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Result:
    """A measurement: the request, where it was made, and all sides, ours first."""

    request: Request
    place: dict[str, str]
    sides: tuple[Side, ...]
    notes: tuple[str, ...] = field(default=())

    def rate(self, side: Side) -> float:
        """Images per second, by the median round."""
        return self.request.batch / statistics.median(side.seconds)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        ours = self.sides[0]
        rows = []
        for side in self.sides:
            row: dict[str, Any] = asdict(side)
            if side.seconds:
                row["images_per_second"] = self.rate(side)
                row["images_per_second_quartiles"] = [self.request.batch / one for one in quartiles(side.seconds)[::-1]]
                row["ours_is_times_faster"] = statistics.median(ratios(ours.seconds, side.seconds))
                row["ours_is_times_faster_quartiles"] = list(quartiles(ratios(ours.seconds, side.seconds)))
            rows.append(row)
        return {"request": asdict(self.request), "place": self.place, "sides": rows, "notes": list(self.notes)}


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """How many times faster ours was, round by round."""
    return [their / our for our, their in zip(ours, theirs, strict=True)]


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """First and third quartile."""
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def take_turns(
    steps: Mapping[str, Callable[[], object]],
    rounds: int,
    settle: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, tuple[float, ...]]:
    """Time steps in turns: A B A B.

    Args:
        steps: By name; warmed up.
        rounds: Turns of each.
        settle: Waits until the device has done what it was given.
        clock: Seconds.

    Returns:
        Seconds of one step in each round.
    """
    repeats = {}
    for name, step in steps.items():
        settle()
        begin = clock()
        step()
        settle()
        repeats[name] = min(max(int(ROUND_SECONDS / max(clock() - begin, 1e-6)), 1), 100)
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            settle()
            begin = clock()
            for _ in range(repeats[name]):
                step()
            settle()
            taken[name].append((clock() - begin) / repeats[name])
    return {name: tuple(seconds) for name, seconds in taken.items()}


def measure(request: Request, clock: Callable[[], float] = time.perf_counter) -> Result:
    """Compare, then time.

    Raises:
        MismatchError: If a side's output is not ours.
        UserError: If the request is impossible.
    """
    check(request)
    sides = contenders(request.name, request.peers, request.layout, request.compiled)
    images = torch.randn(request.batch, 3, *request.shape, generator=torch.Generator().manual_seed(1))
    expected = _truth(request, sides[0], images)
    steps: dict[str, Callable[[], object]] = {}
    found: dict[str, Side] = {}
    for one in sides:
        try:
            step, error = _prepare(request, one, images, expected)
            for _ in range(WARM_UP):
                step()
        except Exception as failure:
            if isinstance(failure, MismatchError | UserError) or one.name == OURS:
                raise
            found[one.name] = Side(one.name, one.how, failure=described(failure, 120))
            continue
        steps[one.name], found[one.name] = step, Side(one.name, one.how, error=error)
    for name, seconds in take_turns(steps, request.rounds, lambda: settle(request.device), clock).items():
        found[name] = Side(name, found[name].how, seconds, found[name].error)
    return Result(request, place(request), tuple(found[one.name] for one in sides))


def check(request: Request) -> None:
    """Refuse what cannot be measured.

    Raises:
        UserError: With the option's name.
    """
    if request.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no GPU is found here")
    if request.device == "cpu" and request.dtype == "fp16":
        raise UserError("--dtype fp16: CPUs compute in fp32 or bf16")
    for option, value in (("--batch", request.batch), ("--rounds", request.rounds)):
        if value < 1:
            raise UserError(f"{option} {value}: a positive number is needed")
    if min(request.shape) < SMALLEST_SIDE:
        raise UserError(f"--size {min(request.shape)}: images of at least {SMALLEST_SIDE} pixels are needed")


def _truth(request: Request, ours: Contender, images: Tensor) -> list[Tensor]:
    """Output, and in training the gradient, of our plain steps in float32 on this device."""
    with autotuner.use(**PLAIN):
        return _outcome(request, ours.build().to(request.device), images.to(request.device), torch.float32)


def _prepare(
    request: Request, one: Contender, images: Tensor, expected: Sequence[Tensor]
) -> tuple[Callable[[], object], float]:
    """A side's step and the error of its output.

    Raises:
        MismatchError: If that is beyond the rounding of the precision.
    """
    dtype = DTYPES[request.dtype]
    memory_format = LAYOUTS[one.layout]
    network = one.build().to(request.device).to(memory_format=memory_format)  # type: ignore[call-overload]
    images = images.to(device=request.device, memory_format=memory_format)
    if one.compiled:
        network.compile()
    found = _outcome(request, network, images, dtype)
    precise = request.dtype
    if request.device == "cuda" and request.dtype == "fp32" and torch.backends.cudnn.allow_tf32:
        precise = "tf32"
    for what, value, truth, times in zip(("outputs", "gradients"), found, expected, (1, GRADIENT), strict=False):
        error = relative_error(value, truth)
        if not error <= times * TOLERANCE[precise]:
            raise MismatchError(
                f"{one.name} computes something else than {request.name} here: {what} differ by {error:.1e} "
                f"(allowed in {request.dtype}: {times * TOLERANCE[precise]:.0e}); nothing was measured"
            )
    error = relative_error(found[0], expected[0])

    def infer() -> object:
        with torch.inference_mode(), autocast(request.device, dtype):
            return network(images)

    def train() -> object:
        _loss(network, images, request.device, dtype).backward()
        network.zero_grad(set_to_none=True)
        return None

    network.train(request.train)
    return (train if request.train else infer), error


def _outcome(request: Request, network: nn.Module, images: Tensor, dtype: torch.dtype) -> list[Tensor]:
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


def autocast(device: str, dtype: torch.dtype) -> Any:
    return nullcontext() if dtype == torch.float32 else torch.autocast(device, dtype)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


def settle(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def place(request: Request) -> dict[str, str]:
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


def as_text(result: Result) -> str:
    """A measurement for people."""
    asked = result.request
    work = "training (forward and backward, no optimizer)" if asked.train else "inference"
    pixels = f"{asked.shape[0]} x {asked.shape[1]} pixels (H x W)"
    lines = [
        f"{asked.name}, {work}, batch {asked.batch}, {pixels}, {asked.rounds} rounds in turns",
        *(f"  {key}: {value}" for key, value in result.place.items()),
        "",
        TEXT.format("", "", "img/s", "quartiles", "s/step", "ours is x faster", "error").rstrip(),
    ]
    ours = result.sides[0]
    for side in result.sides:
        if side.failure:
            lines.append(f"{side.name:28} {side.how:26} does not run: {side.failure}")
            continue
        low, high = (asked.batch / one for one in quartiles(side.seconds)[::-1])
        pairs = ratios(ours.seconds, side.seconds)
        spread = "{:.2f}-{:.2f}".format(*quartiles(pairs))
        ratio = "" if side is ours else f"{statistics.median(pairs):.2f} ({spread})"
        error = "" if side.error is None else f"{side.error:.1e}"
        speed, between = f"{result.rate(side):.1f}", f"{low:.1f}-{high:.1f}"
        taken = f"{statistics.median(side.seconds):.4f}"
        lines.append(TEXT.format(side.name, side.how, speed, between, taken, ratio, error).rstrip())
    return "\n".join([*lines, *result.notes])


def chosen_peers(text: str) -> tuple[str, ...]:
    """The peers that ``--peer`` names."""
    return PEERS if text == "all" else () if text == "none" else (text,)


def chart(results: Sequence[Result]) -> Figure:
    """Images per second of all sides, against the batch for each size, and against the size for each batch."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, axis in zip(figure.subplots(1, 2), ("batch", "size"), strict=True):
        lines: dict[tuple[str, int], list[tuple[int, float]]] = {}
        for result in results:
            batch, size = result.request.batch, result.request.shape[0]
            x, other = (batch, size) if axis == "batch" else (size, batch)
            for side in result.sides:
                if side.seconds:
                    lines.setdefault((side.name, other), []).append((x, result.rate(side)))
        several = len({other for _, other in lines}) > 1
        held = "pixels" if axis == "batch" else "images"
        for (name, other), points in lines.items():
            xs, ys = zip(*sorted(points), strict=True)
            axes.plot(xs, ys, marker="o", label=f"{name}, {other} {held}" if several else name)
        axes.set(
            xlabel="images in a batch" if axis == "batch" else "side in pixels", ylabel="images / s", ylim=(0, None)
        )
        axes.legend(fontsize="small")
    if results:
        asked, where = results[0].request, results[0].place
        work = "training" if asked.train else "inference"
        figure.suptitle(f"{asked.name}, {work}, {asked.dtype}; {where['device']}; {where['date']}", fontsize="small")
    return figure
