"""Class activation maps: the places that speak for a class, by the package ``grad-cam``."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from analysis.explain.feature_maps import stage_maps
from analysis.explain.network import TrainedNetwork, enlarge, unpadded_size, with_progress
from backbones.errors import ConfigError, nearest
from backbones.packages import is_absent, missing_package_error
from engine.report.html import note, pixels_figure
from engine.task import ExplainSpec

PACKAGE = "pytorch_grad_cam"
# Selvaraju et al., 2017; Chattopadhyay et al., 2018; Jiang et al., 2021. Names here -> classes of the package.
CAM_METHODS = {"Grad-CAM": "GradCAM", "Grad-CAM++": "GradCAMPlusPlus", "LayerCAM": "LayerCAM"}
EXPLAINED_CLASSES = 2  # of each image, unless classes are named
MIN_POSITIONS = 6  # of a map, along its shorter side, unless a stage is named
CAM_SIDE, PREDICTION_SIDE = 320, 480  # pixels
BLANK = "blank: no value is positive, or all are the same"
HEAT_SHARE = 0.5  # of the colours in a picture


@dataclass(frozen=True)
class ClassMaps:
    """Where the evidence for a class is in an image.

    Attributes:
        label: Position of the class.
        score: Score of the class.
        maps: Map of each method, (H, W) as the network's input, 0 to 1.
    """

    label: int
    score: float
    maps: Mapping[str, np.ndarray]


class ScoredModel(nn.Module):
    """A model as a network from images to the scores of classes.

    Args:
        model: Trained model.
        spec: The task's scores.
        batch: Preprocessed batch of one image.
        classes: Number of classes.
    """

    def __init__(self, model: nn.Module, spec: ExplainSpec, batch: Mapping[str, Any], classes: int) -> None:
        super().__init__()
        self.model, self.spec, self.batch, self.classes = model, spec, batch, classes

    def forward(self, images: Tensor) -> Tensor:
        samples = copy.deepcopy(self.batch["data_samples"])  # to which models add what they predict
        return self.spec.class_scores(self.model, {"inputs": images, "data_samples": samples}, self.classes)


def check_cams(network: TrainedNetwork, classes: Sequence[str]) -> None:
    """Check that maps can be drawn.

    Args:
        network: Network.
        classes: Names of the classes that are explained; empty for those that are predicted.

    Raises:
        ConfigError: If the task has no scores of classes, or a class is unknown.
        MachineError: If the package is not installed.
    """
    if network.task.explain is None:
        raise ConfigError(f"--parts cam: {network.task.name} has no scores of classes (TaskSpec.explain)")
    for name in classes:
        if name not in network.classes:
            known = f"none of the {len(network.classes)} classes{nearest(name, network.classes)}"
            raise ConfigError(f"--classes: {name!r} is {known}")
    if is_absent(PACKAGE):
        raise missing_package_error(PACKAGE, "--parts cam")


def class_maps(
    network: TrainedNetwork, batch: Mapping[str, Any], layer: nn.Module, classes: Sequence[str]
) -> list[ClassMaps]:
    """Maps of the classes of an image.

    Args:
        network: Network.
        batch: Preprocessed batch of the image.
        layer: Block whose output is weighted.
        classes: Names of classes; empty for those with the highest scores.

    Returns:
        Maps of the classes that are predicted, that of the highest score first.
    """
    assert network.task.explain is not None
    scored = ScoredModel(network.model.requires_grad_(False), network.task.explain, batch, len(network.classes))
    # Gradients reach frozen stages too, and none of the parameters.
    images = batch["inputs"].detach().requires_grad_()
    with torch.no_grad():
        scores = scored(images)[0].tolist()
    wanted = [network.classes.index(name) for name in classes] or range(len(scores))
    ranked = sorted((label for label in wanted if scores[label] > -math.inf), key=lambda label: -scores[label])
    found = []
    for label in ranked if classes else ranked[:EXPLAINED_CLASSES]:
        maps = {name: _map(kind, scored, network, layer, images, label) for name, kind in CAM_METHODS.items()}
        found.append(ClassMaps(label, scores[label], maps))
    return found


def _map(
    kind: str, scored: ScoredModel, network: TrainedNetwork, layer: nn.Module, images: Tensor, label: int
) -> np.ndarray:
    method = getattr(import_module(PACKAGE), kind)(scored, [layer], reshape_transform=network.backbone.as_map)
    try:
        maps: np.ndarray = method(images, [lambda scores: scores[label]])
    finally:
        method.activations_and_grads.release()  # its hooks
    return maps[0]


def choose_stage(maps: Sequence[Tensor]) -> int:
    """The last stage, from 1, whose map, (C, H, W), has enough positions to tell places apart; else 1."""
    sides = [min(one.shape[-2:]) for one in maps]
    return max((stage for stage, side in enumerate(sides, start=1) if side >= MIN_POSITIONS), default=1)


def cam_section(
    network: TrainedNetwork, images: Sequence[Path], stage: int | None, classes: Sequence[str]
) -> tuple[str, list[dict[str, Any]]]:
    """Draw the maps of images.

    Args:
        network: Network.
        images: Files.
        stage: Stage whose output is weighted, from 1; ``None`` for :func:`choose_stage`.
        classes: Names of classes; empty for those with the highest scores.

    Returns:
        HTML; and for JSON the classes of each image with their scores.
    """
    assert network.task.explain is not None
    parts = [
        note(
            f"Blue to red: how much the output of a stage speaks there for {network.task.explain.score}. Each map is "
            f"scaled from its own smallest to its own largest value. {_rule(stage)}"
        )
    ]
    numbers = []
    for path in with_progress(images, "class activation maps"):
        batch = network.batch(str(path))
        used = stage or choose_stage(stage_maps(network, batch))
        found = class_maps(network, batch, network.stage_layers()[used - 1], classes)
        scores = {network.classes[one.label]: one.score for one in found}
        listed = ", ".join(f"{name} {score:.4g}" for name, score in scores.items()) or "no class is predicted"
        parts.append(f"<h3>{escape(f'{path.name}: {listed} (stage {used})')}</h3>")
        first = pixels_figure(_prediction(network, path), "prediction", f"prediction for {path.name}")
        parts += _rows(network, path, batch, found, first)
        numbers.append({"image": path.name, "stage": used, "scores": scores})
    return "".join(parts), numbers


def _rule(stage: int | None) -> str:
    if stage is not None:
        return ""
    return f"The stage is the last one whose map has at least {MIN_POSITIONS} x {MIN_POSITIONS} positions."


def _rows(
    network: TrainedNetwork, path: Path, batch: dict[str, Any], found: Sequence[ClassMaps], first: str
) -> Iterator[str]:
    """A row of pictures for each class: the prediction or, from the second row on, the input, and the maps."""
    (height, width), picture = unpadded_size(batch), enlarge(network.picture(batch), CAM_SIDE)
    for one in found:
        name = network.classes[one.label]
        figures = [
            first,
            *(
                pixels_figure(
                    overlay_heat(picture, values[:height, :width]),
                    f"{name}: {method}{_blank(values)}",
                    f"{method} of {name} in {path.name}",
                )
                for method, values in one.maps.items()
            ),
        ]
        yield f'<div class="gallery tiles quads">{"".join(figures)}</div>'
        first = pixels_figure(picture, "input", f"input of {path.name}")
    if not found:
        yield f'<div class="gallery tiles quads">{first}</div>'


def _blank(values: np.ndarray) -> str:
    """A remark on a map without a place that stands out, which is drawn in one colour."""
    return "" if values.any() else f", {BLANK}"


def overlay_heat(picture: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A picture, RGB, uint8, (H, W, 3), under the colours of a map, 0 to 1, of any size."""
    size = picture.shape[1::-1]
    smooth = cv2.resize(values.astype(np.float32), size, interpolation=cv2.INTER_LINEAR).clip(0, 1)
    heat = cv2.applyColorMap((255 * smooth).astype(np.uint8), cv2.COLORMAP_JET)[..., ::-1]
    return cv2.addWeighted(picture, 1 - HEAT_SHARE, np.ascontiguousarray(heat), HEAT_SHARE, 0)


def _prediction(network: TrainedNetwork, path: Path) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        drawn = network.predictor.predict(path).draw(Path(folder, "prediction.png"))
        return enlarge(np.asarray(Image.open(drawn).convert("RGB")), PREDICTION_SIDE)
