"""Predictions as pictures, for the images of a data set and for other images."""

from __future__ import annotations

import copy
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import cv2
import mmcv
import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.evaluator import BaseMetric
from mmengine.registry import FUNCTIONS, MODELS, VISUALIZERS, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils.data import DataLoader

from backbones.bands import as_picture
from backbones.channels import stated_channels
from backbones.errors import ConfigError, DataError, MachineError, UserError, describe_error
from backbones.files import NO_SPACE_ERRNOS
from backbones.weights import read_checkpoint
from engine.checkpoint.model_weights import LOADER_SETTINGS, load_model_weights
from engine.config.building import build
from engine.data.checker import build_checkers
from engine.data.image_files import (
    IMAGE_SUFFIXES,
    OTHER_SUFFIXES,
    PILLOW_ERRORS,
    DamagedImageError,
    read_bands,
    read_image_bytes,
)
from engine.data.paths import hidden_note, is_hidden
from engine.report.lettering import drawn_names, write_drawn_names
from engine.report.run_dir import DRAWN_AFTER, write_json
from engine.task import loads_image, task_of, transform_name

MAX_REASON = 160  # characters of a library's message about an image
# What an image, or its size, can raise on the way to its drawing; errors of the code itself are not among them.
IMAGE_ERRORS = (*PILLOW_ERRORS, RuntimeError, MemoryError, cv2.error)
RESULTS = "results"  # folder of predictions as files
MAX_STEM_BYTES = 200  # of an image's name in that of a picture; file systems take 255 in all
MAX_ENLARGED_SIDE = 4096  # pixels, of an enlarged image
MAX_PICTURE_PIXELS = 12_000_000  # of a drawing; larger images are drawn at a smaller size
MIN_PICTURE_SIDE = 480  # pixels; smaller images are enlarged by an integer factor


class SkippedImagesError(DataError):
    """Images that were skipped; the message is one line with the first of them.

    Args:
        skipped: Reason in one line for each file.
        total: Number of images that were to be predicted.

    Attributes:
        skipped: Reasons by file.
    """

    def __init__(self, skipped: Mapping[Path, str], total: int) -> None:
        first = next(iter(skipped))
        counts = f"{len(skipped)} of {total} images were skipped, the first is " if total > 1 else ""
        super().__init__(f"{counts}{str(first)!r}: {skipped[first]}")
        self.skipped = dict(skipped)


def draw_test_images(runner: Runner, folder: Path, count: int) -> None:
    """Draw truth and prediction side by side for images spread evenly over the test set.

    Args:
        runner: Runner that has tested; its model holds the weights.
        folder: Folder for the pictures, see :func:`write_pictures`.
        count: Number of pictures.
    """
    write_pictures(runner, folder, predict_evenly(runner.model, runner.test_dataloader, count), runner.test_dataloader)


def predict_evenly(model: nn.Module, loader: DataLoader, count: int) -> dict[int, BaseDataElement]:
    """Predictions of images that are spread evenly over the data of a loader, by their index.

    Args:
        model: Model; one that is sharded needs the call in all processes.
        loader: Data loader.
        count: Number of images.
    """
    dataset: Any = loader.dataset
    return {index: predict(model, dataset[index], loader.collate_fn) for index in spread_evenly(len(dataset), count)}


def spread_evenly(total: int, count: int) -> list[int]:
    """Indices that are spread evenly over a data set, the first and the last among them.

    Args:
        total: Number of images of the data set.
        count: Number of indices, if there are as many images.
    """
    chosen: list[int] = np.unique(np.linspace(0, total - 1, min(count, total)).astype(int)).tolist()
    return chosen


def write_pictures(
    runner: Runner, folder: Path, samples: Mapping[int, BaseDataElement], loader: DataLoader, step: int | None = None
) -> None:
    """Draw predictions beside the truth, in place of what was drawn in a folder before.

    Args:
        runner: Runner whose visualizer draws.
        folder: Folder for the pictures, named by index in the data set and image: ``000012_street.png``.
        samples: Predictions by index.
        loader: Loader of their data.
        step: Optimizer step after which a validation predicted them; ``None`` for a test.
    """
    meta = cast(Any, loader.dataset).metainfo
    names = meta["classes"]
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in (*folder.glob("[0-9]*.png"), folder / DRAWN_AFTER):
        earlier.unlink(missing_ok=True)
    runner.visualizer.dataset_meta = {**meta, "classes": drawn_names(names)}
    if line := write_drawn_names(names, folder):
        runner.logger.warning(line)
    for index, sample in samples.items():
        target = folder / _picture_name(index, sample.img_path)
        draw_sample(runner.cfg, runner.visualizer, sample, target, truth=True)
    if step is not None:
        write_json(folder / DRAWN_AFTER, {"step": step})


