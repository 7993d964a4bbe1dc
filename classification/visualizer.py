"""Pictures of a classifier's predictions."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from mmengine.registry import VISUALIZERS
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer

from engine.prediction.panel_visualizer import save_picture
from engine.prediction.visualize import MAX_ENLARGED_SIDE
from engine.report.lettering import Lettering, letter
from engine.report.panels import font_size

MIN_CAPTIONED_SIDE = 320  # pixels; smaller images are enlarged
LINE_HEIGHT = 1.5  # font sizes
MIN_CAPTION_SIZE = 15  # pixels, of the font
RIGHT, WRONG, NO_TRUTH = (
    (140, 230, 140),
    (240, 170, 120),
    (210, 210, 210),
)  # of a class; without a truth all are unknown


@VISUALIZERS.register_module()
class ClassificationVisualizer(Visualizer):
    """Visualizer that writes the true class and the five most probable classes under an image.

    The true class is green, others are orange; where no truth is known, all are grey.
    """

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
        """Write the classes under the image.

        Args:
            name: Name of the picture, unused.
            image: RGB image, uint8, ``(H, W, 3)``.
            data_sample: Prediction of :class:`classification.model.ImageClassifier`.
            draw_gt: Whether to write the true class, where there is one.
            draw_pred: Whether to write the most probable classes.
            out_file: File to save the picture to; ``None`` for none.

        Returns:
            Picture with the classes below the image, RGB, uint8.
        """
        sides = image.shape[:2]
        scale = max(1.0, min(MIN_CAPTIONED_SIDE / min(sides), MAX_ENLARGED_SIDE / max(sides)))
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        classes = self.dataset_meta["classes"]
        lines: list[tuple[str, tuple[int, int, int]]] = []
        if draw_gt and data_sample.gt_label >= 0:
            lines.append((f"true: {classes[data_sample.gt_label]}", (255, 255, 255)))
        if draw_pred:
            top = data_sample.scores.topk(min(5, len(classes)))
            for score, index in zip(top.values.tolist(), top.indices.tolist(), strict=True):
                colour = RIGHT if index == data_sample.gt_label else WRONG
                colour = NO_TRUTH if data_sample.gt_label < 0 else colour
                lines.append((f"{100 * score:5.1f} %  {classes[index]}", colour))
        size = max(MIN_CAPTION_SIZE, font_size(*image.shape[:2]))
        margin, height = size // 2, round(LINE_HEIGHT * size)
        caption = np.full((height * len(lines) + margin, image.shape[1], 3), 32, np.uint8)
        texts = [
            Lettering(text, margin, height * row + margin // 2, size, colour)
            for row, (text, colour) in enumerate(lines)
        ]
        picture = np.vstack([image, letter(caption, texts)])
        if out_file:
            save_picture(picture, out_file)
        return picture
