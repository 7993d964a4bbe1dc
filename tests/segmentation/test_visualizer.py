"""Pictures of label maps: one colour for a class, names where they cover nothing else, in any script."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

import segmentation  # noqa: F401
from engine.config.classes import palette
from engine.prediction.panel_visualizer import without_legend
from engine.report.panels import PAPER
from segmentation.visualizer import SegmentationVisualizer

SIDE = 200


def drawn(classes: list[str], **maps: np.ndarray) -> np.ndarray:
    """The picture of a grey image with label maps, ``truth`` or ``prediction`` or both."""
    sample = SegDataSample()
    for name, field in (("truth", "gt_sem_seg"), ("prediction", "pred_sem_seg")):
        if name in maps:
            setattr(sample, field, PixelData(data=torch.from_numpy(maps[name])[None]))
    visualizer = SegmentationVisualizer()
    visualizer.dataset_meta = {"classes": classes, "palette": palette(classes)}
    visualizer.add_datasample("", np.full((SIDE, SIDE, 3), 100, np.uint8), sample)
    return visualizer.get_image()


def labels(value: int, rows: slice = slice(None), columns: slice = slice(None)) -> np.ndarray:
    found = np.full((SIDE, SIDE), 255)
    found[rows, columns] = value
    return found


@pytest.mark.parametrize("name", ["дерево", "شجرة"])
def test_names_are_drawn_in_any_script(name: str) -> None:
    one, other = (drawn(["x", label], prediction=labels(1))[:SIDE] for label in (name, "\U0010fffd"))
    assert not np.array_equal(one, other)


def test_pixels_without_a_class_stay_as_they_are_and_nothing_gets_no_legend() -> None:
    picture = drawn(["x"], prediction=labels(255))
    assert picture.shape == (SIDE, SIDE, 3)
    assert (picture == 100).all()


def test_truth_and_prediction_have_titles_one_legend_and_the_same_colours() -> None:
    left, right = slice(0, 90), slice(90, SIDE)
    picture = drawn(["x", "y"], truth=labels(1, columns=left), prediction=labels(1, columns=right))
    top = picture.shape[0] - SIDE - _legend_height(picture)
    assert top > 10, "there are titles"
    assert picture.shape[1] > 2 * SIDE
    truth, prediction = picture[top : top + SIDE, :SIDE], picture[top : top + SIDE, -SIDE:]
    assert np.array_equal(truth[5, 5], prediction[5, -5])
    assert (truth[:, right] == 100).all()
    assert (prediction[:, left] == 100).all()
    legend = picture[-_legend_height(picture) :].reshape(-1, 3)
    assert (legend == palette(["x", "y"])[1]).all(1).any()
    assert not (legend == palette(["x", "y"])[0]).all(1).any(), "x is not in the picture"


def _legend_height(picture: np.ndarray) -> int:
    """Rows below the panels; the gap between these has the colour of the paper too."""
    return int(np.argmin((picture[::-1, 1] == PAPER).all(1)))


def test_a_name_never_covers_another_class() -> None:
    """A narrow stripe has no room for a name, a wide area has."""
    stripe, area = drawn(["x", "y"], prediction=labels(1, slice(50, 54))), drawn(["x", "y"], prediction=labels(1))
    assert (stripe[54:SIDE] == 100).all()
    assert (stripe[:50] == 100).all()
    assert len(np.unique(area[:SIDE].reshape(-1, 3), axis=0)) > 2


def test_frames_of_a_video_have_one_size_whatever_they_show() -> None:
    visualizer = SegmentationVisualizer()
    visualizer.dataset_meta = {"classes": ["x"], "palette": palette(["x"])}
    sample = SegDataSample(pred_sem_seg=PixelData(data=torch.from_numpy(labels(0))[None]))
    sizes = []
    for context in (without_legend(visualizer), nullcontext()):
        with context:
            visualizer.add_datasample("", np.full((SIDE, SIDE, 3), 100, np.uint8), sample)
        sizes.append(visualizer.get_image().shape[:2])
    assert sizes[0] == (SIDE, SIDE) < sizes[1]
