"""Pictures of label maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmengine.structures import PixelData
from mmseg.registry import VISUALIZERS
from mmseg.visualization import SegLocalVisualizer

from engine.report.lettering import BLACK, MIN_FONT_SIZE, WHITE, Lettering, letter

FONT_SIZE_RATIO = 1 / 25  # of the image's shorter side


@VISUALIZERS.register_module()
class SegmentationVisualizer(SegLocalVisualizer):
    """mmseg's ``SegLocalVisualizer`` that writes class names in any script.

    Takes the arguments of ``SegLocalVisualizer``.
    """

    def _draw_sem_seg(
        self,
        image: np.ndarray,
        sem_seg: PixelData,
        classes: Sequence[str],
        palette: Sequence[Sequence[int]],
        with_labels: bool = True,
    ) -> np.ndarray:
        picture = super()._draw_sem_seg(image, sem_seg, classes, palette, with_labels=False)
        if not with_labels:
            return picture
        labels = np.asarray(sem_seg.cpu().data)[0]
        size = max(MIN_FONT_SIZE, round(min(image.shape[:2]) * FONT_SIZE_RATIO))
        texts = []
        for index in np.unique(labels[labels < len(classes)]).tolist():
            row = int(np.argmax((labels == index).sum(axis=1)))  # the row with most pixels, and the middle one of them
            columns = np.flatnonzero(labels[row] == index)
            x, colour = int(columns[len(columns) // 2]), tuple(palette[index])
            ink = BLACK if np.mean(colour) > 127 else WHITE
            texts.append(Lettering(classes[index], x, row, size, ink, colour))
        picture = letter(picture, texts)
        self.set_image(picture)
        return picture
