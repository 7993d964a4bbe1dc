"""Parts of a detector's work beside others': ``python tools/detection_speed.py [evaluation masks step] [--rounds N]``.

Exit code 1 if two sides give different results; nothing is measured then.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import run_tool

MISMATCH = 1
WORK = ("evaluation", "masks", "step")
CONFIG = Path(__file__).resolve().parents[1] / "configs/detection/mask_rcnn_convnext_tiny_coco_3x.py"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure evaluation, masks and the training step beside mmdet's.")
    parser.add_argument("work", nargs="*", metavar="WORK", help=f"any of {', '.join(WORK)} (default: all)")
    parser.add_argument("--images", type=int, default=1000, help="of the evaluation")
    parser.add_argument("--config", default=str(CONFIG), help="of the step: a detector on a ConvNeXt that timm has")
    parser.add_argument("--batch", type=int, default=1, help="images of the step")
    parser.add_argument(
        "--shape", nargs=2, type=int, default=(800, 1333), metavar=("H", "W"), help="of masks and step, in pixels"
    )
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the step, by autocast")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="of the step (default: a GPU where there is one)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write plain data too")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = parse()

    from backbones.errors import UserError

    unknown = set(args.work) - {*WORK}
    if unknown:
        raise UserError(f"{', '.join(sorted(unknown))}: choose from {', '.join(WORK)}")
    for option, value in (("--images", args.images), ("--threads", args.threads)):
        if value is not None and value < 1:
            raise UserError(f"{option} {value}: a positive number is needed")

    import torch

    from analysis.benchmark.networks import MismatchError, Request, check, place
    from engine.report.run_dir import write_json

    if args.threads:
        torch.set_num_threads(args.threads)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    request = Request(args.config, True, args.batch, tuple(args.shape), args.dtype, device, rounds=args.rounds)
    check(request)

    from analysis.benchmark import detection as speed

    measures = {
        "evaluation": lambda: (speed.compare_evaluation(args.images, args.rounds),),
        "masks": lambda: speed.compare_masks(request.shape, args.rounds),
        "step": lambda: (speed.compare_step(request),),
    }
    where = place(request)
    print("\n".join(f"{key}: {value}" for key, value in where.items()))
    comparisons: list[speed.Comparison] = []
    try:
        for work in args.work or WORK:
            for found in measures[work]():
                comparisons.append(found)
                print(f"\n{found}", flush=True)
    except MismatchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(MISMATCH)
    if args.json:
        write_json(args.json, {"place": where, "comparisons": [one.as_dict() for one in comparisons]})


if __name__ == "__main__":
    run_tool(main)
