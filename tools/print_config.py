"""Print a config as it will run: ``python tools/print_config.py CONFIG [--cfg-options k=v ...]``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import config_parser, run_tool


def main() -> None:
    """Resolve for the present machine and print."""
    args = config_parser("Print a resolved config.").parse_args()

    import engine.training  # noqa: F401 (registers the loops and hooks, whose arguments an option may drop)
    from engine.config.load import load_config
    from engine.config.options import parse_options

    resolved = load_config(args.config, parse_options(args.cfg_options))
    print(resolved.cfg.pretty_text)
    for line in (str(resolved.plan), *resolved.notes):
        print(f"# {line}")


if __name__ == "__main__":
    run_tool(main)
