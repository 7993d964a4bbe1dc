"""Make shards of class folders: ``python tools/make_shards.py SRC DST --size 256MB [--to wds|parquet]``.

SRC is a data set as of a classifier, with class folders in ``SRC/train``, ``SRC/val``, or in SRC itself. The same
images give the same bytes. A second call goes on where the first was stopped. ``data_root=DST`` trains from the shards.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import run_tool


def main() -> None:
    """Parse the command line, make the shards and print what was made."""
    parser = argparse.ArgumentParser(description="Make shards of class folders.")
    parser.add_argument("source", type=Path, metavar="SRC", help="folder of class folders, or of train, val, test")
    parser.add_argument("target", type=Path, metavar="DST", help="folder for the shards, empty or begun by this tool")
    parser.add_argument("--size", default="256MB", help="size of a shard, such as 256MB or 1GB (%(default)s)")
    parser.add_argument("--to", choices=["wds", "parquet"], default="wds", help="WebDataset tars, or parquet")
    parser.add_argument("--resize-short", type=int, metavar="N", help="shrink images whose short side is longer")
    parser.add_argument("--quality", type=int, default=95, metavar="Q", help="of JPEGs that were shrunk (%(default)s)")
    parser.add_argument("--workers", type=int, metavar="N", help="number of processes (default: one for each core)")
    args = parser.parse_args()

    from classification.make_shards import ShardSettings, make_shards
    from engine.data.stores.cache import parse_size

    settings = ShardSettings(args.to, parse_size(args.size, "--size"), args.resize_short, args.quality)
    for split, made in make_shards(args.source, args.target, settings, args.workers).items():
        print(f"{args.target}: {made.images:,} {split} images of {made.classes:,} classes in {made.shards:,} shards")
    print(f"train from them with --cfg-options data_root={args.target}")


if __name__ == "__main__":
    run_tool(main)
