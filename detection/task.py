"""What engine and analysis have to know about detection and instance segmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from mmdet.datasets import CocoDataset
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import BaseDetector, TwoStageDetector
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.config import Config
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor, nn

from backbones.errors import ConfigError
from detection.annotations import names_in_file
from detection.browse import DETECTION_BROWSE
from detection.coco_metric import IOU_TYPES
from detection.data import CocoInstances
from detection.errors import DetectionErrors
from detection.export import exported_detector
from detection.last_epochs import replace_pipeline_switch
from detection.loss_inputs import detector_loss_inputs
from detection.masks import MASKED, learns_masks
from detection.mistakes import MISTAKE_SCORE
from detection.results import CocoResults, Detections, LabelmeFiles, ObjectList, ObjectTable, YoloFiles, pack_coco
from detection.zoo import DETECTION_ZOO
from engine.config.building import registered_class
from engine.config.classes import class_names
from engine.config.datasets import inner_datasets, is_wrapper, mappings, pipeline_key
from engine.planning.memory import training_shape
from engine.task import (
    ClassLayer,
    ExplainSpec,
    NamedClasses,
    Score,
    Shape,
    SubmissionSpec,
    TaskSpec,
    image_meta,
    pipeline_scale,
    register_task,
    transform_name,
)

DETECTOR_SHAPE = (800, 1280)  # of the papers' FLOPs, which they write "1280 x 800"
RELEASED_SCALE = (800, 1333)  # of the papers' tests, which are on images of at most this size
# As in mmdet 2's tools/analysis_tools/get_flops.py, which gave the detectors' published numbers: each box head sees
# 1,000 proposals, each mask head the first 100 of them.
PROPOSALS, MASK_PROPOSALS = 1000, 100
DUMMY_OBJECTS = 8  # annotated in each made-up training image
FROM_CLASSES = "from_classes"
FROM_MODEL = "from_model"  # masks are loaded and padded if the model has a head for them
WITHOUT_MASKS = ("Mosaic", "MixUp")  # transforms of mmdet
STUFF_CLASSES = "stuff_classes"  # driver: classes whose regions are not counted, the last ones of ``classes``


def _counted_shape(cfg: Config) -> Shape:
    """The papers' shape for images of the released scale, else that of the test images."""
    shape = pipeline_scale(cfg, DETECTOR_SHAPE)
    return DETECTOR_SHAPE if shape == RELEASED_SCALE else shape


def _count_forward(model: BaseDetector, images: Tensor) -> object:
    """Run all parts of a detector on one image, its box and mask heads on a fixed number of proposals.

    Raises:
        ConfigError: If the proposals are pooled by something else than mmdet's ``SingleRoIExtractor``.
    """
    if not isinstance(model, TwoStageDetector):
        # Transformers want to know the sizes of the images.
        return model(images, _dummy_batch(model, images, False)["data_samples"], mode="tensor")
    features = model.extract_feat(images)
    outputs = [model.rpn_head(features)]
    for kind, proposals in (("bbox", PROPOSALS), ("mask", MASK_PROPOSALS)):
        heads = _stages(getattr(model.roi_head, f"{kind}_head", None))
        extractors = _stages(getattr(model.roi_head, f"{kind}_roi_extractor", None))
        for extractor, head in zip(extractors, heads, strict=True):
            outputs.append(head(_pool_proposals(extractor, features, proposals)))
    return [*outputs, *_semantic_maps(model, features)]


def _semantic_maps(model: BaseDetector, features: Sequence[Tensor]) -> list[object]:
    """What the head for stuff of a panoptic two-stage model gives, if it has one."""
    return [model.semantic_head(features)] if getattr(model, "with_semantic_head", False) else []


def _counted_parts(model: BaseDetector) -> str:
    """The whole detector, with the number of proposals that its heads see."""
    if not isinstance(model, TwoStageDetector):
        return "whole model"
    return f"whole model, {PROPOSALS} proposals for each box head, {MASK_PROPOSALS} of them for each mask head"


def _activation_forward(model: BaseDetector, images: Tensor) -> object:
    """Run backbone, neck and the dense head, or the transformer; heads on proposals are left out, of unknown number."""
    head = getattr(model, "rpn_head" if isinstance(model, TwoStageDetector) else "bbox_head", None)
    if head is not None and _takes_features_alone(head):
        features = model.extract_feat(images)
        _run_heads_on_proposals(model, features)
        return features, head(features), _semantic_maps(model, features)
    return model(**_dummy_batch(model, images, True))  # a transformer, whose queries in training depend on the boxes


