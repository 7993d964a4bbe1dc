"""Images as a network gets them: read, augmented and mixed as the training would, and as they were before."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, MODELS, VISUALIZERS, init_default_scope
from mmengine.structures import BaseDataElement
from torch import Tensor

from backbones.bands import as_picture
from backbones.channels import COLOUR_CHANNELS, stated_channels
from engine.checkpoint.rng import seed_of, seeded
from engine.config.batch import micro_batch_collate
from engine.config.building import build
from engine.config.datasets import inner_datasets
from engine.data.fault_tolerance import FaultTolerantDataset
from engine.data.sampling import SeededIndex
from engine.prediction.visualize import MIN_PICTURE_SIDE, read_picture
from engine.report.lettering import drawn_names
from engine.task import Shape, loads_image, task_of, transform_name

CACHE_IMAGES = 8  # that are read before, for pipelines that mix an image with earlier ones
MAX_SHOWN_SIDE = 640  # pixels of a picture in the page
NO_OBJECTS = np.zeros((0, 2))
KEPT_KEYS = ("homography_matrix", "scale_factor", "img_shape")


@dataclass(frozen=True)
class Draw:
    """One image as the network gets it.

    Attributes:
        picture: Picture with its labels, RGB, uint8, (H, W, 3).
        caption: Labels in words; may be empty.
        size: Height and width of the network's input in pixels.
        objects: Width and height of the objects in the network's input, (N, 2).
        kept: Share of the image that the crop has left; ``None`` where it is not known.
    """

    picture: np.ndarray
    caption: str
    size: Shape
    objects: np.ndarray = field(default_factory=lambda: NO_OBJECTS)
    kept: float | None = None


class _LastResults:
    """A step of a pipeline that notes what is known of an image before it is packed."""

    def __init__(self) -> None:
        self.results: dict[str, Any] = {}

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        self.results = {key: results[key] for key in KEPT_KEYS if key in results}
        return results


class NetworkInputs:
    """The images of a split of a config, with what its pipeline and the model's preprocessor make of them.

    Args:
        cfg: Resolved config.
        split: ``train``, ``val`` or ``test``.
        folder: Folder for the list of images that cannot be read.

    Attributes:
        mixes: Whether the pipeline mixes each image with others.

    Raises:
        ConfigError: If a part does not build.
        DataError: If the data is not as it should be.
    """

    def __init__(self, cfg: Any, split: str, folder: Path) -> None:
        init_default_scope(cfg.default_scope)
        loader = cfg[f"{split}_dataloader"]
        self.cfg, self.training, self.spec = cfg, split == "train", task_of(cfg).browse
        self.settings = inner_datasets(loader.dataset)[0]
        with redirect_stdout(StringIO()):  # pycocotools' own
            built = build(DATASETS, copy.deepcopy(loader.dataset), f"{split}_dataloader.dataset", cfg.default_scope)
            if hasattr(built, "full_init"):
                built.full_init()
        self.dataset = FaultTolerantDataset(built, folder)
        collate = loader.get("collate_fn") or {"type": "pseudo_collate"}
        self.collate_settings = collate.get("collate", collate)  # of a step of several micro-batches those of one
        settings = dict(self.spec.preprocessor(cfg))
        self.preprocessor: Any = build(MODELS, settings, "model.data_preprocessor", cfg.default_scope)
        self.channels = stated_channels(self.settings.get("pipeline"))
        self.visualizer = VISUALIZERS.build({**cfg.visualizer, "vis_backends": None, "name": "browse"})
        self.visualizer.dataset_meta = {**built.metainfo, "classes": drawn_names(built.metainfo.get("classes") or ())}
        self.seed = int((cfg.get("randomness") or {}).get("seed") or 0)
        self.last = _LastResults()
        steps = list(_steps(built))
        self.mixes = any(hasattr(step, "results_cache") or hasattr(step, "get_indexes") for step in steps)
        self.steps = steps
        for part in _parts(built):
            if isinstance(getattr(part, "pipeline", None), Compose):
                part.pipeline.transforms.insert(len(part.pipeline.transforms) - 1, self.last)
        if any(hasattr(step, "results_cache") for step in steps):
            for index in range(min(CACHE_IMAGES, len(self))):
                self.dataset[SeededIndex(index, seed_of(self.seed, 0, index))]

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes."""
        return tuple(self.dataset.metainfo.get("classes") or ())

    def entry(self, index: int) -> dict[str, Any]:
        """What the data set knows of an image without reading it."""
        found: dict[str, Any] = self.dataset.get_data_info(index)
        return found

    def labels(self, index: int) -> Any:
        """The labels of an image before it is augmented."""
        return self._original(index)[1]

    def original(self, index: int) -> Draw:
        """An image before it is augmented."""
        image, target = self._original(index)
        return self._drawn(image, target, None)

    def draws(self, indices: Sequence[int], epoch: int) -> list[Draw]:
        """Images as the network gets them in an epoch; those that are of one size are one batch, and so may be mixed.

        Args:
            indices: Indices in the data set.
            epoch: Number of the pass over the data, from 0, from which the augmentation follows.
        """
        items, notes = [], []
        for index in indices:
            seed = seed_of(self.seed, epoch, index)
            items.append(self.dataset[SeededIndex(index, seed)])
            notes.append((self.last.results, seed))
        shapes = {tuple(item["inputs"].shape) for item in items if isinstance(item.get("inputs"), Tensor)}
        together = len(shapes) == 1
        found = []
        with seeded(seed_of(self.seed, epoch)):
            for group in [items] if together else [[item] for item in items]:
                found += self._preprocessed(group, self.training)
        return [
            self._drawn(image, target, self._kept(index, *note))
            for index, note, (image, target) in zip(indices, notes, found, strict=True)
        ]

    def _kept(self, index: int, results: dict[str, Any], seed: int) -> float | None:
        if not self.training or self.mixes:
            return None
        entry = self.entry(index)
        stated = (entry.get("height"), entry.get("width"))
        size = stated if all(stated) else read_picture(self.cfg, entry["img_path"]).shape[:2]
        return self.spec.kept_share(self.steps, results, size, seed)  # type: ignore[arg-type]

    def _original(self, index: int) -> tuple[np.ndarray, Any]:
        entry, steps = self.entry(index), self.settings.get("pipeline") or []
        kept = [copy.deepcopy(step) for step in steps if transform_name(step).startswith(("Load", "Pack"))]
        if not any(loads_image(step) for step in kept):
            return read_picture(self.cfg, entry["img_path"]), self.spec.original_target(entry)
        if transform_name(kept[-1]).startswith("Pack"):
            kept[-1] = ConfigDict({**kept[-1], "meta_keys": ("img_path", "ori_shape", "img_shape")})
        ((image, target),) = self._preprocessed([Compose(kept)(entry)], False)
        height, width = target.img_shape[:2] if isinstance(target, BaseDataElement) else image.shape[:2]
        return image[:height, :width], target

    def _preprocessed(self, items: Sequence[Any], training: bool) -> list[tuple[np.ndarray, Any]]:
        """Images, RGB, uint8, and their labels as the model gets them."""
        group = [*items, items[-1]] if len(items) % 2 and len(items) > 1 else list(items)  # mixup pairs images
        with torch.no_grad():
            (collated,) = micro_batch_collate(copy.deepcopy(group), 1, self.collate_settings)
            batch = self.preprocessor(collated, training)
        targets = self.spec.targets(batch.get("data_samples"))
        pictures = [input_picture(self.cfg, self.preprocessor, image, self.channels) for image in batch["inputs"]]
        return list(zip(pictures, [*targets, *[None] * len(pictures)], strict=False))[: len(items)]

    def _drawn(self, image: np.ndarray, target: Any, kept: float | None) -> Draw:
        objects = NO_OBJECTS if self.spec.object_sizes is None or target is None else self.spec.object_sizes(target)
        size = (image.shape[0], image.shape[1])
        enlarged = max(1, round(MIN_PICTURE_SIDE / min(size)))
        if isinstance(target, BaseDataElement) and enlarged > 1:  # labels are written at the size of the picture
            image, target = _enlarged(image, enlarged), target.clone()
            task_of(self.cfg).scale_sample(target, enlarged)
            enlarged = 1
        picture, caption = self.spec.draw(self.cfg, self.visualizer, image, target)
        picture = _enlarged(picture, enlarged)
        if (shrink := MAX_SHOWN_SIDE / max(picture.shape[:2])) < 1:
            picture = cv2.resize(picture, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        return Draw(picture, caption, size, objects, kept)


def input_picture(cfg: Any, preprocessor: Any, image: Tensor, channels: int | None) -> np.ndarray:
    """The network's input as a picture, RGB, uint8, (H, W, 3).

    Args:
        cfg: Resolved config.
        preprocessor: Data preprocessor of its model.
        image: Normalised image, (C, H, W).
        channels: Channels that the pipeline reads other than as colours; ``None`` for colours.
    """
    mean, std = (getattr(preprocessor, name, other) for name, other in (("mean", 0.0), ("std", 1.0)))
    values: Tensor = image.detach().float() * std + mean
    pixels = values.permute(1, 2, 0).cpu().numpy()
    if channels is not None or pixels.shape[2] != COLOUR_CHANNELS:
        return as_picture(pixels)
    colours, settings = pixels.round().clip(0, 255).astype(np.uint8), task_of(cfg).browse.preprocessor(cfg)
    reads_rgb = settings.get("bgr_to_rgb") or (task_of(cfg).channel_order == "RGB" and not settings.get("rgb_to_bgr"))
    return np.ascontiguousarray(colours if reads_rgb else colours[..., ::-1])


def _enlarged(image: np.ndarray, factor: int) -> np.ndarray:
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC) if factor > 1 else image


def _parts(dataset: Any) -> Iterator[Any]:
    """A built data set and those that it wraps."""
    yield dataset
    for inner in [*([dataset.dataset] if hasattr(dataset, "dataset") else []), *getattr(dataset, "datasets", ())]:
        yield from _parts(inner)


def _steps(dataset: Any) -> Iterator[Any]:
    """The transforms of a built data set and of those that it wraps, the inner ones first."""
    for part in reversed(list(_parts(dataset))):
        pipeline = getattr(part, "pipeline", ())
        yield from getattr(pipeline, "transforms", pipeline)
