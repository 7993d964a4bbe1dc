"""Export a network: ``python tools/export.py CONFIG_OR_NAME CHECKPOINT --format FORMAT``; see docs/export.md.

Each file is read back and compared with its source on random images and photographs; one that differs is not kept.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import add_config_options, add_trust_option, run_tool

if TYPE_CHECKING:
    from analysis.export.exporter import OutputDifference
    from analysis.export.source import SizeRange

FORMAT_NAMES = ("safetensors", "timm", "onnx", "torch_export")


def main() -> None:
    """Parse, load, export, print the result."""
    parser = argparse.ArgumentParser(
        description="Export a classifier, detector or segmentor, or the pyramid of a backbone."
    )
    parser.add_argument("network", metavar="CONFIG_OR_NAME", help="a config file (.py), or a registered backbone")
    parser.add_argument("checkpoint", help="of the config's model; for a name any checkpoint with that backbone")
    parser.add_argument("--format", choices=FORMAT_NAMES, help="default: as --out ends, .onnx for onnx")
    parser.add_argument("--out", type=Path, help="default: work_dirs/export/<network>_<kind>_<format>.<suffix>")
    parser.add_argument("--ema", action="store_true", help="export the averaged weights of the checkpoint")
    parser.add_argument("--images", type=Path, help="image or folder to compare on (default: two photographs)")
    parser.add_argument(
        "--out-indices", nargs="+", type=int, metavar="I", help="with a name: maps of these stages, not a classifier"
    )
    parser.add_argument(
        "--shape", nargs=2, type=int, metavar=("H", "W"), help="export for images of this size only (default: any size)"
    )
    add_config_options(parser)
    add_trust_option(parser)
    args = parser.parse_args()

    from analysis.export.exporter import check_export, export_network
    from analysis.export.formats import EXPORT_FORMATS, format_of
    from analysis.export.source import source_from_config, source_from_name
    from backbones.errors import ConfigError
    from engine.config.options import parse_options

    is_config, shape = args.network.endswith(".py"), tuple(args.shape) if args.shape else None
    if args.out_indices and is_config:
        raise ConfigError("--out-indices belongs to the name of a backbone: a config says itself what it gives")
    if args.cfg_options and not is_config:
        raise ConfigError("--cfg-options belongs to a config: a backbone that is named is built as it is")
    stem = Path(args.network).stem + ("_ema" if args.ema else "")
    chosen = args.format or format_of(args.out)
    out = args.out or Path("work_dirs/export") / f"{stem}_{chosen}{EXPORT_FORMATS[chosen].suffix}"
    check_export(chosen, out, args.checkpoint)
    if is_config:
        options = parse_options(args.cfg_options)
        source = source_from_config(args.network, args.checkpoint, args.ema, shape, options, args.trust_checkpoint)
    else:
        indices, trust = args.out_indices, args.trust_checkpoint
        source = source_from_name(args.network, args.checkpoint, args.ema, indices, shape, trust)
    print(f"{source.kind} of {source.name}, {source.weights}: gives {', '.join(source.outputs)}")
    done = export_network(source, chosen, out, args.images, args.shape is not None, lambda d: print(table(d)))
    heights, widths = map(words, done.input_sizes)
    count, any_count = (source.batch_size, "") if source.batch_size else ("N", "any N, ")
    print(f"takes normalised images ({count}, {source.channels}, H, W): {any_count}H {heights}, W {widths}")
    for note in done.notes:
        print(note)
    for path in done.files:
        print(path)


def table(differences: "Sequence[OutputDifference]") -> str:
    """Table of the differences."""
    lines = [f"{'compared on':13}{'N x H x W':18}{'output':10}{'max |a - b|':>12}{'of max |b|':>12}"]
    for one in differences:
        shape = " x ".join(map(str, one.shape))
        lines.append(f"{one.images:13}{shape:18}{one.output:10}{one.absolute:12.2e}{one.relative:12.2e}")
    return "\n".join(lines)


def words(size_range: "SizeRange") -> str:
    """A range of sizes in words."""
    smallest, largest = size_range
    if smallest == largest:
        return str(smallest)
    return f"{smallest} or more" if largest is None else f"{smallest} to {largest}"


if __name__ == "__main__":
    run_tool(main)