def _takes_features_alone(head: nn.Module) -> bool:
    needed = signature(head.forward).parameters.values()
    return len([one for one in needed if one.default is one.empty]) == 1


def _run_heads_on_proposals(model: Any, features: Sequence[Tensor]) -> None:
    """Run the box and mask heads that take pooled features alone once, so that layers that do not fit are found."""
    roi_head = getattr(model, "roi_head", None)
    if getattr(roi_head, "with_shared_head", False):  # it changes what they get
        return
    for kind in ("bbox", "mask"):
        heads = _stages(getattr(roi_head, f"{kind}_head", None))
        extractors: list[Any] = [*_stages(getattr(roi_head, f"{kind}_roi_extractor", None))]
        for extractor, head in zip(extractors, heads, strict=False):
            known = isinstance(extractor, SingleRoIExtractor) and isinstance(head, BBoxHead | FCNMaskHead)
            if known and _takes_features_alone(head):
                height, width = extractor.roi_layers[0].output_size
                with torch.no_grad():
                    head(features[0].new_zeros((2, extractor.out_channels, height, width)))


def _dummy_batch(model: BaseDetector, images: Tensor, training: bool) -> dict[str, Any]:
    """A few boxes of two classes in every image, with full masks for a model that learns them.

    RTMDet's assigner takes masks for tensors wherever there are some, which a training of boxes alone never loads.
    """
    height, width = images.shape[-2:]
    size = torch.tensor([width, height], device=images.device)
    corners = torch.arange(DUMMY_OBJECTS, device=images.device).unsqueeze(1) * size / (2 * DUMMY_OBJECTS)
    objects = InstanceData(
        bboxes=torch.cat([corners, corners + size / 4], 1),
        labels=torch.arange(DUMMY_OBJECTS, device=images.device) % 2,
    )
    if learns_masks(model):
        objects.masks = BitmapMasks(np.ones((DUMMY_OBJECTS, height, width), np.uint8), height, width)
    samples = [DetDataSample(metainfo=image_meta(images), gt_instances=objects.clone()) for _ in images]
    return {"inputs": images, "data_samples": samples, "mode": "loss" if training else "predict"}


def _scale_sample(sample: BaseDataElement, factor: int) -> None:
    """Enlarge boxes, masks and maps of a sample, true and predicted ones, by a whole factor."""
    for name, instances in list(sample.items()):
        if name.endswith("_seg"):
            enlarged = instances.sem_seg.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
            setattr(sample, name, PixelData(sem_seg=enlarged))  # a PixelData accepts no other size once it has one
        if not name.endswith("_instances"):
            continue
        if "bboxes" in instances:  # missing in the annotations of an image without objects
            instances.bboxes = instances.bboxes * factor
        if isinstance(instances.get("masks"), Tensor):
            instances.masks = instances.masks.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
        elif "masks" in instances:
            masks = instances.masks
            instances.masks = masks.resize((factor * masks.height, factor * masks.width))


def _stages(module: nn.Module | None) -> list[nn.Module]:
    """The heads of a cascade, the one head of another detector, or none."""
    if module is None:
        return []
    return list(module) if isinstance(module, nn.ModuleList) else [module]


