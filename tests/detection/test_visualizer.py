"""Names of boxes in pictures: where they stand, and that all can be read."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

import detection  # noqa: F401
from detection.labels import Box, place_labels
from detection.visualizer import DetectionVisualizer
from engine.report.lettering import Lettering, letter, text_size

PICTURE = (640.0, 480.0)
NAME = (80.0, 15.0)


def test_the_name_of_a_large_box_is_inside_and_that_of_a_small_one_beside() -> None:
    large, small, low = Box(100, 100, 400, 300), Box(500, 200, 512, 210), Box(600, 2, 612, 12)
    (in_large, _), (above, _), (below, _) = place_labels([large, small, low], [NAME] * 3, PICTURE)
    assert in_large == Box(100, 100, 180, 115)
    assert above == Box(500, 185, 580, 200)
    assert not above.common(small)
    assert below == Box(560, 12, 640, 27), "there is no room above, and none at the right"


def test_names_do_not_cover_one_another_while_there_is_room() -> None:
    crowd = [Box(300 + 4 * i, 200, 310 + 4 * i, 212) for i in range(12)]
    placed = place_labels(crowd, [NAME] * len(crowd), PICTURE)
    assert not any(one.common(other) for (one, _), (other, _) in combinations(placed, 2))
    assert [away for _, away in placed].count(True) >= 4
    for place, _ in placed:
        assert place.left >= 0 <= place.top
        assert place.right <= PICTURE[0]
        assert place.bottom <= PICTURE[1]


def test_without_any_room_every_name_is_placed_all_the_same() -> None:
    same = [Box(5, 5, 9, 9)] * 30
    placed = place_labels(same, [(90.0, 15.0)] * 30, (100.0, 40.0))
    assert len(placed) == 30
    (place, _), *_ = place_labels([Box(0, 0, 4, 4)], [(300.0, 15.0)], (100.0, 40.0))  # longer than the picture
    assert place.left == 0


@pytest.mark.parametrize("text", ["wine glass: 49.1", "猫", ""])
def test_the_size_of_a_text_is_that_of_its_box(text: str) -> None:
    blank = np.zeros((60, 300, 3), np.uint8)
    drawn = letter(blank, [Lettering(text, 20, 10, 15, (0, 255, 0), (255, 0, 0))])
    rows, columns = np.nonzero(drawn.any(-1))
    width, height = text_size(text, 15)
    assert np.ptp(columns) + 1 == pytest.approx(width, abs=1.5)
    assert np.ptp(rows) + 1 == pytest.approx(height, abs=1)


def drawn(side: int, boxes: Any, masks: bool = False) -> np.ndarray:
    visualizer = DetectionVisualizer(name=f"of test {side} {len(boxes)} {masks}")
    visualizer.dataset_meta = {"classes": ("newt",), "palette": [(0, 0, 255)]}
    objects = InstanceData(bboxes=torch.tensor(boxes).float(), labels=torch.zeros(len(boxes), dtype=torch.int64))
    if masks:
        objects.masks = torch.zeros(len(boxes), side, side, dtype=torch.bool)
    sample = DetDataSample(gt_instances=objects)
    visualizer.add_datasample("", np.full((side, side, 3), 128, np.uint8), sample, draw_pred=False)
    return visualizer.get_image()


@pytest.mark.parametrize("masks", [False, True])
def test_a_small_object_is_not_covered_by_its_name(masks: bool) -> None:
    picture = drawn(300, [[140, 140, 156, 156]], masks)
    black = (picture == 0).all(-1)
    assert black.any()
    assert not black[143:153, 143:153].any()


def test_text_grows_with_the_picture() -> None:
    heights = [np.ptp(np.nonzero((drawn(side, [[9, 9, side - 9, side - 9]]) == 0).all(-1))[0]) for side in (600, 3840)]
    assert heights[1] > 2.5 * heights[0]
