"""Throughput of ours beside others, in turns: ``python tools/throughput.py NAME_OR_CONFIG [--train] [--peer all] ...``.

Exit code 1 if two sides compute different things; nothing is measured then.
"""

import argparse
import sys
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import run_tool

if TYPE_CHECKING:
    from analysis.benchmark.networks import Request, Result

MISMATCH = 1
CONFIG_BATCH, NETWORK_BATCH, NETWORK_SIZE = 1, 8, 224


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure a network beside its peers, or a config's whole model.")
    parser.add_argument("name", metavar="NAME_OR_CONFIG", help="a registered backbone, or a config file (.py)")
    parser.add_argument("--train", action="store_true", help="forward and backward instead of forward")
    parser.add_argument("--batch", nargs="+", type=int, metavar="N", help="images; several to see how it grows")
    parser.add_argument(
        "--size",
        nargs="+",
        type=int,
        metavar="N",
        help="side in pixels, one or several (default: 224; for a config the size of its task's papers)",
    )
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="the last two by autocast")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU where there is one")
    parser.add_argument(
        "--peer",
        choices=("timm", "timm-compiled", "torchvision", "all", "none"),
        default="timm",
        help="whom to measure beside ours; a config is measured beside plain PyTorch blocks",
    )
    parser.add_argument("--layout", choices=("contiguous", "channels_last"), help="for all sides (default: each one's)")
    parser.add_argument("--compile", action="store_true", help="compile ours too")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each side")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write plain data too")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw throughput against batch and size")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = parse()

    import torch

    from analysis.benchmark.models import measure_config
    from analysis.benchmark.networks import MismatchError, as_text, chart, measure
    from backbones.errors import UserError
    from engine.report.run_dir import write_json

    if args.threads is not None:
        if args.threads < 1:
            raise UserError(f"--threads {args.threads}: a positive number is needed")
        torch.set_num_threads(args.threads)
    results: list[Result] = []
    try:
        for request in requests(args):
            results.append((measure_config if request.name.endswith(".py") else measure)(request))
            print(as_text(results[-1]) + "\n", flush=True)
    except MismatchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(MISMATCH)
    if args.json:
        write_json(args.json, [result.as_dict() for result in results])
    if args.plot:
        chart(results).savefig(args.plot, dpi=150)


def requests(args: argparse.Namespace) -> "list[Request]":
    """One request for each batch and size."""
    import torch

    from analysis.benchmark.networks import Request, chosen_peers

    whole = args.name.endswith(".py")
    batches = args.batch or [CONFIG_BATCH if whole else NETWORK_BATCH]
    sizes = args.size or [0 if whole else NETWORK_SIZE]
    return [
        Request(
            args.name,
            args.train,
            batch,
            (size, size),
            args.dtype,
            args.device or ("cuda" if torch.cuda.is_available() else "cpu"),
            chosen_peers(args.peer),
            args.layout,
            args.compile,
            args.rounds,
        )
        for batch, size in product(batches, sizes)
    ]


if __name__ == "__main__":
    run_tool(main)
