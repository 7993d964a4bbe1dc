"""What is done of the predictions in a folder: a small file for each image, by which an interrupted program goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from backbones.errors import ConfigError
from backbones.files import read_text_file
from engine.config.fingerprint import make_fingerprint
from engine.prediction.images import NamedImage
from engine.prediction.result_files import write_json_file

DONE_FOLDER = ".done"
PICTURES_ALONE = "pictures"  # the format of a program that draws alone
ABOUT_FILE = "about.json"


def model_fingerprint(cfg: Config, model: nn.Module) -> str:
    """Hash of all that predictions depend on beside the images: weights, model and preprocessing of tests."""
    weights = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    dataset = cfg.test_dataloader.dataset
    settings = [cfg.model.to_dict(), [dict(step) for step in dataset.pipeline], list(dataset.metainfo["classes"])]
    return make_fingerprint(weights.hexdigest(), *settings)[:16]


class DoneImages:
    """The images of an output folder that are done, with what their format keeps of each for the files of all.

    Args:
        out: Output folder.
        result_format: Name of the format; ``None`` for pictures alone.
    """

    def __init__(self, out: Path, result_format: str | None) -> None:
        self.out = out
        self.folder = out / DONE_FOLDER / (result_format or PICTURES_ALONE)

    def begin(self, model: str, source: str, choices: Any) -> None:
        """Check that what is there is of the same model and choices, and note them.

        Args:
            model: Hash of :func:`model_fingerprint`.
            source: Checkpoint, for the message.
            choices: Settings of the format, as JSON.

        Raises:
            ConfigError: If the folder has predictions of another model, or other choices of this format.
        """
        about, own = self.out / DONE_FOLDER / ABOUT_FILE, self.folder / ABOUT_FILE
        before = _read(about)
        if before is not None and before.get("model") != model:
            raise ConfigError(
                f"{str(self.out)!r} has predictions of {before.get('checkpoint')!r}, with other weights or settings of "
                "the model: choose another folder with --out, or remove this one"
            )
        earlier = _read(own)
        if earlier is not None and earlier != {"choices": choices}:
            raise ConfigError(
                f"{str(self.out)!r} has predictions in this format with other options, "
                f"{json.dumps(earlier.get('choices'))}: choose another folder with --out, or remove this one"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        if before is None:
            write_json_file(about, {"model": model, "checkpoint": source})
        if earlier is None:
            write_json_file(own, {"choices": choices})

    def is_done(self, image: NamedImage) -> bool:
        """Whether an image was predicted, and its file is the same as then, in the same place."""
        found = _read(self._file(image.name))
        return found is not None and "record" in found and found.get("image") == _state(image.path)

    def add(self, image: NamedImage, record: Any) -> None:
        """Note that an image is done, once all its files are written.

        Args:
            image: The image.
            record: JSON that its format keeps for the files of all images; of a video the number of frames.
        """
        self._write(image, {"record": record})

    def skip(self, image: NamedImage, reason: str) -> None:
        """Note why an image was skipped; it is tried again by the next program."""
        self._write(image, {"skipped": reason})

    def add_frame(self, video: NamedImage, number: int, record: Any) -> None:
        """Keep what a format needs of a frame; the video is done once :meth:`add` gets their number as its record."""
        path = self._file(f"{video.name}/{number:06d}")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_file(path, {"record": record})

    def records(self, images: Iterable[NamedImage]) -> Iterator[Any]:
        """The records of images and of the frames of videos, in this order; those that were skipped have none."""
        for image in images:
            found = _read(self._file(image.name)) or {}
            if not image.is_video:
                names = [image.name] * ("record" in found)
            else:
                names = [f"{image.name}/{number:06d}" for number in range(1, found.get("record", 0) + 1)]
            for name in names:
                yield (_read(self._file(name)) or {})["record"]

    def skipped(self, images: Iterable[NamedImage]) -> dict[Path, str]:
        """Reasons for the images that were skipped."""
        read = ((image.path, _read(self._file(image.name)) or {}) for image in images)
        return {path: found["skipped"] for path, found in read if "skipped" in found}

    def _write(self, image: NamedImage, content: dict[str, Any]) -> None:
        path = self._file(image.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_file(path, {"image": _state(image.path), **content})

    def _file(self, name: str) -> Path:
        return self.folder / "images" / f"{name}.json"


def _state(path: Path) -> list[Any] | None:
    """Size, time and place of a file, the place as a hash; ``None`` if it is absent."""
    try:
        state, place = path.stat(), path.resolve()
    except OSError:
        return None
    return [state.st_size, state.st_mtime_ns, make_fingerprint(str(place))[:16]]


def _read(path: Path) -> dict[str, Any] | None:
    """Content of a file; ``None`` if it is absent or, after a power failure, not whole."""
    try:
        content = json.loads(read_text_file(path))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
