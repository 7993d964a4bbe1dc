"""Write a config for your data: ``python tools/new_experiment.py TASK --data FOLDER --out configs/my.py``.

It looks at the folder, fills in the task's file of configs/examples/ and asks for what it cannot find.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import run_tool


def main() -> None:
    """Parse the arguments, look at the data, write the config, print what to do next."""
    parser = argparse.ArgumentParser(description="Write a config for data of your own.")
    parser.add_argument("task", choices=["classification", "detection", "segmentation"])
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="folder of the data")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="config to write, such as configs/my.py"
    )
    for option in ("--train", "--val", "--test"):
        parser.add_argument(option, metavar="NAME", help="folder or annotation file of this split, inside of --data")
    parser.add_argument(
        "--validation-split",
        type=float,
        metavar="SHARE",
        help="share of the training images to hold out where none are for validation (default: 0.2)",
    )
    parser.add_argument("--classes", metavar="NAME,NAME...|FILE", help="class names in order, or a file of them")
    parser.add_argument("--unlabelled", type=int, metavar="N", help='number in label images that means "not labelled"')
    parser.add_argument("--network", metavar="NAME", help="backbone (default: convnext_tiny)")
    parser.add_argument("--weights", metavar="FILE|URL|NAME", help="weights that it begins with (default: none)")
    parser.add_argument("--batch", type=int, metavar="N", help="images in a step (default: by the number of images)")
    parser.add_argument("--epochs", type=int, metavar="N", help="length (default: by the number of images)")
    args = parser.parse_args()
    for name in ("batch", "epochs"):
        if vars(args)[name] is not None and vars(args)[name] < 1:
            parser.error(f"--{name}: at least 1")
    if args.validation_split is not None and not 0 < args.validation_split < 1:
        parser.error("--validation-split: above 0 and below 1, such as 0.2")

    from analysis.own_data import Request, new_config
    from engine.config.classes import class_names

    names = args.classes.split(",") if args.classes else ()
    if args.classes and Path(args.classes).is_file():
        names = class_names(args.classes)
    if args.weights and Path(args.weights).is_file():
        args.weights = os.path.realpath(args.weights)  # as the data's folder: the config may be used from anywhere
    settings = {f"_{name}": vars(args)[name] for name in ("network", "weights", "batch", "epochs")}
    request = Request(
        data=args.data,
        splits={split: vars(args)[split] for split in ("train", "val", "test") if vars(args)[split]},
        classes=tuple(name.strip() for name in names if name.strip()) or None,
        unlabelled=args.unlabelled,
        settings={name: value for name, value in settings.items() if value is not None},
        validation_split=args.validation_split,
        ask=input if sys.stdin.isatty() else None,
    )
    print("\n".join(new_config(args.task, args.out, request)))


if __name__ == "__main__":
    run_tool(main)
