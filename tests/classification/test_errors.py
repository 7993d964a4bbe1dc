"""Numbers about a classifier's errors, of a few decisions."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config

from classification.errors import ClassificationErrors
from engine.prediction.error_analysis import AnalysisRequest


def test_an_image_is_right_where_its_label_is_chosen() -> None:
    analysis = ClassificationErrors(AnalysisRequest(Config({}), {"classes": ["cat", "dog"]}))
    samples = [{"gt_label": label, "scores": torch.tensor([0.25, 0.75])} for label in (0, 1, -1)]
    assert [analysis.image_score(one) for one in samples] == [(25, False), (75, True), None]


def test_decisions_are_counted() -> None:
    analysis = ClassificationErrors(AnalysisRequest(Config({}), {"classes": ["cat", "dog", "cow"]}))
    decisions = [
        (0, [0.8, 0.1, 0.1]),
        (0, [0.05, 0.95, 0.0]),
        (1, [0.3, 0.6, 0.1]),
        (1, [0.5, 0.2, 0.3]),
        (-1, [1.0, 0, 0]),
    ]
    for index, (label, scores) in enumerate(decisions):
        analysis.add(index, {"gt_label": label, "scores": torch.tensor(scores), "img_path": f"{index}.jpg"})
    found = analysis.findings()
    numbers = found.numbers
    assert numbers["accuracy"] == 50
    assert numbers["confusion"]["matrix"] == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert numbers["by_class"]["cat"] == {"accuracy": 50.0, "precision": 50.0, "confidence": 87.5, "images": 2}
    assert numbers["by_class"]["cow"] == {"accuracy": None, "precision": None, "confidence": None, "images": 0}
    # Each decision has a bin of its own: 0.2, 0.95, 0.4 and 0.5 away from right or wrong.
    assert numbers["calibration"]["ece"] == pytest.approx(100 * (0.2 + 0.95 + 0.4 + 0.5) / 4)
    assert numbers["in_training_data_note"] == "not looked for: the config has no training data"
    assert [(one.index, dict(one.kinds)) for one in found.images] == [
        (1, {"wrong and sure": 95.0}),
        (3, {"wrong": 50.0}),
    ]
    assert found.images[0].caption == "cat, said dog (95 %), the label got 5.0 %"
    assert set(found.images[0].classes) == {"cat", "dog"}
