"""Numbers about a segmentor's errors, on label maps of a few pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config

from engine.prediction.error_analysis import AnalysisRequest
from segmentation.errors import SegmentationErrors


def sample(truth: Any, predicted: Any) -> dict[str, Any]:
    maps = {"gt_sem_seg": truth, "pred_sem_seg": predicted}
    return {name: {"data": torch.tensor(np.asarray(labels)[np.newaxis])} for name, labels in maps.items()}


def test_pixels_are_counted_by_class() -> None:
    analysis = SegmentationErrors(AnalysisRequest(Config({}), {"classes": ["sky", "road", "car"]}))
    analysis.add(0, sample([[0, 0], [1, 255]], [[0, 1], [1, 0]]))
    analysis.add(1, sample([[1, 1], [1, 1]], [[1, 1], [1, 1]]))
    found = analysis.findings()
    assert found.numbers["confusion"]["matrix"] == [[1, 1, 0], [0, 5, 0], [0, 0, 0]]
    assert found.numbers["by_class"]["sky"] == {"IoU": 50.0, "Acc": 50.0, "boundary IoU": 50.0, "share": 28.57}
    assert found.numbers["by_class"]["road"]["IoU"] == pytest.approx(83.33)
    assert found.numbers["by_class"]["car"] == {"IoU": None, "Acc": None, "boundary IoU": None, "share": 0.0}
    (wrong,) = found.images
    assert (wrong.index, wrong.classes) == (0, ["sky", "road"])
    assert wrong.kinds == {"wrong near an edge": 33.333}


def test_an_image_is_right_by_the_mean_iou_of_its_classes() -> None:
    analysis = SegmentationErrors(AnalysisRequest(Config({}), {"classes": ["sky", "road", "car"]}))
    scores = [
        analysis.image_score(sample([[0, 0, 0], [0, 1, 255]], predicted))
        for predicted in ([[0, 0, 0], [0, 1, 2]], [[0, 0, 0], [1, 1, 0]])
    ]
    assert scores[0] == (100, True)
    assert scores[1] == (pytest.approx(100 * (3 / 4 + 1 / 2) / 2), False)
    assert analysis.image_score(sample([[255]], [[0]])) is None


def test_the_picture_has_three_panels() -> None:
    analysis = SegmentationErrors(AnalysisRequest(Config({}), {"classes": ["sky", "road"]}))
    truth, predicted = np.zeros((20, 30), int), np.zeros((20, 30), int)
    predicted[5:10, 5:10] = 1
    picture = analysis.draw(np.full((200, 300, 3), 90, np.uint8), (10.0, 10.0), sample(truth, predicted))
    assert picture.shape[1] >= 900
    assert picture.shape[0] > 200  # titles and legend
    red = (picture[..., 0] > 150) & (picture[..., 1] < 80)
    assert red[:, 600:].sum() > 2000  # the wrong square of 50 x 50 pixels in the third panel
