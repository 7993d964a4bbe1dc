"""Time and memory of recomputing a share of the blocks: ``python tools/checkpointing.py NAME [--modes MODE ...]``."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import run_tool


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What gradient checkpointing costs in time and saves in memory.")
    parser.add_argument("name", metavar="NAME", help="a registered backbone")
    parser.add_argument("--shares", nargs="+", type=float, default=(0, 0.25, 0.5, 1), help="of recomputed blocks")
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=("eager", "plain", "compiled"),
        default=("eager", "compiled"),
        help="as chosen for the device, PyTorch's plain steps, torch.compile",
    )
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="images")
    parser.add_argument("--size", type=int, default=224, metavar="N", help="side in pixels")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="the last two by autocast")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU where there is one")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each setting")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write plain data too")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw time and memory against the share")
    args = parser.parse_args()

    import torch

    from analysis.benchmark.checkpointing import as_dict, as_text, chart, study
    from analysis.benchmark.networks import Request, check, place
    from backbones.errors import UserError
    from engine.report.run_dir import write_json

    if args.threads is not None:
        if args.threads < 1:
            raise UserError(f"--threads {args.threads}: a positive number is needed")
        torch.set_num_threads(args.threads)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    request = Request(args.name, True, args.batch, (args.size, args.size), args.dtype, device, rounds=args.rounds)
    check(request)
    points = study(request, args.shares, args.modes)
    where = place(request)
    print(as_text(request, points, where))
    if args.json:
        write_json(args.json, {"place": where, "points": as_dict(points)})
    if args.plot:
        chart(request, points, where).savefig(args.plot, dpi=110)


if __name__ == "__main__":
    run_tool(main)
