"""The paper's tables, counted here: ``python tools/tables.py [2.1|2.2|...|2.12|v2|all] [--markdown|--json]``.

Table 2.12 asked for by its number is measured too, on the present device; the printed throughput is that of an A100.
Exit code 1 if a count is neither the printed one nor explained.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import run_tool


def main() -> None:
    """Count, compare and print."""
    parser = argparse.ArgumentParser(description="Parameters and FLOPs of the paper's tables beside ours.")
    parser.add_argument(
        "table", nargs="?", default="all", help="2.1, 2.2, ..., v2 (its three tables), or all (default)"
    )
    style = parser.add_mutually_exclusive_group()
    style.add_argument("--markdown", action="store_true", help="print Markdown")
    style.add_argument("--json", action="store_true", help="print plain data")
    parser.add_argument("--batch", type=int, help="images, where throughput is measured (default: 2 on CPU, 64 on GPU)")
    parser.add_argument("--count-only", action="store_true", help="do not measure throughput")
    args = parser.parse_args()

    from analysis.benchmark.paper_table import SPEED_TABLE
    from analysis.paper.compare import compare_table, table_as_dict, table_as_text
    from analysis.paper.printed import TABLES

    off, data = [], []
    parts = [number for number in TABLES if args.table == "all" or f"{number}-".startswith(f"{args.table}-")]
    for number in parts or [args.table]:
        table, lines = compare_table(number)
        off += [f"{line.row.label} of Table {number}" for line in lines if not line.agrees]
        if args.json:
            data.append(table_as_dict(table, lines))
        else:
            print(table_as_text(table, lines, args.markdown) + "\n", flush=True)
    if args.table == SPEED_TABLE and not args.count_only:
        measured = measure_speed(args.batch, quiet=args.json)
        if args.json:
            data[0]["measured"] = measured
    if args.json:
        print(json.dumps(data, indent=2))
    if off:
        print(f"error: {len(off)} count{'s are' if len(off) > 1 else ' is'} off: {', '.join(off)}", file=sys.stderr)
        sys.exit(1)


def measure_speed(batch: int | None, quiet: bool) -> dict[str, Any]:
    """Measure the networks of Table 2.12 here; print each pair when it is done."""
    import torch

    from analysis.benchmark import paper_table
    from backbones.errors import ConfigError

    if batch is not None and batch < 1:
        raise ConfigError(f"--batch {batch}: a positive number is needed")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = batch or (paper_table.GPU_BATCH if device == "cuda" else paper_table.CPU_BATCH)
    if not quiet:
        print("\n".join(paper_table.paper_table_header(device, chosen)), flush=True)
    rows = []
    for row in paper_table.measure_paper_table(device, chosen):
        rows.append(row)
        if not quiet:
            print(row.as_text(), flush=True)
    return {"place": paper_table.paper_table_environment(device, chosen), "rows": [asdict(row) for row in rows]}


if __name__ == "__main__":
    run_tool(main)
