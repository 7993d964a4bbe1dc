"""Pasting and run-length encoding of instance masks, with work in proportion to the boxes instead of the image.

Pixels and codes are exactly those of mmdet's pasting by ``grid_sample`` and of pycocotools' encoding of whole images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmdet.models.detectors import BaseDetector
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from pycocotools import mask as coco_masks
from torch import Tensor

# Matrix products and grid_sample's sums differ by rounding: a few 1e-7 of positions up to the mask's side, so 1e-5 in
# probability at most. A pixel this close to the threshold is computed again by grid_sample.
PROBABILITY_TOLERANCE = 1e-4
# Parts of mmdet, besides those under the key mask_head, that give masks.
MASKED = ("RTMDetIns", "MaskFormer", "Mask2Former", "PanopticFPN", "SOLO", "YOLACT", "CondInst")


def learns_masks(model: BaseDetector) -> bool:
    """Whether the loss of a detector needs masks."""
    names = [name for name, _ in model.named_modules() if name.endswith("mask_head")]
    return bool(names) or any(kind in type(module).__name__ for module in model.modules() for kind in MASKED)


def paste_masks(probabilities: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> Tensor:
    """Resize square masks to their boxes in an image and binarise them (He et al. 2017, arXiv:1703.06870).

    Bilinear resizing is a product with a matrix of two entries per row along each axis, which takes a fraction of the
    time of sampling each pixel.

    Args:
        probabilities: Mask probabilities, (N, S, S), float32, on the CPU.
        boxes: Corners x1, y1, x2, y2 in pixels of the image, (N, 4); may reach beyond it.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        threshold: Smallest probability of a pixel of the object, above 0.

    Returns:
        Masks, (N, height, width), boolean.
    """
    # numpy's zeros are pages that cost nothing until they are written; torch writes them all.
    pasted = torch.from_numpy(np.zeros((len(boxes), height, width), dtype=bool))
    nodes = torch.arange(probabilities.shape[-1], dtype=torch.float32)
    lows, highs = boxes.floor() - 1, boxes.ceil() + 1
    for canvas, square, box, low, high in zip(pasted, probabilities, boxes, lows.tolist(), highs.tolist(), strict=True):
        left, top = (max(int(value), 0) for value in low[:2])
        right, bottom = min(int(high[2]), width), min(int(high[3]), height)
        if left >= right or top >= bottom:
            continue
        x, y = _relative(left, right, box[0], box[2]), _relative(top, bottom, box[1], box[3])
        canvas[top:bottom, left:right] = _resize_and_binarise(square, x, y, nodes, threshold)
    return pasted


def _relative(begin: int, end: int, low: Tensor, high: Tensor) -> Tensor:
    """Centres of the pixels from ``begin`` to ``end``, in the coordinates of the box from -1 to 1, (end - begin,)."""
    centres = (torch.arange(begin, end).float() + 0.5 - low) / (high - low) * 2 - 1
    return centres.masked_fill_(centres.isinf(), 0)  # as mmdet does for boxes without extent


def _resize_and_binarise(square: Tensor, x: Tensor, y: Tensor, nodes: Tensor, threshold: float) -> Tensor:
    """Pixels of the object, (len(y), len(x)), boolean."""
    rows, columns = (_interpolation_matrix(positions, nodes) for positions in (y, x))
    values = rows @ square @ columns.T
    mask = values >= threshold + PROBABILITY_TOLERANCE
    unsure = mask != (values >= threshold - PROBABILITY_TOLERANCE)
    if bool((x.sum() + y.sum() + square.sum()).isnan()):  # a box without extent, a head that diverged
        unsure.fill_(True)
    places = unsure.nonzero()
    if len(places):
        grid = torch.stack([x[places[:, 1]], y[places[:, 0]]], 1)
        exact = F.grid_sample(square[None, None], grid[None, None], align_corners=False)
        mask[unsure] = exact.flatten() >= threshold
    return mask


def _interpolation_matrix(positions: Tensor, nodes: Tensor) -> Tensor:
    """Weight of each node at each position, (len(positions), len(nodes)); outside of the mask are zeros."""
    nearest = ((positions + 1) * len(nodes) - 1) / 2
    return (1 - (nearest[:, None] - nodes).abs_()).clamp_(min=0)


@MODELS.register_module()
class FastFCNMaskHead(FCNMaskHead):
    """mmdet's ``FCNMaskHead`` with the same masks, pasted faster on CPU."""

    # mmdet has no public method for the masks of one image.
    def _predict_by_feat_single(
        self,
        mask_preds: Tensor,
        bboxes: Tensor,
        labels: Tensor,
        img_meta: dict[str, Any],
        rcnn_test_cfg: ConfigDict,
        rescale: bool = False,
        activate_map: bool = False,
    ) -> Tensor:
        threshold = rcnn_test_cfg.mask_thr_binary
        if bboxes.device.type != "cpu" or threshold <= 0 or not rescale or activate_map:
            others = (img_meta, rcnn_test_cfg, rescale, activate_map)
            masks: Tensor = super()._predict_by_feat_single(mask_preds, bboxes, labels, *others)
            return masks
        # In place, as in mmdet: the caller's boxes change too.
        bboxes /= bboxes.new_tensor(img_meta["scale_factor"]).repeat(2)
        channels = torch.zeros_like(labels) if self.class_agnostic else labels
        squares = mask_preds[torch.arange(len(labels)), channels].float().sigmoid()
        height, width = img_meta["ori_shape"][:2]
        return paste_masks(squares, bboxes.float(), height, width, threshold)


