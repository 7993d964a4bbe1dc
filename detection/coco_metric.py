"""COCO average precision by faster-coco-eval: the numbers of pycocotools, several times faster."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as coco_masks
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger, print_log

from backbones.errors import ConfigError
from detection.annotations import add_categories, category_ids, fill_areas, read_annotations
from detection.data import CompletedCOCO
from detection.masks import to_rle
from detection.mistakes import MISTAKE_IOU, MISTAKE_SCORE, count_mistakes

IOU_TYPES = ("bbox", "segm")
MOST_MISTAKES = (
    f"most objects without a detection of their class (box IoU {MISTAKE_IOU}, score {MISTAKE_SCORE}) and detections "
    "without an object"
)
THRESHOLDS, RECALLS = np.arange(50, 100, 5) / 100, np.arange(101) / 100  # IoU and recalls at which COCO reads precision
AREAS = ("all", "small", "medium", "large")
COCO_STATS = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")


@dataclass(frozen=True)
class ImageDetections:
    """Detections in one image, as few Python objects, since they are sent between processes.

    Attributes:
        image_id: Image id in the annotation file.
        boxes: Left, top, width and height in pixels, (N, 4), float64.
        scores: Box scores, (N,).
        mask_scores: Mask scores, (N,); the box scores where masks have none of their own.
        labels: Positions in the list of classes, (N,).
        masks: Run-length codes, ``None`` from a detector without masks.
    """

    image_id: int
    boxes: np.ndarray
    scores: np.ndarray
    mask_scores: np.ndarray
    labels: np.ndarray
    masks: list[dict[str, Any]] | None


def image_detections(sample: dict[str, Any], image_id: int) -> ImageDetections:
    """Return the detections in one sample of mmdet, with masks as run-length codes."""
    instances = sample["pred_instances"]
    corners, scores, labels = (instances[name].detach().cpu().numpy() for name in ("bboxes", "scores", "labels"))
    corners = corners.astype(np.float64)
    return ImageDetections(
        image_id=image_id,
        boxes=np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1),
        scores=scores,
        mask_scores=instances["mask_scores"].cpu().numpy() if "mask_scores" in instances else scores,
        labels=labels,
        masks=to_rle(instances["masks"]) if "masks" in instances else None,
    )


@METRICS.register_module()
class FastCocoMetric(BaseMetric):
    """COCO's box and mask AP.

    Args:
        ann_file: COCO annotation file with the ground truth.
        metric: Any of ``bbox`` and ``segm``.

    Attributes:
        class_scores: ``bbox_mAP``, ``bbox_mAP_50``, ``segm_mAP``... in [0, 1] and number of ``objects`` of each class,
            ``None`` for a class without objects; of the last evaluation, in the main process.
        worst_kept: Number of images with the most mistakes that ``details`` lists; it is 0 unless it is set.
        details: ``worst`` images by their index in the data set, and ``worst_by``, what is counted, of the last
            evaluation with ``worst_kept``.
        ground_truth: The annotation file with ids and areas as COCO's evaluation needs them, once it has been read.
        precisions: Precision of ``bbox`` and ``segm`` of the last evaluation, (10, 101, K, 4): by IoU from 0.50 to
            0.95, recall, class, and area (all, small, medium, large); -1 where there are no objects. Without
            detections there is none.

    Raises:
        ConfigError: If the metric is another, or ``segm`` is asked of a detector without masks.
    """

    default_prefix = ""  # of the scores' names; without one mmengine warns

    def __init__(self, ann_file: str, metric: Sequence[str] = IOU_TYPES) -> None:
        super().__init__()
        self.annotation_file = str(ann_file)
        self.metrics = tuple(metric)
        if not self.metrics or not set(self.metrics) <= set(IOU_TYPES):
            raise ConfigError(f"metric={metric}: any of {', '.join(IOU_TYPES)}")
        self.class_scores: dict[str, dict[str, float | int | None]] = {}
        self.worst_kept = 0
        self.details: dict[str, Any] = {}
        self.ground_truth: COCO | None = None
        self.precisions: dict[str, np.ndarray] = {}

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the scores that an evaluation gives."""
        return tuple(f"{kind}_{name}" for kind in self.metrics for name in COCO_STATS)

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keep the detections of a batch, masks as run-length codes."""
        self.results += [image_detections(sample, sample["img_id"]) for sample in data_samples]

    def compute_metrics(self, results: list[ImageDetections]) -> dict[str, float]:
        """Evaluate all images.

        Args:
            results: Detections of each image.

        Returns:
            ``bbox_mAP``, ``bbox_mAP_50``... and ``segm_mAP``..., in [0, 1]; -1 for a size class without objects.
        """
        scores: dict[str, float] = {}
        for kind, stats in self.statistics(results).items():
            values = (round(float(value), 4) for value in stats[: len(COCO_STATS)])
            scores |= {f"{kind}_{name}": value for name, value in zip(COCO_STATS, values, strict=True)}
        if self.worst_kept:
            self.details = {"worst": self._worst(results), "worst_by": MOST_MISTAKES}
        return scores

    def _worst(self, results: list[ImageDetections]) -> list[dict[str, Any]]:
        """The images with the most mistakes, by their index, the worst one first."""
        assert self.ground_truth is not None
        ids = np.array(category_ids(self.ground_truth.dataset["categories"], self.dataset_meta["classes"]))
        found = []
        for index, image in enumerate(results):
            annotations = self.ground_truth.imgToAnns.get(image.image_id, [])
            objects = [one for one in annotations if one["category_id"] in ids]
            missed, false = count_mistakes(image.boxes, image.scores, ids[image.labels], objects)
            found.append((missed + false, index, f"{missed} missed, {false} false"))
        worst = sorted(found, key=lambda one: (-one[0], one[1]))[: self.worst_kept]
        return [{"index": index, "caption": caption} for _, index, caption in worst]

    def read_ground_truth(self) -> COCO:
        """The annotation file as COCO's evaluation needs it, read once."""
        if self.ground_truth is None:
            content = read_annotations(self.annotation_file)
            fill_areas(content)
            add_categories(content, self.dataset_meta["classes"])
            # COCO's matching takes an annotation of id 0 for none; nothing refers to these numbers.
            for number, annotation in enumerate(content["annotations"], 1):
                annotation["id"] = number
            self.ground_truth = COCO(content)
        return self.ground_truth

    def statistics(self, results: list[ImageDetections]) -> dict[str, np.ndarray]:
        """COCO's twelve statistics, unrounded, for ``bbox`` and ``segm``.

        Args:
            results: Detections of each image.
        """
        ground_truth = self.read_ground_truth()
        ids = category_ids(ground_truth.dataset["categories"], self.dataset_meta["classes"])
        entries = _to_entries(results, ids)
        statistics: dict[str, np.ndarray] = {}
        counts = _count_objects(ground_truth, results)
        objects = ground_truth.dataset["annotations"]
        without_masks = bool(objects) and not any(one.get("segmentation") for one in objects)
        self.class_scores = {name: {} for name in self.dataset_meta["classes"]}
        self.precisions = {}
        detections = COCO({**ground_truth.dataset, "annotations": entries})
        for kind in self.metrics:
            if kind == "segm" and without_masks:
                print_log(f"{self.annotation_file} has boxes alone: no mask AP", "current")
                continue
            if not entries:
                print_log(f"no {kind} detections at all: AP is 0", "current", logging.WARNING)
                statistics[kind] = np.zeros(12)
                precision = np.where([counts[number] > 0 for number in ids], 0.0, -1.0)[:, np.newaxis]
                self._add_class_scores(kind, precision, precision)
                shape = (len(THRESHOLDS), len(RECALLS), len(ids), len(AREAS))
                self.precisions[kind] = np.broadcast_to(precision, shape)
                continue
            _set_scores_and_areas(kind, entries, results)
            evaluation = COCOeval_faster(ground_truth, detections, iouType=kind)
            evaluation.params.catIds = ids
            evaluation.params.imgIds = [image.image_id for image in results]
            evaluation.run()
            statistics[kind] = np.asarray(evaluation.stats)
            # (thresholds, recalls, categories, areas, detections); the categories are those of the evaluation, sorted.
            order = [evaluation.params.catIds.index(number) for number in ids]
            self.precisions[kind] = evaluation.eval["precision"][..., -1][:, :, order]
            precision = self.precisions[kind][..., 0]
            self._add_class_scores(kind, precision.transpose(2, 0, 1).reshape(len(ids), -1), precision[0].T)
        for name, number in zip(self.dataset_meta["classes"], ids, strict=True):
            self.class_scores[name]["objects"] = counts[number]
        return statistics

    def _add_class_scores(self, kind: str, precision: np.ndarray, precision_50: np.ndarray) -> None:
        """Add the AP of each class over all thresholds, (K, N), and over IoU 0.50, (K, M); -1 where there is none."""
        for stat, values in (("mAP", precision), ("mAP_50", precision_50)):
            for name, row in zip(self.dataset_meta["classes"], values, strict=True):
                valid = row[row > -1]
                self.class_scores[name][f"{kind}_{stat}"] = round(float(valid.mean()), 4) if len(valid) else None


