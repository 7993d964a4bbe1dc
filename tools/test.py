"""Evaluate a checkpoint: ``python tools/test.py CONFIG CHECKPOINT [--tta] [--ema] [--cfg-options k=v ...]``."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import add_launch_options, add_trust_option, add_weights_options, config_parser, run_tool


def _parser() -> argparse.ArgumentParser:
    parser = config_parser("Evaluate a checkpoint.")
    parser.add_argument("checkpoint", nargs="?")
    add_weights_options(parser)
    parser.add_argument("--work-dir", help="results, and test/ for the log (default: work_dirs/<config name>)")
    parser.add_argument(
        "--format",
        help="also write predictions to files, in the formats of tools/predict.py, such as csv, json, coco or png",
    )
    parser.add_argument(
        "--format-only", action="store_true", help="predict test images without annotations for an evaluation server"
    )
    parser.add_argument(
        "--save-predictions", type=Path, metavar="FILE", help="save the predictions, to score them again"
    )
    parser.add_argument(
        "--from-predictions", type=Path, metavar="FILE", help="score saved predictions, not a checkpoint"
    )
    add_launch_options(parser)
    parser.add_argument("--no-data-check", action="store_true", help="start without checking the test data first")
    add_trust_option(parser)
    return parser


def main() -> None:
    """Parse the arguments, resolve the config, test, print the metrics."""
    args = _parser().parse_args()

    from mmengine.dist import is_main_process

    from backbones.errors import ConfigError, printable
    from engine.run import evaluated_config, rescore, test, write_submission

    if (args.checkpoint is None) == (args.from_predictions is None):
        raise ConfigError("one of CHECKPOINT and --from-predictions FILE says what is scored")
    if args.format_only and (args.format or args.save_predictions or args.from_predictions):
        raise ConfigError("--format-only writes the files for a server alone: leave out the other options about files")
    source, trust = args.checkpoint or "", args.trust_checkpoint
    resolved, launch = evaluated_config(args.config, args.cfg_options, args.work_dir, args.checkpoint, trust)
    if args.format_only:
        for path in write_submission(resolved, launch, source, args.ema, args.tta, trust):
            print(f"to upload: {printable(path)}")
        return
    if args.from_predictions:
        metrics = rescore(resolved, args.from_predictions)
    else:
        options_of_test = (args.ema, args.tta, trust, args.format, not args.no_data_check, args.save_predictions)
        metrics = test(resolved, launch, source, *options_of_test)
    if is_main_process():
        for name, value in metrics.items():
            print(f"{name}: {value:.4g}")


if __name__ == "__main__":
    run_tool(main)
