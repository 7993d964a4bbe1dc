"""Numbers about a detector's errors, on an annotation file and detections that can be counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config

from backbones.errors import ConfigError
from detection.errors import DetectionErrors
from engine.prediction.error_analysis import AnalysisRequest

CLASSES = ["cat", "dog"]


def analysis(folder: Path, objects: list[tuple[int, int, list[float]]]) -> DetectionErrors:
    """An analysis of objects, each an image, a class and a box of left, top, width and height."""
    entries = [
        {"id": at, "image_id": image, "category_id": label + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for at, (image, label, box) in enumerate(objects, 1)
    ]
    images = [{"id": number, "file_name": f"{number}.jpg", "height": 100, "width": 100} for number in (1, 2)]
    categories = [{"id": at, "name": name} for at, name in enumerate(CLASSES, 1)]
    path = folder / "objects.json"
    path.write_text(json.dumps({"images": images, "annotations": entries, "categories": categories}))
    evaluator = dict(type="FastCocoMetric", ann_file=str(path), metric=["bbox"])
    return DetectionErrors(AnalysisRequest(Config({"test_evaluator": evaluator}), {"classes": CLASSES}))


def detections(image: int, found: list[tuple[int, list[float], float]]) -> dict[str, Any]:
    """A sample with detections of a class, a box of corners, and a score."""
    boxes, labels, scores = [box for _, box, _ in found], [label for label, _, _ in found], [one[2] for one in found]
    tensors = torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64), torch.tensor(scores)
    return {"img_id": image, "pred_instances": dict(zip(("bboxes", "labels", "scores"), tensors, strict=True))}


@pytest.fixture
def found(tmp_path: Path) -> DetectionErrors:
    """Two cats of which one is called a dog, a dog that is missed, a dog of nothing, and one that is not sure."""
    made = analysis(tmp_path, [(1, 0, [0, 0, 20, 20]), (1, 0, [50, 50, 20, 20]), (2, 1, [10, 10, 40, 40])])
    made.add(0, detections(1, [(0, [0.0, 0, 20, 20], 0.9), (1, [50.0, 50, 70, 70], 0.8)]))
    made.add(1, detections(2, [(1, [80.0, 80, 90, 90], 0.7), (1, [60.0, 0, 90, 8], 0.2)]))
    return made


def test_an_image_is_right_where_all_objects_are_found_and_nothing_else(tmp_path: Path) -> None:
    made = analysis(tmp_path, [(1, 0, [0, 0, 20, 20]), (1, 1, [50, 50, 20, 20])])
    cat, dog = (0, [0.0, 0, 20, 20], 0.9), (1, [50.0, 50, 70, 70], 0.8)
    unsure, ghost = (1, [80.0, 80, 90, 90], 0.2), (1, [80.0, 80, 90, 90], 0.7)
    samples = [detections(1, found) for found in ([cat, dog, unsure], [cat], [cat, dog, ghost], [])]
    assert [made.image_score(one) for one in samples] == [
        (100, True),
        (pytest.approx(200 / 3), False),
        (80, False),
        (0, False),
    ]
    assert made.image_score(detections(2, [])) == (100, True)  # nothing to find, nothing found


def test_the_errors_are_counted(found: DetectionErrors) -> None:
    result = found.findings()
    assert result.numbers["confusion"]["classes"] == [*CLASSES, "background"]
    assert result.numbers["confusion"]["matrix"] == [[1, 1, 0], [0, 0, 1], [0, 1, 0]]
    tide = result.numbers["bbox"]["tide"]
    counts = {name: one["count"] for name, one in tide["errors"].items() if one["count"]}
    assert counts == {"classification": 1, "background": 2, "missed": 1}  # of any score
    half = 100 * 51 / 101
    assert tide["AP50"] == pytest.approx(half / 2)
    assert result.numbers["bbox"]["by_iou"]["0.50"] == pytest.approx(half / 2, abs=0.01)
    # The dog is medium, the cats are small, and nothing is large.
    sizes = {size: one["AP"] for size, one in result.numbers["bbox"]["by_size"].items()}
    assert sizes == {
        "all": pytest.approx(half / 2, abs=0.01),
        "small": pytest.approx(half, abs=0.01),
        "medium": 0.0,
        "large": None,
    }
    assert [(one.index, dict(one.kinds), list(one.classes)) for one in result.images] == [
        (0, {"classification": 1}, ["dog"]),
        (1, {"background": 1, "missed": 1}, ["dog"]),
    ]


def test_a_picture_shows_both_sides(found: DetectionErrors) -> None:
    found.findings()
    sample = detections(1, [(0, [0.0, 0, 20, 20], 0.9), (1, [50.0, 50, 70, 70], 0.8)])
    picture = found.draw(np.full((300, 300, 3), 90, np.uint8), (3.0, 3.0), sample)
    assert picture.shape[1] >= 600
    orange = (picture[..., 0] > 200) & (abs(picture[..., 1].astype(int) - 120) < 15) & (picture[..., 2] < 60)
    assert orange[:, :300].any()  # the object whose class is wrong
    assert orange[:, 300:].any()  # the detection


def test_no_detections_at_all(tmp_path: Path) -> None:
    made = analysis(tmp_path, [(1, 0, [0, 0, 20, 20])])
    made.add(0, detections(1, []))
    result = made.findings()
    assert result.numbers["bbox"]["AP"] == 0
    assert result.numbers["bbox"]["tide"]["errors"]["missed"]["count"] == 1
    assert result.numbers["confusion"]["matrix"] == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_a_metric_without_annotations_is_refused() -> None:
    cfg = Config({"test_evaluator": dict(type="Other")})
    with pytest.raises(ConfigError, match="test_evaluator: no metric states an ann_file"):
        DetectionErrors(AnalysisRequest(cfg, {"classes": CLASSES}))
