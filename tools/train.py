"""Train any config: ``python tools/train.py CONFIG [--work-dir DIR] [--resume] [--cfg-options k=v ...]``."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import run_tool


def main() -> None:
    """Parse, resolve, hand over."""
    parser = argparse.ArgumentParser(description="Train a config.")
    parser.add_argument("config")
    parser.add_argument("--work-dir", help="checkpoints, logs and curves (default: work_dirs/<config name>)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the work directory")
    parser.add_argument("--launcher", choices=["none", "pytorch"], default="none", help="set by the launch scripts")
    parser.add_argument(
        "--cfg-options", nargs="+", metavar="KEY=VALUE", help="override settings, such as batch.size=64"
    )
    args = parser.parse_args()

    from engine.resolve import Launch, load_config, parse_options
    from engine.run import train

    options = parse_options(args.cfg_options)
    if args.work_dir:
        options["work_dir"] = args.work_dir
    launch = Launch.from_environment()
    train(load_config(args.config, options, launch), launch, args.resume)


if __name__ == "__main__":
    run_tool(main)
