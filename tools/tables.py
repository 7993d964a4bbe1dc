"""The paper's tables, made again: ``python tools/tables.py [2.1|2.2|...|2.12|v2|all] [--markdown|--json]``.

Table 2.12 asked for by its number is measured too, on the present device; the printed throughput is that of an A100.
Exit code 1 if a count is neither the printed one nor explained.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import run_tool

COUNT_IS_OFF = 1


def main() -> None:
    """Count, compare and print."""
    parser = argparse.ArgumentParser(description="Parameters and FLOPs of the paper's tables beside ours.")
    parser.add_argument("table", nargs="?", default="all", help="2.1, 2.2, ..., v2, or all (default)")
    style = parser.add_mutually_exclusive_group()
    style.add_argument("--markdown", action="store_true", help="print Markdown")
    style.add_argument("--json", action="store_true", help="print plain data")
    parser.add_argument("--batch", type=int, help="images, where throughput is measured (default: 2 on CPU, 64 on GPU)")
    parser.add_argument("--count-only", action="store_true", help="do not measure throughput")
    args = parser.parse_args()

    from analysis.benchmark.paper_table import NUMBER
    from analysis.paper.compare import as_data, as_text, compare, table_numbers

    off, data = [], []
    for number in table_numbers() if args.table == "all" else [args.table]:
        table, lines = compare(number)
        off += [f"{line.row.label} of Table {number}" for line in lines if not line.agrees]
        if args.json:
            data.append(as_data(table, lines))
        else:
            print(as_text(table, lines, args.markdown) + "\n", flush=True)
    if args.table == NUMBER and not args.count_only:
        measured = measure(args.batch, quiet=args.json)
        if args.json:
            data[0]["measured"] = measured
    if args.json:
        print(json.dumps(data, indent=2))
    if off:
        print(f"error: {len(off)} count{'s are' if len(off) > 1 else ' is'} off: {', '.join(off)}", file=sys.stderr)
        sys.exit(COUNT_IS_OFF)


def measure(batch: int | None, quiet: bool) -> dict[str, Any]:
    """Measure the networks of Table 2.12 here; print each pair when it is done."""
    import torch

    from analysis.benchmark.paper_table import CPU_BATCH, GPU_BATCH, as_data, header, line, measure_table
    from backbones.errors import UserError

    if batch is not None and batch < 1:
        raise UserError(f"--batch {batch}: a positive number is needed")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = batch or (GPU_BATCH if device == "cuda" else CPU_BATCH)
    if not quiet:
        print("\n".join(header(device, chosen)), flush=True)
    speeds = []
    for speed in measure_table(device, chosen):
        speeds.append(speed)
        if not quiet:
            print(line(speed), flush=True)
    return as_data(speeds, device, chosen)


if __name__ == "__main__":
    run_tool(main)
