"""Predictions of the test data in a file, from which they are scored again without the network."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import barrier, get_rank, get_world_size
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.registry import DATASETS, init_default_scope
from mmengine.structures import BaseDataElement
from torch import Tensor

from backbones.errors import ConfigError, DataError, printable
from backbones.files import atomic_write, describe_special
from engine.checkpoint.store import content_mark
from engine.config.building import build
from engine.task import task_of

ABOUT = "about.json"
DAMAGED_ARCHIVE = (zipfile.BadZipFile, zlib.error, EOFError)  # what reading a damaged zip raises
PACKED = "packed"  # key of the shape of a boolean array, which is stored as bits


class SavedPredictions(BaseMetric):
    """Writes the predictions of a test to a file, as they are given to the metrics; gives no score.

    The file is a zip with ``about.json`` and a NumPy ``.npz`` for each image of the data set, by its number. Each of
    several processes writes a file of its own, which the first one puts together.

    Args:
        cfg: Resolved config.
        path: Output file.

    Raises:
        ConfigError: If the task does not say what its models predict.
    """

    default_prefix = "saved"

    def __init__(self, cfg: Config, path: Path) -> None:
        super().__init__(collect_device="cpu")
        self.path, self.fields = path, predicted_fields(cfg)
        self.classes = list(cfg.test_dataloader.dataset.metainfo["classes"])
        self._own = path.with_name(f".{path.name}.{get_rank()}.zip.part")
        self._file = zipfile.ZipFile(self._own, "w", zipfile.ZIP_STORED)  # the arrays are compressed
        self._count = 0
        source = str(cfg.get("load_from") or "")
        self._checkpoint = {"name": Path(source).name, "mark": content_mark(Path(source))}

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Write the predictions of a batch; in each process the images of a test follow each other in this order."""
        for sample in data_samples:
            number = get_rank() + get_world_size() * self._count
            fields = {name: sample[name] for name in self.fields if name in sample}
            self._file.writestr(entry_name(number), pack_fields(fields, str(sample.get("img_path", ""))))
            self._count += 1
            self.results.append(number)

    def evaluate(self, size: int) -> dict[str, float]:
        """Put the files of the processes together.

        Args:
            size: Number of images in the data set; further ones are copies, which fill the share of a process.
        """
        self._file.close()
        self.results.clear()
        barrier()
        if get_rank() == 0:
            parts = [self._own.with_name(f".{self.path.name}.{rank}.zip.part") for rank in range(get_world_size())]
            with atomic_write(self.path) as whole, zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as target:
                about = {"images": size, "classes": self.classes, "checkpoint": self._checkpoint}
                target.writestr(ABOUT, json.dumps(about))
                for part in parts:
                    with zipfile.ZipFile(part) as source:
                        for name in source.namelist():
                            if int(Path(name).stem) < size:
                                target.writestr(name, source.read(name))
        barrier()
        self.discard_partial()
        return {}

    def discard_partial(self) -> None:
        """Remove the file of this process, as of a test that comes to no end."""
        self._file.close()
        self._own.unlink(missing_ok=True)

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Return no scores."""
        return {}


def entry_name(number: int) -> str:
    """Name of an image's entry in the file."""
    return f"{number:08d}.npz"


def predicted_fields(cfg: Config) -> tuple[str, ...]:
    """Fields of a sample that the models of the config's task predict.

    Raises:
        ConfigError: If the task does not say.
    """
    task = task_of(cfg)
    if not task.predicted_fields:
        raise ConfigError(f"--save-predictions: {task.name} does not say what its models predict (predicted_fields)")
    return task.predicted_fields


def pack_fields(fields: Mapping[str, Any], path: str) -> bytes:
    """Predictions of an image as a NumPy ``.npz``: exact, boolean arrays as bits.

    Args:
        fields: Tensors, numbers, and data elements or dicts of them, by name.
        path: Path of the image.

    Raises:
        ConfigError: If a field is of another type.
    """
    arrays: dict[str, np.ndarray] = {"path": np.array(path)}
    for name, value in _flat(fields, ""):
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.array(value)
        if array.dtype == object:
            raise ConfigError(f"--save-predictions: {name!r} of a prediction is a {type(value).__name__}, no array")
        kind = "tensor" if isinstance(value, Tensor) else "number"
        if array.dtype == bool and array.ndim:
            arrays[f"{kind}/{name}/{PACKED}"] = np.array(array.shape)
            array = np.packbits(array)
        arrays[f"{kind}/{name}"] = array
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    return content.getvalue()


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, BaseDataElement):
        value = dict(value.items())
    if not isinstance(value, Mapping):
        yield name, value
        return
    for key, inner in value.items():
        yield from _flat(inner, f"{name}.{key}" if name else key)