def _picture_name(index: int, image: str) -> str:
    stem = Path(image).stem.encode(errors="replace")[:MAX_STEM_BYTES].decode(errors="ignore")
    return f"{index:06d}_{stem}.png"


@torch.no_grad()
def predict(model: nn.Module, item: dict[str, Any], collate: Any) -> BaseDataElement:
    """Run a model on one item of a data set."""
    model.eval()
    return model.test_step(collate([item]))[0]  # type: ignore[operator]


def load_predictor(
    cfg: Config, checkpoint: str, averaged: bool, device: str, trust: bool = False
) -> tuple[nn.Module, Any]:
    """Build the model of a resolved config with its trained weights, and the visualizer of its task.

    Args:
        cfg: Resolved config.
        checkpoint: Path or URL of a checkpoint of the whole model.
        averaged: Load the averaged weights (EMA).
        device: Device of the model.
        trust: Execute code that the checkpoint asks for.

    Returns:
        The model in evaluation mode, and the visualizer.
    """
    init_default_scope(cfg.default_scope)
    LOADER_SETTINGS.trust = trust
    cfg.model.get("module", cfg.model).backbone.pop("weights", None)  # with or without test-time augmentation
    model = build(MODELS, cfg.model, "model")
    meta = dict(cfg.test_dataloader.dataset.metainfo)
    print(load_model_weights(model, read_checkpoint(checkpoint, trust), checkpoint, averaged, meta["classes"]))
    visualizer = VISUALIZERS.build({**cfg.visualizer, "vis_backends": None, "name": "predict"})
    visualizer.dataset_meta = {**meta, "classes": drawn_names(meta["classes"])}
    return model.to(device).eval(), visualizer


def result_writer(cfg: Config, name: str, folder: Path, images: Mapping[Path, str] | None = None) -> BaseMetric:
    """Return a metric that writes predictions to files in a format of the config's task, and make its folder.

    Args:
        cfg: Resolved config.
        name: Name of the format.
        folder: Output folder.
        images: Names of the images by path; ``None`` for those of the test data.

    Raises:
        ConfigError: If the task has no such format.
        MachineError: If the folder cannot be written.
    """
    task = task_of(cfg)
    if name not in task.result_formats:
        known = ", ".join(sorted(task.result_formats)) or "none yet"
        raise ConfigError(f"--format {name}: {task.name} has {known}")
    _make_folder(folder)
    return task.result_formats[name](cfg, folder, images)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"{str(folder)!r} cannot be written: choose another folder with --out") from error


