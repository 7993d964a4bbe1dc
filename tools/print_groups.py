"""Parameter groups of a config: ``python tools/print_groups.py CONFIG [--json] [--cfg-options k=v ...]``.

One line for each group, from the head down, with its peak rate; nothing is allocated and no data is read.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import config_parser, run_tool


def main() -> None:
    """Parse, build without memory, print."""
    parser = config_parser("Print a config's parameter groups: rates, weight decay, drop path.")
    parser.add_argument("--json", action="store_true", help="print data instead of a table")
    args = parser.parse_args()

    from engine.config.load import load_config
    from engine.config.options import parse_options
    from engine.config.world import Launch
    from engine.optim.param_groups import group_rows, group_table, groups_of_config
    from engine.planning.plan import build_on_meta

    cfg = load_config(args.config, parse_options(args.cfg_options), Launch()).cfg
    model = build_on_meta(cfg)
    rows = group_rows(model, groups_of_config(model, cfg.optim_wrapper), cfg.optim_wrapper.optimizer.lr)
    frozen = sum(param.numel() for param in model.parameters() if not param.requires_grad)
    if args.json:
        total = sum(row.params for row in rows) + frozen
        print(json.dumps({"groups": [asdict(row) for row in rows], "frozen": frozen, "params": total}, indent=2))
    else:
        print("\n".join(group_table(rows, frozen)))


if __name__ == "__main__":
    run_tool(main)
