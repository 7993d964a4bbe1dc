"""Look at what the network will get: ``python tools/browse.py CONFIG [--split S] [--n N] [--classes NAME ...]``.

One self-contained page: images beside what the network gets of them, classes, sizes, rates; what is odd is printed too.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import config_parser, run_tool


def main() -> None:
    """Read and augment some images, write the page, print what is odd."""
    parser = config_parser("Write a page with what the network gets of a config's data.")
    parser.add_argument("--split", choices=["train", "val", "test"], default="train", help="data to look at (train)")
    parser.add_argument("--n", type=int, default=8, metavar="N", help="number of images (8)")
    parser.add_argument("--classes", nargs="+", default=[], metavar="NAME", help="images with one of these classes")
    parser.add_argument("--out", type=Path, metavar="FILE", help="page (browse_SPLIT.html in the work directory)")
    args = parser.parse_args()
    if args.n < 1:
        parser.error("--n: at least 1")

    from analysis.browse import browse
    from backbones.errors import ConfigError
    from engine.config.load import load_config
    from engine.config.options import parse_options
    from engine.config.world import Launch
    from engine.data.preflight import check_data_paths

    launch = Launch.from_environment()
    resolved = load_config(args.config, parse_options(args.cfg_options), launch, training=args.split == "train")
    if not resolved.cfg.get(f"{args.split}_dataloader"):
        raise ConfigError(f"--split {args.split}: the config has no {args.split}_dataloader")
    check_data_paths(resolved.cfg, (args.split,))
    page = args.out or Path(resolved.cfg.work_dir) / f"browse_{args.split}.html"
    looked, odd = browse(resolved, launch, args.split, args.n, args.classes, page)
    print("\n".join([*looked, *(f"WARNING: {line}" for line in odd), f"page: {page}"]))


if __name__ == "__main__":
    run_tool(main)
