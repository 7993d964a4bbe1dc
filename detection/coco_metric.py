"""COCO average precision, computed by faster-coco-eval (the same numbers as pycocotools, several times faster)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as coco_masks
from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from backbones.errors import UserError
from detection.data import category_ids
from detection.masks import to_rle

IOU_TYPES = ("bbox", "segm")
COCO_STATS = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")


@dataclass(frozen=True)
class ImageDetections:
    """What was found in one image: few objects, since all of them travel between processes.

    Attributes:
        image_id: Of the annotation file.
        boxes: (N, 4) float64, left, top, width and height in pixels.
        scores: (N,).
        mask_scores: (N,), where masks are scored apart.
        labels: (N,), places in the list of classes.
        masks: Run-length codes, ``None`` from a detector of boxes alone.
    """

    image_id: int
    boxes: np.ndarray
    scores: np.ndarray
    mask_scores: np.ndarray
    labels: np.ndarray
    masks: list[dict[str, Any]] | None


@METRICS.register_module()
class FastCocoMetric(BaseMetric):
    """Box and mask AP of COCO.

    Args:
        ann_file: COCO json with the ground truth.
        metric: Any of ``bbox`` and ``segm``.

    Raises:
        UserError: If the metric is another, or masks are to be measured and there are none.
    """

    def __init__(self, ann_file: str, metric: Sequence[str] = IOU_TYPES) -> None:
        super().__init__()
        self.annotation_file = str(ann_file)
        self.metrics = tuple(metric)
        if not self.metrics or not set(self.metrics) <= set(IOU_TYPES):
            raise UserError(f"metric={metric}: any of {', '.join(IOU_TYPES)}")
        self._truth: COCO | None = None

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Keep the predictions of a batch, masks as run-length codes."""
        for sample in data_samples:
            instances = sample["pred_instances"]
            corners, scores, labels = (
                instances[name].detach().cpu().numpy() for name in ("bboxes", "scores", "labels")
            )
            corners = corners.astype(np.float64)
            self.results.append(
                ImageDetections(
                    image_id=sample["img_id"],
                    boxes=np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1),
                    scores=scores,
                    mask_scores=instances["mask_scores"].cpu().numpy() if "mask_scores" in instances else scores,
                    labels=labels,
                    masks=to_rle(instances["masks"]) if "masks" in instances else None,
                )
            )

    def compute_metrics(self, results: list[ImageDetections]) -> dict[str, float]:
        """Evaluate all images.

        Args:
            results: What was found in each.

        Returns:
            ``bbox_mAP``, ``bbox_mAP_50``... and ``segm_mAP``..., in [0, 1]; -1 where a size has no object.
        """
        scores: dict[str, float] = {}
        for kind, stats in self.statistics(results).items():
            values = (round(float(value), 4) for value in stats[: len(COCO_STATS)])
            scores |= {f"{kind}_{name}": value for name, value in zip(COCO_STATS, values, strict=True)}
        return scores

    def statistics(self, results: list[ImageDetections]) -> dict[str, np.ndarray]:
        """All twelve of COCO's numbers, unrounded, for each kind.

        Args:
            results: What was found in each image.
        """
        if self._truth is None:
            self._truth = COCO(self.annotation_file)
        truth = self._truth
        ids = category_ids(truth, self.dataset_meta["classes"])
        found = _annotations(results, ids)
        numbers: dict[str, np.ndarray] = {}
        detections = COCO({**truth.dataset, "annotations": found})
        for kind in self.metrics:
            if not found:
                print_log(f"no {kind} detections at all: AP is 0", "current", logging.WARNING)
                numbers[kind] = np.zeros(12)
                continue
            _measure_as(kind, found, results)
            evaluation = COCOeval_faster(truth, detections, iouType=kind)
            evaluation.params.catIds = ids
            evaluation.params.imgIds = [one.image_id for one in results]
            evaluation.run()
            numbers[kind] = np.asarray(evaluation.stats)
        return numbers


def _annotations(results: list[ImageDetections], ids: list[int]) -> list[dict[str, Any]]:
    """One entry for each detection, as in a file of results that was loaded."""
    entries: list[dict[str, Any]] = []
    for one in results:
        masks = one.masks if one.masks is not None else [None] * len(one.labels)
        for box, label, mask in zip(one.boxes.tolist(), one.labels.tolist(), masks, strict=True):
            entries.append(
                {
                    "id": len(entries) + 1,
                    "image_id": one.image_id,
                    "category_id": ids[label],
                    "bbox": box,
                    "segmentation": mask,
                    "iscrowd": 0,
                }
            )
    return entries


def _measure_as(kind: str, entries: list[dict[str, Any]], results: list[ImageDetections]) -> None:
    """Give each detection the score and the area, which sorts it into small, medium and large, of its box or mask."""
    if kind == "segm":
        if any(one.masks is None for one in results):
            raise UserError("metric 'segm': the detector gives no masks")
        scores = np.concatenate([one.mask_scores for one in results])
        areas = coco_masks.area([entry["segmentation"] for entry in entries])
    else:
        scores = np.concatenate([one.scores for one in results])
        areas = np.concatenate([one.boxes[:, 2] * one.boxes[:, 3] for one in results])
    for entry, score, area in zip(entries, scores.tolist(), areas.tolist(), strict=True):
        entry["score"], entry["area"] = score, area