def unpack_fields(content: bytes) -> tuple[dict[str, Any], str]:
    """Predictions of :func:`pack_fields`, data elements as dicts, and the path of the image."""
    fields: dict[str, Any] = {}
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        for key in arrays.files:
            if key == "path" or key.endswith(f"/{PACKED}"):
                continue
            kind, name = key.split("/", 1)
            array = arrays[key]
            if (shape := arrays.get(f"{key}/{PACKED}")) is not None:
                array = np.unpackbits(array, count=int(np.prod(shape))).astype(bool).reshape(shape)
            *outer, last = name.split(".")
            place = fields
            for part in outer:
                place = place.setdefault(part, {})
            place[last] = torch.from_numpy(array) if kind == "tensor" else array.item()
        return fields, str(arrays["path"])


class TestedImages:
    """The test data with the predictions of it that a test has saved.

    Args:
        cfg: Resolved config.
        path: File of ``tools/test.py --save-predictions``.
        dataset: The test data, where it has been built already.

    Attributes:
        dataset: The test data.
        checkpoint: File name of the checkpoint that predicted, and :func:`engine.checkpoint.store.content_mark` of it,
            both empty where the file does not say.

    Raises:
        DataError: If it is no such file, or of other classes or images than the test data's.
    """

    def __init__(self, cfg: Config, path: Path, dataset: Any = None) -> None:
        init_default_scope(cfg.default_scope)
        self._path, self._file = path, _opened(path)
        with self._intact(ABOUT):
            about = json.loads(self._file.read(ABOUT))
            made_by = about.get("checkpoint") or {}
            self.checkpoint = str(made_by.get("name") or ""), str(made_by.get("mark") or "")
            about = {name: about[name] for name in ("classes", "images")}
        if about["classes"] != list(cfg.test_dataloader.dataset.metainfo["classes"]):
            raise DataError(f"{printable(path)}: has predictions of other classes than the config's")
        stated = cfg.test_dataloader.dataset
        self.dataset: Any = build(DATASETS, stated, "test_dataloader.dataset") if dataset is None else dataset
        if about["images"] != len(self.dataset):
            raise DataError(
                f"{printable(path)}: has predictions of {about['images']} images, the test data has {len(self.dataset)}"
            )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """What the data set knows of an image and what was predicted, as metrics get it.

        Raises:
            DataError: If the file has another image in its place.
        """
        return self.with_prediction(index, self.truth(index))

    def truth(self, index: int) -> dict[str, Any]:
        """What the data set knows of an image."""
        return _truth(self.dataset[index])

    def with_prediction(self, index: int, truth: Mapping[str, Any]) -> dict[str, Any]:
        """What the data set knows of an image, and what was predicted.

        Raises:
            DataError: If the file has another image in its place.
        """
        with self._intact(f"entry {index}"):
            fields, image = unpack_fields(self._file.read(entry_name(index)))
        sample = {**truth, **fields}
        if Path(image).name != Path(str(sample.get("img_path", image))).name:
            raise DataError(
                f"{printable(self._path)}: entry {index} is of {image!r}, not of the image in the test data"
            )
        return sample

    @contextmanager
    def _intact(self, part: str) -> Iterator[None]:
        """Turn what a damaged part of the file raises, and a part that is absent, into a line."""
        try:
            yield
        except (LookupError, TypeError, ValueError, AttributeError, OSError, *DAMAGED_ARCHIVE) as error:
            made_by = "make the file anew with tools/test.py --save-predictions"
            raise DataError(f"{printable(self._path)}: {part} is damaged or absent: {made_by}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def score_saved(
    cfg: Config, path: Path, look: Callable[[int, dict[str, Any]], None] = lambda index, sample: None
) -> tuple[dict[str, float], Evaluator]:
    """Score saved predictions as a test does, without the network.

    Args:
        cfg: Resolved config.
        path: File of ``tools/test.py --save-predictions``.
        look: Receives the index and the sample of each image, too.

    Returns:
        Metrics by name, and the evaluator, which keeps the scores of each class.

    Raises:
        DataError: If it is no such file, or of other classes or images than the test data's.
    """
    with closing(TestedImages(cfg, path)) as images:
        evaluator = Evaluator(cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator])
        evaluator.dataset_meta = images.dataset.metainfo
        for index in range(len(images)):
            sample = images[index]
            look(index, sample)
            evaluator.process(data_samples=[sample], data_batch=None)
        return {name: float(value) for name, value in evaluator.evaluate(len(images)).items()}, evaluator


def _truth(item: Mapping[str, Any]) -> dict[str, Any]:
    """What a data set knows of an image, as a sample has it."""
    sample = item.get("data_samples")
    if isinstance(sample, BaseDataElement):
        return dict(sample.to_dict())
    if isinstance(sample, Mapping):  # of images without labels, of which the pixels are the truth
        return {"inputs": item["inputs"], **sample}
    return {name: value for name, value in item.items() if name != "inputs"}


def _opened(path: Path) -> zipfile.ZipFile:
    with suppress(OSError, zipfile.BadZipFile):
        if not describe_special(path):
            file = zipfile.ZipFile(path)
            if ABOUT in file.namelist():
                return file
            file.close()
    raise DataError(f"{printable(path)}: is no file of tools/test.py --save-predictions")
