"""Networks to export with their trained weights: a classifier, a pyramid, or the export wrapper of a task."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from analysis.export.preprocessing import Preprocessing, assumed_preprocessing, preprocessing_of
from backbones.base import Backbone
from backbones.channels import image_channels
from backbones.registry import build_backbone
from backbones.variants import BASELINES
from backbones.weights import find_head, read_checkpoint
from engine.checkpoint.model_weights import LOADER_SETTINGS, file_classes, load_model_weights, recorded_classes
from engine.config.building import build
from engine.config.classes import class_names
from engine.config.load import load_config
from engine.config.world import Launch
from engine.task import Shape, task_of

# Some released ViT, BiT and EfficientNetV2 need 0.5 for mean and deviation.
ASSUMED_PREPROCESSING = (
    "neither name nor checkpoint says how images were prepared: size, crop, mean and deviation customary on ImageNet "
    "are written"
)
SizeRange = tuple[int, int | None]  # smallest and largest number of pixels; None for unlimited

DEFAULT_IMAGE_SIZE = 224


class Classifier(nn.Module):
    """A pooling backbone and its linear head: images ``(N, 3, H, W)`` to logits ``(N, K)``.

    Args:
        backbone: Network from images to pooled vectors, ``(N, C)``.
        head: Linear head; ``None`` to return the pooled vectors.
    """

    def __init__(self, backbone: nn.Module, head: nn.Linear | None) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone(images)
        return features if self.head is None else self.head(features)


@dataclass(frozen=True)
class ExportSource:
    """A network that is ready to be exported.

    Attributes:
        name: Registered name of the backbone.
        kind: ``classifier``, ``pyramid``, ``segmentor``, ``detector`` or another that a task exports.
        network: Network in evaluation mode on the CPU, from normalised images to one tensor or a tuple of tensors.
        outputs: Name of each output.
        shape: Default height and width in pixels.
        weights: Description of the weights: raw or averaged, and the name of the checkpoint.
        preprocessing: Steps of a test from an image file to the network's input.
        classes: Names of the classes; empty if unknown.
        notes: Remarks for the user, one line each.
        prefix: Beginning of the network's tensor names that exported files leave out.
        batch_size: Number of images that it takes at once; ``None`` for any.
        recordable: Context in which an exporter records the operations of ``example``; ``None`` for a network whose
            operations need no example.
        align: Brings the outputs of a file and of the network into one order; ``None`` where the order is given.
        example: Normalised images, (N, C, H, W), that go through all parts of the network.
        size_multiple: Number of pixels whose multiples are the heights and widths that the network runs on.
    """

    name: str
    kind: str
    network: nn.Module
    outputs: tuple[str, ...]
    shape: Shape
    weights: str
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    prefix: str = ""
    batch_size: int | None = None
    recordable: Callable[[], AbstractContextManager[None]] | None = None
    align: Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[Sequence[Tensor], Sequence[Tensor]]] | None = None
    example: Tensor | None = None
    size_multiple: int = 1

    @property
    def channels(self) -> int:
        """Number of channels of the images."""
        return image_channels(self.network)

    @property
    def input_sizes(self) -> tuple[SizeRange, SizeRange]:
        """Ranges of height and width that the network accepts."""
        smallest = max(
            (part.min_image_side for part in self.network.modules() if isinstance(part, Backbone)), default=1
        )
        return (smallest, None), (smallest, None)

    def run(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the network on normalised images ``(N, C, H, W)``; a single output is a tuple of one."""
        with torch.no_grad():
            outputs = self.network(images)
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)

    def metadata(self) -> dict[str, str]:
        """Metadata of an exported file, as strings; lists and ``preprocessing`` are JSON."""
        prepared, count = self.preprocessing.as_dict(), self.batch_size or "N"
        return {
            "network": self.name,
            "kind": self.kind,
            "weights": self.weights,
            "input": f"images ({count}, {self.channels}, H, W), float32: (pixel / 255 - mean) / std for each channel",
            "preprocessing": json.dumps(prepared),
            **{name: json.dumps(prepared[name]) for name in ("mean", "std")},
            "colour": prepared["colour"],
            "size": json.dumps(self.shape),
            "outputs": json.dumps(self.outputs),
            "classes": json.dumps(self.classes),
            **({} if self.size_multiple == 1 else {"size_multiple": str(self.size_multiple)}),
        }

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, with ``prefix`` removed from their names."""
        return {name.removeprefix(self.prefix): value for name, value in self.network.state_dict().items()}


def source_from_name(
    name: str,
    checkpoint: str,
    averaged: bool,
    out_indices: Sequence[int] | None,
    shape: Shape | None,
    trust: bool = False,
) -> ExportSource:
    """A registered network with the weights of any checkpoint that has its backbone.

    Args:
        name: Name in :func:`backbones.list_backbones`.
        checkpoint: Path or URL of a checkpoint of any known layout.
        averaged: Take the averaged weights (EMA).
        out_indices: Stages of a pyramid; ``None`` for a classifier, or for the pooled vector where the checkpoint has
            no head.
        shape: Height and width in pixels; by default 224 x 224, or the size that a baseline is built for.
        trust: Execute code that the checkpoint asks for.

    Raises:
        ConfigError: If the name is unknown.
        CheckpointError: If the checkpoint cannot be read or does not fit the network.
    """
    options = {} if out_indices is None else {"out_indices": tuple(out_indices)}
    backbone, content = build_backbone(name, **options), read_checkpoint(checkpoint, trust)
    backbone.load_weights(content, checkpoint, averaged)
    side = BASELINES[name].image_size if name in BASELINES else DEFAULT_IMAGE_SIZE
    weights, size = _weights(checkpoint, averaged), shape or (side, side)
    prepared, notes = assumed_preprocessing(size), [ASSUMED_PREPROCESSING]
    if out_indices is not None:
        outputs = tuple(f"stage{i}" for i in backbone.out_indices or ())
        return ExportSource(name, "pyramid", backbone.eval(), outputs, size, weights, prepared, notes=tuple(notes))
    head, classes = None, file_classes(content)
    if found := find_head(content, checkpoint, averaged):
        head = nn.Linear(found[0].shape[1], found[0].shape[0])
        head.load_state_dict(dict(zip(("weight", "bias"), found, strict=True)))
    else:
        notes.insert(0, "the checkpoint has no head: the pooled vector is exported")
    return ExportSource(
        name,
        "classifier",
        Classifier(backbone, head).eval(),
        ("features",) if head is None else ("logits",),
        size,
        weights,
        prepared,
        classes=classes if head is not None and len(classes) == head.out_features else (),
        notes=tuple(notes),
        prefix="backbone.",
    )


def source_from_config(
    path: str,
    checkpoint: str,
    averaged: bool,
    shape: Shape | None,
    options: dict[str, Any] | None = None,
    trust: bool = False,
) -> ExportSource:
    """The model of a config with the weights of its checkpoint, as far as its task exports it.

    Args:
        path: Path of the config.
        checkpoint: Path or URL of a checkpoint of the whole model.
        averaged: Take the averaged weights (EMA).
        shape: Height and width in pixels; by default those of the config's tests.
        options: Settings to override, under dotted keys.
        trust: Execute code that the checkpoint asks for.

    Raises:
        ConfigError: If the config is wrong.
        CheckpointError: If the checkpoint cannot be read or does not fit the model.
    """
    known = partial(recorded_classes, checkpoint, trust)
    cfg = load_config(path, options, Launch(), training=False, known_classes=known).cfg
    size = shape or _tested_shape(cfg)
    model = _load_whole(cfg, checkpoint, averaged, trust)
    found, prepared = task_of(cfg).export_wrapper(model), preprocessing_of(cfg, model, shape)
    notes = [found.note] if found.note else []
    if prepared.other_steps:
        steps = ", ".join(prepared.other_steps)
        notes.append(f"the file does not say how to prepare images in full, these steps are unknown here: {steps}")
    return ExportSource(
        cfg.model.backbone.type,
        found.kind,
        found.network.eval(),
        found.outputs,
        size,
        _weights(checkpoint, averaged),
        prepared,
        class_names(cfg.classes),
        tuple(notes),
        found.prefix,
        found.batch_size,
        found.recordable,
        found.align,
    )


def _load_whole(cfg: Config, checkpoint: str, averaged: bool, trust: bool) -> BaseModel:
    cfg.model.backbone.pop("weights", None)
    LOADER_SETTINGS.trust = trust
    model = build(MODELS, cfg.model, "model", cfg.default_scope)
    classes = cfg.test_dataloader.dataset.metainfo["classes"]
    print(load_model_weights(model, read_checkpoint(checkpoint, trust), checkpoint, averaged, classes))
    return model


def _weights(checkpoint: str, averaged: bool) -> str:
    return f"{'averaged' if averaged else 'raw'} weights of {Path(checkpoint).name}"


def _tested_shape(cfg: Config) -> Shape:
    """The size of the config's tests: of its crops, its images, or its batches."""
    crop = (cfg.model.get("test_cfg") or {}).get("crop_size")
    if crop:
        return crop[0], crop[1]
    for step in reversed(cfg.get("test_pipeline", [])):
        if isinstance(step.get("size"), int):
            return step["size"], step["size"]
        if isinstance(step.get("scale"), list | tuple):
            return step["scale"][1], step["scale"][0]  # the library writes width first
    height, width = (cfg.model.get("data_preprocessor") or {}).get("size") or (DEFAULT_IMAGE_SIZE, DEFAULT_IMAGE_SIZE)
    return height, width
