"""A segmentor's validation data as its loss takes them: test pipelines keep the truth at the image's size."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor

from backbones.errors import ConfigError
from engine.task import Shape
from segmentation.data import IGNORE_INDEX


def segmentor_loss_inputs(
    model: EncoderDecoder, batch: Mapping[str, Any], pipeline: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """The arguments of a segmentor's ``forward`` for the loss; see ``loss_inputs`` of :class:`engine.task.TaskSpec`.

    A model that is tested in windows gets the central window of each image: whole images may be too large for it.
    Images without labelled pixels are left out.

    Raises:
        ConfigError: If the pipeline loads no labels.
    """
    data: dict[str, Any] = model.data_preprocessor(
        {"inputs": batch["inputs"], "data_samples": copy.deepcopy(batch["data_samples"])}, False
    )
    inputs = data["inputs"]
    height, width = (int(side) for side in inputs.shape[-2:])
    if model.test_cfg.get("mode") == "slide":
        height, width = (min(pair) for pair in zip((height, width), model.test_cfg.crop_size, strict=True))
    top, left = (inputs.shape[-2] - height) // 2, (inputs.shape[-1] - width) // 2
    samples, labelled = [], []
    for image, sample in zip(batch["inputs"], data["data_samples"], strict=True):
        if "gt_sem_seg" not in sample:
            raise ConfigError("test_pipeline: LoadLabels or LoadAnnotations is needed for the truth")
        labels = _fitted(sample.gt_sem_seg.data, tuple(image.shape[-2:]), tuple(inputs.shape[-2:]))
        window = labels[..., top : top + height, left : left + width]
        labelled.append(bool((window != IGNORE_INDEX).any()))
        if labelled[-1]:
            sample.gt_sem_seg = PixelData(data=window)
            sample.set_metainfo(dict.fromkeys(("img_shape", "pad_shape", "batch_input_shape"), (height, width)))
            samples.append(sample)
    if not samples:
        return None
    images = inputs[labelled, :, top : top + height, left : left + width]
    return {"inputs": images, "data_samples": samples, "mode": "loss"}


def _fitted(labels: Tensor, size: Shape, padded: Shape) -> Tensor:
    """Labels, (1, H, W), resized to an image's height and width and padded like it."""
    if labels.shape[-2:] != size:
        labels = F.interpolate(labels[None].float(), size=size, mode="nearest")[0].to(labels.dtype)
    return F.pad(labels, (0, padded[1] - size[1], 0, padded[0] - size[0]), value=IGNORE_INDEX)
