"""Pictures of what a masked autoencoder reconstructs."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from mmengine.registry import VISUALIZERS
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from torch import Tensor

from backbones.bands import as_picture
from backbones.channels import COLOUR_CHANNELS
from classification.model import MAX_BYTE
from engine.prediction.panel_visualizer import save_picture
from engine.report.panels import join_panels

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
