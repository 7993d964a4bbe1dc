"""Draw predictions: ``python tools/predict.py CONFIG CHECKPOINT IMAGE_OR_FOLDER... [--out DIR]``."""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import add_trust_option, config_parser, run_tool


def main() -> None:
    """Parse, build, draw one picture for each image; list those that were skipped and exit with code 2 for them."""
    parser = config_parser("Draw the predictions of a checkpoint.")
    parser.add_argument("checkpoint")
    parser.add_argument("images", type=Path, nargs="+", help="images, or folders with images")
    parser.add_argument(
        "--out", type=Path, help="folder of the drawings (default: work_dirs/<config name>/predictions)"
    )
    parser.add_argument("--ema", action="store_true", help="use the averaged weights of the checkpoint")
    parser.add_argument(
        "--format",
        help="also write predictions to files: csv for classification, coco (results format) for detection, "
        "png (labels) for segmentation",
    )
    parser.add_argument("--no-data-check", action="store_true", help="predict images without checking them first")
    add_trust_option(parser)
    args = parser.parse_args()

    from backbones.channels import stated_channels
    from backbones.errors import ConfigError, printable
    from engine.checkpoint.model_weights import recorded_classes
    from engine.config.load import load_config
    from engine.config.options import parse_options
    from engine.config.world import Launch
    from engine.data.image_files import image_suffixes
    from engine.prediction.visualize import (
        RESULTS,
        SkippedImagesError,
        find_images,
        load_predictor,
        predict_images,
        unread_images,
    )

    launch = Launch.from_environment()
    if launch.processes > 1:  # each would draw all images, into the same files
        raise ConfigError(f"{launch.processes} processes: predict.py runs in one, without launcher and WORLD_SIZE")
    known = partial(recorded_classes, args.checkpoint, args.trust_checkpoint)
    cfg = load_config(args.config, parse_options(args.cfg_options), launch, known_classes=known).cfg
    suffixes = image_suffixes(stated_channels(cfg.test_dataloader.dataset.get("pipeline")))
    images, unread = find_images(args.images, suffixes), unread_images(args.images, suffixes)
    model, visualizer = load_predictor(cfg, args.checkpoint, args.ema, launch.device, args.trust_checkpoint)
    out = args.out or Path(cfg.work_dir) / "predictions"
    try:
        check = not args.no_data_check
        for target in predict_images(cfg, model, visualizer, images, out, args.format, check, unread):
            print(target)
        if args.format:
            print(f"--format {args.format}: in {printable(out / RESULTS)}")
    except SkippedImagesError as error:
        if len(images) + len(unread) > 1:
            for image, reason in error.skipped.items():
                print(f"skipped: {printable(image)}: {reason}", file=sys.stderr)
        raise


if __name__ == "__main__":
    run_tool(main)
