"""Predictions of a classifier: those of one image in Python, and the class of each image in a table or a list."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from engine.prediction.images import NamedImage
from engine.prediction.predictor import Prediction
from engine.prediction.result_files import PROBABILITIES, ListWriter, ResultRequest, ResultWriter, TableWriter


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


class _ClassWriter(ResultWriter):
    """What the formats of a classifier have in common.

    Args:
        request: Config, folder and choices.
    """

    options = (PROBABILITIES,)

    def entry(self, sample: dict[str, Any]) -> dict[str, Any]:
        """The most probable class of an image, by choice with the probabilities of all."""
        label, scores = int(sample["pred_label"]), sample["scores"].tolist()
        entry = {"class": self.classes[label], "class_id": label, "probability": scores[label]}
        return entry | ({"probabilities": scores} if self.request.probabilities else {})


class ClassTable(_ClassWriter, TableWriter):
    """Writes ``predictions.csv``: the most probable class of each image, by choice with the probabilities of all.

    Args:
        request: Config, folder and choices.
    """

    def __init__(self, request: ResultRequest) -> None:
        super().__init__(request)
        self.header = ("class", "probability", "class_id", *(self.classes if request.probabilities else ()))

    def write(self, sample: dict[str, Any], image: NamedImage | None) -> Any:
        """Return the row of an image."""
        entry = self.entry(sample)
        every = [f"{value:.4f}" for value in entry.get("probabilities", ())]
        row = [entry["class"], f"{entry['probability']:.4f}", entry["class_id"], *every]
        return [[self.location(sample, image), *row]]


class ClassList(_ClassWriter, ListWriter):
    """Writes ``predictions.json``: the most probable class of each image, by choice with the probabilities of all.

    Args:
        request: Config, folder and choices.
    """

    def write(self, sample: dict[str, Any], image: NamedImage | None) -> Any:
        """Return the entry of an image, which begins with its ``file_name``."""
        return {"file_name": self.file_name(sample, image), **self.entry(sample)}
