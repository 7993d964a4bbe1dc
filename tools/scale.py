"""Depth and width for a budget: ``python tools/scale.py --gflops 8 --ratio 1:1:9:1`` prints a backbone for a config."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import run_tool


def main() -> None:
    """Find the shape and print it as a config line."""
    parser = argparse.ArgumentParser(description="ConvNeXt of the family's proportions for a budget.")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--gflops", type=float, help="billions of multiply-adds at --side pixels")
    budget.add_argument("--params", type=float, help="millions of parameters, with a head of 1,000 classes")
    parser.add_argument("--ratio", default="1:1:3:1", help="blocks of the stages, 1:1:3:1 (default) or 1:1:9:1")
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--blocks", type=int, help="blocks of the first stage (default 3); the width is found")
    given.add_argument("--width", type=int, help="channels of the first stage; the depth is found")
    parser.add_argument("--kernel-size", type=int, default=7, help="side of the depthwise kernels (default 7)")
    parser.add_argument(
        "--expansion", dest="mlp_ratio", type=float, default=4.0, help="width of the MLP over the channels (default 4)"
    )
    parser.add_argument("--side", type=int, default=224, help="side of the image in pixels (default 224)")
    args = parser.parse_args()

    from backbones.scaling import shape_for_budget

    shape = shape_for_budget(**vars(args))
    changed = [
        f"{key}={getattr(shape, key):g}"
        for key, default in (("kernel_size", 7), ("mlp_ratio", 4.0))
        if getattr(shape, key) != default
    ]
    options = ", ".join(['type="convnext_tiny"', f"depths={shape.depths}", f"dims={shape.dims}", *changed])
    print(f"backbone=dict({options})")
    cost = f"{shape.params() / 1e6:.2f} M parameters, {shape.flops(args.side) / 1e9:.3f} G multiply-adds"
    print(f"{cost} at {args.side} x {args.side}, {sum(shape.depths)} blocks")


if __name__ == "__main__":
    run_tool(main)