def predict_images(
    cfg: Config,
    model: nn.Module,
    visualizer: Any,
    images: list[Path],
    out: Path,
    result_format: str | None = None,
    data_check: bool = True,
    unread: Mapping[Path, str] = MappingProxyType({}),
) -> Iterator[Path]:
    """Predict images one by one and draw each.

    Args:
        cfg: Resolved config; its test pipeline is used without the steps that load labels.
        model: Model of :func:`load_predictor`.
        visualizer: Visualizer of :func:`load_predictor`.
        images: Image files.
        out: Folder for the drawings.
        result_format: Format in which predictions are also written to the sub-folder ``results``; ``None`` for none.
        data_check: Whether to skip images in which the data check finds an error.
        unread: Reason for each picture beside the images that is not read, from :func:`unread_images`.

    Yields:
        The file of each drawing: ``<name>.png``, or ``<name with suffix>.png`` for images that share a name, with the
            folders before it for those of the same name in several.

    Raises:
        SkippedImagesError: At the end, if images were skipped because they cannot be read or predicted.
        MachineError: If the folder cannot be written.
        ConfigError: If the folder is that of the images, or the task has no such format.
    """
    read, collate = image_reader(cfg)
    _make_folder(out)
    if any(image.parent.samefile(out) for image in images):
        raise ConfigError(f"the drawings would overwrite the images in {str(out)!r}: choose another folder with --out")
    names = _drawing_names(images)
    if line := write_drawn_names(cfg.test_dataloader.dataset.metainfo["classes"], out):
        print(line)
    writer = result_writer(cfg, result_format, out / RESULTS, names) if result_format else None
    (checker,), skipped = build_checkers(cfg, ("test",)), dict(unread)
    for index, image in enumerate(images):
        target = out / f"{names[image]}.png"
        try:
            if data_check and (errors := checker.image_errors(str(image))):
                raise DamagedImageError.of(image, f"{errors[0].problem}; {errors[0].fix}")
            item = read(str(image), index)
            sample = predict(model, drawn := _reduced(item), collate)
            draw_sample(cfg, visualizer, sample, target, truth=False)
            sample = predict(model, item, collate) if writer is not None and drawn is not item else sample
        except IMAGE_ERRORS as error:
            skipped[image] = _reason(error)
            continue
        if writer is not None:
            writer.process(None, [sample.to_dict()])
        yield target
    if writer is not None and writer.results:
        writer.compute_metrics(writer.results)
    if skipped:
        raise SkippedImagesError(skipped, len(images) + len(unread))


def _picture_size(height: int, width: int) -> tuple[int, int]:
    """Height and width at which an image is drawn, of the same shape."""
    factor = min(1.0, math.sqrt(MAX_PICTURE_PIXELS / (height * width)))
    return max(1, round(factor * height)), max(1, round(factor * width))


def _reduced(item: dict[str, Any]) -> dict[str, Any]:
    """Have boxes, masks and labels of a large image come out at the size of its drawing.

    The network sees the same pixels. At 81 megapixels, pasting 100 masks and drawing them would take minutes and 14 GB.

    Args:
        item: Item of mmdet's or mmseg's data set; any other, and that of a smaller image, is returned as it is.
    """
    sample = item.get("data_samples")
    stated = sample.get("ori_shape") if sample is not None else None
    if sample is None or stated is None or (size := _picture_size(*stated[:2])) == tuple(stated[:2]):
        return item
    (height, width), scale = stated[:2], sample.get("scale_factor", (1.0, 1.0))
    smaller = sample.clone()
    scale_factor = (scale[0] * width / size[1], scale[1] * height / size[0])
    smaller.set_metainfo({"ori_shape": size, "scale_factor": scale_factor})
    return {**item, "data_samples": smaller}


def image_reader(cfg: Config) -> tuple[Callable[[str, int], Any], Callable[[list[Any]], Any]]:
    """What reads an image without labels for a model, and what makes a batch of such items.

    Args:
        cfg: Resolved config.

    Returns:
        The test pipeline without the steps that load labels, which gets the path of an image and its id, and the
            collate function of the test data.
    """
    steps, fields = cfg.test_dataloader.dataset.pipeline, task_of(cfg).image_fields
    kept = [step for step in steps if loads_image(step) or not transform_name(step).startswith("Load")]
    pipeline = Compose([ConfigDict(step) for step in kept])

    def read(path: str, image_id: int) -> Any:
        return pipeline({"img_path": path, "img_id": image_id, **copy.deepcopy(dict(fields))})

    return read, FUNCTIONS.get(cfg.test_dataloader.get("collate_fn", {"type": "pseudo_collate"})["type"])


def _drawing_names(images: Sequence[Path]) -> dict[Path, str]:
    """A name for each image's drawing that no other has."""
    stems, whole = (Counter(getattr(image, part) for image in images) for part in ("stem", "name"))
    common = os.path.commonpath([image.absolute().parent for image in images])
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for image in images:
        if whole[image.name] > 1:
            name = "_".join(image.absolute().relative_to(common).parts)
        else:
            name = image.stem if stems[image.stem] == 1 and image.stem not in whole else image.name
        while name in taken:
            name += "_"
        names[image] = name
        taken.add(name)
    return names


def _reason(error: Exception) -> str:
    """Why an image was skipped, in one line.

    Raises:
        Exception: The error itself, if other images would fail by it too: a wrong setting, a full disk.
    """
    if isinstance(error, DamagedImageError) and error.reason:
        return error.reason
    if isinstance(error, DataError):
        return str(error)
    if isinstance(error, UserError) or getattr(error, "errno", None) in NO_SPACE_ERRNOS:
        raise error
    return f"cannot be predicted: {describe_error(error, MAX_REASON)}"


