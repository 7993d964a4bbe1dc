"""Look at the errors of a trained model: ``python tools/analyze.py CONFIG CHECKPOINT [--ema] [--tta] [--full]``.

``--from-predictions FILE`` in place of a checkpoint takes what ``tools/test.py --save-predictions`` has saved.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import add_launch_options, add_trust_option, add_weights_options, config_parser, run_tool


def _parser() -> argparse.ArgumentParser:
    parser = config_parser("Analyse the errors of a checkpoint, or of saved predictions: one page, and JSON.")
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument(
        "--from-predictions",
        type=Path,
        metavar="FILE",
        help="analyse predictions of tools/test.py --save-predictions, or a folder with predictions.zip",
    )
    parser.add_argument("--full", action="store_true", help="show all images with errors, at their own size")
    add_weights_options(parser)
    parser.add_argument("--work-dir", help="page in analysis/ (default: work_dirs/<config name>)")
    add_launch_options(parser)
    parser.add_argument("--no-data-check", action="store_true", help="start without checking the test data first")
    add_trust_option(parser)
    return parser


def main() -> None:
    """Parse the arguments, resolve the config, analyse, print where the page is."""
    args = _parser().parse_args()

    from analysis.errors import ErrorOptions, analyze_errors
    from backbones.errors import ConfigError, printable
    from engine.run import evaluated_config

    if (args.checkpoint is None) == (args.from_predictions is None):
        raise ConfigError("one of CHECKPOINT and --from-predictions FILE says what is analysed")
    if args.from_predictions and (args.ema or args.tta):
        raise ConfigError("--ema and --tta say how a checkpoint is tested: saved predictions are what they are")
    resolved, launch = evaluated_config(
        args.config, args.cfg_options, args.work_dir, args.checkpoint, args.trust_checkpoint
    )
    options = ErrorOptions(
        saved=args.from_predictions,
        averaged=args.ema,
        tta=args.tta,
        trust=args.trust_checkpoint,
        full=args.full,
        data_check=not args.no_data_check,
    )
    written = analyze_errors(resolved, launch, args.checkpoint, options)
    if written is not None:
        left_out = f", {written.left_out:,} more with --full" if written.left_out else ""
        print(f"{printable(written.path)}: {written.pictures:,} pictures{left_out}; the numbers are in errors.json")


if __name__ == "__main__":
    run_tool(main)
