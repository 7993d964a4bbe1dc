"""Names of boxes in pictures: where they stand, and that all can be read."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from PIL import Image

import detection  # noqa: F401
from detection.labels import Box, Place, place_labels
from detection.visualizer import DetectionVisualizer, instance_colours
from engine.config.classes import palette
from engine.report.lettering import Lettering, letter, text_size

PICTURE = (640.0, 480.0)
NAME = (80.0, 15.0)
BLUE = (0, 0, 255)


def common(one: Box, other: Box) -> float:
    """Pixels that two boxes have in common."""
    width, height = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    return max(0.0, width) * max(0.0, height)


def test_the_name_of_a_large_box_is_inside_and_that_of_a_small_one_beside() -> None:
    large, small, low = Box(100, 100, 400, 300), Box(500, 200, 512, 210), Box(600, 2, 612, 12)
    in_large, above, below = place_labels([large, small, low], [NAME] * 3, PICTURE)
    assert in_large == Place(Box(100, 100, 180, 115), away=False)
    assert above == Place(Box(500, 185, 580, 200), away=False)
    assert below == Place(Box(560, 12, 640, 27), away=False), "there is no room above, and none at the right"


def test_names_cover_neither_one_another_nor_small_objects_of_others() -> None:
    crowd = [Box(300 + 4 * i, 200, 310 + 4 * i, 212) for i in range(12)]
    beside = [Box(300 + 12 * i, 190, 306 + 12 * i, 196) for i in range(12)]
    placed = place_labels([*crowd, *beside], [NAME] * 24, PICTURE)
    names = [place for place in placed if place is not None]
    assert len(names) >= 12
    assert [place.away for place in names].count(True) >= 4
    assert not any(common(one.box, other.box) for one, other in combinations(names, 2))
    for place in names:
        assert all(common(place.box, box) <= 36 for box in [*crowd, *beside])
        assert place.box.left >= 0 <= place.box.top
        assert place.box.right <= PICTURE[0]
        assert place.box.bottom <= PICTURE[1]


def test_without_any_room_there_is_no_name() -> None:
    placed = place_labels([Box(5, 5, 9, 9)] * 30, [(90.0, 15.0)] * 30, (100.0, 40.0))
    assert [place is not None for place in placed] == [True, True, *[False] * 28], "one above the other"
    assert place_labels([Box(0, 0, 4, 4)], [(300.0, 15.0)], (100.0, 40.0)) == [None], "longer than the picture"
    assert place_labels([], [], PICTURE) == []


@pytest.mark.parametrize("text", ["wine glass: 49.1", "猫", ""])
def test_the_size_of_a_text_is_that_of_its_box(text: str) -> None:
    blank = np.zeros((60, 300, 3), np.uint8)
    drawn = letter(blank, [Lettering(text, 20, 10, 15, (0, 255, 0), (255, 0, 0))])
    rows, columns = np.nonzero(drawn.any(-1))
    width, height = text_size(text, 15)
    assert np.ptp(columns) + 1 == pytest.approx(width, abs=1.5)
    assert np.ptp(rows) + 1 == pytest.approx(height, abs=1)


def drawn(side: int, boxes: Any, masks: bool = False) -> np.ndarray:
    """The picture of boxes of one class, blue, on grey."""
    visualizer = DetectionVisualizer(name=f"of test {side} {len(boxes)} {masks}")
    visualizer.dataset_meta = {"classes": ("newt",), "palette": [BLUE]}
    objects = InstanceData(bboxes=torch.tensor(boxes).float(), labels=torch.zeros(len(boxes), dtype=torch.int64))
    if masks:
        objects.masks = torch.zeros(len(boxes), side, side, dtype=torch.bool)
    sample = DetDataSample(gt_instances=objects)
    visualizer.add_datasample("", np.full((side, side, 3), 128, np.uint8), sample, draw_pred=False)
    return visualizer.get_image()


@pytest.mark.parametrize("masks", [False, True])
def test_a_small_object_is_not_covered_by_its_name(masks: bool) -> None:
    picture = drawn(300, [[140, 140, 156, 156]], masks)
    assert (picture[143:153, 143:153] == 128).all()
    assert (picture[:300] == BLUE).all(-1).sum() > 4 * 16 + 200, "the name stands on its colour"


def test_text_and_lines_grow_with_the_picture() -> None:
    shares = [(drawn(side, [[9, 9, side - 9, side - 9]]) == BLUE).all(-1).mean() for side in (800, 3200)]
    assert shares[1] > shares[0] / 2, "OpenCV rounds the width of lines"


def test_instances_of_a_class_have_shades_of_its_colour() -> None:
    red = (200, 30, 30)
    first, second, other, third = instance_colours([1, 1, 0, 1], [BLUE, red])
    assert (first, other) == (red, BLUE)
    assert len({first, second, third}) == 3
    for shade in (second, third):
        assert max(range(3), key=shade.__getitem__) == 0, "still red"
    grey = instance_colours([0, 0], [(128, 128, 128)])
    assert grey[0] != grey[1]


def test_classes_of_ones_own_have_their_own_colours() -> None:
    visualizer = DetectionVisualizer(name="own colours")
    visualizer.dataset_meta = {"classes": ("newt", "toad"), "palette": [(1, 2, 3)] * 80}
    assert visualizer.colours == palette(["newt", "toad"])
    visualizer.dataset_meta = {"classes": ("newt",), "palette": [[1, 2, 3]]}
    assert visualizer.colours == [(1, 2, 3)]


def test_truth_and_prediction_stand_side_by_side_above_a_legend(tmp_path: Path) -> None:
    sample = DetDataSample(
        gt_instances=InstanceData(bboxes=torch.tensor([[9.0, 9, 90, 90]]), labels=torch.tensor([0])),
        pred_instances=InstanceData(
            bboxes=torch.tensor([[9.0, 9, 90, 90], [120, 120, 180, 180]]),
            labels=torch.tensor([0, 1]),
            scores=torch.tensor([0.9, 0.2]),
        ),
    )
    visualizer = DetectionVisualizer(name="both")
    visualizer.dataset_meta = {"classes": ("newt", "toad"), "palette": [BLUE, (0, 255, 0)]}
    file = tmp_path / "new/both.png"
    visualizer.add_datasample("", np.full((200, 200, 3), 128, np.uint8), sample, out_file=str(file))
    picture = visualizer.get_image()
    assert np.array_equal(np.asarray(Image.open(file)), picture)
    titles = next(row for row in range(99) if (picture[row, 0] == 128).all())
    truth, prediction = picture[titles : titles + 200, :200], picture[titles : titles + 200, -200:]
    assert (truth[9, 20:80] == BLUE).all(-1).any()
    assert np.array_equal(truth[40:], prediction[40:])
    assert (picture[titles + 200 :] == BLUE).all(-1).any(), "the legend"
    assert not (picture == (0, 255, 0)).all(-1).any(), "the score of the toad is low"
