"""Look at what a trained network looks at: ``python tools/explain.py CONFIG CHECKPOINT [IMAGES ...] [--parts ...]``.

One self-contained page: class activation maps, feature maps, embeddings, feature collapse; its numbers as JSON too.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import add_trust_option, config_parser, run_tool


def _parser() -> argparse.ArgumentParser:
    parser = config_parser("Write a page with what a trained network looks at.")
    parser.add_argument("checkpoint")
    parser.add_argument("images", type=Path, nargs="*", help="images, or folders of them (default: test images)")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=["cam", "features", "embeddings", "collapse"],
        default=[],
        help="class activation maps, feature maps, nearest neighbours and a map of the test images, distance of the "
        "channels of each block (default: all that fit)",
    )
    parser.add_argument("--n", type=int, metavar="N", help="number of images (4, or as many as are named)")
    parser.add_argument(
        "--classes", nargs="+", default=[], metavar="NAME", help="classes whose activation maps are drawn"
    )
    parser.add_argument(
        "--stage",
        type=int,
        choices=[1, 2, 3, 4],
        help="stage of the activation maps (the last one with at least 6 x 6 positions)",
    )
    parser.add_argument(
        "--beside", nargs=2, metavar=("CONFIG", "CHECKPOINT"), help="another network, for the distance of the channels"
    )
    parser.add_argument("--ema", action="store_true", help="use the averaged weights of the checkpoints")
    parser.add_argument("--out", type=Path, metavar="FILE", help="page (explain.html in the work directory)")
    add_trust_option(parser)
    return parser


def main() -> None:
    """Load the networks, write the page, print where it is."""
    parser = _parser()
    args = parser.parse_args()
    if args.n is not None and args.n < 1:
        parser.error("--n: at least 1")

    from analysis.explain import ExplainOptions, explain
    from analysis.explain.network import TrainedNetwork
    from backbones.errors import printable
    from engine.prediction import load_model

    def load(config: str, checkpoint: str) -> TrainedNetwork:
        options = tuple(args.cfg_options or ())
        chosen = {"averaged": args.ema, "options": options, "trust": args.trust_checkpoint}
        return TrainedNetwork(load_model(config, checkpoint, **chosen))

    options = ExplainOptions(args.parts, args.images, args.n, args.classes, args.stage, args.out)
    options.check(args.beside is not None)
    network = load(args.config, args.checkpoint)
    beside = load(*args.beside) if args.beside else None
    page = explain(network, options, beside)
    print(f"page: {printable(page)}; the numbers are in {printable(page.with_suffix('.json').name)}")


if __name__ == "__main__":
    run_tool(main)
