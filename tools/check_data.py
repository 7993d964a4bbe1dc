"""Check the data of a config: ``python tools/check_data.py CONFIG [--full] [--json FILE] [--cfg-options k=v ...]``.

Exit code 0 when nothing is wrong (warnings may be printed), 1 when there are errors, 2 when it could not be checked.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import config_parser, run_tool


def main() -> None:
    """Check the data, print a screen of findings at most and write all of them to a file."""
    parser = config_parser("Check the data of a config.")
    parser.add_argument("--full", action="store_true", help="decode every image and read the values of all labels")
    parser.add_argument("--json", metavar="FILE", help="write every finding (default: check_data.json in the work_dir)")
    parser.add_argument("--splits", nargs="+", choices=["train", "val", "test"], default=["train", "val", "test"])
    parser.add_argument("--seconds", type=float, metavar="N", help="stop inspecting files after this time")
    parser.add_argument("--workers", type=int, metavar="N", help="number of processes (default: one for each core)")
    args = parser.parse_args()
    if args.workers is not None and args.workers < 1:
        parser.error("--workers: at least 1")

    from engine.config.load import load_config
    from engine.config.options import parse_options
    from engine.data.check import check_datasets
    from engine.data.preflight import check_data_paths
    from engine.report.run_dir import write_result

    cfg = load_config(args.config, parse_options(args.cfg_options), training=False).cfg
    splits = [split for split in args.splits if cfg.get(f"{split}_dataloader")]
    check_data_paths(cfg, tuple(splits))
    result = check_datasets(cfg, splits, args.full, args.seconds, args.workers, progress=True)
    # Not data_check.json, which is that of a training.
    path = Path(args.json or Path(cfg.work_dir) / "check_data.json")
    if result.findings or args.json:
        write_result(path, {"config": args.config, "full": args.full, **result.to_dict()})
    print("\n".join(result.to_lines(str(path))), flush=True)
    if result.errors:
        sys.exit(1)


if __name__ == "__main__":
    run_tool(main)
