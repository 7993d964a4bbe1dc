"""The paper's tables, made again: ``python tools/tables.py [2.1|2.2|...|2.12|v2|all] [--markdown|--json]``.

Exit code 1 if a count is neither the printed one nor explained.
"""

import argparse
import json
import sys
from pathlib import Path

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
    args = parser.parse_args()

    from engine.tables import as_data, as_text, compare, table_numbers

    off, data = [], []
    for number in table_numbers() if args.table == "all" else [args.table]:
        table, lines = compare(number)
        off += [f"{line.row.label} of Table {number}" for line in lines if not line.agrees]
        if args.json:
            data.append(as_data(table, lines))
        else:
            print(as_text(table, lines, args.markdown) + "\n", flush=True)
    if args.json:
        print(json.dumps(data, indent=2))
    if off:
        print(f"error: {len(off)} count{'s are' if len(off) > 1 else ' is'} off: {', '.join(off)}", file=sys.stderr)
        sys.exit(COUNT_IS_OFF)


if __name__ == "__main__":
    run_tool(main)
