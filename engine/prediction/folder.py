"""Predictions of images and videos, drawn and written to files: in batches, by several processes, after a stop."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
import torch.distributed as dist
from mmengine.config import Config
from mmengine.structures import BaseDataElement
from PIL import Image
from torch import nn

from backbones.errors import ConfigError, DataError, UserError, describe_error
from backbones.files import NO_SPACE_ERRNOS
from engine.data.checker import build_checkers
from engine.data.image_files import PILLOW_ERRORS, DamagedImageError
from engine.launch.heartbeat import HEARTBEAT, Phase
from engine.launch.leftovers import process_folder
from engine.prediction.images import NamedImage
from engine.prediction.panel_visualizer import without_legend
from engine.prediction.progress_files import DoneImages, model_fingerprint
from engine.prediction.result_files import RESULTS, ResultRequest, ResultWriter, make_folder, result_writer
from engine.prediction.video import VIDEO_FORMAT, Video, VideoFile, written_video
from engine.prediction.visualize import draw_sample, image_reader, predict_batch, reduced_item
from engine.report.lettering import write_drawn_names

MAX_REASON = 160  # characters of a library's message about an image
# What an image, or its size, can raise on the way to its drawing; errors of the code itself are not among them.
IMAGE_ERRORS = (*PILLOW_ERRORS, RuntimeError, MemoryError, cv2.error)
LONGEST_WAIT = timedelta(days=30)  # for the process with the largest share


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


@dataclass(frozen=True)
class Output:
    """What is written for images, and how they are predicted.

    Attributes:
        folder: Folder of the drawings; files of a format are in its sub-folder ``results``.
        result_format: Format of the files; ``None`` for drawings alone.
        pictures: Whether to draw.
        batch: Most images that are predicted at once.
        min_score: Lowest score of an object that is written to files.
        probabilities: Whether the probabilities of all classes are written to files.
        data_check: Whether to skip images in which the data check finds an error.
        source: Checkpoint of the model, by which the folder is known.
        rank: Number of this process.
        processes: Number of processes that share the images.
    """

    folder: Path
    result_format: str | None = None
    pictures: bool = True
    batch: int = 1
    min_score: float = 0.0
    probabilities: bool = False
    data_check: bool = True
    source: str = ""
    rank: int = 0
    processes: int = 1

    def check(self) -> None:
        """Refuse choices that contradict each other.

        Raises:
            ConfigError: If nothing would be written, or a number is out of range.
        """
        if not self.result_format:
            for option, given in (("--min-score", self.min_score), ("--probabilities", self.probabilities)):
                if given:
                    raise ConfigError(f"{option} is about the files of --format, which is not given")
            if not self.pictures:
                raise ConfigError("--no-pictures without --format: nothing would be written")
        if self.batch < 1:
            raise ConfigError(f"--batch {self.batch}: at least one image")
        if not 0 <= self.min_score <= 1:
            raise ConfigError(f"--min-score {self.min_score}: scores are from 0 to 1")


def predict_images(
    cfg: Config,
    model: nn.Module,
    visualizer: Any,
    images: Sequence[NamedImage],
    output: Output,
    unread: Mapping[Path, str] = MappingProxyType({}),
) -> Iterator[Path]:
    """Predict images, draw them and write files for programs; images that an earlier program did are left as they are.

    Of several processes each takes every n-th batch, and the first one writes the files of all images at the end: they
    are the same as from one process.

    Args:
        cfg: Resolved config; its test pipeline is used without the steps that load labels.
        model: Model of :func:`engine.prediction.visualize.load_predictor`.
        visualizer: Visualizer of :func:`engine.prediction.visualize.load_predictor`.
        images: Images of :func:`engine.prediction.images.name_images`.
        output: Folder and choices.
        unread: Reason for each picture beside the images that is not read.

    Yields:
        The file of each drawing, ``<name>.png``; of a video ``<name>.mp4``.

    Raises:
        SkippedImagesError: At the end, if images were skipped because they cannot be read or predicted; in the first
            process alone.
        MachineError: If the folder cannot be written.
        ConfigError: If the folder has predictions of another model, or the task has no such format.
    """
    output.check()
    out, name = output.folder, output.result_format
    HEARTBEAT.configure(str(out), cfg.get("env_cfg", {}).get("patience", 0.0))
    make_folder(out)
    request = ResultRequest(cfg, out / RESULTS, min_score=output.min_score, probabilities=output.probabilities)
    writer = result_writer(name, request) if name else None
    if writer is not None and writer.needs_image_files and any(image.is_video for image in images):
        raise ConfigError(f"--format {name} is about image files, which the frames of a video are not: choose another")
    done = DoneImages(out, name)
    choices = {"min_score": output.min_score, "probabilities": output.probabilities}
    done.begin(model_fingerprint(cfg, model), output.source, choices)
    names = cfg.test_dataloader.dataset.metainfo["classes"]
    if output.pictures and (line := write_drawn_names(names, out)) and not output.rank:
        print(line)
    # Joined now: at the end one process may wait for hours for the others.
    group = dist.new_group(backend="gloo", timeout=LONGEST_WAIT) if output.processes > 1 else None
    yield from _Share(cfg, model, visualizer, output, writer, done).predict(images)
    if group is not None:  # still in the last batch: one that waits is no longer expected to move
        dist.monitored_barrier(group, timeout=LONGEST_WAIT)
    HEARTBEAT.enter(Phase.SAVING)
    if output.rank:
        return
    if writer is not None:
        writer.finish(done.records(images))
    if skipped := dict(unread) | done.skipped(images):
        raise SkippedImagesError(skipped, len(images) + len(unread))


class _Share:
    """The images that this process predicts.

    Args:
        cfg: Resolved config.
        model: The model.
        visualizer: The visualizer.
        output: Folder and choices.
        writer: Writer of the format; ``None`` for drawings alone.
        done: Images that are done.
    """

    def __init__(
        self,
        cfg: Config,
        model: nn.Module,
        visualizer: Any,
        output: Output,
        writer: ResultWriter | None,
        done: DoneImages,
    ) -> None:
        self.cfg, self.model, self.visualizer, self.output = cfg, model, visualizer, output
        self.writer, self.done = writer, done
        self.read, self.collate = image_reader(cfg)
        (self.checker,) = build_checkers(cfg, ("test",))

    def predict(self, images: Sequence[NamedImage]) -> Iterator[Path]:
        """Predict every n-th batch of the images; a batch of which an image is done is predicted again as a whole."""
        size = self.output.batch
        videos = [image for image in images if image.is_video]
        others = [image for image in images if not image.is_video]
        batches = [others[start : start + size] for start in range(0, len(others), size)]
        own = [*batches, *([video] for video in videos)][self.output.rank :: self.output.processes]
        for number, batch in enumerate(own, 1):
            HEARTBEAT.enter(Phase.BATCH, f"prediction, batch {number} of {len(own)}")
            missing = [image for image in batch if not self._is_done(image)]
            if missing and missing[0].is_video:
                yield from self._predict_video(missing[0])
            elif missing:
                yield from self._predict_batch(batch, missing)

    def drawing(self, image: NamedImage) -> Path:
        """File of the drawing of an image, or of the drawn video."""
        return self.output.folder / f"{image.name}{VIDEO_FORMAT if image.is_video else '.png'}"

    def _is_done(self, image: NamedImage) -> bool:
        return self.done.is_done(image) and (not self.output.pictures or self.drawing(image).is_file())

    def _predict_batch(self, batch: Sequence[NamedImage], missing: Sequence[NamedImage]) -> Iterator[Path]:
        """Predict a batch, in which images of one size go through the network together; write what is missing."""
        items: dict[NamedImage, Any] = {}
        for image in batch:
            try:
                if self.output.data_check and (errors := self.checker.image_errors(str(image.path))):
                    raise DamagedImageError.of(image.path, f"{errors[0].problem}; {errors[0].fix}")
                items[image] = self.read(str(image.path), len(items))
            except IMAGE_ERRORS as error:
                self.done.skip(image, skip_reason(error))
        # Of a large image pictures alone take a smaller answer.
        asked = {image: item if self.writer else reduced_item(item) for image, item in items.items()}
        samples = predict_alike(self.model, asked, self.collate)
        for image in missing:
            if image not in items:
                continue
            try:
                sample = samples[image]
                if isinstance(sample, Exception):
                    raise sample
                drawn = self._draw(image, items[image], sample)
                record = None if self.writer is None else self.writer.write(sample.to_dict(), image)
            except IMAGE_ERRORS as error:
                self.done.skip(image, skip_reason(error))
                continue
            self.done.add(image, record)
            yield from drawn

    def _draw(self, image: NamedImage, item: Any, sample: BaseDataElement) -> list[Path]:
        if not self.output.pictures:
            return []
        if self.writer is not None and (smaller := reduced_item(item)) is not item:
            (sample,) = predict_batch(self.model, [smaller], self.collate)
        target = self.drawing(image)
        target.parent.mkdir(parents=True, exist_ok=True)
        draw_sample(self.cfg, self.visualizer, sample, target, truth=False)
        return [target]

    def _predict_video(self, image: NamedImage) -> Iterator[Path]:
        """Predict the frames of a video, from the first one on, and draw them as another one."""
        target = self.drawing(image)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            video = Video(image.path)
            with ExitStack() as stack:
                drawn = stack.enter_context(written_video(target, video.rate)) if self.output.pictures else None
                for frames in video.batches(self.output.batch):
                    with tempfile.TemporaryDirectory(dir=process_folder()) as folder:
                        self._predict_frames(image, frames, Path(folder), drawn)
        except IMAGE_ERRORS as error:
            self.done.skip(image, skip_reason(error))
            return
        self.done.add(image, video.count)
        if self.output.pictures:
            yield target

    def _predict_frames(
        self, video: NamedImage, frames: list[tuple[int, np.ndarray]], folder: Path, drawn: VideoFile | None
    ) -> None:
        """Predict some frames, which go through files: a pipeline begins at one."""
        HEARTBEAT.enter(Phase.BATCH, f"prediction, frame {frames[0][0]} of {video.file}")
        items = {}
        for number, frame in frames:
            path = folder / f"{number:06d}.bmp"
            Image.fromarray(frame[..., ::-1]).save(path)
            items[number] = self.read(str(path), number)
        for number, sample in predict_alike(self.model, items, self.collate).items():
            if isinstance(sample, Exception):
                raise sample
            name = f"{number:06d}"
            if self.writer is not None:
                frame_of = NamedImage(video.path / name, f"{video.file}/{name}", f"{video.name}/{name}")
                self.done.add_frame(video, number, self.writer.write(sample.to_dict(), frame_of))
            if drawn is not None:
                with without_legend(self.visualizer):
                    draw_sample(self.cfg, self.visualizer, sample, picture := folder / f"{name}.png", truth=False)
                with Image.open(picture) as opened:
                    drawn.add(np.asarray(opened.convert("RGB"))[..., ::-1])


def predict_alike(
    model: nn.Module, items: Mapping[Any, Any], collate: Callable[[list[Any]], Any]
) -> dict[Any, BaseDataElement | Exception]:
    """Predict items, those of one shape together; after an error in several each on its own.

    Args:
        model: Model.
        items: Items of the test pipeline, by any key.
        collate: Collate function of the test data.

    Returns:
        For each key the prediction on the CPU, or the error that it raised.
    """
    alike: dict[Any, list[Any]] = {}
    for key, item in items.items():
        shape = getattr(item.get("inputs"), "shape", None)
        alike.setdefault(key if shape is None else tuple(shape), []).append(key)
    answers: dict[Any, BaseDataElement | Exception] = {}
    for keys in alike.values():
        for group in (keys, *([key] for key in keys)):
            if group[0] in answers:
                continue
            try:
                found = predict_batch(model, [items[key] for key in group], collate)
                answers |= {key: sample.cpu() for key, sample in zip(group, found, strict=True)}
            except IMAGE_ERRORS as error:
                if len(group) == 1:
                    answers[group[0]] = error
    return answers


def skip_reason(error: Exception) -> str:
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
