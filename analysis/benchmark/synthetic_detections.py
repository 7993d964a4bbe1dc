"""Synthetic annotations and detections like COCO's, for benchmarks: boxes, polygons and scores, but no images."""

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

from demo.formats import mask_to_rle

OBJECTS_PER_IMAGE = 7.3  # mean, as in COCO's validation set
IMAGE_SHAPES = ((480, 640), (640, 480))  # height and width in pixels
POLYGON_POINTS = 24
MASK_SIZE = 28  # side of a mask head's output in cells


@dataclass(frozen=True)
class ObjectAnnotation:
    """An annotated object.

    Attributes:
        label: Class, from 0.
        box: Left, top, width and height in pixels, (4,).
        polygon: Points of the outline in pixels, (POLYGON_POINTS, 2).
        crowd: True for a crowd annotation.
    """

    label: int
    box: np.ndarray
    polygon: np.ndarray
    crowd: bool


@dataclass(frozen=True)
class SyntheticScene:
    """Annotations and detections of one image.

    Attributes:
        image_id: Id of the image, from 1.
        shape: Height and width in pixels.
        annotations: Annotated objects.
        boxes: Detected boxes as corners in pixels, float32, (N, 4).
        scores: Scores in descending order, float32, (N,).
        labels: Classes from 0, int, (N,).
        codes: Run-length codes of the N masks.
    """

    image_id: int
    shape: tuple[int, int]
    annotations: list[ObjectAnnotation]
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    codes: list[dict[str, Any]]


def draw_scenes(images: int, classes: int, detections: int, seed: int = 0) -> list[SyntheticScene]:
    """Draw images with objects of all sizes, each detected about twice, near its box and mostly with its class.

    Args:
        images: Number of images.
        classes: Number of classes; the first ones are the most frequent.
        detections: Detections in each image; those beyond twice the objects are false positives.
        seed: Seed of the random numbers.
    """
    random = np.random.default_rng(seed)
    frequent = 1 / np.arange(1, classes + 1) ** 0.8
    return [_scene(random, i + 1, frequent / frequent.sum(), detections) for i in range(images)]


def _scene(random: np.random.Generator, image_id: int, frequent: np.ndarray, detections: int) -> SyntheticScene:
    height, width = IMAGE_SHAPES[random.integers(len(IMAGE_SHAPES))]
    present = random.choice(len(frequent), size=3, p=frequent)
    annotations = []
    for _ in range(random.geometric(1 / OBJECTS_PER_IMAGE)):
        box, crowd = _box(random, height, width), bool(random.random() < 0.01)
        label = int(random.choice(present))
        annotations.append(ObjectAnnotation(label, box, _polygon(random, box, height, width), crowd))
    boxes, labels, scores, polygons = [], [], [], []
    for i in range(detections):
        if i < 2 * len(annotations):
            annotation = annotations[i % len(annotations)]
            moved = annotation.box[:2] + random.normal(0, 0.06, 2) * annotation.box[2:]
            sides = annotation.box[2:] * np.exp(random.normal(0, 0.1, 2))
            box = _clipped(np.concatenate([moved, sides]), height, width)
            labels.append(annotation.label if random.random() < 0.7 else int(random.integers(len(frequent))))
            scores.append(random.beta(4, 2))
        else:
            box = _box(random, height, width)
            labels.append(int(random.choice(len(frequent), p=frequent)))
            scores.append(random.beta(1, 8))
        boxes.append([*box[:2], *(box[:2] + box[2:])])
        polygons.append(_polygon(random, box, height, width).ravel())
    order = np.argsort(-np.array(scores))
    codes = coco_masks.frPyObjects(polygons, height, width)
    return SyntheticScene(
        image_id,
        (height, width),
        annotations,
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
    return np.concatenate([low, np.minimum(np.maximum(box[:2] + box[2:], low + 1), [width, height]) - low])


def _polygon(random: np.random.Generator, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """A wobbly ellipse in a box."""
    angle = np.linspace(0, 2 * np.pi, POLYGON_POINTS, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1) * (
        1 + 0.15 * random.standard_normal((POLYGON_POINTS, 1)).clip(-2, 2)
    )
    return np.round((box[:2] + box[2:] / 2 * (1 + circle)).clip(0, [width, height]), 2)


def write_annotations(path: Path, scenes: Sequence[SyntheticScene], names: Sequence[str]) -> Path:
    """Write an annotation file with polygons, and with uncompressed run lengths for crowds, as COCO's is."""
    annotations: list[dict[str, Any]] = []
    for scene in scenes:
        height, width = scene.shape
        for annotation in scene.annotations:
            shape: Any = [annotation.polygon.ravel().tolist()]
            code = coco_masks.merge(coco_masks.frPyObjects(shape, height, width))
            if annotation.crowd:
                shape = mask_to_rle(coco_masks.decode(code).astype(bool))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": scene.image_id,
                    "category_id": annotation.label + 1,
                    "bbox": annotation.box.tolist(),
                    "area": float(coco_masks.area(code)),
                    "iscrowd": int(annotation.crowd),
                    "segmentation": shape,
                }
            )
    images = [
        {"id": one.image_id, "file_name": f"{one.image_id}.jpg", "height": one.shape[0], "width": one.shape[1]}
        for one in scenes
    ]
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(names)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def draw_mask_logits(shape: tuple[int, int], count: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw a mask head's input and output.

    Args:
        shape: Height and width of the image in pixels.
        count: Number of detections.
        classes: Number of classes.
        seed: Seed of the random numbers.

    Returns:
        Boxes as corners, float32, (count, 4), and mask logits, float32, (count, classes, MASK_SIZE, MASK_SIZE).
    """
    random = np.random.default_rng(seed)
    boxes = np.stack([_box(random, *shape) for _ in range(count)])
    boxes[:, 2:] += boxes[:, :2]
    across = torch.linspace(-1, 1, MASK_SIZE)
    hill = 6 * (0.8 - across**2 - across[:, None] ** 2)
    noise = torch.from_numpy(random.standard_normal((count, classes, MASK_SIZE, MASK_SIZE)).astype(np.float32))
    return torch.from_numpy(boxes.astype(np.float32)), hill + noise