def unread_images(paths: Iterable[Path], suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> dict[Path, str]:
    """Pictures in folders that :func:`find_images` passes over for their format, each with the reason in a line."""
    others = {suffix for suffix in (*OTHER_SUFFIXES, ".npy") if suffix not in suffixes}
    found = (one for path in paths if path.is_dir() for one in sorted(path.iterdir()) if one.suffix.lower() in others)
    return {
        one: f"is not read, as {one.suffix} is none of {', '.join(suffixes)}: convert it to JPEG or PNG"
        for one in found
        if one.is_file() and not is_hidden(one.name)
    }


def find_images(paths: Iterable[Path], suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Path]:
    """Images at paths: files, and all images of some suffixes in folders, without their subfolders and hidden files.

    Raises:
        DataError: If there is none at a path.
    """
    return list(dict.fromkeys(image for path in paths for image in _images_at(path, suffixes)))


def _images_at(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if path.is_file():
        return [path]
    found = sorted(p for p in path.glob("*") if p.suffix.lower() in suffixes) if path.is_dir() else []
    images = [image for image in found if not is_hidden(image.name)]
    for line in hidden_note(str(path), [str(image) for image in found if is_hidden(image.name)]):
        print(line)
    if not images:
        inside = path.is_dir() and any(one.is_dir() for one in path.iterdir())
        others = Counter(one.suffix for one in unread_images([path], suffixes))
        beside = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common())
        raise DataError(
            f"{str(path)!r} is neither an image nor a folder with images ({', '.join(suffixes)})"
            + (f"; it has {beside}: convert them to JPEG or PNG" if others else "")
            + (f"; give those of its subfolders: {path}/*" if inside else "")
        )
    return images


def draw_sample(
    cfg: Config,
    visualizer: Any,
    sample: BaseDataElement,
    target: Path,
    truth: bool,
    change: Callable[[np.ndarray], np.ndarray] | None = None,
) -> None:
    """Draw a sample on its image; a small image is enlarged to a size at which labels can be read.

    Args:
        cfg: Resolved config.
        visualizer: Visualizer of the task.
        sample: Prediction, with the path of its image.
        target: File of the drawing.
        truth: Whether the annotations are drawn beside the prediction.
        change: Change of the image, RGB (H, W, 3), that had been predicted on; ``None`` for none.
    """
    image = read_picture(cfg, sample.img_path)
    draw_on(cfg, visualizer, sample, image if change is None else change(image), target, truth)


def read_picture(cfg: Config, path: str) -> np.ndarray:
    """Read an image as people see it, RGB, uint8, (H, W, 3); other channels than colours as a picture."""
    if channels := stated_channels(cfg.test_dataloader.dataset.get("pipeline")):
        return as_picture(read_bands(path, channels))
    image: np.ndarray = mmcv.imfrombytes(read_image_bytes(path), channel_order="rgb")
    return image


def draw_on(
    cfg: Config, visualizer: Any, sample: BaseDataElement, image: np.ndarray, target: Path, truth: bool
) -> None:
    """Draw a sample on a picture.

    Args:
        cfg: Resolved config.
        visualizer: Visualizer of the task.
        sample: Prediction.
        image: Picture, RGB, uint8, (H, W, 3).
        target: File of the drawing.
        truth: Whether the annotations are drawn beside the prediction.
    """
    sample, (height, width) = sample.cpu(), image.shape[:2]
    if (height, width) != (size := _picture_size(height, width)) == tuple(sample.get("ori_shape", ())[:2]):
        height, width = size  # that of the answer, by _reduced
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    factor = min(round(MIN_PICTURE_SIDE / min(height, width)), MAX_ENLARGED_SIDE // max(height, width))
    task = task_of(cfg)
    if factor > 1:
        task.scale_sample(sample, factor)
        image = cv2.resize(image, (factor * width, factor * height), interpolation=cv2.INTER_CUBIC)
    visualizer.add_datasample(
        target.stem, image, sample, draw_gt=truth, draw_pred=True, out_file=str(target), **task.draw_options
    )
