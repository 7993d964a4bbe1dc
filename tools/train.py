"""Train any config: ``python tools/train.py CONFIG [--work-dir DIR] [--resume] [--cfg-options k=v ...]``.

``--dry-run`` checks what a start checks and prints what would be done, with or without the data:
``python tools/train.py CONFIG --dry-run --gpus 32``.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from convnext_dense_signals import leave_on_signals

leave_on_signals()  # before anything else is imported

from pathlib import Path  # noqa: E402

from engine.cli import add_launch_options, add_trust_option, config_parser, run_tool  # noqa: E402


def main() -> None:
    """Parse the arguments, resolve the config, train."""
    parser = config_parser("Train a config.")
    parser.add_argument("--work-dir", help="checkpoints, logs and curves (default: work_dirs/<config name>)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the work directory")
    parser.add_argument(
        "--per-gpu-batch",
        metavar="N|auto",
        help="maximum images per process and forward pass, or 'auto' to measure it; the global batch stays",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check config and data, print plan, data paths and groups; start nothing"
    )
    parser.add_argument("--no-data-check", action="store_true", help="start without checking the data first")
    parser.add_argument("--gpus", type=int, metavar="N", help="with --dry-run: pretend to be launched on N GPUs")
    add_launch_options(parser)
    add_trust_option(parser)
    args = parser.parse_args()
    if args.gpus is not None and not args.dry_run:
        parser.error("--gpus is for --dry-run; tools/dist_train.sh CONFIG GPUS trains on several")

    from analysis.batch_size_finder import chosen_batch
    from analysis.dry_run import dry_run
    from analysis.schedules import review_schedules
    from analysis.standing import check_untrained, closing_lines, finished_line, obstacle, resumes
    from analysis.start_check import checked_plan
    from backbones.files import remove_partial_files
    from engine.config.load import load_config
    from engine.config.options import parse_options
    from engine.config.world import Launch
    from engine.run import train

    options = parse_options(args.cfg_options)
    if args.work_dir:
        options["work_dir"] = args.work_dir
    launch = Launch.from_environment() if args.gpus is None else Launch.on_gpus(args.gpus)
    resume = resumes(args.resume)
    if args.per_gpu_batch:
        options |= chosen_batch(args.per_gpu_batch, args.config, options, launch, not args.dry_run, resume)
    resolved = load_config(args.config, options, launch)
    is_main, data_check = os.environ.get("RANK", "0") == "0", not args.no_data_check
    folder = Path(resolved.cfg.work_dir)
    if args.dry_run and not is_main:
        return
    if args.dry_run:
        lines = dry_run(resolved, launch, data_check=data_check, trust=args.trust_checkpoint)
        if not resume and (line := obstacle(folder)):
            lines.append(f"note: {line}")
    elif resume and (line := finished_line(resolved.cfg)):
        if is_main:  # of a start that was killed while it wrote its last files
            remove_partial_files(folder)
        lines = [line]
    else:
        if not resume:
            check_untrained(folder)
        train(resolved, launch, resume, data_check, args.trust_checkpoint, review_schedules, checked_plan)
        lines = closing_lines(resolved.cfg)
    if is_main:
        print("\n".join(lines))


if __name__ == "__main__":
    run_tool(main)
