"""A trained model in Python: ``load_model(CONFIG, CHECKPOINT).predict("image.jpg")``."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.structures import BaseDataElement
from PIL import Image
from torch import nn

from backbones.channels import COLOUR_CHANNELS
from backbones.errors import DataError
from engine.checkpoint.model_weights import recorded_classes
from engine.config.load import load_config
from engine.config.options import parse_options
from engine.config.world import Launch
from engine.launch.leftovers import process_folder
from engine.prediction.visualize import draw_on, image_reader, load_predictor, predict, read_picture
from engine.task import task_of

ImageSource = str | PathLike[str] | np.ndarray


class Prediction:
    """What a model predicts for one image; each task has a subclass with the tensors it predicts.

    Attributes:
        sample: Data element of the task's library, with all that the model gives, on the CPU.
        classes: Class names in the order of the labels.
        config: Resolved config of the model.
    """

    def __init__(self, predictor: Predictor, sample: BaseDataElement, image: ImageSource) -> None:
        self.sample = sample
        self.classes = predictor.classes
        self.config = predictor.cfg
        self._predictor, self._image = predictor, image

    def draw(self, path: str | PathLike[str]) -> Path:
        """Draw the prediction on its image, as ``tools/predict.py`` does.

        Args:
            path: File of the picture; its folder exists.

        Returns:
            The file.
        """
        cfg, image = self.config, self._image
        picture = image if isinstance(image, np.ndarray) else read_picture(cfg, fspath(image))
        draw_on(cfg, self._predictor.visualizer, self.sample, picture, Path(path), truth=False)
        return Path(path)


class Predictor:
    """A trained model with the preprocessing of its tests, for one image at a time.

    Args:
        cfg: Resolved config.
        model: Model of :func:`engine.prediction.visualize.load_predictor`.
        visualizer: Visualizer of :func:`engine.prediction.visualize.load_predictor`.

    Attributes:
        cfg: Resolved config.
        model: The network, in evaluation mode.
        classes: Class names in the order of the labels.
    """

    def __init__(self, cfg: Config, model: nn.Module, visualizer: Any) -> None:
        self.cfg, self.model, self.visualizer = cfg, model, visualizer
        self.classes = tuple(cfg.test_dataloader.dataset.metainfo["classes"])
        self._task = task_of(cfg)
        self._read, self._collate = image_reader(cfg)

    def predict(self, image: ImageSource) -> Prediction:
        """Predict one image.

        Args:
            image: Image file; or RGB pixels, uint8, (H, W, 3).

        Returns:
            The prediction, with the attributes of its task: ``probabilities``, ``label`` and ``name`` of a classifier;
                ``boxes``, ``masks``, ``scores``, ``labels`` and ``to_coco()`` of a detector; ``labels`` of a segmentor.

        Raises:
            DamagedImageError: If the file is missing or cannot be decoded.
            DataError: If it is no single image, or the pixels are of another shape or type.
        """
        if isinstance(image, np.ndarray):
            item = self._from_pixels(image)
        elif isinstance(image, str | PathLike):
            item = self._read(fspath(image), 0)
        else:
            pillow = ": np.asarray(image.convert('RGB')) are the pixels" if isinstance(image, Image.Image) else ""
            kind = type(image).__name__
            raise DataError(f"an image is a file, or pixels as an array, uint8 (H, W, 3) in RGB, not {kind}{pillow}")
        kind = self._task.prediction or Prediction
        prediction: Prediction = kind(self, predict(self.model, item, self._collate).cpu(), image)
        return prediction

    def _from_pixels(self, image: np.ndarray) -> Any:
        """Go through a lossless file: a pipeline begins at one, and a step may both read and transform."""
        if image.ndim != 3 or image.shape[2] != COLOUR_CHANNELS or image.dtype != np.uint8 or not image.size:
            raise DataError(f"an image is uint8 (H, W, 3) in RGB, this one is {image.dtype} {image.shape}")
        with tempfile.TemporaryDirectory(dir=process_folder()) as folder:
            path = Path(folder, "image.png")
            Image.fromarray(image).save(path, compress_level=1)
            return self._read(str(path), 0)


def trained_config(config: str, checkpoint: str, options: Sequence[str], launch: Launch, trust: bool = False) -> Config:
    """Resolve the config of a trained model, whose checkpoint may know the classes.

    Args:
        config: Config file.
        checkpoint: Path or URL of a checkpoint of a run.
        options: Overrides, ``"key=value"`` each, as ``--cfg-options``.
        launch: Processes and device.
        trust: Whether to execute code that the checkpoint asks for.
    """
    known = partial(recorded_classes, checkpoint, trust)
    return load_config(config, parse_options(list(options)), launch, known_classes=known).cfg


def load_model(
    config: str | PathLike[str],
    checkpoint: str | PathLike[str],
    *,
    averaged: bool = False,
    device: str | None = None,
    options: tuple[str, ...] = (),
    trust: bool = False,
) -> Predictor:
    """Load a trained model with all that it needs to predict images.

    Args:
        config: Config file.
        checkpoint: Path or URL of a checkpoint of a run.
        averaged: Whether to load the averaged weights (EMA).
        device: Device of the model; ``None`` for a GPU if there is one.
        options: Overrides, ``"key=value"`` each, as ``--cfg-options``.
        trust: Whether to execute code that the checkpoint asks for.

    Returns:
        The model with its preprocessing; ``predict`` takes one image.

    Raises:
        ConfigError: If the config cannot be read.
        CheckpointError: If the checkpoint is missing or of another model.
    """
    launch, source = Launch.from_environment(), fspath(checkpoint)
    cfg = trained_config(fspath(config), source, options, launch, trust)
    return Predictor(cfg, *load_predictor(cfg, source, averaged, device or launch.device, trust))
