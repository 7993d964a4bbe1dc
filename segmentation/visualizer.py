"""Pictures of label maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmengine.structures import BaseDataElement, PixelData
from mmseg.registry import VISUALIZERS

from engine.prediction.panel_visualizer import Panel, PanelVisualizer
from engine.report.lettering import Colour, letter
from engine.report.overlay import name_inside, overlay_labels
from engine.report.panels import font_size


@VISUALIZERS.register_module()
class SegmentationVisualizer(PanelVisualizer):
    """Tints each pixel in the colour of its class, and names a class, in any script, where it has room for the name.

    Pixels without a class are left as they are.
    """

    def truth_panel(self, image: np.ndarray, sample: BaseDataElement) -> Panel | None:
        """Draw the annotated label map."""
        return self._panel(image, sample.gt_sem_seg) if "gt_sem_seg" in sample else None

    def prediction_panel(self, image: np.ndarray, sample: BaseDataElement, min_score: float) -> Panel | None:
        """Draw the predicted label map, whatever its scores."""
        return self._panel(image, sample.pred_sem_seg) if "pred_sem_seg" in sample else None

    def _panel(self, image: np.ndarray, label_map: PixelData) -> Panel:
        labels, colours = np.asarray(label_map.data)[0], self.colours
        shown = np.unique(labels[(labels >= 0) & (labels < len(colours))]).tolist()
        return Panel(draw_labels(image, labels, self.classes, colours), shown)


def draw_labels(image: np.ndarray, labels: np.ndarray, classes: Sequence[str], colours: Sequence[Colour]) -> np.ndarray:
    """Tint pixels in the colours of their classes, and name the classes where there is room for it.

    Args:
        image: RGB image, uint8, (H, W, 3).
        labels: Class of each pixel, (H, W); those that are no class leave the image as it is.
        classes: Names of the classes.
        colours: Colours of the classes, RGB.

    Returns:
        The picture, a copy.
    """
    size = font_size(*image.shape[:2])
    shown = np.unique(labels[(labels >= 0) & (labels < len(colours))]).tolist()
    places = (name_inside(labels == index, classes[index], size, colours[index]) for index in shown)
    return letter(overlay_labels(image, labels, colours), [place for place in places if place is not None])
