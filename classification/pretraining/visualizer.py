"""Pictures of what a masked autoencoder reconstructs, after each validation and in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, VISUALIZERS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from torch import Tensor

from backbones.bands import as_picture
from backbones.channels import COLOUR_CHANNELS
from backbones.errors import ConfigError
from classification.model import MAX_BYTE
from engine.config.schema import is_whole
from engine.prediction.panel_visualizer import save_picture
from engine.prediction.visualize import predict_evenly, write_pictures
from engine.report.panels import join_panels
from engine.report.recorder import only_warning

MIN_PANEL_SIDE = 224  # pixels; smaller images are enlarged
HIDDEN_COLOUR = 128
TITLES = ("image", "what the encoder sees", "prediction", "prediction at hidden places")


@VISUALIZERS.register_module()
class ReconstructionVisualizer(Visualizer):
    """Visualizer that draws four panels: the image, its visible units, the prediction, both combined."""

    def add_datasample(
        self,
        name: str,
        image: np.ndarray,
        data_sample: BaseDataElement,
        draw_gt: bool = True,
        draw_pred: bool = True,
        out_file: str | None = None,
        **_: Any,
    ) -> np.ndarray:
        """Draw the panels side by side.

        Args:
            name: Name of the picture, unused.
            image: RGB image, unused: the panels show the crop that the network gets.
            data_sample: Prediction of :class:`classification.pretraining.model.MaskedAutoencoder`.
            draw_gt: Unused.
            draw_pred: Unused.
            out_file: File to save the picture to; ``None`` for none.

        Returns:
            Picture, RGB, uint8.
        """
        crop, predicted = as_pictures(data_sample.image, data_sample.reconstruction)
        height, width = predicted.shape[:2]
        rows, columns = data_sample.hidden.shape
        hidden = np.kron(data_sample.hidden.numpy(), np.ones((height // rows, width // columns), bool))[..., None]
        panels = (crop, np.where(hidden, np.uint8(HIDDEN_COLOUR), crop), predicted, np.where(hidden, predicted, crop))
        factor = max(1, -(-MIN_PANEL_SIDE // min(height, width)))
        size = (width * factor, height * factor)
        drawn = [cv2.resize(np.ascontiguousarray(panel), size, interpolation=cv2.INTER_CUBIC) for panel in panels]
        picture = join_panels(dict(zip(TITLES, drawn, strict=True)), {})
        if out_file:
            save_picture(picture, out_file)
        return picture


@HOOKS.register_module()
class ReconstructionHook(Hook):
    """Draws reconstructions of held-out images after each validation, which the report of the run shows.

    The images and their masks are the same every time; the weights are the raw ones.

    Args:
        count: Number of images, spread evenly over the validation data.

    Raises:
        ConfigError: If it is no number of images.
    """

    def __init__(self, count: int = 8) -> None:
        if not is_whole(count, 1):
            raise ConfigError(f"ReconstructionHook.count={count!r}: a number of images is needed, such as 8")
        self.count = count

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Predict in all processes, which a sharded model needs, and draw in the main one."""
        samples = predict_evenly(runner.model, runner.val_dataloader, self.count)
        if is_main_process():
            with only_warning(runner.logger):
                folder = Path(runner.work_dir) / "pictures"
                write_pictures(runner, folder, samples, runner.val_dataloader, runner.iter)


def as_pictures(*images: Tensor) -> list[np.ndarray]:
    """Images of the values in the file as RGB pictures in which a value has one colour.

    Colours of 8 bits are as in the file; other values are scaled, see :func:`backbones.bands.as_picture`.

    Args:
        images: ``(C, H, W)`` each; of larger ones than the last the rest is left out.
    """
    height, width = images[-1].shape[1:]
    joined = np.concatenate([one[:, :height, :width].permute(1, 2, 0).float().numpy() for one in images], 1)
    if joined.shape[2] == COLOUR_CHANNELS and joined[:, :width].max() < MAX_BYTE + 1:
        joined = joined.round().clip(0, MAX_BYTE).astype(np.uint8)
    return np.split(as_picture(joined), len(images), axis=1)