@METRICS.register_module()
class ClassCocoMetric(CocoMetric):
    """mmdet's ``CocoMetric`` with categories by the names of the classes, in any order; some may be absent.

    With ``classwise=True`` it keeps the AP of each class, in place of printing a table. Takes the
    arguments of ``CocoMetric``, in whose place it is used where a config names that.

    Attributes:
        class_scores: ``bbox_mAP``, ``segm_mAP``... in [0, 1] of each class, ``None`` for a class without objects; of
            the last evaluation, in the main process. Empty without ``classwise``.
    """

    metrics: list[str]
    cat_ids: list[int]

    def __init__(self, ann_file: str | None = None, *args: object, **settings: object) -> None:
        super().__init__(None, *args, **settings)
        if ann_file is not None:
            self._coco_api = CompletedCOCO(str(ann_file))
        self.class_scores: dict[str, dict[str, float | None]] = {}

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Evaluate all images.

        Args:
            results: Ground truth and predictions of each image.

        Returns:
            Scores by name, as those of ``CocoMetric`` without ``classwise``.
        """
        if not self.classwise:
            return dict(super().compute_metrics(results))
        scores: dict[str, float] = {}
        self.class_scores = {name: {} for name in self.dataset_meta["classes"]}
        kinds, logger = self.metrics, MMLogger.get_current_instance()
        logger.addFilter(_is_no_table)
        try:
            for kind in kinds:  # one by one: mmdet's names of the class scores are the same for boxes and masks
                self.metrics = [kind]
                scores |= super().compute_metrics(results)
                # mmdet gives them the names in the order of the classes, its evaluation sorts them by category id.
                names = list(self.class_scores)
                by_id = [names[index] for index in np.argsort(self.cat_ids)]
                for shown, name in zip(names, by_id, strict=True):
                    if (value := scores.pop(f"{shown}_precision", None)) is not None:
                        self.class_scores[name][f"{kind}_mAP"] = None if np.isnan(value) else float(value)
        finally:
            self.metrics = kinds
            logger.removeFilter(_is_no_table)
        return scores


def _is_no_table(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("\n+")


def _count_objects(ground_truth: COCO, results: list[ImageDetections]) -> Counter[int]:
    """Number of objects that are scored, without crowds, by category id."""
    images = {image.image_id for image in results}
    objects = ground_truth.dataset["annotations"]
    return Counter(one["category_id"] for one in objects if one["image_id"] in images and not one.get("iscrowd"))


def _to_entries(results: list[ImageDetections], ids: list[int]) -> list[dict[str, Any]]:
    """One annotation entry for each detection, as ``COCO.loadRes`` makes from a results file."""
    entries: list[dict[str, Any]] = []
    for image in results:
        masks = image.masks if image.masks is not None else [None] * len(image.labels)
        for box, label, mask in zip(image.boxes.tolist(), image.labels.tolist(), masks, strict=True):
            entries.append(
                {
                    "id": len(entries) + 1,
                    "image_id": image.image_id,
                    "category_id": ids[label],
                    "bbox": box,
                    "segmentation": mask,
                    "iscrowd": 0,
                }
            )
    return entries


def _set_scores_and_areas(kind: str, entries: list[dict[str, Any]], results: list[ImageDetections]) -> None:
    """Set the score and the area, which decides between small, medium and large, of each box or mask."""
    if kind == "segm":
        if any(image.masks is None for image in results):
            raise ConfigError("metric 'segm': the detector gives no masks")
        scores = np.concatenate([image.mask_scores for image in results])
        areas = coco_masks.area([entry["segmentation"] for entry in entries])
    else:
        scores = np.concatenate([image.scores for image in results])
        areas = np.concatenate([image.boxes[:, 2] * image.boxes[:, 3] for image in results])
    for entry, score, area in zip(entries, scores.tolist(), areas.tolist(), strict=True):
        entry["score"], entry["area"] = score, area
