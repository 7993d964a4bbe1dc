"""What is recorded of a detector in place of mmdet's own functions gives what these give, also for no object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from mmcv.ops import RoIAlign
from mmcv.ops.nms import batched_nms
from mmdet.models.dense_heads import RPNHead, RTMDetInsHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.seg_heads.panoptic_fusion_heads import HeuristicFusionHead, MaskFormerFusionHead
from mmdet.models.utils import filter_scores_and_topk, misc
from mmdet.structures.mask import mask2bbox
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

from backbones.errors import ConfigError
from detection.export import (
    best_scores,
    boxes_of_masks,
    class_nms,
    lay_segments,
    merge_segments,
    pair_objects,
    recordable,
)

ANCHORS = {"type": "AnchorGenerator", "scales": [2], "ratios": [0.5, 1.0], "strides": [4, 8, 16]}


def some_boxes(count: int, side: float = 60.0) -> Tensor:
    """Boxes, (count, 4), inside of a square."""
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(count)) * side
    return torch.cat([corners.amin(1), corners.amax(1)], 1)


@pytest.mark.parametrize("settings", [{"iou_threshold": 0.3}, {"iou_threshold": 0.3, "class_agnostic": True}, None])
@pytest.mark.parametrize("count", [1, 50])
def test_non_maximum_suppression(settings: dict[str, Any] | None, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    boxes, scores = some_boxes(count), torch.rand(count, generator=generator)
    labels = torch.randint(3, (count,), generator=generator)
    found, rows = class_nms(boxes, scores, labels, settings)
    expected, others = batched_nms(boxes, scores, labels, settings)
    assert torch.equal(found, expected)
    assert torch.equal(rows, others)
    assert class_nms(boxes[:0], scores[:0], labels[:0], settings)[0].shape == (0, 5)


def test_another_suppression_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"test_cfg\.nms\.type='soft_nms' cannot be exported: take 'nms'"):
        class_nms(some_boxes(2), torch.ones(2), torch.zeros(2), {"type": "soft_nms", "iou_threshold": 0.5})


@pytest.mark.parametrize("threshold, most", [(0.5, 7), (0.5, 1000), (0.5, -1), (2.0, 7)])
def test_the_best_scores(threshold: float, most: int) -> None:
    scores = torch.rand(20, 3, generator=torch.Generator().manual_seed(0))
    boxes = some_boxes(20)
    for results in (None, boxes, [boxes], {"boxes": boxes}):
        found = best_scores(scores, threshold, most, results)
        expected = filter_scores_and_topk(scores, threshold, most, results)
        for one, other in zip(found[:3], expected[:3], strict=True):
            assert torch.equal(one, other)
        one, other = (value["boxes"] if isinstance(value, dict) else value for value in (found[3], expected[3]))
        one, other = (value[0] if isinstance(results, list) else value for value in (one, other))
        assert (one is None and other is None) if results is None else torch.equal(one, other)


def test_boxes_around_masks() -> None:
    masks = torch.rand(6, 9, 13, generator=torch.Generator().manual_seed(0)) > 0.97
    masks[0] = False
    assert torch.equal(boxes_of_masks(masks), mask2bbox(masks))
    assert boxes_of_masks(masks[:0]).shape == (0, 4)


@pytest.mark.parametrize("settings", [{}, {"iou_thr": 0.5, "object_mask_thr": 0.3}, {"filter_low_score": True}])
@pytest.mark.parametrize("scale", [0.0, 3.0, 200.0])
def test_segments_of_queries(settings: dict[str, Any], scale: float) -> None:
    """At the largest scale masks are exactly 0 and 1, at the smallest no class is certain."""
    head = MaskFormerFusionHead(num_things_classes=2, num_stuff_classes=2, test_cfg=ConfigDict(settings))
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        classes = torch.randn(12, 5, generator=generator) * scale
        masks = torch.nn.functional.interpolate(torch.randn(1, 12, 4, 5, generator=generator) * scale, (24, 30))[0]
        found, expected = merge_segments(head, classes, masks), head.panoptic_postprocess(classes, masks)
        assert torch.equal(found.sem_seg, expected.sem_seg)


@pytest.mark.parametrize("most", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("least", [0, 150, 10_000])
def test_segments_of_things_before_stuff(most: float, least: int) -> None:
    """An empty mask and one that is covered in whole are among them."""
    settings = ConfigDict(mask_overlap=most, stuff_area_limit=least)
    head = HeuristicFusionHead(num_things_classes=2, num_stuff_classes=3, test_cfg=settings)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        masks = torch.nn.functional.interpolate(torch.randn(1, 9, 4, 5, generator=generator), (24, 30))[0] > 0.4
        masks[3] = False
        masks[4] = masks[5]
        labels = torch.randint(2, (9,), generator=generator)
        things = InstanceData(bboxes=some_boxes(9), scores=torch.rand(9, generator=generator), labels=labels)
        things.masks = masks
        stuff = torch.nn.functional.interpolate(torch.randn(1, 4, 3, 4, generator=generator), (24, 30))[0]
        (expected,) = head.predict([things], [stuff])
        assert torch.equal(lay_segments(head, things, stuff).sem_seg, expected.sem_seg)
    with pytest.raises(ConfigError, match="no thing is found in the photographs: give --images"):
        lay_segments(head, things[:0], stuff)


def both_ways(predict: Callable[[], list[InstanceData]]) -> tuple[InstanceData, InstanceData]:
    """What mmdet gives for an image by itself, and while it is recorded."""
    with torch.no_grad():
        (expected,) = predict()
        with recordable():
            (found,) = predict()
    return found, expected


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("count", [1, 6])
def test_pasted_masks(agnostic: bool, count: int) -> None:
    """A box without width, and one beyond the image, are among them."""
    head = FCNMaskHead(num_convs=1, in_channels=4, conv_out_channels=4, num_classes=3, class_agnostic=agnostic)
    boxes = torch.cat([torch.tensor([[20.0, 10.0, 20.0, 30.0], [40.5, 7.0, 70.0, 48.0]]), some_boxes(4)])[:count]
    logits = torch.randn(count, 1 if agnostic else 3, 28, 28, generator=torch.Generator().manual_seed(0)) * 4
    meta, settings = {"ori_shape": (48, 64), "scale_factor": (1.0, 1.0)}, ConfigDict(mask_thr_binary=0.5)

    def predict() -> list[InstanceData]:
        objects = InstanceData(bboxes=boxes.clone(), labels=torch.arange(count) % 3)
        found: list[InstanceData] = head.predict_by_feat((logits,), [objects], [meta], settings)
        return found

    found, expected = both_ways(predict)
    assert expected.masks.any()
    assert torch.equal(found.masks, expected.masks)


@pytest.mark.parametrize("settings", [{"nms_pre": 30}, {"nms_pre": -1, "min_bbox_size": 4}])
def test_proposals(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    head = RPNHead(in_channels=4, feat_channels=64, anchor_generator=ANCHORS)
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(1, 4, *size, generator=generator) for size in ((12, 16), (6, 8), (3, 4))]
    cfg = ConfigDict({"nms": {"type": "nms", "iou_threshold": 0.7}, "max_per_img": 50, **settings})
    metas = [{"img_shape": (48, 64)}]
    found, expected = both_ways(lambda: head.predict_by_feat(*head(maps), batch_img_metas=metas, cfg=cfg))
    assert 0 < len(expected) <= 50
    for name in ("bboxes", "scores", "labels"):
        assert torch.equal(found[name], expected[name])


def test_masks_of_dynamic_convolutions() -> None:
    head = RTMDetInsHead(
        num_classes=3,
        in_channels=32,
        feat_channels=32,
        stacked_convs=1,
        anchor_generator={"type": "MlvlPointGenerator", "offset": 0, "strides": [4, 8, 16]},
        bbox_coder={"type": "DistancePointBBoxCoder"},
    ).eval()
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(1, 32, *size, generator=generator) for size in ((12, 16), (6, 8), (3, 4))]
    cfg = ConfigDict(nms_pre=40, score_thr=0.0, nms={"type": "nms", "iou_threshold": 0.6}, max_per_img=9)
    cfg.update(mask_thr_binary=0.5, min_bbox_size=0)
    metas = [{"img_shape": (48, 64), "ori_shape": (48, 64), "scale_factor": (1.0, 1.0)}]
    outputs = head(maps)
    found, expected = both_ways(lambda: head.predict_by_feat(*outputs, batch_img_metas=metas, cfg=cfg))
    assert len(expected) == 9
    assert expected.masks.any()
    assert torch.equal(found.bboxes, expected.bboxes)
    assert (found.masks != expected.masks).float().mean() < 1e-3  # rounding where a logit is next to 0


def test_the_functions_of_mmdet_come_back_after_an_error() -> None:
    def places() -> list[Any]:
        return [
            misc.filter_scores_and_topk,
            *(vars(owner)[name] for owner, name in ((RPNHead, "_predict_by_feat_single"), (RoIAlign, "forward"))),
        ]

    def interrupted() -> None:
        with recordable():
            assert all(now is not then for now, then in zip(places(), before, strict=True))
            raise ZeroDivisionError

    before = places()
    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert all(now is then for now, then in zip(places(), before, strict=True))


def test_pairs_of_objects() -> None:
    names = ("boxes", "scores", "labels", "masks")
    boxes, scores = some_boxes(60), torch.linspace(0.9, 0.1, 60)
    mine = [boxes, scores, torch.arange(60) % 3, torch.arange(60).view(-1, 1, 1).expand(60, 4, 4)]
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    for one, other in zip(*pair_objects(names, [value[order] for value in mine], mine), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(*pair_objects(names, [value[1:] for value in mine], mine), strict=True):
        assert torch.equal(one, other)
        assert len(one) == 59
    with pytest.raises(ConfigError, match="refused: 57 of 60 objects are found by the exported file and by its source"):
        pair_objects(names, [value[3:] for value in mine], mine)
    moved = [boxes + 2, *mine[1:]]
    with pytest.raises(ConfigError, match="refused: 0 of 60 objects"):
        pair_objects(names, moved, mine)
    assert pair_objects(("panoptic",), mine[:1], moved[:1]) == (mine[:1], moved[:1])
