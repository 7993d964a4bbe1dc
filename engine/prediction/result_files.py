"""Predictions as files that programs read: what the writers of all formats have in common."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from PIL import Image

from backbones.errors import ConfigError, MachineError
from backbones.files import atomic_write
from engine.prediction.images import NamedImage
from engine.task import task_of

RESULTS = "results"  # folder of predictions as files
LIST_FILE = "predictions.json"
TABLE_FILE = "predictions.csv"
MIN_SCORE = "--min-score"
PROBABILITIES = "--probabilities"


@dataclass(frozen=True)
class ResultRequest:
    """What is to be written.

    Attributes:
        cfg: Resolved config.
        folder: Output folder, which exists.
        test_data: Whether the images are those of the test data, whose names and ids hold.
        submission: Whether the files are for a server, which takes nothing beside them.
        min_score: Lowest score of an object that is written.
        probabilities: Whether the probabilities of all classes are written.
    """

    cfg: Config
    folder: Path
    test_data: bool = False
    submission: bool = False
    min_score: float = 0.0
    probabilities: bool = False


class ResultWriter:
    """Writes predictions in one format: files of an image as soon as it is predicted, and files of all at the end.

    Args:
        request: Config, folder and choices.

    Attributes:
        options: Choices that the format knows, by the names of their options; others are refused.
        needs_image_files: Whether the files name those of the images, so that it has none for the frames of a video.
    """

    options: tuple[str, ...] = ()
    needs_image_files = False

    def __init__(self, request: ResultRequest) -> None:
        self.request, self.folder = request, request.folder
        self.classes: tuple[str, ...] = tuple(request.cfg.test_dataloader.dataset.metainfo["classes"])

    def write(self, sample: dict[str, Any], image: NamedImage | None) -> Any:
        """Write the files of one image.

        Args:
            sample: Prediction, a data element of the task's library as a dict.
            image: Name of the image; ``None`` for one of the test data.

        Returns:
            What :meth:`finish` needs to know of it, in the types of JSON.
        """
        raise NotImplementedError

    def finish(self, records: Iterable[Any]) -> None:
        """Write the files of all images.

        Args:
            records: Returned values of :meth:`write` in the order of the images, read once.
        """

    def location(self, sample: dict[str, Any], image: NamedImage | None) -> str:
        """Path of an image as it was given, for tables."""
        return str(sample["img_path"] if image is None else image.path)

    def file_name(self, sample: dict[str, Any], image: NamedImage | None) -> str:
        """Name of an image in the files: its path below the folder of all; of the test data the path that is read."""
        return str(sample["img_path"]) if image is None else image.file

    def place(self, name: str, suffix: str, folder: Path | None = None) -> Path:
        """File of an image in the output folder, whose folder is made.

        Args:
            name: Name of the image without suffix.
            suffix: Suffix of the file.
            folder: Another folder; ``None`` for the output folder.
        """
        path = (folder or self.folder) / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def name(self, sample: dict[str, Any], image: NamedImage | None) -> str:
        """Name without suffix of what is written for one image."""
        return Path(sample["img_path"]).stem if image is None else image.name


class ResultMetric(BaseMetric):
    """Writes the predictions of a test to files; gives no score.

    Args:
        writer: Writer of the format.
    """

    default_prefix = RESULTS

    def __init__(self, writer: ResultWriter) -> None:
        super().__init__(collect_device="cpu")
        self.writer = writer

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Write the files of each image of a batch."""
        self.results += [self.writer.write(sample, None) for sample in data_samples]

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Write the files of all images; return no scores."""
        self.writer.finish(iter(results))
        return {}


def result_writer(name: str, request: ResultRequest) -> ResultWriter:
    """Return the writer of a format of the config's task, and make its folder.

    Args:
        name: Name of the format.
        request: Config, folder and choices.

    Raises:
        ConfigError: If the task has no such format, or the format no such choice.
        MachineError: If the folder cannot be written.
    """
    task = task_of(request.cfg)
    if name not in task.result_formats:
        known = ", ".join(sorted(task.result_formats)) or "none yet"
        raise ConfigError(f"--format {name}: {task.name} has {known}")
    make_folder(request.folder)
    writer: ResultWriter = task.result_formats[name](request)
    given = ((MIN_SCORE, request.min_score), (PROBABILITIES, request.probabilities))
    for option, _ in (one for one in given if one[1] and one[0] not in writer.options):
        raise ConfigError(f"{option}: --format {name} of {task.name} does not know it, leave it out")
    return writer


def make_folder(folder: Path) -> None:
    """Make an output folder.

    Raises:
        MachineError: If it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"{str(folder)!r} cannot be written: choose another folder with --out") from error


