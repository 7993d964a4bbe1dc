"""Count parameters and multiply-adds: ``python tools/flops.py NAME_OR_CONFIG [--shape H W] [--json]``.

Exit code 1 if an operator that multiplies matrices could not be counted, so that the number is too low.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import add_config_options, run_tool

if TYPE_CHECKING:
    from analysis.flops import Count


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description="Parameters and FLOPs (multiply-adds) of a network or a config.")
    parser.add_argument("network", metavar="NAME_OR_CONFIG", help="a registered backbone, or a config file (.py)")
    parser.add_argument(
        "--shape",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="image in pixels (default: 224 224; of a config that of its tests, as papers 800 1280 for (1333, 800))",
    )
    parser.add_argument("--json", action="store_true", help="print plain data instead")
    add_config_options(parser)
    args = parser.parse_args()

    from analysis.flops import count_backbone
    from backbones.errors import ConfigError

    shape = tuple(args.shape) if args.shape else None
    if args.network.endswith(".py"):  # a network alone does not wait for what reads configs
        from analysis.config_flops import count_config
        from engine.config.options import parse_options

        count = count_config(args.network, shape, parse_options(args.cfg_options))
    elif args.cfg_options:
        raise ConfigError(f"--cfg-options overrides a config's settings; {args.network} is a registered backbone")
    else:
        count = count_backbone(args.network, shape)
    print(json.dumps(count.as_dict(), indent=2) if args.json else describe(count))
    if count.heavy:
        print(f"error: the FLOPs are too low, no rule counts {', '.join(count.heavy)}", file=sys.stderr)
        sys.exit(1)


def describe(count: "Count") -> str:
    """The count for people to read."""
    width = max(len(part) for part in (*count.by_module, "parameters"))
    height, length = count.shape
    lines = [
        f"{count.name} at {height} x {length} (H x W): {count.parts}",
        f"{'parameters':{width}}  {count.params / 1e6:10.3f} M",
        f"{'FLOPs':{width}}  {count.flops / 1e9:10.3f} G multiply-adds",
        "",
    ]
    lines += [f"{part:{width}}  {n / 1e9:10.3f} G {n / count.flops:6.1%}" for part, n in count.by_module.items()]
    operators = ", ".join(f"{kind} {n / 1e9:.3f} G" for kind, n in count.by_operator.items())
    uncounted = ", ".join(f"{name} x {calls}" for name, calls in count.uncounted.items())
    return "\n".join([*lines, "", f"by operator: {operators}", f"uncounted: {uncounted or 'nothing'}"])


if __name__ == "__main__":
    run_tool(main)
