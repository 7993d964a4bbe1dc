"""The paper's tables reproduced: printed parameters and FLOPs beside those of our networks.

A parameter count agrees if it is the printed one at the printed precision, a FLOP count if it lies within 1 %. Where
the printed number cannot be met, the table's data states our number and the reason, and the count must be that number.
The roadmap's tables count convolutions and linear layers alone; by that rule every step of the roadmap must have the
printed digits, while the Swin at its end is held to 1 % like all others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from analysis.config_flops import count_config
from analysis.flops import Count, Shape, count_backbone
from analysis.paper.architectures import PRINTED_STAGES, stage_layers
from analysis.paper.printed import TABLES, ExplainedCount, PaperRow, PaperTable
from backbones.errors import ConfigError

_ROOT = Path(__file__).resolve().parents[2]
FLOPS_TOLERANCE = 0.01
MILLION, BILLION = 1e6, 1e9


@dataclass(frozen=True)
class CountComparison:
    """A printed number and ours, both in millions of parameters or billions of multiply-adds.

    Attributes:
        kind: ``params`` or ``flops``.
        printed: Number as printed; ``None`` where the paper has none.
        ours: Number counted here.
        explained: Explanation where the two are known to differ.
        exactly: True if the printed digits must be met.
    """

    kind: str
    printed: str | None
    ours: float
    explained: ExplainedCount | None = None
    exactly: bool = False

    @property
    def deviation(self) -> float | None:
        """Relative deviation of our number from the printed one."""
        return None if self.printed is None else self.ours / float(self.printed) - 1

    @property
    def agrees(self) -> bool:
        """Whether our number is the printed one, or the one that the explanation states."""
        if self.explained is not None:
            return _same_at_precision(self.ours, self.explained.ours)
        if self.printed is None or self.deviation is None:
            return True
        if self.exactly:
            return _same_at_precision(self.ours, self.printed)
        return abs(self.deviation) <= FLOPS_TOLERANCE


@dataclass(frozen=True)
class RowComparison:
    """A row with its counts.

    Attributes:
        row: Row as printed.
        counts: Parameters and FLOPs; empty for a network that is only quoted.
        uncounted_heavy: Names of matrix-multiplying operators without a counting rule: the FLOPs are too low.
        by_fvcore: Billions of multiply-adds by all of fvcore's rules, in tables that count fewer operators.
        stage_layers: Stem and stages in the notation of Table 2.9, in that table.
    """

    row: PaperRow
    counts: tuple[CountComparison, ...]
    uncounted_heavy: tuple[str, ...] = ()
    by_fvcore: float | None = None
    stage_layers: dict[str, str] | None = None

    @property
    def agrees(self) -> bool:
        """Whether all counts agree, none is too low for want of a rule, and the stages are the printed ones."""
        as_printed = self.stage_layers is None or self.stage_layers == PRINTED_STAGES[str(self.row.network)]
        return all(one.agrees for one in self.counts) and not self.uncounted_heavy and as_printed


def compare_table(number: str) -> tuple[PaperTable, list[RowComparison]]:
    """Count every network of a table.

    Args:
        number: Number of the table, a key of ``TABLES``.

    Raises:
        ConfigError: If there is no such table.
    """
    if number not in TABLES:
        raise ConfigError(f"no table {number!r}: choose from {', '.join(TABLES)}, all")
    table = TABLES[number]
    return table, [_line(table, row) for row in table.rows]


def _line(table: PaperTable, row: PaperRow) -> RowComparison:
    if row.network is None:
        return RowComparison(row, ())
    count = _count(row.network, row.shape, row.config)
    flops, by_fvcore = count.flops, None
    if table.products_only:
        # Swin's attention products are counted; norms are left out, as in the printed numbers.
        flops, by_fvcore = flops - count.by_operator.get("norm", 0), flops / BILLION
    params = CountComparison(
        "params", row.params, count.params / MILLION, _explained(table, row, "params"), exactly=True
    )
    exactly = table.products_only and row.network.startswith("roadmap")
    work = CountComparison("flops", row.flops, flops / BILLION, _explained(table, row, "flops"), exactly)
    stages = stage_layers(row.network) if table.architectures else None
    return RowComparison(row, (params, work), count.heavy, by_fvcore, stages)


def _explained(table: PaperTable, row: PaperRow, kind: str) -> ExplainedCount | None:
    return table.explained.get((row.label, row.shape[0], kind))


@cache
def _count(network: str, shape: Shape, config: str | None) -> Count:
    if config is None:
        return count_backbone(network, shape)
    backbone = {"_delete_": True, "type": network, "out_indices": (0, 1, 2, 3)}
    return count_config(_ROOT / config, shape, {"model.backbone": backbone})


def _same_at_precision(value: float, printed: str) -> bool:
    """Whether a number equals the printed one when rounded to as many digits."""
    return f"{value:.{len(printed.partition('.')[2])}f}" == printed


def table_as_dict(table: PaperTable, lines: list[RowComparison]) -> dict[str, Any]:
    """The table as plain data."""
    rows = []
    for line in lines:
        entry: dict[str, Any] = {
            "label": line.row.label,
            "group": line.row.group,
            "network": line.row.network,
            "config": line.row.config,
            "shape": list(line.row.shape),
            "quoted": dict(zip(_unique(table.quoted), line.row.quoted, strict=True)),
            "agrees": line.agrees,
        }
        if line.by_fvcore is not None:
            entry["flops_by_fvcore"] = line.by_fvcore
        for one in line.counts:
            entry[one.kind] = {
                "printed": None if one.printed is None else float(one.printed),
                "ours": one.ours,
                "deviation": one.deviation,
                "agrees": one.agrees,
                "explained": asdict(one.explained) if one.explained else None,
            }
        if line.stage_layers is not None:
            entry["architecture"] = line.stage_layers
        rows.append(entry)
    return {"table": table.number, "title": table.title, "notes": list(table.notes), "rows": rows}


def _unique(headings: tuple[str, ...]) -> Iterator[str]:
    """Headings made unique: Table 2.3 has AP50 for boxes and again for masks."""
    seen: list[str] = []
    for heading in headings:
        seen.append(heading)
        yield heading if seen.count(heading) == 1 else f"{heading} ({seen.count(heading)})"


def table_as_text(table: PaperTable, lines: list[RowComparison], markdown: bool = False) -> str:
    """The table for people, in aligned columns or in Markdown, with its notes below."""
    notes: list[str] = []
    fvcore = ["fvcore"] if table.products_only else []
    head = ["", "image", "params", "here", "FLOPs", "here", "deviation", *fvcore, *table.quoted]
    cells: list[list[str] | str] = []
    for group, under in groupby(lines, key=lambda line: line.row.group):
        cells += [*([group] if group else []), *(_cells(line, notes) for line in under)]
    body = _markdown(head, cells) if markdown else _aligned(head, cells)
    units = "params in millions, FLOPs in billions of multiply-adds; right of the counts: the paper's own results"
    lines_of_text = [f"Table {table.number}: {table.title}", "", *body, "", units]
    for line in lines:
        if line.stage_layers is not None:
            lines_of_text += ["", line.row.label, *(f"  {part}  {cell}" for part, cell in line.stage_layers.items())]
    lines_of_text += [f"[{i}] {note}" for i, note in enumerate(notes, start=1)]
    return "\n".join([*lines_of_text, *table.notes])


def _cells(line: RowComparison, notes: list[str]) -> list[str]:
    row = line.row
    image = f"{row.shape[0]}²" if row.shape[0] == row.shape[1] else f"{row.shape[1]}x{row.shape[0]}"
    if not line.counts:
        return [row.label, image, row.params or "", "", row.flops or "", "", "", *row.quoted]
    fvcore = [] if line.by_fvcore is None else [f"{line.by_fvcore:.3f}"]
    marks = {one.kind: _mark(one, notes) for one in line.counts}
    params, flops = line.counts
    if line.uncounted_heavy:
        marks["flops"] += f" TOO LOW: {', '.join(line.uncounted_heavy)}"
    return [
        row.label,
        image,
        row.params or "",
        f"{params.ours:.2f}{marks['params']}",
        row.flops or "",
        f"{flops.ours:.{3 if flops.ours < 10 else 2}f}{marks['flops']}",
        "" if flops.deviation is None else f"{flops.deviation:+.2%}",
        *fvcore,
        *row.quoted,
    ]


def _mark(one: CountComparison, notes: list[str]) -> str:
    if not one.agrees:
        return " OFF"
    if one.explained is None:
        return ""
    if one.explained.reason not in notes:
        notes.append(one.explained.reason)
    return f" [{notes.index(one.explained.reason) + 1}]"


def _markdown(head: list[str], cells: list[list[str] | str]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in cells:
        filled = [f"**{row}**", *[""] * (len(head) - 1)] if isinstance(row, str) else row
        lines.append("| " + " | ".join(filled) + " |")
    return lines


def _aligned(head: list[str], cells: list[list[str] | str]) -> list[str]:
    rows = [head, *(row for row in cells if not isinstance(row, str))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]

    def join(row: list[str]) -> str:
        first, *others = (cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        return "  ".join([first, *others]).rstrip()

    return [join(head), *(row if isinstance(row, str) else join(row) for row in cells)]
