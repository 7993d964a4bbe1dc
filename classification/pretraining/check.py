"""Data check of folders of images without labels."""

from __future__ import annotations

from pathlib import Path

from backbones.errors import DataError
from classification.check import report_unread
from classification.decode import read_rgb
from classification.pretraining.data import UnlabelledImages, chosen_images
from engine.data.checker import DATA_CHECKERS, PILLOW_MAX_PIXELS, DataFile, DatasetChecker
from engine.data.image_files import read_bands
from engine.data.orientation import Size
from engine.data.paths import hidden_note


@DATA_CHECKERS.register(UnlabelledImages)
class UnlabelledChecker(DatasetChecker):
    """Checks an :class:`~classification.pretraining.data.UnlabelledImages`: that its images can be read."""

    max_pixels = PILLOW_MAX_PIXELS

    def read_size(self, path: str, role: str = "image") -> Size:
        """Width and height of an image file as the transform reads it."""
        return read_rgb(path).size if self.channels is None else read_bands(path, self.channels).shape[1::-1]

    def list_files(self) -> list[DataFile]:
        """List the images."""
        dataset, others, unreadable, hidden = self.dataset, list[str](), list[OSError](), list[str]()
        part = (dataset.get("hold_out", 0), dataset.get("held_out", False), self.channels)
        root = Path(dataset.data_root) / dataset.get("split", "")
        try:
            paths = chosen_images(dataset.data_root, dataset.get("split", ""), *part, others, unreadable, hidden)
        except DataError as error:
            self.error("no images", str(root), str(error), "bring the images")
            return []
        self.notes += hidden_note(f"the {self.split} data", hidden)
        report_unread(self, others, unreadable)
        return [DataFile(path) for path in paths[:: dataset.get("every", 1)]]
