"""Pasting and encoding of masks against mmdet and pycocotools: every pixel and every byte equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets.transforms import Resize
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.registry import MODELS, TRANSFORMS
from mmdet.structures.mask import encode_mask_results
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

from analysis.benchmark.synthetic_detections import draw_mask_logits
from detection import masks
from detection.masks import FastFCNMaskHead, encode_masks, to_rle

SHAPE = (90, 130)


def both(logits: Tensor, boxes: Tensor, labels: Tensor, scale: float = 1.0, **options: Any) -> tuple[Tensor, Tensor]:
    """Masks of mmdet's head and of ours; checks that the boxes are equal too."""
    found = []
    for kind in (FCNMaskHead, FastFCNMaskHead):
        head = kind(num_convs=0, in_channels=1, conv_out_channels=1, num_classes=logits.shape[1], **options)
        given = InstanceData(bboxes=boxes.clone(), labels=labels)
        meta = {"ori_shape": SHAPE, "scale_factor": (scale, scale)}
        found.append(head.predict_by_feat([logits], [given], [meta], ConfigDict(mask_thr_binary=0.5), rescale=True)[0])
    assert torch.equal(found[0].bboxes, found[1].bboxes)
    return found[0].masks, found[1].masks


@pytest.mark.parametrize("scale", [1.0, 1.7])
@pytest.mark.parametrize("seed", range(4))
def test_fast_mask_head_gives_every_pixel_of_mmdet(seed: int, scale: float) -> None:
    boxes, logits = draw_mask_logits(SHAPE, 40, 3, seed)
    boxes[::5] += (
        20 * torch.randn(8, 4, generator=torch.Generator().manual_seed(seed)).abs() * torch.tensor([-1, -1, 1, 1])
    )
    labels = torch.arange(40) % 3
    expected, found = both(logits, boxes, labels, scale)
    assert torch.equal(found, expected)
    assert 0.005 < found.float().mean() < 0.5


def test_fast_mask_head_with_one_mask_for_all_classes() -> None:
    boxes, logits = draw_mask_logits(SHAPE, 6, 1)
    expected, found = both(logits, boxes, torch.arange(6), class_agnostic=True)
    assert torch.equal(found, expected)


def test_fast_mask_head_decides_scores_on_the_threshold_like_mmdet(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, logits = draw_mask_logits(SHAPE, 10, 1)
    logits = logits.clone()
    logits[:, :, 8:] = 1e-7 * torch.randn(10, 1, 20, 28, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(10, dtype=torch.long)
    expected, found = both(logits, boxes, labels)
    assert torch.equal(found, expected)
    monkeypatch.setattr(masks, "PROBABILITY_TOLERANCE", 0.0)
    assert not torch.equal(both(logits, boxes, labels)[1], expected)  # without the margin some pixels differ


def test_fast_mask_head_of_empty_boxes_and_nan() -> None:
    boxes = torch.tensor([[20.0, 30, 20, 50], [10, 10, 40, 10], [5.5, 5.5, 5.5, 5.5], [30, 20, 70, 60]])
    _, logits = draw_mask_logits(SHAPE, 4, 1)
    logits = logits.clone()
    logits[3, 0, 4, 5] = float("nan")
    expected, found = both(logits, boxes, torch.zeros(4, dtype=torch.long))
    assert torch.equal(found, expected)
    assert found[3].any()


def test_paste_masks_of_boxes_outside_of_the_image_is_empty() -> None:
    _, logits = draw_mask_logits(SHAPE, 2, 1)
    boxes = torch.tensor([[200.0, 10, 240, 50], [10.0, 200, 50, 240]])
    assert not masks.paste_masks(logits[:, 0].sigmoid(), boxes, *SHAPE, threshold=0.5).any()


def test_fast_mask_head_leaves_other_cases_to_mmdet() -> None:
    boxes, logits = draw_mask_logits(SHAPE, 3, 1)
    labels = torch.zeros(3, dtype=torch.long)
    for threshold, kind in ((-1, torch.uint8), (0, torch.bool)):
        results = []
        for head in (FCNMaskHead, FastFCNMaskHead):
            given = InstanceData(bboxes=boxes.clone(), labels=labels)
            made = head(num_convs=0, in_channels=1, conv_out_channels=1, num_classes=1)
            meta = {"ori_shape": SHAPE, "scale_factor": (1.0, 1.0)}
            settings = ConfigDict(mask_thr_binary=threshold)
            results.append(made.predict_by_feat([logits], [given], [meta], settings, rescale=True)[0].masks)
        assert results[1].dtype == kind
        assert torch.equal(*results)


def test_a_config_gets_the_class_that_it_names() -> None:
    assert MODELS.get("FCNMaskHead") is FCNMaskHead
    assert MODELS.get("FastFCNMaskHead") is FastFCNMaskHead
    assert TRANSFORMS.get("LoadImageFromFile") is LoadImageFromFile
    assert TRANSFORMS.get("Resize") is Resize


def test_encode_masks_equals_pycocotools() -> None:
    random = np.random.default_rng(0)
    shape = (23, 17)
    sparse = random.random((20, *shape)) < 0.02
    dense = random.random((20, *shape)) < 0.7
    rectangles = np.zeros((6, *shape), bool)
    rectangles[0, 3:9, 4:7] = True
    rectangles[1, :, 5:8] = True  # columns from top to bottom are one run
    rectangles[2, :, :] = True
    rectangles[3, :5, -1] = True
    rectangles[4, -1, -1] = True  # the last run is of ones
    given = np.concatenate([sparse, dense, rectangles])  # the last one is empty
    assert not given[-1].any()
    expected = encode_mask_results(given)
    assert encode_masks(given) == expected
    assert encode_masks(given.astype(np.uint8)) == expected
    assert encode_masks(given[:, ::2]) == encode_mask_results(given[:, ::2])
    assert encode_masks(given[:0]) == []


def test_to_rle_returns_codes_unchanged() -> None:
    codes = encode_masks(np.eye(5, dtype=bool)[None])
    assert to_rle(codes) == codes
    assert to_rle(torch.eye(5, dtype=torch.bool)[None]) == codes
