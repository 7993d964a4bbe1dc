"""Predictions as pictures, for the images of a data set and for any other image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.registry import FUNCTIONS, MODELS, VISUALIZERS, init_default_scope
from mmengine.structures import BaseDataElement
from torch import nn

from backbones.errors import UserError
from backbones.weights import read_checkpoint
from engine.runner import load_model

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
SCORE_THRESHOLD = 0.3


def draw_test_images(runner: Any, folder: Path, count: int) -> None:
    """Draw truth and prediction side by side for images spread evenly over the test set.

    Args:
        runner: A runner that has tested; its model holds the weights.
        folder: Where ``000012.png``... go, by place in the data set.
        count: How many.
    """
    dataset = runner.test_dataloader.dataset
    folder.mkdir(parents=True, exist_ok=True)
    runner.visualizer.dataset_meta = dataset.metainfo
    collate = runner.test_dataloader.collate_fn
    for index in np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int)).tolist():
        sample = predict(runner.model, dataset[index], collate)
        _draw(runner.visualizer, sample, folder / f"{index:06d}.png", truth=True)


@torch.no_grad()
def predict(model: nn.Module, item: dict[str, Any], collate: Any) -> BaseDataElement:
    """Run a model on one item of a data set."""
    model.eval()
    return model.test_step(collate([item]))[0]  # type: ignore[operator]


def load_predictor(cfg: Config, checkpoint: str, averaged: bool, device: str) -> tuple[nn.Module, Any]:
    """Build the model of a resolved config with its trained weights, and the drawing for its task.

    Returns:
        The model in evaluation mode, and the visualizer.
    """
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.pop("weights", None)
    model = MODELS.build(cfg.model)
    print(load_model(model, read_checkpoint(checkpoint), checkpoint, averaged))
    visualizer = VISUALIZERS.build({**cfg.visualizer, "vis_backends": None, "name": "predict"})
    visualizer.dataset_meta = dict(cfg.test_dataloader.dataset.metainfo)
    return model.to(device).eval(), visualizer


def predict_images(
    cfg: Config, model: nn.Module, visualizer: Any, images: list[Path], out: Path
) -> Iterator[Path]:
    """Predict images one by one and draw each.

    Args:
        cfg: Resolved config; its test pipeline without the loading of labels is used.
        model: From :func:`load_predictor`.
        visualizer: Likewise.
        images: Files.
        out: Folder of the drawings.

    Yields:
        The file of each drawing.
    """
    steps = [
        step
        for step in cfg.test_dataloader.dataset.pipeline
        if not step["type"].startswith("Load") or "Image" in step["type"]
    ]
    pipeline = Compose([ConfigDict(step) for step in steps])
    collate = FUNCTIONS.get(cfg.test_dataloader.get("collate_fn", {"type": "pseudo_collate"})["type"])
    out.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        item = pipeline(
            {"img_path": str(image), "img_id": index, "reduce_zero_label": False, "seg_fields": []}
        )
        target = out / f"{image.stem}.png"
        _draw(visualizer, predict(model, item, collate), target, truth=False)
        yield target


def find_images(path: Path) -> list[Path]:
    """The image at a path, or all images directly in a folder.

    Raises:
        UserError: If there is none.
    """
    if path.is_file():
        return [path]
    images = sorted(p for p in path.glob("*") if p.suffix.lower() in IMAGE_SUFFIXES) if path.is_dir() else []
    if not images:
        raise UserError(
            f"{str(path)!r} is neither an image nor a folder with images ({', '.join(IMAGE_SUFFIXES)})"
        )
    return images


def _draw(visualizer: Any, sample: BaseDataElement, target: Path, truth: bool) -> None:
    image = mmcv.imread(sample.img_path, channel_order="rgb")
    options = {"pred_score_thr": SCORE_THRESHOLD} if "pred_instances" in sample else {}
    visualizer.add_datasample(
        target.stem, image, sample.cpu(), draw_gt=truth, draw_pred=True, out_file=str(target), **options
    )
