"""Made-up detections and truths of COCO's shape, for measurements: no picture, but boxes, outlines and scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_masks
from torch import Tensor

OBJECTS = 7.3  # per image, as in COCO's validation set
SHAPES = ((480, 640), (640, 480))
CORNERS = 24  # of an outline
SQUARE = 28  # side of a mask head's output


@dataclass(frozen=True)
class Truth:
    """An annotated object: its class, box (left, top, width, height) and outline (CORNERS, 2)."""

    label: int
    box: np.ndarray
    outline: np.ndarray
    crowd: bool


@dataclass(frozen=True)
class Scene:
    """An image's truths and detections.

    Attributes:
        image_id: From 1.
        shape: Height and width in pixels.
        truths: Annotated objects.
        boxes: (N, 4) float32, corners.
        scores: (N,) float32, falling.
        labels: (N,), from 0.
        codes: Run-length codes of the masks.
    """

    image_id: int
    shape: tuple[int, int]
    truths: list[Truth]
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    codes: list[dict[str, Any]]


def scenes(images: int, classes: int, detections: int, seed: int = 0) -> list[Scene]:
    """Draw images: objects of all sizes, each found about twice, near its place and mostly under its class.

    Args:
        images: How many.
        classes: Of the set; the first ones are the most frequent.
        detections: In each image; those beyond the objects are of nothing.
        seed: Of the draw.
    """
    random = np.random.default_rng(seed)
    frequent = 1 / np.arange(1, classes + 1) ** 0.8
    return [_scene(random, i + 1, frequent / frequent.sum(), detections) for i in range(images)]


def _scene(random: np.random.Generator, image_id: int, frequent: np.ndarray, detections: int) -> Scene:
    height, width = SHAPES[random.integers(len(SHAPES))]
    present = random.choice(len(frequent), size=3, p=frequent)
    truths = []
    for _ in range(random.geometric(1 / OBJECTS)):
        box = _box(random, height, width)
        crowd = bool(random.random() < 0.01)
        truths.append(Truth(int(random.choice(present)), box, _outline(random, box, height, width), crowd))
    boxes, labels, scores, outlines = [], [], [], []
    for i in range(detections):
        if i < 2 * len(truths):
            truth = truths[i % len(truths)]
            moved = truth.box[:2] + random.normal(0, 0.06, 2) * truth.box[2:]
            box = _clipped(np.concatenate([moved, truth.box[2:] * np.exp(random.normal(0, 0.1, 2))]), height, width)
            label = truth.label if random.random() < 0.7 else int(random.integers(len(frequent)))
            score = random.beta(4, 2)
        else:
            box, label = _box(random, height, width), int(random.choice(len(frequent), p=frequent))
            score = random.beta(1, 8)
        boxes.append([*box[:2], *(box[:2] + box[2:])])
        labels.append(label)
        scores.append(score)
        outlines.append(_outline(random, box, height, width).ravel())
    order = np.argsort(-np.array(scores))
    codes = coco_masks.frPyObjects(outlines, height, width)
    return Scene(
        image_id,
        (height, width),
        truths,
        np.array(boxes, np.float32)[order],
        np.array(scores, np.float32)[order],
        np.array(labels)[order],
        [codes[i] for i in order],
    )


def _box(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A box of COCO's sizes, most of them small."""
    side, shape = np.exp(random.uniform(np.log(8), np.log(400))), np.exp(random.normal(0, 0.4))
    sides = np.array([side * shape, side / shape])
    return _clipped(np.concatenate([random.uniform(0, [width, height]) - sides / 2, sides]), height, width)


def _clipped(box: np.ndarray, height: int, width: int) -> np.ndarray:
    low = np.clip(box[:2], 0, [width - 2, height - 2])
    high = np.minimum(np.maximum(box[:2] + box[2:], low + 1), [width, height])
    return np.concatenate([low, high - low])


def _outline(random: np.random.Generator, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """A wobbly ellipse in a box."""
    angle = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1) * (1 + 0.15 * random.standard_normal((CORNERS, 1)).clip(-2, 2))
    return np.round((box[:2] + box[2:] / 2 * (1 + circle)).clip(0, [width, height]), 2)


def write_truth(path: Path, found: Sequence[Scene], names: Sequence[str]) -> Path:
    """Write an annotation file: outlines, and counted runs for crowds, as COCO has them."""
    annotations: list[dict[str, Any]] = []
    for scene in found:
        height, width = scene.shape
        for truth in scene.truths:
            shape: Any = [truth.outline.ravel().tolist()]
            code = coco_masks.merge(coco_masks.frPyObjects(shape, height, width))
            if truth.crowd:
                pixels = coco_masks.decode(code).flatten(order="F")
                changes = np.flatnonzero(np.diff(np.concatenate([[0], pixels])))
                counts = np.diff(np.concatenate([[0], changes, [len(pixels)]]))
                shape = {"size": [height, width], "counts": counts.tolist()}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": scene.image_id,
                    "category_id": truth.label + 1,
                    "bbox": truth.box.tolist(),
                    "area": float(coco_masks.area(code)),
                    "iscrowd": int(truth.crowd),
                    "segmentation": shape,
                }
            )
    images = [
        {"id": one.image_id, "file_name": f"{one.image_id}.jpg", "height": one.shape[0], "width": one.shape[1]}
        for one in found
    ]
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(names)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def blobs(shape: tuple[int, int], count: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A mask head's view of an image: boxes (count, 4) as corners, and scores (count, classes, SQUARE, SQUARE)."""
    random = np.random.default_rng(seed)
    boxes = np.stack([_box(random, *shape) for _ in range(count)])
    boxes[:, 2:] += boxes[:, :2]
    across = torch.linspace(-1, 1, SQUARE)
    hill = 6 * (0.8 - across**2 - across[:, None] ** 2)
    noise = torch.from_numpy(random.standard_normal((count, classes, SQUARE, SQUARE)).astype(np.float32))
    return torch.from_numpy(boxes.astype(np.float32)), hill + noise
