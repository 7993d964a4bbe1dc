"""Instance masks from a head's small squares to run-length codes, with the work bounded by the boxes.

Both directions give the very pixels and codes of the usual way: mmdet's pasting by ``grid_sample`` and pycocotools'
encoding of whole images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.registry import MODELS
from pycocotools import mask as coco_masks
from torch import Tensor

# The two products below and grid_sample's sums differ by rounding: a few 1e-7 of positions up to the square's side, so
# some 1e-5 in probability at most. What comes this close to the threshold is computed again by grid_sample.
PROBABILITY_TOLERANCE = 1e-4


def paste_masks(probabilities: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> Tensor:
    """Scale square masks to their boxes in an image and binarise them (He et al. 2017, arXiv:1703.06870).

    Bilinear scaling is a product with a matrix of two entries per row along each axis, which takes a fraction of the
    time of sampling each pixel.

    Args:
        probabilities: (N, S, S), in float32 on the CPU.
        boxes: (N, 4), corners x1, y1, x2, y2 in pixels of the image; may reach beyond it.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        threshold: Above 0; a pixel belongs to the object from this probability on.

    Returns:
        (N, height, width), boolean.
    """
    # Pages of numpy's zeros cost nothing until they are written; torch writes them all.
    pasted = torch.from_numpy(np.zeros((len(boxes), height, width), dtype=bool))
    nodes = torch.arange(probabilities.shape[-1], dtype=torch.float32)
    lows, highs = boxes.floor() - 1, boxes.ceil() + 1
    for canvas, square, box, low, high in zip(pasted, probabilities, boxes, lows.tolist(), highs.tolist(), strict=True):
        left, top = (max(int(value), 0) for value in low[:2])
        right, bottom = min(int(high[2]), width), min(int(high[3]), height)
        if left >= right or top >= bottom:
            continue
        x, y = _relative(left, right, box[0], box[2]), _relative(top, bottom, box[1], box[3])
        canvas[top:bottom, left:right] = _scaled(square, x, y, nodes, threshold)
    return pasted


def _relative(begin: int, end: int, low: Tensor, high: Tensor) -> Tensor:
    """Centres of pixels, (end - begin,), in units in which the box reaches from -1 to 1."""
    found = (torch.arange(begin, end).float() + 0.5 - low) / (high - low) * 2 - 1
    return found.masked_fill_(found.isinf(), 0)  # as mmdet does for boxes without extent


def _scaled(square: Tensor, x: Tensor, y: Tensor, nodes: Tensor, threshold: float) -> Tensor:
    """The object's pixels, (len(y), len(x)), boolean."""
    rows, columns = (_weights(one, nodes) for one in (y, x))
    values = rows @ square @ columns.T
    found = values >= threshold + PROBABILITY_TOLERANCE
    unsure = found != (values >= threshold - PROBABILITY_TOLERANCE)
    if bool((x.sum() + y.sum() + square.sum()).isnan()):  # a box without extent, a head that diverged
        unsure.fill_(True)
    places = unsure.nonzero()
    if len(places):
        grid = torch.stack([x[places[:, 1]], y[places[:, 0]]], 1)
        exact = F.grid_sample(square[None, None], grid[None, None], align_corners=False)
        found[unsure] = exact.flatten() >= threshold
    return found


def _weights(places: Tensor, nodes: Tensor) -> Tensor:
    """Share of each node in each place, (len(places), len(nodes)), with zeros around the square."""
    position = ((places + 1) * len(nodes) - 1) / 2
    return (1 - (position[:, None] - nodes).abs_()).clamp_(min=0)


@MODELS.register_module()
class FastFCNMaskHead(FCNMaskHead):
    """mmdet's mask head, in its place: the same masks, pasted faster on CPU."""

    def _predict_by_feat_single(
        self,
        mask_preds: Tensor,
        bboxes: Tensor,
        labels: Tensor,
        img_meta: dict[str, Any],
        rcnn_test_cfg: Any,
        rescale: bool = False,
        activate_map: bool = False,
    ) -> Tensor:
        threshold = rcnn_test_cfg.mask_thr_binary
        if bboxes.device.type != "cpu" or threshold <= 0 or not rescale or activate_map:
            rest = (img_meta, rcnn_test_cfg, rescale, activate_map)
            masks: Tensor = super()._predict_by_feat_single(mask_preds, bboxes, labels, *rest)
            return masks
        bboxes /= bboxes.new_tensor(img_meta["scale_factor"]).repeat(2)  # in place: the caller's boxes follow
        kind = torch.zeros_like(labels) if self.class_agnostic else labels
        squares = mask_preds[torch.arange(len(labels)), kind].float().sigmoid()
        height, width = img_meta["ori_shape"][:2]
        return paste_masks(squares, bboxes.float(), height, width, threshold)


def encode_masks(masks: np.ndarray) -> list[dict[str, Any]]:
    """Run-length codes of binary masks, the same as pycocotools' ``encode``.

    Only the rectangle that holds an object's pixels is turned round (codes run down the columns) and searched.

    Args:
        masks: (N, H, W), boolean or of 0 and 1 in 8 bits.

    Returns:
        For each mask a dict of ``size`` (H, W) and compressed ``counts`` in bytes.
    """
    if not len(masks):
        return []
    size = [int(side) for side in masks.shape[1:]]
    runs = [{"size": size, "counts": _runs(mask)} for mask in np.ascontiguousarray(masks).view(np.uint8)]
    codes: list[dict[str, Any]] = coco_masks.frPyObjects(runs, *size)
    return codes


def _runs(mask: np.ndarray) -> np.ndarray:
    """Lengths of the runs of 0, 1, 0... down the columns of a mask (H, W)."""
    height, width = mask.shape
    held = np.flatnonzero(np.bitwise_or.reduce(mask, axis=0))  # columns
    if not len(held):
        return np.array([height * width])
    left, across = held[0], held[-1] + 1 - held[0]
    held = np.flatnonzero(mask[:, left : left + across].any(axis=1))
    top, down = held[0], held[-1] + 1 - held[0]
    # A zero after each column parts its last run from the next column's first, and one goes before all.
    padded: np.ndarray = np.zeros(1 + across * (down + 1), np.uint8)
    columns = padded[1:].reshape(across, down + 1)[:, :down]
    columns[:] = mask[top : top + down, left : left + across].T
    column, row = np.divmod(np.flatnonzero(padded[1:] != padded[:-1]), down + 1)
    changes = (left + column) * height + top + row
    if down == height:  # runs that go on in the next column
        twice = np.flatnonzero(changes[1:] == changes[:-1])
        changes = np.delete(changes, np.concatenate([twice, twice + 1]))
    end = [] if changes[-1] == height * width else [height * width]
    counts: np.ndarray = np.diff(np.concatenate([[0], changes, end]).astype(np.int64))
    return counts


def to_rle(masks: Tensor | Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run-length codes of what a head gives: masks (N, H, W), or codes already."""
    return encode_masks(masks.detach().cpu().numpy()) if isinstance(masks, Tensor) else list(masks)
