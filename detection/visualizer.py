"""Pictures of detections."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from mmdet.registry import VISUALIZERS
from mmdet.structures import INSTANCE_OFFSET, DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import PixelData

from detection.labels import Box, place_labels
from engine.report.lettering import BLACK, MIN_FONT_SIZE, Lettering, letter, text_size

POINTS_PER_INCH = 72  # font sizes of matplotlib
USUAL_SIDE = 1280  # pixels; text in larger pictures is larger
LINE_WIDTH = 1  # pixels, of lines from names to boxes


def panoptic_sample(sample: DetDataSample, num_classes: int) -> DetDataSample:
    """The segments of a panoptic sample, true ones (made of things and label map) and predicted ones.

    Args:
        sample: Sample with ``pred_panoptic_seg``, and with annotations ``gt_instances`` and ``gt_sem_seg``.
        num_classes: Number of classes; this number stands for pixels without a segment.
    """
    drawn = DetDataSample(pred_panoptic_seg=sample.pred_panoptic_seg)
    if "gt_sem_seg" in sample:
        labels = sample.gt_sem_seg.sem_seg.numpy().astype(np.int64)
        segments = np.where(labels < num_classes, labels, num_classes)
        things = sample.gt_instances
        for number, (label, mask) in enumerate(zip(things.labels.tolist(), things.masks.masks, strict=True), 1):
            segments[:, mask.astype(bool)] = label + number * INSTANCE_OFFSET
        drawn.gt_panoptic_seg = PixelData(sem_seg=segments)
    return drawn


@VISUALIZERS.register_module()
class DetectionVisualizer(DetLocalVisualizer):
    """mmdet's ``DetLocalVisualizer`` that writes class names in any script, above boxes and masks.

    The name of a small box stands beside it, and names do not cover one another as long as there is room.

    Takes the arguments of ``DetLocalVisualizer``.
    """

    _texts: tuple[Lettering, ...] = ()
    _boxes: tuple[Box, ...] = ()  # of the first texts, which name them

    def add_datasample(
        self, name: str, image: np.ndarray, data_sample: Any = None, *args: Any, **settings: Any
    ) -> None:
        """Draw a sample; of a panoptic one the segments, true and predicted ones, in place of boxes and masks.

        Args:
            name: Name of the picture.
            image: RGB, uint8, (H, W, 3).
            data_sample: Sample of mmdet.
            *args: Further arguments as in mmdet.
            **settings: The same by name.
        """
        if data_sample is not None and "pred_panoptic_seg" in data_sample:
            data_sample = panoptic_sample(data_sample.cpu(), len(self.dataset_meta["classes"]))
        super().add_datasample(name, image, data_sample, *args, **settings)

    def _draw_panoptic_seg(self, image: np.ndarray, panoptic_seg: PixelData, classes: Any, palette: Any) -> np.ndarray:
        """Draw segments; mmdet's fails without one."""
        segments = panoptic_seg.sem_seg[0] % INSTANCE_OFFSET
        if (segments == len(classes)).all():
            return image
        drawn: np.ndarray = super()._draw_panoptic_seg(image, panoptic_seg, classes, palette)
        return drawn

    def set_image(self, image: np.ndarray) -> None:
        """Begin a picture: RGB, uint8, (H, W, 3)."""
        self._texts, self._boxes = (), ()
        super().set_image(image)

    def draw_bboxes(self, bboxes: Any, *args: Any, **settings: Any) -> DetectionVisualizer:
        """Draw boxes, ``(N, 4)``, whose names follow as texts; other arguments as in mmengine."""
        self._boxes = tuple(Box(*row) for row in bboxes.reshape(-1, 4).tolist())
        super().draw_bboxes(bboxes, *args, **settings)
        return self

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
        size = round(size * max(1.0, self.width / USUAL_SIDE, self.height / USUAL_SIDE))
        red, green, blue = (int(value) for value in colors)
        centred = horizontal_alignments == "center"
        self._texts += (Lettering(texts, x, y, size, (red, green, blue), BLACK, centred),)
        return self

    def draw_binary_masks(self, *args: Any, **settings: Any) -> DetectionVisualizer:
        """Blend masks into the picture; arguments as in mmengine."""
        kept, self._texts = (self._texts, self._boxes), ()  # mmengine reads the picture by get_image
        super().draw_binary_masks(*args, **settings)
        self._texts, self._boxes = kept
        return self

    def get_image(self) -> np.ndarray:
        """The picture with its texts, RGB, uint8, (H, W, 3)."""
        image = np.ascontiguousarray(super().get_image())
        count = min(len(self._boxes), len(self._texts))
        named, others = self._texts[:count], self._texts[count:]
        sizes = [text_size(one.text, one.size) for one in named]
        texts = []
        for one, box, (place, away) in zip(
            named, self._boxes, place_labels(self._boxes[:count], sizes, (self.width, self.height)), strict=False
        ):
            if away:
                start, end = ((round((at.left + at.right) / 2), round((at.top + at.bottom) / 2)) for at in (place, box))
                cv2.line(image, start, end, one.colour, LINE_WIDTH, cv2.LINE_AA)
            texts.append(replace(one, x=place.left + 1, y=place.top))
        return letter(image, [*texts, *others])
