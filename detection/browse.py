"""What the page of the images that a detector gets shows of them: boxes, masks, sizes of objects beside anchors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from mmdet.registry import TASK_UTILS
from mmengine.config import Config
from mmengine.structures import BaseDataElement

from engine.config.building import build
from engine.config.datasets import mappings
from engine.prediction.panel_visualizer import truth_picture
from engine.task import BrowseSpec, Shape

GENERATORS = ("anchor_generator", "prior_generator")  # keys of heads


def _object_classes(entry: Mapping[str, Any]) -> list[int]:
    """The class of each object of an image that is learnt."""
    return [one["bbox_label"] for one in entry.get("instances", ()) if not one.get("ignore_flag")]


def _object_sizes(sample: BaseDataElement) -> np.ndarray:
    """Width and height of each box in pixels, (N, 2)."""
    if "gt_instances" not in sample or "bboxes" not in sample.gt_instances:
        return np.zeros((0, 2))
    boxes = np.asarray(sample.gt_instances.bboxes).reshape(-1, 4)
    return boxes[:, 2:] - boxes[:, :2]


def _anchors_and_strides(cfg: Config) -> dict[str, list[float]]:
    """Square roots of the areas of anchors, and the strides of the maps, in pixels, of the first head that has them."""
    for node in mappings(cfg.model):
        for key in GENERATORS:
            if isinstance(node.get(key), Mapping):
                built = build(TASK_UTILS, node[key], f"model...{key}", cfg.get("default_scope"))
                found = {"strides": sorted({float(min(stride)) for stride in built.strides})}
                if anchors := getattr(built, "base_anchors", None):
                    areas = ((each[:, 2:] - each[:, :2]).prod(1) for each in anchors)
                    found["anchors"] = sorted({round(float(one) ** 0.5, 1) for each in areas for one in each})
                return found
    return {}


def _kept_share(steps: Sequence[Any], results: Mapping[str, Any], size: Shape, seed: int) -> float | None:
    """Share of an image that is left, from where its corners are after all transforms."""
    matrix = results.get("homography_matrix")
    if matrix is None or "img_shape" not in results:
        return None
    image = cv2.perspectiveTransform(_corners(*size)[None], np.asarray(matrix, np.float32))[0]
    common, _ = cv2.intersectConvexConvex(image, _corners(*results["img_shape"][:2]))
    return float(common / max(cv2.contourArea(image), 1e-6))


def _corners(height: float, width: float) -> np.ndarray:
    return np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)


def _panoptic_picture(cfg: Config, visualizer: Any, image: np.ndarray, sample: Any) -> tuple[np.ndarray, str]:
    if "gt_sem_seg" not in sample:
        return truth_picture(cfg, visualizer, image, sample)
    return visualizer.true_segments_panel(image, sample).picture, ""


DETECTION_BROWSE = BrowseSpec(
    draw=truth_picture,
    counted="objects",
    classes=_object_classes,
    object_sizes=_object_sizes,
    reference_sizes=_anchors_and_strides,
    kept_share=_kept_share,
)
PANOPTIC_BROWSE = BrowseSpec(
    draw=_panoptic_picture,
    counted="segments",
    classes=lambda entry: [segment["category"] for segment in entry.get("segments_info", ())],
    object_sizes=_object_sizes,
    reference_sizes=_anchors_and_strides,
    kept_share=_kept_share,
)
