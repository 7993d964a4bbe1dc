"""Accuracies, loss and confusion, counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, top_k_accuracy_score

from classification.metric import ClassificationMetric


def sample(label: int, scores: list[float], loss: float = 0.0) -> dict[str, Any]:
    return {"gt_label": label, "scores": torch.tensor(scores), "loss": loss}


def test_classification_metric_of_an_example_by_hand(tmp_path: Path) -> None:
    metric = ClassificationMetric(str(tmp_path / "confusion.json"))
    metric.dataset_meta = {"classes": tuple("abcdefg")}
    rising = [0.01, 0.02, 0.03, 0.04, 0.1, 0.3, 0.5]
    metric.process(None, [sample(6, rising, 1.0), sample(5, rising, 2.0)])
    metric.process(None, [sample(2, rising, 6.0), sample(1, rising, 3.0)])
    scores = metric.evaluate(4)
    assert scores == pytest.approx({"top1": 25.0, "top5": 75.0, "val_loss": 3.0})
    saved = json.loads((tmp_path / "confusion.json").read_text())
    assert saved["classes"] == list("abcdefg")
    matrix = np.array(saved["matrix"])
    assert matrix.sum() == 4
    assert [matrix[label, 6] for label in (6, 5, 2, 1)] == [1, 1, 1, 1]


def test_classification_metric_equals_scikit_learn(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels, scores = random.integers(0, 9, 200), random.random((200, 9))
    losses = random.random(200)
    metric = ClassificationMetric(str(tmp_path / "confusion.json"))
    metric.dataset_meta = {"classes": [str(i) for i in range(9)]}
    metric.process(None, [sample(int(a), b.tolist(), float(c)) for a, b, c in zip(labels, scores, losses)])
    found = metric.evaluate(200)
    for k in (1, 5):
        assert found[f"top{k}"] == pytest.approx(100 * top_k_accuracy_score(labels, scores, k=k))
    assert found["val_loss"] == pytest.approx(losses.mean())
    matrix = json.loads((tmp_path / "confusion.json").read_text())["matrix"]
    assert matrix == confusion_matrix(labels, scores.argmax(1)).tolist()
    for name, row in zip(metric.class_scores, matrix, strict=True):
        right = pytest.approx(100 * row[int(name)] / sum(row))
        assert metric.class_scores[name] == {"top1": right, "images": sum(row)}


def test_a_class_without_images_has_no_score() -> None:
    metric = ClassificationMetric()
    metric.dataset_meta = {"classes": ("cat", "dog", "newt")}
    metric.process(None, [sample(0, [0.2, 0.8, 0.0]), sample(0, [0.9, 0.1, 0.0])])
    metric.evaluate(2)
    assert metric.class_scores == {
        "cat": {"top1": 50.0, "images": 2},
        "dog": {"top1": None, "images": 0},
        "newt": {"top1": None, "images": 0},
    }


@pytest.mark.parametrize("count", [2, 5, 6])
def test_of_five_classes_or_fewer_there_is_no_top5(count: int) -> None:
    metric = ClassificationMetric()
    assert metric.score_names == ("top1", "top5", "val_loss")  # the number of classes is not known yet
    metric.dataset_meta = {"classes": tuple("abcdef"[:count])}
    rest = [0.0] * (count - 2)
    metric.process(None, [sample(0, [0.2, 0.8, *rest]), sample(1, [0.1, 0.9, *rest])])
    scores = metric.evaluate(2)
    assert scores == pytest.approx({"top1": 50.0, "val_loss": 0.0} | ({"top5": 100.0} if count > 5 else {}))
    assert tuple(scores) == metric.score_names