def encode_masks(masks: np.ndarray) -> list[dict[str, Any]]:
    """Run-length codes of binary masks, the same as from pycocotools' ``encode``.

    Only the rectangle that holds an object's pixels is transposed (codes run down the columns) and searched.

    Args:
        masks: Masks, (N, H, W), boolean or uint8 of 0 and 1.

    Returns:
        For each mask a dict of ``size`` (H, W) and compressed ``counts``, bytes.
    """
    if not len(masks):
        return []
    size = [int(side) for side in masks.shape[1:]]
    runs = [{"size": size, "counts": _run_lengths(mask)} for mask in np.ascontiguousarray(masks).view(np.uint8)]
    codes: list[dict[str, Any]] = coco_masks.frPyObjects(runs, *size)
    return codes


def _run_lengths(mask: np.ndarray) -> np.ndarray:
    """Lengths of the runs of 0, 1, 0... down the columns of a mask (H, W), int64."""
    height, width = mask.shape
    used = np.flatnonzero(np.bitwise_or.reduce(mask, axis=0))  # columns
    if not len(used):
        return np.array([height * width])
    left, across = used[0], used[-1] + 1 - used[0]
    used = np.flatnonzero(mask[:, left : left + across].any(axis=1))  # rows
    top, down = used[0], used[-1] + 1 - used[0]
    # A zero after each column separates its last run from the next column's first; another zero comes first.
    padded: np.ndarray = np.zeros(1 + across * (down + 1), np.uint8)
    columns = padded[1:].reshape(across, down + 1)[:, :down]
    columns[:] = mask[top : top + down, left : left + across].T
    column, row = np.divmod(np.flatnonzero(padded[1:] != padded[:-1]), down + 1)
    changes = (left + column) * height + top + row
    if down == height:  # runs continue in the next column
        twice = np.flatnonzero(changes[1:] == changes[:-1])
        changes = np.delete(changes, np.concatenate([twice, twice + 1]))
    end = [] if changes[-1] == height * width else [height * width]
    counts: np.ndarray = np.diff(np.concatenate([[0], changes, end]).astype(np.int64))
    return counts


def to_rle(masks: Tensor | Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run-length codes of a head's masks.

    Args:
        masks: Masks, (N, H, W), boolean, or run-length codes, which are returned as they are.
    """
    return encode_masks(masks.detach().cpu().numpy()) if isinstance(masks, Tensor) else list(masks)
