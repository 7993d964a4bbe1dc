"""A trained network with the preprocessing of its tests, and what its layers give for an image."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from tqdm import tqdm

from analysis.browse.draws import input_picture
from backbones.base import Backbone
from backbones.channels import stated_channels
from backbones.errors import ConfigError
from backbones.timm_backbones import TimmVisionTransformer
from engine.prediction.predictor import Predictor
from engine.prediction.visualize import image_reader
from engine.task import task_of

MAX_PROGRESS_LINES = 10  # of a part


class Recorded(NamedTuple):
    """What a layer got and gave.

    Attributes:
        input: Its first argument.
        output: Its output.
    """

    input: Tensor
    output: Tensor


class TrainedNetwork:
    """A trained model with the preprocessing of its tests.

    Args:
        predictor: The model with its config.

    Attributes:
        predictor: The model with its config.
        cfg: Resolved config.
        task: The task's specification.
        model: The model, in evaluation mode.
        classes: Class names.
        name: Name of the config.
        channels: Channels that the pipeline reads other than as colours; ``None`` for colours.

    Raises:
        ConfigError: If the backbone is none of the registered networks.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor, self.cfg, self.task = predictor, predictor.cfg, task_of(predictor.cfg)
        self.model: Any = predictor.model
        self.classes = predictor.classes
        self.name = Path(self.cfg.filename or "config").stem
        self.channels = stated_channels(self.cfg.test_dataloader.dataset.get("pipeline"))
        self._read, self._collate = image_reader(self.cfg)
        if not isinstance(getattr(self.model, "backbone", None), Backbone):
            raise ConfigError(
                f"model.backbone of {self.name} is none of the registered networks, whose stages are known"
            )

    @property
    def backbone(self) -> Backbone:
        """The backbone."""
        backbone: Backbone = self.model.backbone
        return backbone

    @property
    def label(self) -> str:
        """Names of the config and of the backbone."""
        return f"{self.name} ({self.cfg.model.backbone.type})"

    @property
    def has_maps(self) -> bool:
        """Whether its blocks give maps, and not tokens."""
        return not isinstance(self.backbone, TimmVisionTransformer)

    def batch(self, path: str) -> dict[str, Any]:
        """A batch of one image as the model gets it: ``inputs``, (1, C, H, W), and ``data_samples``.

        Raises:
            DamagedImageError: If the file is missing or cannot be decoded.
        """
        batch: dict[str, Any] = self.model.data_preprocessor(self._collate([self._read(path, 0)]), False)
        return batch

    def picture(self, batch: dict[str, Any]) -> np.ndarray:
        """The network's input as a picture, RGB, uint8, (H, W, 3), without padding."""
        picture = input_picture(self.cfg, self.model.data_preprocessor, batch["inputs"][0], self.channels)
        height, width = unpadded_size(batch)
        return picture[:height, :width]

    def stage_layers(self) -> list[nn.Module]:
        """The last block of each stage.

        Raises:
            ConfigError: If its blocks give tokens.
        """
        if not self.has_maps:
            raise ConfigError(
                f"{self.name}: the blocks of {self.backbone.described_as} give tokens, not maps: --parts embeddings"
            )
        last = {stage: name for name, stage in self.backbone.block_stages().items()}
        return [self.backbone.get_submodule(last[stage]) for stage in sorted(last)]


def unpadded_size(batch: dict[str, Any]) -> tuple[int, int]:
    """Height and width of the image within the network's input."""
    samples = batch["data_samples"]
    sample = samples[0] if isinstance(samples, list | tuple) else None
    stated = sample.get("img_shape") if isinstance(sample, BaseDataElement) else None
    height, width = stated[:2] if stated is not None else batch["inputs"].shape[-2:]
    return int(height), int(width)


@contextmanager
def recorded(layers: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Recorded]]:
    """Record what layers get and give, by hooks, without gradients."""
    found: dict[nn.Module, Recorded] = {}

    def record(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        found[layer] = Recorded(inputs[0], output)

    hooks = [layer.register_forward_hook(record) for layer in layers]
    try:
        with torch.no_grad():
            yield found
    finally:
        for hook in hooks:
            hook.remove()


def enlarge(picture: np.ndarray, side: int, how: int = cv2.INTER_CUBIC) -> np.ndarray:
    """A picture, (H, W, ...), whose longer side has ``side`` pixels."""
    factor = side / max(picture.shape[:2])
    size = max(1, round(factor * picture.shape[1])), max(1, round(factor * picture.shape[0]))
    return cv2.resize(picture, size, interpolation=how if factor > 1 else cv2.INTER_AREA)


def with_progress(images: Sequence[Path], part: str) -> Iterator[Path]:
    """Yield images, with a bar on a terminal and some lines elsewhere.

    Args:
        images: Images.
        part: Name of what is made of them.
    """
    terminal, every = sys.stderr.isatty(), max(1, len(images) // MAX_PROGRESS_LINES)
    for done, path in enumerate(tqdm(images, desc=part, unit="image", dynamic_ncols=True, disable=not terminal)):
        if not terminal and done % every == 0:
            print(f"{part}: image {done + 1:,} of {len(images):,}", flush=True)
        yield path
