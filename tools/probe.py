"""Judge frozen features by k-NN and a linear classifier: ``python tools/probe.py CONFIG --cfg-options KEY=VALUE ...``.

CONFIG is a classifier's; ``model.backbone.weights=FILE`` says which backbone is judged. Nothing is written but --json.
"""

import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import config_parser, run_tool


def main() -> None:
    """Extract the features, judge and print."""
    parser = config_parser("Judge the frozen features of a classifier's backbone.")
    parser.add_argument("--neighbours", nargs="+", type=int, metavar="K", help="numbers of neighbours (10 20 100)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the result as JSON too")
    args = parser.parse_args()

    from classification.probe import NEIGHBOURS, probe
    from engine.config.load import load_config
    from engine.config.options import parse_options
    from engine.data.preflight import check_data_paths
    from engine.report.run_dir import write_result

    cfg = load_config(args.config, parse_options(args.cfg_options), training=False).cfg
    check_data_paths(cfg, ("train", "val"))
    result = probe(cfg, args.neighbours or NEIGHBOURS)
    print(result.as_text())
    if args.json:
        write_result(args.json, asdict(result))


if __name__ == "__main__":
    run_tool(main)
