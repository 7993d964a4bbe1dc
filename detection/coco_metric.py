"""COCO average precision, computed by faster-coco-eval (the same numbers as pycocotools, several times faster)."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from faster_coco_eval import COCO, COCOeval_faster
from mmdet.evaluation.metrics import CocoMetric
from mmdet.registry import METRICS
from mmengine.fileio import load
from mmengine.logging import print_log

from detection.data import category_ids

STATS = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")


@METRICS.register_module()
class FastCocoMetric(CocoMetric):
    """Box and mask AP of COCO.

    Args:
        ann_file: COCO json with the ground truth.
        metric: Any of ``bbox`` and ``segm``.
    """

    default_prefix = None
    _coco_api: Any

    def __init__(self, ann_file: str, metric: tuple[str, ...] = ("bbox", "segm")) -> None:
        super().__init__(metric=list(metric))
        self.annotation_file = ann_file

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Keep the predictions; without the annotation file at hand the parent would look for the truth in them."""
        self._truth()
        super().process(data_batch, data_samples)

    def _truth(self) -> COCO:
        if self._coco_api is None:
            self._coco_api = _quietly(COCO, str(self.annotation_file))
        return self._coco_api

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Evaluate all images.

        Args:
            results: Pairs of ground truth and prediction, as mmdet's metric collects them.

        Returns:
            ``bbox_mAP``, ``bbox_mAP_50``... and ``segm_mAP``..., in [0, 1]; -1 where a size has no object.
        """
        _, predictions = zip(*results, strict=True)
        truth = self._truth()
        self.cat_ids = category_ids(truth, self.dataset_meta["classes"])
        image_ids = [prediction["img_id"] for prediction in predictions]
        scores: dict[str, float] = {}
        with tempfile.TemporaryDirectory() as folder:
            files = self.results2json(predictions, str(Path(folder) / "results"))
            for metric in self.metrics:
                found = load(files[metric])
                if not found:
                    print_log(f"no {metric} detections at all: AP is 0", "current", logging.WARNING)
                    scores |= dict.fromkeys((f"{metric}_{name}" for name in STATS), 0.0)
                    continue
                scores |= self._evaluate(truth, found, metric, image_ids)
        return scores

    def _evaluate(
        self, truth: COCO, found: list[dict[str, Any]], metric: str, image_ids: list[int]
    ) -> dict[str, float]:
        if metric == "segm":
            # Otherwise the detections would be sorted into small, medium and large by their boxes.
            found = [{key: value for key, value in item.items() if key != "bbox"} for item in found]
        detections = _quietly(truth.loadRes, found)
        evaluation = COCOeval_faster(truth, detections, iouType=metric)
        evaluation.params.catIds = self.cat_ids
        evaluation.params.imgIds = image_ids
        for step in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
            _quietly(step)
        stats = [round(float(value), 4) for value in evaluation.stats[: len(STATS)]]
        return {f"{metric}_{name}": value for name, value in zip(STATS, stats, strict=True)}


def _quietly(function: Any, *args: Any) -> Any:
    """Call without the library's prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*args)
