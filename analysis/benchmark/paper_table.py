"""Table 2.12 on the present device: each ConvNeXt in turns with the Swin that the paper compares it with.

The networks differ, and so do their outputs: nothing is compared before the times are taken.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from analysis.benchmark.request import BenchmarkRequest, benchmark_environment
from analysis.benchmark.timing import rates, ratios, synchronize, take_turns
from analysis.paper.printed import TABLES, PaperRow
from backbones.registry import build_backbone

SPEED_TABLE = "2.12"
CPU_BATCH, GPU_BATCH, DEFAULT_ROUNDS = 2, 64, 5
_ROW = "{:14} {:>6} {:>10} {:>15} {:>20} {:>18}"


@dataclass(frozen=True)
class MeasuredRow:
    """A row of the table, measured here.

    Attributes:
        label: Name of the network as printed.
        network: Registered name of the network.
        side: Side of the images in pixels.
        rate: Images per second, by the median round.
        between: First and third quartile of the rate.
        over_swin: Speedup over the Swin of its pair, by the median round; ``None`` without one.
        paper: Images per second that the paper measured on an A100.
    """

    label: str
    network: str
    side: int
    rate: float
    between: tuple[float, float]
    over_swin: float | None
    paper: str

    def as_text(self) -> str:
        """The row as a line for people."""
        between = "{:.1f}-{:.1f}".format(*self.between)
        faster = "" if self.over_swin is None else f"{self.over_swin:.2f}"
        return _ROW.format(self.label, f"{self.side}²", f"{self.rate:.1f}", between, faster, self.paper)


def compared_rows() -> Iterator[tuple[PaperRow, ...]]:
    """Rows that are timed in turns: Swin and ConvNeXt of one size, or a ConvNeXt alone."""
    swin: tuple[PaperRow, ...] = ()
    for row in TABLES[SPEED_TABLE].rows:
        if row.label.startswith("Swin"):
            swin = (row,)
        else:
            yield (*swin, row)
            swin = ()


def measure_paper_table(
    device: str, batch: int, rounds: int = DEFAULT_ROUNDS, clock: Callable[[], float] = time.perf_counter
) -> Iterator[MeasuredRow]:
    """Measure pair after pair, in float32 and inference, as the paper did.

    Args:
        device: ``cpu`` or ``cuda``.
        batch: Images of a step.
        rounds: Number of turns of each network of a pair.
        clock: Function that returns the present time in seconds.
    """
    for rows in compared_rows():
        steps = {row.label: _inference_step(row, device, batch) for row in rows}
        taken = take_turns(steps, rounds, lambda: synchronize(device), clock)
        for row in rows:
            seconds = taken[row.label]
            faster = statistics.median(ratios(seconds, taken[rows[0].label])) if row is not rows[0] else None
            assert row.network is not None
            yield MeasuredRow(row.label, row.network, row.shape[0], *rates(seconds, batch), faster, row.quoted[0])


def _inference_step(row: PaperRow, device: str, batch: int) -> Callable[[], object]:
    assert row.network is not None
    network = build_backbone(row.network).eval().to(device)
    images = torch.randn(batch, 3, *row.shape, device=device).contiguous(memory_format=torch.channels_last)

    def step() -> object:
        with torch.inference_mode():
            return network(images)

    step()
    return step


def paper_table_environment(device: str, batch: int) -> dict[str, str]:
    """Device, versions, date and batch, in words."""
    request = BenchmarkRequest(SPEED_TABLE, batch=batch, device=device)
    return benchmark_environment(request) | {"batch": str(batch), "layout": "channels_last"}


def paper_table_header(device: str, batch: int) -> list[str]:
    """Lines above the measured rows."""
    return [
        "Measured here, inference:",
        *(f"  {key}: {value}" for key, value in paper_table_environment(device, batch).items()),
        "",
        _ROW.format("", "image", "img/s", "quartiles", "ConvNeXt over Swin", "paper, on an A100"),
    ]
