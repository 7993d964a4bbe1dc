"""Base of the visualizers that show truth and prediction side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import mmcv
import numpy as np
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer

from engine.config.classes import class_colours
from engine.report.lettering import Colour
from engine.report.panels import join_panels

TRUTH, PREDICTION = "truth", "prediction"
MIN_DRAWN_SCORE = 0.3


class Panel(NamedTuple):
    """A drawn image.

    Attributes:
        picture: RGB, uint8, (H, W, 3).
        classes: Indices of the classes that it shows.
    """

    picture: np.ndarray
    classes: Sequence[int]


class PanelVisualizer(Visualizer):
    """Visualizer whose pictures have a panel for the truth, one for the prediction, and a legend of their classes.

    A class has the same colour in both panels and in the legend: that of the data set's ``palette``, if it has one for
    these classes.

    Attributes:
        has_legend: Whether pictures have a legend. Its height depends on the classes in a picture.
    """

    has_legend = True

    def truth_panel(self, image: np.ndarray, sample: BaseDataElement) -> Panel | None:
        """Draw the annotations of a sample on its image, RGB, uint8, (H, W, 3); ``None`` if it has none."""
        raise NotImplementedError

    def prediction_panel(self, image: np.ndarray, sample: BaseDataElement, min_score: float) -> Panel | None:
        """Draw what was predicted with a score above ``min_score``; ``None`` if the sample has no prediction."""
        raise NotImplementedError

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes."""
        return tuple(self.dataset_meta["classes"])

    @property
    def colours(self) -> list[Colour]:
        """Colours of the classes, RGB."""
        return class_colours(self.dataset_meta)

    def add_datasample(
        self,
        name: str,
        image: np.ndarray,
        data_sample: BaseDataElement | None = None,
        draw_gt: bool = True,
        draw_pred: bool = True,
        show: bool = False,
        wait_time: float = 0,
        out_file: str | None = None,
        pred_score_thr: float = MIN_DRAWN_SCORE,
        step: int = 0,
        **_: Any,
    ) -> None:
        """Draw a sample; the picture is kept for :meth:`get_image`.

        Args:
            name: Name of the picture in the logs.
            image: RGB image, (H, W, 3).
            data_sample: Sample with annotations, a prediction or both; ``None`` for the image alone.
            draw_gt: Whether to draw the annotations.
            draw_pred: Whether to draw the prediction.
            show: Whether to show the picture in a window instead of logging it.
            wait_time: Seconds until the window closes; 0 for a key.
            out_file: File to save the picture to instead of logging it; ``None`` for none.
            pred_score_thr: Score of a prediction, 0 to 1, above which it is drawn.
            step: Step in the logs.

        Raises:
            OSError: If the file cannot be written.
        """
        image = np.ascontiguousarray(image.clip(0, 255).astype(np.uint8))
        panels: dict[str, Panel] = {}
        if data_sample is not None:
            sample = data_sample.cpu()
            drawn = {
                TRUTH: self.truth_panel(image, sample) if draw_gt else None,
                PREDICTION: self.prediction_panel(image, sample, pred_score_thr) if draw_pred else None,
            }
            panels = {title: panel for title, panel in drawn.items() if panel is not None}
        shown, names, colours = {one for panel in panels.values() for one in panel.classes}, self.classes, self.colours
        pictures = {title: panel.picture for title, panel in panels.items()} or {name: image}
        legend = {names[index]: colours[index] for index in sorted(shown)} if self.has_legend else {}
        picture = join_panels(pictures, legend)
        self.set_image(picture)
        if show:
            self.show(picture, win_name=name, wait_time=wait_time)
        if out_file is not None:
            save_picture(picture, out_file)
        elif not show:
            self.add_image(name, picture, step)


def truth_picture(cfg: Any, visualizer: PanelVisualizer, image: np.ndarray, sample: BaseDataElement) -> Any:
    """A picture of the annotations of a sample without a legend, and an empty caption (``BrowseSpec.draw``)."""
    panel = visualizer.truth_panel(np.ascontiguousarray(image), sample)
    return (image if panel is None else panel.picture), ""


@contextmanager
def without_legend(visualizer: Any) -> Iterator[None]:
    """Have a visualizer draw pictures of one size, as the frames of a video are."""
    visualizer.has_legend = False
    try:
        yield
    finally:
        visualizer.has_legend = True


def save_picture(picture: np.ndarray, file: str) -> None:
    """Save an RGB picture, uint8, (H, W, 3), in the format of the file's suffix; its folder is made where it is absent.

    Raises:
        OSError: If the file cannot be written.
    """
    mmcv.imwrite(picture[..., ::-1], file)  # OpenCV's own returns False on a full disk
