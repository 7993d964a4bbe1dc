"""Speed of reading a classifier's training images, in turns: ``python tools/data_speed.py CONFIG [--peer all] ...``.

Exit code 1 if our images are not timm's; nothing is measured then.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import run_tool

MISMATCH = 1


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure the reading of a classifier's training data beside others.")
    parser.add_argument("config")
    parser.add_argument("--peer", choices=("timm", "torchvision", "all", "none"), default="timm")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read (default: this one)")
    parser.add_argument("--rounds", type=int, default=20, help="turns of each side")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write plain data too")
    parser.add_argument(
        "--cfg-options", nargs="+", metavar="KEY=VALUE", help="override settings, such as data_root=DIR"
    )
    args = parser.parse_args()
    if args.workers < 0:
        parser.error("--workers: 0 or more")
    if args.rounds < 1:
        parser.error("--rounds: at least 1")

    from analysis.benchmark.networks import MismatchError
    from engine.config.load import load_config, parse_options
    from engine.data.preflight import check_data_folders
    from engine.report.run_dir import write_json

    cfg = load_config(args.config, parse_options(args.cfg_options), training=False).cfg
    check_data_folders(cfg, ("train",))

    from analysis.benchmark.loading import PEERS, measure

    peers = {"all": PEERS, "none": ()}.get(args.peer, (args.peer,))
    try:
        found = measure(cfg, peers, args.workers, args.rounds)
    except MismatchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(MISMATCH)
    print(found.as_text(), flush=True)
    if args.json:
        write_json(args.json, found.as_dict())


if __name__ == "__main__":
    run_tool(main)
