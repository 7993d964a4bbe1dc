"""Predictions of a classifier: those of one image in Python, and the class of each image in a table or a list."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from engine.prediction.predictor import Prediction
from engine.prediction.result_files import PROBABILITIES, ListingWriter, ResultRequest, TableWriter


class ClassPrediction(Prediction):
    """What a classifier predicts for an image.

    Attributes:
        probabilities: Probability of each class, (K,), float32.
        label: Position of the most probable class.
        name: Name of the most probable class.
    """

    @property
    def probabilities(self) -> Tensor:
        scores: Tensor = self.sample.scores
        return scores

    @property
    def label(self) -> int:
        return int(self.sample.pred_label)

    @property
    def name(self) -> str:
        return self.classes[self.label]

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The most probable classes and their probabilities, the first one first."""
        values, labels = self.probabilities.topk(min(count, len(self.classes)))
        return [(self.classes[label], value) for value, label in zip(values.tolist(), labels.tolist(), strict=True)]


def _entry(sample: dict[str, Any], request: ResultRequest) -> dict[str, Any]:
    """Entry of an image in the list of predictions."""
    label, scores = int(sample["pred_label"]), sample["scores"].tolist()
    classes = request.cfg.test_dataloader.dataset.metainfo["classes"]
    entry = {"class": classes[label], "class_id": label, "probability": scores[label]}
    return entry | ({"probabilities": scores} if request.probabilities else {})


def _rows(sample: dict[str, Any], request: ResultRequest) -> list[list[Any]]:
    """Row of an image in the table."""
    entry = _entry(sample, request)
    every = [f"{value:.4f}" for value in entry.get("probabilities", ())]
    return [[entry["class"], f"{entry['probability']:.4f}", entry["class_id"], *every]]


def prediction_table(request: ResultRequest) -> TableWriter:
    """Return the writer of a table with the most probable class of each image, by choice with the probabilities of all.

    Args:
        request: Config, folder and choices.
    """
    classes = request.cfg.test_dataloader.dataset.metainfo["classes"] if request.probabilities else ()
    return TableWriter(request, ("class", "probability", "class_id", *classes), _rows, (PROBABILITIES,))


def prediction_list(request: ResultRequest) -> ListingWriter:
    """Return the writer of a list with the most probable class of each image, by choice with the probabilities of all.

    Args:
        request: Config, folder and choices.
    """
    return ListingWriter(request, _entry, (PROBABILITIES,))
