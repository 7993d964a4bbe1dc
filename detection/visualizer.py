"""Pictures of detections and of panoptic segments."""

from __future__ import annotations

import colorsys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from mmdet.registry import VISUALIZERS
from mmdet.structures import INSTANCE_OFFSET, DetDataSample
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData

from detection.labels import Box, place_labels
from engine.prediction.panel_visualizer import Panel, PanelVisualizer
from engine.report.lettering import Colour, Lettering, letter, text_size
from engine.report.overlay import name_inside, tint
from engine.report.panels import font_size, ink_on

LINE_RATIO = 1 / 8  # of the font size, width of the edges of boxes
# Lightness and hue of the instances of a class against its colour, one after the other.
SHADES = ((0.0, 0.0), (0.2, 0.03), (-0.16, -0.03), (0.1, -0.05), (-0.08, 0.05), (0.28, 0.0), (-0.24, 0.0))
LIGHTNESS = (0.2, 0.85)


def instance_colours(labels: Sequence[int], colours: Sequence[Colour]) -> list[Colour]:
    """Colours that tell the instances of a class apart, and from those of other classes.

    Args:
        labels: Class of each instance.
        colours: Colours of the classes, RGB.

    Returns:
        A shade of its class's colour for each instance; the first instance of a class has the colour itself.
    """
    counts: defaultdict[int, int] = defaultdict(int)
    shades = []
    for label in labels:
        shades.append(_shade(colours[label], counts[label]))
        counts[label] += 1
    return shades


def _shade(colour: Colour, number: int) -> Colour:
    if number == 0:
        return colour
    lighter, turned = SHADES[number % len(SHADES)]
    hue, lightness, saturation = colorsys.rgb_to_hls(*(value / 255 for value in colour))
    lightness = min(max(lightness + lighter, LIGHTNESS[0]), LIGHTNESS[1])
    red, green, blue = (round(255 * one) for one in colorsys.hls_to_rgb((hue + turned) % 1, lightness, saturation))
    return red, green, blue


