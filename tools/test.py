"""Evaluate a checkpoint: ``python tools/test.py CONFIG CHECKPOINT [--tta] [--ema] [--cfg-options k=v ...]``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import add_launch_options, add_trust_option, config_parser, run_tool


def main() -> None:
    """Parse the arguments, resolve the config, test, print the metrics."""
    parser = config_parser("Evaluate a checkpoint.")
    parser.add_argument("checkpoint")
    parser.add_argument("--tta", action="store_true", help="several scales and flips, where the config says how")
    parser.add_argument("--ema", action="store_true", help="evaluate the averaged weights of the checkpoint")
    parser.add_argument("--work-dir", help="results, and test/ for the log (default: work_dirs/<config name>)")
    parser.add_argument(
        "--format",
        help="also write predictions to files: csv for classification, coco (results format) for detection, "
        "png (labels) for segmentation",
    )
    add_launch_options(parser)
    parser.add_argument("--no-data-check", action="store_true", help="start without checking the test data first")
    add_trust_option(parser)
    args = parser.parse_args()

    from mmengine.dist import is_main_process

    from engine.run import evaluated_config, test

    resolved, launch = evaluated_config(
        args.config, args.cfg_options, args.work_dir, args.checkpoint, args.trust_checkpoint
    )
    options_of_test = (args.ema, args.tta, args.trust_checkpoint, args.format, not args.no_data_check)
    metrics = test(resolved, launch, args.checkpoint, *options_of_test)
    if is_main_process():
        for name, value in metrics.items():
            print(f"{name}: {value:.4g}")


if __name__ == "__main__":
    run_tool(main)
