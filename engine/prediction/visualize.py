"""Predictions as pictures, for the images of a data set and for other images."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import cv2
import mmcv
import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.registry import FUNCTIONS, MODELS, VISUALIZERS, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils.data import DataLoader

from backbones.bands import as_picture
from backbones.channels import stated_channels
from backbones.files import atomic_write
from backbones.weights import read_checkpoint
from engine.checkpoint.model_weights import LOADER_SETTINGS, load_model_weights
from engine.config.building import build
from engine.data.image_files import read_bands, read_image_bytes
from engine.report.lettering import drawn_names, write_drawn_names
from engine.report.run_dir import DRAWN_AFTER, write_json
from engine.task import loads_image, task_of, transform_name

MAX_STEM_BYTES = 200  # of an image's name in that of a picture; file systems take 255 in all
MAX_ENLARGED_SIDE = 4096  # pixels, of an enlarged image
MAX_PICTURE_PIXELS = 12_000_000  # of a drawing; larger images are drawn at a smaller size
MIN_PICTURE_SIDE = 480  # pixels; smaller images are enlarged by an integer factor


def draw_test_images(runner: Runner, folder: Path, count: int) -> None:
    """Draw truth and prediction side by side for images spread evenly over the test set.

    Args:
        runner: Runner that has tested; its model holds the weights.
        folder: Folder for the pictures, see :func:`write_pictures`.
        count: Number of pictures.
    """
    write_pictures(runner, folder, predict_evenly(runner.model, runner.test_dataloader, count), runner.test_dataloader)


def predict_evenly(model: nn.Module, loader: DataLoader, count: int) -> dict[int, BaseDataElement]:
    """Predictions of images that are spread evenly over the data of a loader, by their index.

    Args:
        model: Model; one that is sharded needs the call in all processes.
        loader: Data loader.
        count: Number of images.
    """
    dataset: Any = loader.dataset
    return {index: predict(model, dataset[index], loader.collate_fn) for index in spread_evenly(len(dataset), count)}


def spread_evenly(total: int, count: int) -> list[int]:
    """Indices that are spread evenly over a data set, the first and the last among them.

    Args:
        total: Number of images of the data set.
        count: Number of indices, if there are as many images.
    """
    chosen: list[int] = np.unique(np.linspace(0, total - 1, min(count, total)).astype(int)).tolist()
    return chosen


def write_pictures(
    runner: Runner, folder: Path, samples: Mapping[int, BaseDataElement], loader: DataLoader, step: int | None = None
) -> None:
    """Draw predictions beside the truth, in place of what was drawn in a folder before.

    Args:
        runner: Runner whose visualizer draws.
        folder: Folder for the pictures, named by index in the data set and image: ``000012_street.png``.
        samples: Predictions by index.
        loader: Loader of their data.
        step: Optimizer step after which a validation predicted them; ``None`` for a test.
    """
    meta = cast(Any, loader.dataset).metainfo
    names = meta["classes"]
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in (*folder.glob("[0-9]*.png"), folder / DRAWN_AFTER):
        earlier.unlink(missing_ok=True)
    runner.visualizer.dataset_meta = {**meta, "classes": drawn_names(names)}
    if line := write_drawn_names(names, folder):
        runner.logger.warning(line)
    for index, sample in samples.items():
        target = folder / _picture_name(index, sample.img_path)
        draw_sample(runner.cfg, runner.visualizer, sample, target, truth=True)
    if step is not None:
        write_json(folder / DRAWN_AFTER, {"step": step})


def _picture_name(index: int, image: str) -> str:
    stem = Path(image).stem.encode(errors="replace")[:MAX_STEM_BYTES].decode(errors="ignore")
    return f"{index:06d}_{stem}.png"


def predict(model: nn.Module, item: dict[str, Any], collate: Any) -> BaseDataElement:
    """Run a model on one item of a data set."""
    return predict_batch(model, [item], collate)[0]


@torch.no_grad()
def predict_batch(model: nn.Module, items: list[Any], collate: Any) -> list[BaseDataElement]:
    """Run a model on items of a data set at once."""
    model.eval()
    answers: list[BaseDataElement] = model.test_step(collate(items))  # type: ignore[operator]
    return answers


def load_predictor(
    cfg: Config, checkpoint: str, averaged: bool, device: str, trust: bool = False
) -> tuple[nn.Module, Any]:
    """Build the model of a resolved config with its trained weights, and the visualizer of its task.

    Args:
        cfg: Resolved config.
        checkpoint: Path or URL of a checkpoint of the whole model.
        averaged: Load the averaged weights (EMA).
        device: Device of the model.
        trust: Execute code that the checkpoint asks for.

    Returns:
        The model in evaluation mode, and the visualizer.
    """
    init_default_scope(cfg.default_scope)
    LOADER_SETTINGS.trust = trust
    cfg.model.get("module", cfg.model).backbone.pop("weights", None)  # with or without test-time augmentation
    model = build(MODELS, cfg.model, "model")
    meta = dict(cfg.test_dataloader.dataset.metainfo)
    print(load_model_weights(model, read_checkpoint(checkpoint, trust), checkpoint, averaged, meta["classes"]))
    visualizer = VISUALIZERS.build({**cfg.visualizer, "vis_backends": None, "name": f"predict {checkpoint}"})
    visualizer.dataset_meta = {**meta, "classes": drawn_names(meta["classes"])}
    return model.to(device).eval(), visualizer


def _picture_size(height: int, width: int) -> tuple[int, int]:
    """Height and width at which an image is drawn, of the same shape."""
    factor = min(1.0, math.sqrt(MAX_PICTURE_PIXELS / (height * width)))
    return max(1, round(factor * height)), max(1, round(factor * width))


def reduced_item(item: dict[str, Any]) -> dict[str, Any]:
    """Have boxes, masks and labels of a large image come out at the size of its drawing.

    The network sees the same pixels. At 81 megapixels, pasting 100 masks and drawing them would take minutes and 14 GB.

    Args:
        item: Item of mmdet's or mmseg's data set; any other, and that of a smaller image, is returned as it is.
    """
    sample = item.get("data_samples")
    stated = sample.get("ori_shape") if sample is not None else None
    if sample is None or stated is None or (size := _picture_size(*stated[:2])) == tuple(stated[:2]):
        return item
    (height, width), scale = stated[:2], sample.get("scale_factor", (1.0, 1.0))
    smaller = sample.clone()
    scale_factor = (scale[0] * width / size[1], scale[1] * height / size[0])
    smaller.set_metainfo({"ori_shape": size, "scale_factor": scale_factor})
    return {**item, "data_samples": smaller}


def without_labels(steps: Sequence[Any]) -> list[Any]:
    """The steps of a pipeline but those that load labels, also within test-time augmentation."""
    kept = []
    for step in steps:
        if isinstance(step.get("transforms"), list | tuple) and all(
            isinstance(one, list) for one in step["transforms"]
        ):
            branches = [without_labels(one) for one in step["transforms"]]
            kept.append(ConfigDict({**step, "transforms": [one for one in branches if one]}))
        elif loads_image(step) or not transform_name(step).startswith("Load"):
            kept.append(step)
    return kept


def image_reader(cfg: Config) -> tuple[Callable[[str, int], Any], Callable[[list[Any]], Any]]:
    """What reads an image without labels for a model, and what makes a batch of such items.

    Args:
        cfg: Resolved config.

    Returns:
        The test pipeline without the steps that load labels, which gets the path of an image and its id, and the
            collate function of the test data.
    """
    fields, kept = task_of(cfg).image_fields, without_labels(cfg.test_dataloader.dataset.pipeline)
    pipeline = Compose([ConfigDict(step) for step in kept])

    def read(path: str, image_id: int) -> Any:
        return pipeline({"img_path": path, "img_id": image_id, **copy.deepcopy(dict(fields))})

    return read, FUNCTIONS.get(cfg.test_dataloader.get("collate_fn", {"type": "pseudo_collate"})["type"])


def draw_sample(
    cfg: Config,
    visualizer: Any,
    sample: BaseDataElement,
    target: Path,
    truth: bool,
    change: Callable[[np.ndarray], np.ndarray] | None = None,
) -> None:
    """Draw a sample on its image; a small image is enlarged to a size at which labels can be read.

    Args:
        cfg: Resolved config.
        visualizer: Visualizer of the task.
        sample: Prediction, with the path of its image.
        target: File of the drawing.
        truth: Whether the annotations are drawn beside the prediction.
        change: Change of the image, RGB (H, W, 3), that had been predicted on; ``None`` for none.
    """
    image = read_picture(cfg, sample.img_path)
    draw_on(cfg, visualizer, sample, image if change is None else change(image), target, truth)


def read_picture(cfg: Config, path: str) -> np.ndarray:
    """Read an image as people see it, RGB, uint8, (H, W, 3); other channels than colours as a picture."""
    if channels := stated_channels(cfg.test_dataloader.dataset.get("pipeline")):
        return as_picture(read_bands(path, channels))
    image: np.ndarray = mmcv.imfrombytes(read_image_bytes(path), channel_order="rgb")
    return image


def draw_on(
    cfg: Config, visualizer: Any, sample: BaseDataElement, image: np.ndarray, target: Path, truth: bool
) -> None:
    """Draw a sample on a picture.

    Args:
        cfg: Resolved config.
        visualizer: Visualizer of the task.
        sample: Prediction.
        image: Picture, RGB, uint8, (H, W, 3).
        target: File of the drawing.
        truth: Whether the annotations are drawn beside the prediction.
    """
    sample, (height, width) = sample.cpu(), image.shape[:2]
    if (height, width) != (size := _picture_size(height, width)) == tuple(sample.get("ori_shape", ())[:2]):
        height, width = size  # that of the answer, by reduced_item
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    factor = min(round(MIN_PICTURE_SIDE / min(height, width)), MAX_ENLARGED_SIDE // max(height, width))
    task = task_of(cfg)
    if factor > 1:
        task.scale_sample(sample, factor)
        image = cv2.resize(image, (factor * width, factor * height), interpolation=cv2.INTER_CUBIC)
    with atomic_write(target, durable=False) as part:
        picture = part.with_name(f"{part.name}.png")  # by its suffix libraries choose the format
        try:
            visualizer.add_datasample(
                target.stem, image, sample, draw_gt=truth, draw_pred=True, out_file=str(picture), **task.draw_options
            )
            picture.replace(part)
        finally:
            picture.unlink(missing_ok=True)
