"""Table 2.12 on the present device: each ConvNeXt in turns with the Swin that the paper sets beside it.

The networks differ, and so do their outputs: there is nothing to compare before the times are taken.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from analysis.benchmark.networks import Request, place, quartiles, ratios, settle, take_turns
from analysis.paper.printed import TABLES, Row
from backbones.registry import build_backbone

NUMBER = "2.12"
CPU_BATCH, GPU_BATCH, ROUNDS = 2, 64, 5
LINE = "{:14} {:>6} {:>10} {:>15} {:>20} {:>18}"


@dataclass(frozen=True)
class Speed:
    """A row of the table, measured here.

    Attributes:
        label: The network in words.
        network: Its registered name.
        side: Of the images, in pixels.
        rate: Images per second, by the median round.
        between: Its quartiles.
        over_swin: How many times faster than the Swin of its pair, by the median round; ``None`` without one.
        paper: What the paper measured on an A100.
    """

    label: str
    network: str
    side: int
    rate: float
    between: tuple[float, float]
    over_swin: float | None
    paper: str


def pairs() -> Iterator[tuple[Row, ...]]:
    """Rows that were measured against each other: Swin and ConvNeXt of one size, or a ConvNeXt alone."""
    waiting: tuple[Row, ...] = ()
    for row in TABLES[NUMBER].rows:
        if waiting and not row.label.startswith("Swin"):
            yield (*waiting, row)
            waiting = ()
        elif row.label.startswith("Swin"):
            waiting = (row,)
        else:
            yield (row,)


def measure_table(
    device: str, batch: int, rounds: int = ROUNDS, clock: Callable[[], float] = time.perf_counter
) -> Iterator[Speed]:
    """Measure pair after pair, in float32 and inference, as the paper did.

    Args:
        device: ``cpu`` or ``cuda``.
        batch: Images.
        rounds: Turns of each network of a pair.
        clock: Seconds.
    """
    for rows in pairs():
        taken = take_turns(
            {row.label: _step(row, device, batch) for row in rows}, rounds, lambda: settle(device), clock
        )
        first = taken[rows[0].label]
        for row in rows:
            seconds = taken[row.label]
            low, high = (batch / one for one in quartiles(seconds)[::-1])
            faster = statistics.median(ratios(seconds, first)) if row is not rows[0] else None
            rate = batch / statistics.median(seconds)
            assert row.network is not None
            yield Speed(row.label, row.network, row.shape[0], rate, (low, high), faster, row.quoted[0])


def _step(row: Row, device: str, batch: int) -> Callable[[], object]:
    assert row.network is not None
    network = build_backbone(row.network).eval().to(device)
    images = torch.randn(batch, 3, *row.shape, device=device).contiguous(memory_format=torch.channels_last)

    def step() -> object:
        with torch.inference_mode():
            return network(images)

    step()
    return step


def where(device: str, batch: int) -> dict[str, str]:
    """The device and the versions, in words."""
    return place(Request(NUMBER, batch=batch, device=device)) | {"batch": str(batch), "layout": "channels_last"}


def header(device: str, batch: int) -> list[str]:
    """What stands above the measured rows."""
    lines = ["Measured here, inference:", *(f"  {key}: {value}" for key, value in where(device, batch).items()), ""]
    lines.append(LINE.format("", "image", "img/s", "quartiles", "ConvNeXt over Swin", "paper, on an A100"))
    return lines


def line(speed: Speed) -> str:
    """A measured row."""
    between = "{:.1f}-{:.1f}".format(*speed.between)
    faster = "" if speed.over_swin is None else f"{speed.over_swin:.2f}"
    return LINE.format(speed.label, f"{speed.side}²", f"{speed.rate:.1f}", between, faster, speed.paper)


def as_data(speeds: list[Speed], device: str, batch: int) -> dict[str, Any]:
    """The measured rows as plain data."""
    return {"place": where(device, batch), "rows": [asdict(one) for one in speeds]}
