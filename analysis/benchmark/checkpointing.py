"""What gradient checkpointing and ``torch.compile`` cost in time and save in memory, measured.

Memory is that of a process of its own for each setting, since a process does not give all back: on a GPU the largest
that PyTorch held at once, on a CPU the largest resident size, both above what is held before the first step (the
weights). Times are taken in turns in one process.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from analysis.benchmark.networks import DTYPES, PLAIN, Request, autocast, quartiles, ratios, settle, take_turns
from backbones.base import Backbone
from backbones.errors import UserError
from backbones.kernels.autotune import autotuner
from backbones.registry import build_backbone

PLAIN_STEPS, COMPILED = "plain", "compiled"
# As the network chooses for the device; PyTorch's plain steps, whatever would be chosen; torch.compile.
MODES = ("eager", PLAIN_STEPS, COMPILED)
WARM_UP = 2
KIB, MIB = 2**10, 2**20


@dataclass(frozen=True)
class Setting:
    """One way to run the same training step.

    Attributes:
        share: Of the blocks that are recomputed, from the first on.
        mode: Of ``MODES``.
    """

    share: float
    mode: str

    def __str__(self) -> str:
        return f"{self.share:.0%} recomputed, {self.mode}"


@dataclass(frozen=True)
class Point:
    """What a setting takes.

    Attributes:
        setting: Which.
        blocks: Recomputed blocks.
        seconds: Of a step in each round.
        memory: Bytes of a step beyond the weights.
    """

    setting: Setting
    blocks: int
    seconds: tuple[float, ...]
    memory: int


def study(
    request: Request,
    shares: Sequence[float],
    modes: Sequence[str],
    clock: Callable[[], float] = time.perf_counter,
) -> list[Point]:
    """Measure every share in every mode.

    Args:
        request: A network's name, batch, shape, precision, device and rounds.
        shares: Of the blocks that are recomputed.
        modes: Of ``MODES``.
        clock: Seconds.

    Raises:
        UserError: If a share is impossible, or the system does not tell a process's memory.
    """
    wrong = [share for share in shares if not 0 <= share <= 1]
    if wrong:
        raise UserError(f"--shares {wrong[0]}: between 0 and 1")
    if request.device == "cpu" and sys.platform != "linux":
        raise UserError("memory on CPU is measured on Linux alone; take --device cuda")
    settings = [Setting(float(share), mode) for mode in modes for share in shares]
    memory = {setting: _memory_apart(request, setting) for setting in settings}
    networks = {setting: _network(request, setting) for setting in settings}
    steps = {str(setting): _step(networks[setting], request, setting) for setting in settings}
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    taken = take_turns(steps, request.rounds, lambda: settle(request.device), clock)
    return [Point(one, len(networks[one].recomputed_blocks()), taken[str(one)], memory[one]) for one in settings]


def _network(request: Request, setting: Setting) -> Backbone:
    torch.manual_seed(0)
    network: Backbone = build_backbone(request.name, grad_checkpointing=setting.share)
    network.to(request.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    if setting.mode == COMPILED:
        network.compile()
    return network


def _step(network: Backbone, request: Request, setting: Setting) -> Callable[[], None]:
    images = torch.randn(request.batch, 3, *request.shape, device=request.device)

    def step() -> None:
        with autotuner.use(**PLAIN) if setting.mode == PLAIN_STEPS else nullcontext():
            with autocast(request.device, DTYPES[request.dtype]):
                output = network(images)
            output.float().square().sum().backward()
        network.zero_grad(set_to_none=True)

    return step


def _memory_apart(request: Request, setting: Setting) -> int:
    """Memory of a step, measured in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_memory, (request, setting, torch.get_num_threads()))


def _memory(request: Request, setting: Setting, threads: int) -> int:
    torch.set_num_threads(threads)
    step = _step(_network(request, setting), request, setting)
    step()  # what is kept from the first step on, such as the compiler's memory, is not the step's
    if request.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # else freed memory would count as held
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = _resident("VmRSS")
    step()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    """Bytes of this process in the machine's memory: ``VmRSS`` now, ``VmHWM`` at most."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * KIB for line in lines if line.startswith(f"{field}:"))


def as_dict(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Plain data."""
    return [asdict(one) for one in points]


def as_text(request: Request, points: Sequence[Point], where: dict[str, str]) -> str:
    """The study for people; ratios are against the first setting, round by round."""
    row = "{:26} {:>7} {:>9} {:>17} {:>18} {:>11} {:>7}"
    shape = f"{request.shape[0]} x {request.shape[1]}"
    lines = [
        f"{request.name}, training step without the optimizer, batch {request.batch}, {shape} pixels (H x W), "
        f"{request.rounds} rounds in turns",
        *(f"  {key}: {value}" for key, value in where.items()),
        "",
        row.format("", "blocks", "s/step", "quartiles", "x the first's time", "memory MiB", "share"),
    ]
    first = points[0]
    for one in points:
        pairs = ratios(first.seconds, one.seconds)
        lines.append(
            row.format(
                str(one.setting),
                one.blocks,
                f"{statistics.median(one.seconds):.3f}",
                "{:.3f}-{:.3f}".format(*quartiles(one.seconds)),
                "{:.2f} ({:.2f}-{:.2f})".format(statistics.median(pairs), *quartiles(pairs)),
                f"{one.memory / MIB:.0f}",
                f"{one.memory / first.memory:.0%}",
            )
        )
    return "\n".join(lines)


def chart(request: Request, points: Sequence[Point], where: dict[str, str]) -> Figure:
    """Time of a step, and its memory, against the share of recomputed blocks."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, what in zip(figure.subplots(1, 2), ("time", "memory"), strict=True):
        for mode in MODES:
            chosen = sorted((one for one in points if one.setting.mode == mode), key=lambda p: p.setting.share)
            if not chosen:
                continue
            heights = [statistics.median(p.seconds) if what == "time" else p.memory / MIB for p in chosen]
            shares = [100 * p.setting.share for p in chosen]
            axes.plot(shares, heights, marker="o", label=mode)
        axes.set(xlabel="recomputed blocks in %", ylabel="s / step" if what == "time" else "MiB", ylim=(0, None))
        axes.legend(fontsize="small")
    figure.suptitle(
        f"{request.name}, batch {request.batch}, {where['precision']}; {where['device']}; {where['date']}",
        fontsize="small",
    )
    return figure