@contextmanager
def written_text(path: Path, errors: str = "surrogateescape") -> Iterator[TextIOWrapper]:
    """A text file in UTF-8 that is there once it is complete; names of files that are not UTF-8 keep their bytes."""
    with atomic_write(path, durable=False) as part, part.open("w", newline="", encoding="utf-8", errors=errors) as file:
        yield file


def _written_json(path: Path) -> AbstractContextManager[TextIOWrapper]:
    """A JSON file that is there once it is complete; names that are not UTF-8 have escapes."""
    return written_text(path, errors="backslashreplace")


def write_json_file(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    with _written_json(path) as file:
        json.dump(content, file, ensure_ascii=False)


@contextmanager
def written_list(path: Path) -> Iterator[Callable[[Any], None]]:
    """A JSON list in a file, an entry per line, never in memory as a whole: the function that adds an entry."""
    with _written_json(path) as file, _list_in(file) as add:
        yield add


def write_json_lists(path: Path, head: dict[str, Any], key: str, entries: Iterable[Any]) -> None:
    """Write a JSON object with a long list, an entry per line, which is never in memory as a whole.

    Args:
        path: Output file.
        head: The other keys and their values.
        key: Key of the list.
        entries: Entries of the list.
    """
    with _written_json(path) as file:
        file.write("{" + "".join(f"{json.dumps(name)}: {_as_json(value)},\n" for name, value in head.items()))
        file.write(f"{json.dumps(key)}: ")
        with _list_in(file) as add:
            for entry in entries:
                add(entry)
        file.write("}\n")


@contextmanager
def _list_in(file: TextIOWrapper) -> Iterator[Callable[[Any], None]]:
    """Write a list around what the function that is yielded adds."""
    before = "[\n"

    def add(entry: Any) -> None:
        nonlocal before
        file.write(before + _as_json(entry))
        before = ",\n"

    yield add
    file.write("\n]" if before == ",\n" else "[]")


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV."""
    with written_text(path) as file:
        table = csv.writer(file)
        table.writerow(header)
        table.writerows(rows)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write pixels, uint8 or uint16, (H, W) or (H, W, 3), as PNG, whole or not at all."""
    with atomic_write(path, durable=False) as part:
        Image.fromarray(pixels).save(part, format="PNG")


def write_zip(path: Path, files: Iterable[tuple[Path, str]]) -> Path:
    """Write a zip file, whole or not at all.

    Args:
        path: Output file, whose folder is made.
        files: Each file and its name in the zip.

    Returns:
        The output file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as target:
        for file, name in files:
            target.write(file, name)
    return path


class ListWriter(ResultWriter):
    """Writes ``predictions.json``: the names of the classes, and for each image the entry that ``write`` returns.

    Args:
        request: Config, folder and choices.
    """

    def finish(self, records: Iterable[Any]) -> None:
        """Write the file."""
        write_json_lists(self.folder / LIST_FILE, {"classes": self.classes}, "images", records)


class TableWriter(ResultWriter):
    """Writes ``predictions.csv``: for each image the rows that ``write`` returns, each beginning with its path.

    Args:
        request: Config, folder and choices.

    Attributes:
        header: Names of the columns after that of the path.
    """

    header: tuple[str, ...] = ()

    def finish(self, records: Iterable[Any]) -> None:
        """Write the table."""
        write_table(self.folder / TABLE_FILE, ("image", *self.header), (row for rows in records for row in rows))
