"""What engine and analysis have to know about panoptic segmentation: a detector of things with classes of stuff."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from mmdet.datasets import CocoPanopticDataset
from mmdet.models.detectors import BaseDetector
from mmengine.config import Config
from mmengine.structures import PixelData
from torch import Tensor

from detection.browse import PANOPTIC_BROWSE
from detection.panoptic import VOID_LABEL
from detection.panoptic_errors import PanopticErrors
from detection.panoptic_results import PanopticPrediction, PanopticResults, list_panoptic_images, pack_panoptic
from detection.task import DETECTION, STUFF_CLASSES
from engine.config.classes import class_names
from engine.config.datasets import mappings
from engine.task import NamedClasses, Score, SubmissionSpec, register_task

COCO_NAMES = CocoPanopticDataset.METAINFO
CLASS_KINDS = {"th": "things", "st": "stuff"}  # of the classes, by their ending in the log


def _dummy_batch(model: BaseDetector, images: Tensor, training: bool) -> dict[str, Any]:
    """The things of a detector, and stuff in the left half of every image."""
    batch = DETECTION.dummy_batch(model, images, training)
    labels = torch.full((1, *images.shape[-2:]), VOID_LABEL, device=images.device)
    labels[..., : images.shape[-1] // 2] = model.panoptic_fusion_head.num_things_classes
    for sample in batch["data_samples"]:
        sample.gt_sem_seg = PixelData(sem_seg=labels.clone())
    return batch


def _complete_config(cfg: Config, notes: list[str]) -> None:
    """Tell the metric which classes are stuff, beside what a detector needs."""
    DETECTION.complete_config(cfg, notes)
    stated = class_names(cfg.stuff_classes) if cfg.get(STUFF_CLASSES) else ()
    stuff = [name for name in stated if name in class_names(cfg.classes)]
    for node in mappings([cfg.get("val_evaluator"), cfg.get("test_evaluator")]):
        if node.get("type") == "PanopticQuality":
            node.stuff_classes = stuff


PANOPTIC = register_task(
    replace(
        DETECTION,
        name="panoptic",
        model_types=(),  # its models are a detector's: the config says task = "panoptic"
        scores=(Score("PQ", "PQ"), *(Score(f"PQ of {part}", f"PQ_{key}") for key, part in CLASS_KINDS.items())),
        scores_note="PQ is SQ, how well segments match, times RQ, how many are found, in percent.",
        metric_labels={
            f"{score}_{key}": f"{score} of {part}" for score in ("SQ", "RQ") for key, part in CLASS_KINDS.items()
        },
        main_metric="PQ",
        dummy_batch=_dummy_batch,
        # Training images of COCO 2017 with an object; they were not counted in the panoptic file.
        named_classes={
            "coco-panoptic": NamedClasses(lambda: COCO_NAMES["classes"], 117_266),
            "coco-stuff": NamedClasses(lambda: COCO_NAMES["stuff_classes"], 117_266),
        },
        drivers=(STUFF_CLASSES,),
        complete_config=_complete_config,
        result_formats={"coco": PanopticResults},
        predicted_fields=("pred_panoptic_seg",),
        submission=SubmissionSpec("coco", pack_panoptic, list_panoptic_images),
        prediction=PanopticPrediction,
        error_analysis=PanopticErrors,
        zoo=None,
        browse=PANOPTIC_BROWSE,
        explain=None,
    )
)
