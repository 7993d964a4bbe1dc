"""What a task finds out about the errors of a test, image by image, for :mod:`analysis.errors`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
from mmengine.config import Config

from engine.config.classes import class_colours
from engine.report.lettering import Colour, drawn_names


@dataclass(frozen=True)
class AnalysisRequest:
    """What is analysed.

    Attributes:
        cfg: Resolved config.
        meta: The test data's ``metainfo``.
        full: Whether to take all the time that it needs, as for a search among all training images.
    """

    cfg: Config
    meta: Mapping[str, Any]
    full: bool = False


@dataclass(frozen=True)
class ImageErrors:
    """What is wrong with the prediction of an image.

    Attributes:
        index: Position in the test data.
        kinds: Amount of errors of each kind, by which the images of a kind are sorted.
        caption: Description in a line.
        classes: Names of the classes that the errors are about.
    """

    index: int
    kinds: Mapping[str, float]
    caption: str
    classes: Sequence[str] = ()

    @property
    def total(self) -> float:
        """Amount of errors of all kinds."""
        return sum(self.kinds.values())


class ImageScore(NamedTuple):
    """How good the prediction of an image is.

    Attributes:
        value: Score, 0 to 100.
        right: Whether the prediction counts as right.
    """

    value: float
    right: bool


@dataclass(frozen=True)
class ErrorFindings:
    """Errors of a test.

    Attributes:
        numbers: Numbers, as JSON takes them.
        sections: HTML of the page's sections by their headings.
        images: Images with errors, in any order.
        note: Remark on how their errors are counted and drawn.
        heading: Heading of their pictures.
    """

    numbers: Mapping[str, Any]
    sections: Mapping[str, str]
    images: Sequence[ImageErrors] = field(default_factory=tuple)
    note: str = ""
    heading: str = "Worst images"


class ErrorAnalysis(ABC):
    """Collects the errors of a test; each task with an error analysis has a subclass.

    Args:
        request: Config, and what is known of the test data.

    Attributes:
        score_words: Description of an image's score, and of what counts as right.
    """

    score_words: ClassVar[str] = ""

    def __init__(self, request: AnalysisRequest) -> None:
        self.request = request
        self.classes: list[str] = list(request.meta["classes"])

    @property
    def colours(self) -> list[Colour]:
        """Colours of the classes in pictures, RGB."""
        return class_colours(self.request.meta)

    @property
    def shown_classes(self) -> tuple[str, ...]:
        """Names of the classes as pictures show them."""
        return drawn_names(self.classes)

    @abstractmethod
    def add(self, index: int, sample: Mapping[str, Any]) -> None:
        """Add an image: its position in the test data, and truth and prediction as metrics get them."""

    @abstractmethod
    def findings(self) -> ErrorFindings:
        """Return the errors of all images that were added."""

    def image_score(self, sample: Mapping[str, Any]) -> ImageScore | None:
        """Score the prediction of an image, by which trainings are compared; ``None`` where there is nothing to score.

        Args:
            sample: Truth and prediction.
        """
        return None

    @abstractmethod
    def draw(self, image: np.ndarray, scale: tuple[float, float], sample: Mapping[str, Any]) -> np.ndarray:
        """Draw the errors of an image.

        Args:
            image: The image, RGB, uint8, (H, W, 3), at the size of a panel.
            scale: Factors from pixels of the image's file to this size, in x and y.
            sample: Truth and prediction.

        Returns:
            The picture, RGB, uint8.
        """
