"""A detector's validation data as its loss takes them: mmdet's test pipelines keep the truth at the image's size."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from mmdet.models.detectors import BaseDetector
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from backbones.errors import ConfigError
from detection.masks import learns_masks
from detection.panoptic import VOID_LABEL
from engine.task import Shape, transform_name


def detector_loss_inputs(
    model: BaseDetector, batch: Mapping[str, Any], pipeline: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """The arguments of a detector's ``forward`` for the loss; see ``loss_inputs`` of :class:`engine.task.TaskSpec`.

    Images without objects are left out, as configs leave them out of the training: alone in their batch, they have
    losses far from all others with some heads.

    Raises:
        ConfigError: If the pipeline loads no boxes, or no masks for a model that learns them.
    """
    images, samples = [], []
    scaled = _resized_with_image(pipeline)
    for image, sample in zip(batch["inputs"], batch["data_samples"], strict=True):
        for name, found in (("bbox", "bboxes"), ("mask", "masks")):
            if found not in sample.gt_instances and (name == "bbox" or learns_masks(model)):
                raise ConfigError(f"test_pipeline: LoadAnnotations with_{name}=True is needed for the truth")
        if len(sample.gt_instances.bboxes):
            images.append(image)
            samples.append(copy.deepcopy(sample))
            _fit(samples[-1], tuple(image.shape[-2:]), scaled)
    if not images:
        return None
    preprocessor = model.data_preprocessor
    data: dict[str, Any] = preprocessor({"inputs": images, "data_samples": samples}, False)
    if preprocessor.pad_mask:  # as in training
        preprocessor.pad_gt_masks(data["data_samples"])
    if preprocessor.pad_seg:
        preprocessor.pad_gt_sem_seg(data["data_samples"])
    return {**data, "mode": "loss"}


def _resized_with_image(pipeline: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a step that resizes comes after the one that loads the truth, which it then resizes too."""
    names = [transform_name(step) for step in pipeline]
    loading = [place for place, name in enumerate(names) if name.startswith("Load") and "Image" not in name]
    return bool(loading) and any("Resize" in name for name in names[loading[-1] :])


def _fit(sample: DetDataSample, shape: Shape, scaled: bool) -> None:
    """Scale the truth of an image as the image was, in place, and pad masks and label maps to its height and width."""
    across, down = (1.0, 1.0) if scaled else sample.metainfo.get("scale_factor", (1.0, 1.0))[:2]
    for name in ("gt_instances", "ignored_instances"):
        if name in sample:
            _fit_instances(sample.get(name), across, down, shape)
    if "gt_sem_seg" in sample:
        labels: Tensor = sample.gt_sem_seg.sem_seg
        height, width = (round(side * factor) for side, factor in zip(labels.shape[-2:], (down, across), strict=True))
        fitted = F.interpolate(labels[None].float(), size=(height, width), mode="nearest")[0].to(labels.dtype)
        fitted = F.pad(fitted, (0, shape[1] - width, 0, shape[0] - height), value=VOID_LABEL)
        sample.gt_sem_seg = PixelData(metainfo=sample.gt_sem_seg.metainfo, sem_seg=fitted)


def _fit_instances(objects: InstanceData, across: float, down: float, shape: Shape) -> None:
    if "bboxes" in objects and hasattr(objects.bboxes, "rescale_"):
        objects.bboxes.rescale_((across, down))
        objects.bboxes.clip_(shape)
    elif "bboxes" in objects:
        objects.bboxes = objects.bboxes * objects.bboxes.new_tensor([across, down, across, down])
    if "masks" in objects:
        masks = objects.masks
        objects.masks = masks.resize((round(masks.height * down), round(masks.width * across))).pad(shape)
