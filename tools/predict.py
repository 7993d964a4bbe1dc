"""Draw predictions and write files of them: ``python tools/predict.py CONFIG CHECKPOINT IMAGES... [--format csv]``."""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import add_launch_options, add_trust_option, config_parser, run_tool


def _parser() -> argparse.ArgumentParser:
    parser = config_parser("Draw the predictions of a checkpoint.")
    parser.add_argument("checkpoint")
    parser.add_argument("images", type=Path, nargs="+", help="images, videos, or folders with images at any depth")
    parser.add_argument(
        "--out", type=Path, help="folder of the drawings (default: work_dirs/<config name>/predictions)"
    )
    parser.add_argument("--ema", action="store_true", help="use the averaged weights of the checkpoint")
    parser.add_argument(
        "--format",
        help="also write predictions to files: csv or json for classification; coco, json, csv, labelme or yolo for "
        "detection; png (labels), json, csv or labelme for segmentation; coco for panoptic segmentation",
    )
    parser.add_argument("--no-pictures", action="store_true", help="do not draw, write the files of --format alone")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="most images predicted at once (1)")
    parser.add_argument("--min-score", type=float, default=0.0, help="lowest score of an object in the files (0)")
    parser.add_argument("--probabilities", action="store_true", help="write the probabilities of all classes too")
    parser.add_argument("--no-data-check", action="store_true", help="predict images without checking them first")
    add_launch_options(parser)
    add_trust_option(parser)
    return parser


def main() -> None:
    """Parse, build, draw each image and write files; list those that were skipped and exit with code 2 for them."""
    args = _parser().parse_args()

    from backbones.channels import stated_channels
    from backbones.errors import printable
    from engine.config.world import Launch
    from engine.data.image_files import image_suffixes
    from engine.distributed.processes import start_processes
    from engine.prediction.folder import Output, SkippedImagesError, predict_images
    from engine.prediction.images import find_images, name_images, unread_images
    from engine.prediction.predictor import trained_config
    from engine.prediction.result_files import RESULTS
    from engine.prediction.visualize import load_predictor

    launch = Launch.from_environment()
    start_processes(launch)
    cfg = trained_config(args.config, args.checkpoint, args.cfg_options or (), launch, args.trust_checkpoint)
    suffixes, out = image_suffixes(stated_channels(cfg.test_dataloader.dataset.get("pipeline"))), args.out
    out = out or Path(cfg.work_dir) / "predictions"
    images = name_images(find_images(args.images, suffixes, out), args.images)
    unread = unread_images(args.images, suffixes, out)
    output = Output(
        out,
        args.format,
        pictures=not args.no_pictures,
        batch=args.batch,
        min_score=args.min_score,
        probabilities=args.probabilities,
        data_check=not args.no_data_check,
        source=args.checkpoint,
        rank=int(os.environ.get("RANK", 0)),
        processes=launch.processes,
    )
    output.check()
    model, visualizer = load_predictor(cfg, args.checkpoint, args.ema, launch.device, args.trust_checkpoint)
    try:
        for target in predict_images(cfg, model, visualizer, images, output, unread):
            print(printable(target))
        if args.format and not output.rank:
            print(f"--format {args.format}: in {printable(out / RESULTS)}")
    except SkippedImagesError as error:
        if len(images) + len(unread) > 1:
            for image, reason in error.skipped.items():
                print(f"skipped: {printable(image)}: {reason}", file=sys.stderr)
        raise


if __name__ == "__main__":
    run_tool(main)
