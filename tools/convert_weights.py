"""Convert a ConvNeXt checkpoint: ``python tools/convert_weights.py IN OUT --to {ours,timm,torchvision,hf} [--ema]``.

The layout of IN is recognised; of a detector or segmentor the backbone is taken. With ``--to hf``, OUT may be a folder
for ``from_pretrained`` of Hugging Face transformers.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import add_trust_option, run_tool


def main() -> None:
    """Parse, convert, print the result."""
    parser = argparse.ArgumentParser(description="Write a checkpoint in the layout of another code base.")
    parser.add_argument("source", metavar="IN", help="path or URL, of any known layout; a folder of transformers")
    parser.add_argument("target", metavar="OUT", help=".safetensors or .pth file; with --to hf also a folder")
    parser.add_argument("--to", required=True, choices=["ours", "timm", "torchvision", "hf"], help="layout to write")
    parser.add_argument("--ema", action="store_true", help="convert the averaged weights of the checkpoint")
    add_trust_option(parser)
    args = parser.parse_args()

    from backbones.weights import convert_checkpoint

    print(convert_checkpoint(args.source, args.target, args.to, args.ema, args.trust_checkpoint))


if __name__ == "__main__":
    run_tool(main)
