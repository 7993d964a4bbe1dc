"""Pictures of what a masked autoencoder reconstructs."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from mmengine.registry import VISUALIZERS
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer

from classification.visualizer import FONT_SIZE
from engine.report.lettering import Lettering, letter

MIN_PANEL_SIDE = 224  # pixels; smaller images are enlarged
GAP, CAPTION_HEIGHT = 4, 24  # pixels
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
        predicted = data_sample.reconstruction.permute(1, 2, 0).numpy()
        height, width = predicted.shape[:2]
        crop = data_sample.image.permute(1, 2, 0).numpy()[:height, :width]
        rows, columns = data_sample.hidden.shape
        hidden = np.kron(data_sample.hidden.numpy(), np.ones((height // rows, width // columns), bool))[..., None]
        panels = (crop, np.where(hidden, np.uint8(HIDDEN_COLOUR), crop), predicted, np.where(hidden, predicted, crop))
        factor = max(1, -(-MIN_PANEL_SIDE // min(height, width)))
        size = (width * factor, height * factor)
        drawn = [cv2.resize(np.ascontiguousarray(panel), size, interpolation=cv2.INTER_CUBIC) for panel in panels]
        picture = np.full((CAPTION_HEIGHT + size[1], 4 * size[0] + 3 * GAP, 3), 32, np.uint8)
        titles = []
        for number, (panel, title) in enumerate(zip(drawn, TITLES, strict=True)):
            left = number * (size[0] + GAP)
            picture[CAPTION_HEIGHT:, left : left + size[0]] = panel
            titles.append(Lettering(title, left + 4, 3, FONT_SIZE, (230, 230, 230)))
        picture = letter(picture, titles)
        if out_file:
            cv2.imwrite(out_file, picture[..., ::-1])
        return picture
