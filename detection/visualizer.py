"""Pictures of detections."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmdet.registry import VISUALIZERS
from mmdet.visualization import DetLocalVisualizer

from engine.report.lettering import BLACK, MIN_FONT_SIZE, Lettering, letter

POINTS_PER_INCH = 72  # font sizes of matplotlib


@VISUALIZERS.register_module()
class DetectionVisualizer(DetLocalVisualizer):
    """mmdet's ``DetLocalVisualizer`` that writes class names in any script, above boxes and masks.

    Takes the arguments of ``DetLocalVisualizer``.
    """

    _texts: tuple[Lettering, ...] = ()

    def set_image(self, image: np.ndarray) -> None:
        """Begin a picture: RGB, uint8, (H, W, 3)."""
        self._texts = ()
        super().set_image(image)

    def draw_texts(
        self,
        texts: str,
        positions: Any,
        font_sizes: int,
        colors: tuple[int, int, int],
        horizontal_alignments: str = "left",
        bboxes: Any = None,
    ) -> DetectionVisualizer:
        """Keep a text for :meth:`get_image`, which draws it above everything else.

        Args:
            texts: The text.
            positions: Left or centre, and upper edge in pixels, (2,).
            font_sizes: Size of the font in points.
            colors: Colour, RGB.
            horizontal_alignments: ``left`` or ``center``.
            bboxes: Box behind the text, which is black.
        """
        x, y = (float(value) for value in positions)
        size = max(MIN_FONT_SIZE, round(font_sizes * self.dpi / POINTS_PER_INCH))
        red, green, blue = (int(value) for value in colors)
        centred = horizontal_alignments == "center"
        self._texts += (Lettering(texts, x, y, size, (red, green, blue), BLACK, centred),)
        return self

    def draw_binary_masks(self, *args: Any, **settings: Any) -> DetectionVisualizer:
        """Blend masks into the picture; arguments as in mmengine."""
        texts, self._texts = self._texts, ()  # mmengine reads the picture by get_image
        super().draw_binary_masks(*args, **settings)
        self._texts = texts
        return self

    def get_image(self) -> np.ndarray:
        """The picture with its texts, RGB, uint8, (H, W, 3)."""
        return letter(super().get_image(), self._texts)
