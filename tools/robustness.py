"""Evaluate robustness: ``python tools/robustness.py CONFIG CHECKPOINT --suites clean c a r sketch [--data ROOT]``.

The suites of Table 2.8 and others for classifiers of ImageNet-1K; ``c`` and ``cbar`` for any model on its own test
data, whose images are then corrupted on the fly. An interrupted evaluation goes on with the same command.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import add_launch_options, add_trust_option, add_weights_options, config_parser, run_tool

SUITES = "clean, c, cbar, a, r, sketch, v2, real, objectnet, shape, resolution"


def main() -> None:
    """Parse the arguments, resolve the config, evaluate, print the tables."""
    parser = config_parser("Evaluate the robustness of a checkpoint.")
    parser.add_argument("checkpoint")
    parser.add_argument("--suites", nargs="+", default=["clean", "c"], help=f"any of {SUITES} (default: clean c)")
    parser.add_argument(
        "--data", type=Path, default=Path("data/robustness"), help="folder of the suites (default: data/robustness)"
    )
    parser.add_argument(
        "--protocol",
        nargs="+",
        default=[],
        metavar="NAME",
        help="other ways of preprocessing or corrupting, NAME or SUITE=NAME: crop, warp, resize, authors, 16",
    )
    add_weights_options(parser)
    parser.add_argument("--work-dir", help="results in robustness/ (default: work_dirs/<config name>)")
    parser.add_argument("--no-data-check", action="store_true", help="evaluate suites that are incomplete")
    add_launch_options(parser)
    add_trust_option(parser)
    args = parser.parse_args()

    from mmengine.dist import is_main_process

    from analysis.robustness.run import RobustnessOptions, evaluate_robustness, result_lines
    from engine.run import evaluated_config

    resolved, launch = evaluated_config(
        args.config, args.cfg_options, args.work_dir, args.checkpoint, args.trust_checkpoint
    )
    asked = RobustnessOptions(
        suites=args.suites,
        root=args.data,
        protocols=args.protocol,
        averaged=args.ema,
        tta=args.tta,
        trust=args.trust_checkpoint,
        data_check=not args.no_data_check,
    )
    content = evaluate_robustness(resolved, launch, args.checkpoint, asked)
    if is_main_process():
        print(f"\n{result_lines(content)}")


if __name__ == "__main__":
    run_tool(main)