@VISUALIZERS.register_module()
class DetectionVisualizer(PanelVisualizer):
    """Draws masks in a shade for each instance, boxes in the colours of the classes, and names in any script.

    The name of a small box stands beside it, a line leads to it where it is further away, and where a name would cover
    another one or a small object there is none: the legend has the colour. Panoptic samples show their segments.
    """

    def truth_panel(self, image: np.ndarray, sample: DetDataSample) -> Panel | None:
        """Draw the annotations: instances, or segments if that is what is predicted."""
        if "gt_instances" not in sample:
            return None
        if "pred_panoptic_seg" not in sample:
            return self._instances_panel(image, sample.gt_instances)
        return self.true_segments_panel(image, sample) if "gt_sem_seg" in sample else None

    def true_segments_panel(self, image: np.ndarray, sample: DetDataSample) -> Panel:
        """Draw the annotated segments of a panoptic sample on its image, RGB, uint8, (H, W, 3)."""
        return self._segments_panel(image, _true_segments(sample, len(self.classes)))

    def prediction_panel(self, image: np.ndarray, sample: DetDataSample, min_score: float) -> Panel | None:
        """Draw the instances with a score above ``min_score``, or the panoptic segments."""
        if "pred_panoptic_seg" in sample:
            return self._segments_panel(image, np.asarray(sample.pred_panoptic_seg.sem_seg[0]))
        if "pred_instances" not in sample:
            return None
        return self._instances_panel(image, sample.pred_instances[sample.pred_instances.scores > min_score])

    def _instances_panel(self, image: np.ndarray, instances: InstanceData) -> Panel:
        """Draw instances, the large masks first."""
        labels, palette, classes = instances.labels.tolist(), self.colours, self.classes
        shades, colours = instance_colours(labels, palette), [palette[label] for label in labels]
        boxes = [Box(*row) for row in get_box_tensor(instances.bboxes).reshape(-1, 4).tolist()]
        picture, size = image.copy(), font_size(*image.shape[:2])
        line = max(1, round(size * LINE_RATIO))
        if "masks" in instances:
            masks = _bitmaps(instances.masks)
            for index in np.argsort(-masks.sum(axis=(1, 2)), kind="stable").tolist():
                tint(picture, masks[index], shades[index])
                outlines, _ = cv2.findContours(masks[index].astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
                cv2.drawContours(picture, outlines, -1, shades[index], line)
        names = [classes[label] for label in labels]
        if "scores" in instances:
            scores = instances.scores.tolist()
            names = [f"{name} {100 * score:.0f}" for name, score in zip(names, scores, strict=True)]
        return Panel(draw_boxes(picture, boxes, names, colours, size), sorted(set(labels)))

    def _segments_panel(self, image: np.ndarray, segments: np.ndarray) -> Panel:
        """Draw panoptic segments, (H, W), of mmdet's numbers: class plus ``INSTANCE_OFFSET`` times instance."""
        classes = self.classes
        numbers = [one for one in np.unique(segments).tolist() if one % INSTANCE_OFFSET < len(classes)]
        labels = [one % INSTANCE_OFFSET for one in numbers]
        shades = instance_colours(labels, self.colours)
        drawn = draw_segments(image, segments, numbers, [classes[label] for label in labels], shades)
        return Panel(drawn, sorted(set(labels)))


def draw_segments(
    image: np.ndarray, segments: np.ndarray, numbers: Sequence[int], names: Sequence[str], colours: Sequence[Colour]
) -> np.ndarray:
    """Draw segments that do not overlap, with their names where there is room.

    Args:
        image: RGB, uint8, (H, W, 3).
        segments: Number of the segment of each pixel, (H, W).
        numbers: Numbers of the segments to draw.
        names: Names of the segments.
        colours: Colours of the segments.
    """
    picture, size, texts = image.copy(), font_size(*image.shape[:2]), []
    for number, name, colour in zip(numbers, names, colours, strict=True):
        mask = segments == number
        tint(picture, mask, colour)
        texts.append(name_inside(mask, name, size, colour))
    return letter(picture, [text for text in texts if text is not None])


def _true_segments(sample: DetDataSample, num_classes: int) -> np.ndarray:
    """Segments, (H, W), of the annotations of a panoptic sample: its things on its label map."""
    labels = sample.gt_sem_seg.sem_seg.numpy().astype(np.int64)[0]
    segments = np.where(labels < num_classes, labels, num_classes)
    things = sample.gt_instances
    for number, (label, mask) in enumerate(zip(things.labels.tolist(), _bitmaps(things.masks), strict=True), 1):
        segments[mask] = label + number * INSTANCE_OFFSET
    return segments


def _bitmaps(masks: Any) -> np.ndarray:
    """Masks of mmdet's kinds or a tensor as bool, (N, H, W)."""
    bitmaps = masks.to_ndarray() if hasattr(masks, "to_ndarray") else np.asarray(masks)
    return bitmaps.astype(bool)


def draw_boxes(
    image: np.ndarray, boxes: Sequence[Box], names: Sequence[str], colours: Sequence[Colour], size: int
) -> np.ndarray:
    """Draw boxes with their names, and lines to those names that are away from their boxes.

    Args:
        image: RGB image, uint8, (H, W, 3).
        boxes: Boxes in pixels.
        names: Name of each box; an empty one is not written.
        colours: Colour of each box, RGB.
        size: Size of the font in pixels.

    Returns:
        The picture, a copy.
    """
    picture = image.copy()
    for box, colour in zip(boxes, colours, strict=True):
        corners = np.round(box).astype(int).tolist()
        cv2.rectangle(picture, corners[:2], corners[2:], colour, max(1, round(size * LINE_RATIO)))
    sizes = [text_size(name, size) for name in names]
    texts = []
    places = place_labels(boxes, sizes, (picture.shape[1], picture.shape[0]))
    for name, box, colour, place in zip(names, boxes, colours, places, strict=True):
        if place is None:
            continue
        if place.away:
            start, end = (_centre(one) for one in (place.box, box))
            cv2.line(picture, start, end, colour, max(1, round(size * LINE_RATIO)), cv2.LINE_AA)
        texts.append(Lettering(name, place.box.left + 1, place.box.top, size, ink_on(colour), colour))
    return letter(picture, texts)


def _centre(box: Box) -> tuple[int, int]:
    return round((box.left + box.right) / 2), round((box.top + box.bottom) / 2)
