"""Panoptic quality, as COCO's evaluation counts it, without the package panopticapi.

Source: Kirillov et al., "Panoptic Segmentation", 2019, and cocodataset/panopticapi, evaluation.py: a true and a
predicted segment of one class match if their IoU is above 0.5, where pixels without a true segment are left out of the
union. What is predicted mostly there, or on a crowd of its class, is no mistake.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmdet.structures import INSTANCE_OFFSET
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from backbones.errors import ConfigError
from detection.panoptic import read_segments

MATCH_IOU = 0.5
KINDS = ("PQ", "SQ", "RQ")
LOWEST_QUALITY = "lowest panoptic quality of the image"


def predicted_segments(panoptic: np.ndarray, num_classes: int) -> dict[int, int]:
    """Class of each predicted segment by its id in the map of mmdet's fusion heads.

    Args:
        panoptic: Class plus 1,000 times the number of the instance, (H, W); the class after the last is no segment.
        num_classes: Number of classes.
    """
    ids = np.unique(panoptic).tolist()
    return {one: one % INSTANCE_OFFSET for one in ids if one % INSTANCE_OFFSET < num_classes}


@dataclass(frozen=True)
class SegmentPairs:
    """True and predicted segments of an image.

    Attributes:
        classes: Class of each true segment that counts, by its id: crowds do not.
        predicted: Class of each predicted segment, by its id.
        ious: IoU of each true and predicted segment with pixels in common, by their ids, whatever their classes.
        excused: Predicted segments that are no mistake if nothing matches them: most of their pixels have no true
            segment, or lie on a crowd of their class.
    """

    classes: dict[int, int]
    predicted: dict[int, int]
    ious: dict[tuple[int, int], float]
    excused: set[int]

    @property
    def matches(self) -> dict[int, int]:
        """The predicted segment that matches a true one, by the id of that: of its class, with an IoU above 0.5."""
        found = (pair for pair, iou in self.ious.items() if iou > MATCH_IOU)
        return {true: one for true, one in found if self.classes[true] == self.predicted[one]}


def pair_segments(
    truth: np.ndarray, segments: Sequence[Mapping[str, Any]], predicted: np.ndarray, num_classes: int, things: int
) -> SegmentPairs:
    """Compare the segments of an image.

    Args:
        truth: Ids of the true segments, (H, W); one that is not listed is no segment.
        segments: ``id``, ``category`` (class) and ``is_thing`` (false for a crowd of things) of each.
        predicted: Map of mmdet's fusion heads, (H, W).
        num_classes: Number of classes.
        things: Number of classes that are things, the first ones.
    """
    listed = {int(one["id"]): one for one in segments}
    pairs, pixels = np.unique(np.stack([truth.ravel(), predicted.ravel()]), axis=1, return_counts=True)
    common = {(a, b): n for a, b, n in zip(*pairs.tolist(), pixels.tolist(), strict=True)}
    classes = predicted_segments(predicted, num_classes)
    true_area: dict[int, int] = dict.fromkeys(listed, 0)
    area = dict.fromkeys(classes, 0)
    excused = dict.fromkeys(classes, 0)  # pixels of a prediction without a true segment, or on a crowd of its class
    void = dict.fromkeys(classes, 0)
    crowds = {one for one, info in listed.items() if info["category"] < things and not info["is_thing"]}
    for (a, b), n in common.items():
        if a in listed:
            true_area[a] += n
        if b in classes:
            area[b] += n
            void[b] += n * (a not in listed)
            excused[b] += n * (a not in listed or (a in crowds and listed[a]["category"] == classes[b]))
    ious = {
        (a, b): n / (true_area[a] + area[b] - n - void[b])
        for (a, b), n in common.items()
        if a in listed and a not in crowds and b in classes
    }
    counting = {one: int(info["category"]) for one, info in listed.items() if one not in crowds}
    return SegmentPairs(counting, classes, ious, {b for b in classes if excused[b] / area[b] > MATCH_IOU})


def segment_counts(pairs: SegmentPairs, num_classes: int) -> np.ndarray:
    """Sum of IoUs, matches, false and missed segments of each class, (num_classes, 4), float64."""
    counts, matches = np.zeros((num_classes, 4)), pairs.matches
    for true, one in matches.items():
        counts[pairs.classes[true], :2] += pairs.ious[true, one], 1
    for one in pairs.predicted.keys() - matches.values() - pairs.excused:
        counts[pairs.predicted[one], 2] += 1
    for true in pairs.classes.keys() - matches:
        counts[pairs.classes[true], 3] += 1
    return counts


def quality(counts: np.ndarray) -> np.ndarray:
    """PQ, SQ and RQ of each class in percent, (K, 3), from its counts, (K, 4); NaN for a class without segments."""
    iou, matches, false, missed = counts.T
    with np.errstate(invalid="ignore", divide="ignore"):
        recognition = matches / (matches + (false + missed) / 2)
        segmentation = np.where(matches > 0, iou / matches, np.where(matches + false + missed > 0, 0.0, np.nan))
    return 100 * np.stack([segmentation * recognition, segmentation, recognition], -1)


@METRICS.register_module()
class PanopticQuality(BaseMetric):
    """Panoptic, segmentation and recognition quality (PQ, SQ, RQ) of all classes, of things and of stuff, in percent.

    The truth is read from the PNGs that the samples name: ``PackDetInputs`` needs ``seg_map_path`` and
    ``segments_info`` among its ``meta_keys``.

    Args:
        stuff_classes: Names of the classes that are stuff; set from the config's.

    Attributes:
        class_scores: ``PQ``, ``SQ``, ``RQ`` and number of ``segments`` of each class, ``None`` for a class without
            segments; of the last evaluation, in the main process.
        worst_kept: Number of images with the lowest PQ that ``details`` lists; it is 0 unless it is set.
        details: ``worst`` images by their index in the data set, and ``worst_by``, what is measured, of the last
            evaluation with ``worst_kept``.
    """

    default_prefix = ""  # of the scores' names; without one mmengine warns

    def __init__(self, stuff_classes: Sequence[str] = ()) -> None:
        super().__init__()
        self.stuff = tuple(stuff_classes)
        self.class_scores: dict[str, dict[str, float | int | None]] = {}
        self.worst_kept = 0
        self.details: dict[str, Any] = {}

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the scores that an evaluation gives."""
        return tuple(kind + of for of in ("", "_th", "_st")[: 3 if self.stuff else 1] for kind in KINDS)

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Count the images of a batch.

        Raises:
            ConfigError: If the samples do not name their PNGs, or the model gives no panoptic map.
        """
        names = self.dataset_meta["classes"]
        things = len(names) - len(self.stuff)
        for sample in data_samples:
            if "segments_info" not in sample or "pred_panoptic_seg" not in sample:
                raise ConfigError(
                    "PanopticQuality: PackDetInputs needs meta_keys with 'seg_map_path' and 'segments_info', and the "
                    "model a panoptic map (stuff_classes in the config), as configs/_base_/coco_panoptic.py has them"
                )
            predicted = sample["pred_panoptic_seg"]["sem_seg"][0].cpu().numpy()
            truth, segments = read_segments(sample["seg_map_path"]), sample["segments_info"]
            self.results.append(
                segment_counts(pair_segments(truth, segments, predicted, len(names), things), len(names))
            )

    def compute_metrics(self, results: list[np.ndarray]) -> dict[str, float]:
        """Sum up over the data set.

        Args:
            results: Counts of each image, (K, 4).

        Returns:
            ``PQ``, ``SQ`` and ``RQ``, with stuff also those of things (``_th``) and of stuff (``_st``), in percent: the
            means over the classes that have segments, true or predicted ones.
        """
        names = self.dataset_meta["classes"]
        counts = np.sum(results, axis=0)
        values = quality(counts)
        if self.worst_kept:
            self.details = {"worst": _worst(results, self.worst_kept), "worst_by": LOWEST_QUALITY}
        self.class_scores = {}
        for name, row, (_, matches, _, missed) in zip(names, values.tolist(), counts.tolist(), strict=True):
            scores = {kind: None if math.isnan(one) else round(one, 2) for kind, one in zip(KINDS, row, strict=True)}
            self.class_scores[name] = {**scores, "segments": round(matches + missed)}
        first = len(names) - len(self.stuff)
        means = [values, values[:first], values[first:]][: 3 if self.stuff else 1]
        flat = [float(one) for part in means for one in class_means(part)]
        return dict(zip(self.score_names, (round(one, 2) for one in flat), strict=True))


def class_means(values: np.ndarray) -> np.ndarray:
    """Means over the classes with segments, (3,); 0 where there are none."""
    there = values[~np.isnan(values[:, 0])]
    return there.mean(0) if len(there) else np.zeros(values.shape[1])


def panoptic_quality(counts: np.ndarray) -> float:
    """PQ in percent, the mean over the classes with segments, from the counts of each class, (K, 4)."""
    return float(class_means(quality(counts))[0])


def _worst(results: list[np.ndarray], count: int) -> list[dict[str, Any]]:
    """The images with the lowest PQ over their classes, by their index, the worst one first."""
    values = [panoptic_quality(one) if one.any() else 100.0 for one in results]
    worst = np.argsort(values, kind="stable")[:count].tolist()
    return [{"index": index, "caption": f"PQ {values[index]:.1f}"} for index in worst if values[index] < 100]