def _pool_proposals(extractor: Any, features: Sequence[Tensor], proposals: int) -> Tensor:
    """Pool as many proposals from each level of the pyramid: (proposals, C, h, w).

    mmdet sorts boxes by their size to find each one's level, which needs their values; the work does not depend on it.
    """
    if not hasattr(extractor, "map_roi_levels"):
        raise ConfigError(f"{type(extractor).__name__} cannot be counted: use SingleRoIExtractor")
    levels = len(extractor.roi_layers)
    pooled = []
    for i, (feature, layer) in enumerate(zip(features, extractor.roi_layers, strict=False)):
        boxes = feature.new_zeros(proposals // levels + (i < proposals % levels), 5)
        before, layer.use_torchvision = layer.use_torchvision, True  # mmcv's compiled operator could not be counted
        pooled.append(layer(feature, boxes))
        layer.use_torchvision = before
    return torch.cat(pooled)


def _class_scores(model: BaseDetector, batch: Mapping[str, Any], classes: int) -> Tensor:
    """The highest score of a detection of each class, (1, K); see :class:`engine.task.ExplainSpec`."""
    (found,) = model.predict(batch["inputs"], batch["data_samples"], rescale=False)
    scores, labels = found.pred_instances.scores, found.pred_instances.labels
    if isinstance(head := getattr(model, "bbox_head", None), BaseDenseHead):  # mmdet detaches their scores
        dense = _dense_scores(head, model.extract_feat(batch["inputs"]))
        best = {label: dense[label] for label in labels.unique().tolist()}
    else:
        best = {label: scores[labels == label].max() for label in labels.unique().tolist()}
    absent = scores.new_tensor(-torch.inf)
    return torch.stack([best.get(label, absent) for label in range(classes)])[None]


def _dense_scores(head: BaseDenseHead, features: Sequence[Tensor]) -> Tensor:
    """The highest score of each class at any place of a dense head, (K,) or more.

    Raises:
        ConfigError: If its outputs are not scores of classes.
    """
    width = getattr(head, "cls_out_channels", None)
    if width is None:
        raise ConfigError(f"--parts cam: {type(head).__name__} has no scores of classes (cls_out_channels)")
    maps = head(features)[0]
    rows = torch.cat([one[0].unflatten(0, (-1, width)).transpose(0, 1).flatten(1) for one in maps], 1)
    return (rows.sigmoid() if head.use_sigmoid_cls else rows.softmax(0)).max(1).values


def _complete_config(cfg: Config, notes: list[str]) -> None:
    """Let ``with_mask`` and ``pad_mask="from_model"``, and evaluators without a ``metric``, follow the heads.

    The file of a part of a ``ConcatDataset`` may lack classes that others have. A hook of mmdet's that would not reach
    the data is replaced.
    """
    replace_pipeline_switch(cfg, notes)
    for split in ("train", "val", "test"):
        _leave_label_maps(cfg, split, notes)
    parts = inner_datasets(cfg.train_dataloader.dataset) if cfg.get("train_dataloader") else []
    for part in parts if len(parts) > 1 else ():
        if registered_class(DATASETS, part["type"]) is CocoInstances:
            part["partial_classes"] = True
    masks = any(
        (key.endswith("mask_head") and head is not None)
        or (key == "type" and any(kind in str(head) for kind in MASKED))
        for node in mappings(cfg.model)
        for key, head in node.items()
    )
    for node in mappings(dict(cfg)):
        node.update({key: masks for key in ("with_mask", "pad_mask") if node.get(key) == FROM_MODEL})
        if str(node.get("type")).rpartition(".")[2] == "FastCocoMetric":
            node.setdefault("metric", IOU_TYPES if masks else IOU_TYPES[:1])


def _leave_label_maps(cfg: Config, split: str, notes: list[str]) -> None:
    """Take out the folder of label maps, ``seg``, that a library's base states and no step of a pipeline reads."""
    outer = (cfg.get(f"{split}_dataloader") or {}).get("dataset")
    steps = mappings([outer, cfg.get(pipeline_key(split))])
    if not outer or any(step.get("with_seg") or "Panoptic" in str(step.get("type")) for step in steps):
        return
    for one in inner_datasets(outer):
        kind = registered_class(DATASETS, one["type"])
        prefixes = one.get("data_prefix") or {}
        if isinstance(kind, type) and issubclass(kind, CocoDataset) and prefixes.pop("seg", None):
            notes.append(f"{split}_dataloader.dataset.data_prefix.seg: left out, no step of the pipeline reads it")


def _count_classes(cfg: Config, notes: list[str]) -> None:
    """Tell heads how many of the classes are things, the first ones, and how many are stuff.

    Heads on proposals of a model that has both know the things alone.

    Raises:
        ConfigError: If a class of stuff stands before a thing, or no head knows stuff.
    """
    heads = [node for node in mappings(cfg.model) if "num_things_classes" in node]
    names, stated = class_names(cfg.classes), cfg.get(STUFF_CLASSES)
    if stated and not heads:
        raise ConfigError(
            f"{STUFF_CLASSES}: {cfg.model.type} knows no stuff: take configs/_base_/mask2former.py or "
            "configs/detection/panoptic_fpn_digits.py, or leave it out"
        )
    every = class_names(stated) if stated else ()
    stuff = [name for name in names if name in every]
    if names[len(names) - len(stuff) :] != tuple(stuff):
        wrong = next(name for name in reversed(names) if name not in stuff)
        raise ConfigError(
            f"{STUFF_CLASSES}: things come first in classes, and {wrong!r} comes after {stuff[0]!r}, which is stuff"
        )
    if absent := [name for name in every if name not in names]:
        notes.append(f"{STUFF_CLASSES}: {absent[0]!r} and {len(absent) - 1} more are none of the classes")
    for node in heads:
        counts = [node[key] for key in ("num_things_classes", "num_stuff_classes")]
        own = all(isinstance(count, int) for count in counts)
        if own and not stated and sum(counts) == len(names):
            continue  # of a library's config
        node.num_things_classes, node.num_stuff_classes = len(names) - len(stuff), len(stuff)
    for node in mappings(cfg.model):
        if node.get("panoptic_on") == FROM_CLASSES:
            node.panoptic_on = bool(stuff)
    for node in mappings(cfg.model.get("roi_head")) if heads else ():
        if "num_classes" in node:
            node.num_classes = heads[0].num_things_classes


def _check_training(cfg: Config, images: int) -> None:
    """Refuse a mask head without masks, images larger than they are padded to, and mixtures of images with masks.

    mmdet's mosaics and mixtures keep the masks of one image for the boxes of all.

    Raises:
        ConfigError: With the setting that loads masks, the sizes, or the transforms that mix masks too.
    """
    for step in (cfg.model.get("data_preprocessor") or {}).get("batch_augments") or []:
        largest = training_shape(cfg)
        if transform_name(step) == "BatchFixedSizePad" and largest not in (None, tuple(step["size"])):
            raise ConfigError(
                f"model.data_preprocessor.batch_augments: BatchFixedSizePad pads to {tuple(step['size'])}, but "
                f"training has images of up to {largest} (height, width): give RandomCrop and the padding the same size"
            )
    dataset = cfg.train_dataloader.dataset
    mixing = [step["type"] for step in dataset.get("pipeline", []) if transform_name(step) in WITHOUT_MASKS]
    loading = [step for inner in inner_datasets(dataset) for step in inner.get("pipeline", [])]
    if mixing and is_wrapper(dataset) and any(step.get("with_mask") for step in loading):
        raise ConfigError(
            f"train_dataloader.dataset: {mixing[0]} loses masks: use CachedMosaic, CachedMixUp or CopyPaste, or a "
            "detector without masks and LoadAnnotations with with_mask=False"
        )
    boxes_alone = [step for step in loading if transform_name(step) == "LoadAnnotations"]
    boxes_alone = [step for step in boxes_alone if not step.get("with_mask")]
    if boxes_alone and (cfg.model.get("roi_head") or {}).get("mask_head"):
        raise ConfigError(
            "train_dataloader.dataset: LoadAnnotations loads no masks, which model.roi_head.mask_head learns from: "
            f"state with_mask={FROM_MODEL!r}, or model.roi_head.mask_head=None for boxes alone"
        )


DETECTION = register_task(
    TaskSpec(
        name="detection",
        model_types=(BaseDetector,),
        scores=(Score("box AP", "bbox_mAP", 100), Score("mask AP", "segm_mAP", 100)),
        scores_note="AP is COCO's, over IoU 0.50 to 0.95, in percent; bbox_mAP and segm_mAP of the log are fractions.",
        main_metric="bbox_mAP",
        default_shape=_counted_shape,
        count_forward=_count_forward,
        counted_parts=_counted_parts,
        detailed_modules=("backbone", "roi_head"),
        activation_forward=_activation_forward,
        dummy_batch=_dummy_batch,
        export_wrapper=exported_detector,
        channel_order="BGR",
        visualizers={"DetLocalVisualizer": "DetectionVisualizer"},
        class_metrics={"CocoMetric": "ClassCocoMetric"},
        class_layers={
            "fc_cls": ClassLayer(extra_rows=1),  # the background is the last row since mmdet 2.0
            "fc_reg": ClassLayer(rows=4, scores=False),
            "conv_logits": ClassLayer(scores=False),
        },
        # Training images of COCO 2017 that mmdet keeps: those with an object.
        named_classes={"coco": NamedClasses(lambda: CocoDataset.METAINFO["classes"], 117_266)},
        coloured_classes=True,
        sample_types={
            DetDataSample: (),
            BitmapMasks: ("masks", "height", "width"),
            PolygonMasks: ("masks", "height", "width"),
            HorizontalBoxes: ("tensor",),
        },
        draw_options={"pred_score_thr": MISTAKE_SCORE},
        scale_sample=_scale_sample,
        complete_config=_complete_config,
        count_classes=_count_classes,
        data_classes=names_in_file,
        check_training=_check_training,
        result_formats={
            "coco": CocoResults,
            "json": ObjectList,
            "csv": ObjectTable,
            "labelme": LabelmeFiles,
            "yolo": YoloFiles,
        },
        predicted_fields=("pred_instances",),
        submission=SubmissionSpec("coco", pack_coco),
        prediction=Detections,
        error_analysis=DetectionErrors,
        loss_inputs=detector_loss_inputs,
        zoo=DETECTION_ZOO,
        browse=DETECTION_BROWSE,
        explain=ExplainSpec(_class_scores, "the score of the surest detection of the class"),
    )
)
