"""Predictions as pictures, for the images of a data set and for any other image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.registry import FUNCTIONS, MODELS, VISUALIZERS, init_default_scope
from mmengine.structures import BaseDataElement, PixelData
from PIL import Image
from torch import Tensor, nn

from backbones.errors import UserError
from backbones.weights import read_checkpoint
from engine.checkpoint.model_weights import load_model, replace_checkpoint_loader
from engine.config.building import build
from engine.data.image_files import IMAGE_SUFFIXES

SCORE_THRESHOLD = 0.3
SHORT_SIDE = 480  # pixels that smaller images are enlarged to


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


def load_predictor(
    cfg: Config, checkpoint: str, averaged: bool, device: str, trust: bool = False
) -> tuple[nn.Module, Any]:
    """Build the model of a resolved config with its trained weights, and the drawing for its task.

    Returns:
        The model in evaluation mode, and the visualizer.
    """
    init_default_scope(cfg.default_scope)
    replace_checkpoint_loader(trust)
    cfg.model.backbone.pop("weights", None)
    model = build(MODELS, cfg.model, "model")
    meta = dict(cfg.test_dataloader.dataset.metainfo)
    print(load_model(model, read_checkpoint(checkpoint, trust), checkpoint, averaged, meta["classes"]))
    visualizer = VISUALIZERS.build({**cfg.visualizer, "vis_backends": None, "name": "predict"})
    visualizer.dataset_meta = meta
    return model.to(device).eval(), visualizer


def predict_images(cfg: Config, model: nn.Module, visualizer: Any, images: list[Path], out: Path) -> Iterator[Path]:
    """Predict images one by one and draw each.

    Args:
        cfg: Resolved config; its test pipeline without the loading of labels is used.
        model: From :func:`load_predictor`.
        visualizer: Likewise.
        images: Files.
        out: Folder of the drawings.

    Yields:
        The file of each drawing: ``<name>.png``, or ``<name with suffix>.png`` for images that share a name.

    Raises:
        UserError: If an image cannot be read, or the folder cannot be written or is that of the images.
    """
    steps = [
        step
        for step in cfg.test_dataloader.dataset.pipeline
        if not step["type"].startswith("Load") or "Image" in step["type"]
    ]
    pipeline = Compose([ConfigDict(step) for step in steps])
    collate = FUNCTIONS.get(cfg.test_dataloader.get("collate_fn", {"type": "pseudo_collate"})["type"])
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{str(out)!r} cannot be written: choose another folder with --out") from error
    if any(image.parent.samefile(out) for image in images):
        raise UserError(f"the drawings would overwrite the images in {str(out)!r}: choose another folder with --out")
    names = Counter(image.stem for image in images)
    for index, image in enumerate(images):
        _check_image(image)
        item = pipeline({"img_path": str(image), "img_id": index, "reduce_zero_label": False, "seg_fields": []})
        target = out / f"{image.stem if names[image.stem] == 1 else image.name}.png"
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
        raise UserError(f"{str(path)!r} is neither an image nor a folder with images ({', '.join(IMAGE_SUFFIXES)})")
    return images


def _check_image(path: Path) -> None:
    """What the pipelines of the three tasks say about a damaged file hardly tells that it is damaged."""
    try:
        with Image.open(path) as image:
            image.load()
    except Exception as error:  # Pillow raises many kinds for a damaged file
        raise UserError(f"{str(path)!r} cannot be read: it is damaged, or no image") from error


def _draw(visualizer: Any, sample: BaseDataElement, target: Path, truth: bool) -> None:
    image, sample = _enlarge(mmcv.imread(sample.img_path, channel_order="rgb"), sample.cpu())
    options = {"pred_score_thr": SCORE_THRESHOLD} if "pred_instances" in sample else {}
    visualizer.add_datasample(
        target.stem, image, sample, draw_gt=truth, draw_pred=True, out_file=str(target), **options
    )


def _enlarge(image: np.ndarray, sample: BaseDataElement) -> tuple[np.ndarray, BaseDataElement]:
    """Bring a small picture, with its boxes and masks, to a size at which labels can be read.

    Args:
        image: ``(H, W, 3)``.
        sample: With ``gt_instances``, ``pred_instances``, ``gt_sem_seg``, ``pred_sem_seg``, or none of them.
    """
    scale = round(SHORT_SIDE / min(image.shape[:2]))
    if scale < 2:
        return image, sample
    height, width = scale * image.shape[0], scale * image.shape[1]
    for name, field in list(sample.items()):
        if name.endswith("_instances"):
            if "bboxes" in field:  # not in the empty truth of an image that has none
                field.bboxes = field.bboxes * scale
            if isinstance(field.get("masks"), Tensor):
                field.masks = field.masks.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
            elif "masks" in field:
                field.masks = field.masks.resize((height, width))
        elif name.endswith("_sem_seg"):
            labels = field.data.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
            setattr(sample, name, PixelData(data=labels))  # the old one would refuse another size
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC), sample
