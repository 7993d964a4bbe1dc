"""The stand-in for mmcv's compiled module: each op against plain loops, then detectors that use them."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from backbones.errors import MachineError
from engine import mmcv_ops
from engine.mmcv_ops import extension
from engine.mmcv_ops.roi_align import roi_align_forward

mmcv_ops.install()

from mmcv import ops  # noqa: E402

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture
def no_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of a fresh process without compiled ops: nothing installed, no mmdet or mmseg imported."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in list(sys.modules):
        if name == "mmcv._ext" or name.split(".")[0] in ("mmdet", "mmseg"):
            monkeypatch.delitem(sys.modules, name)


def random_boxes(count: int, seed: int, size: float = 100.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * size
    sides = 1 + torch.rand(count, 2, generator=generator) * size / 2
    return torch.cat([corners, corners + sides], dim=1), torch.rand(count, generator=generator)


# --- references, in loops of Python numbers -----------------------------------------------------------


def iou_of(a: list[float], b: list[float], offset: int = 0) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
    area_a = (a[2] - a[0] + offset) * (a[3] - a[1] + offset)
    area_b = (b[2] - b[0] + offset) * (b[3] - b[1] + offset)
    return width * height / (area_a + area_b - width * height)


def reference_nms(boxes: Tensor, scores: Tensor, threshold: float, offset: int = 0) -> list[int]:
    rows, kept = boxes.double().tolist(), []
    for i in scores.argsort(descending=True).tolist():
        if all(iou_of(rows[i], rows[j], offset) <= threshold for j in kept):
            kept.append(i)
    return kept


def reference_soft_nms(
    boxes: Tensor, scores: Tensor, method: str, threshold: float, sigma: float, min_score: float, offset: int
) -> list[tuple[int, float]]:
    rows, left = boxes.double().tolist(), dict(enumerate(scores.double().tolist()))
    kept = []
    while left:
        best = max(left, key=lambda i: left[i])
        kept.append((best, left.pop(best)))
        for i in list(left):
            iou = iou_of(rows[best], rows[i], offset)
            if method == "gaussian":
                left[i] *= math.exp(-iou * iou / sigma)
            elif iou >= threshold:
                left[i] *= 1 - iou if method == "linear" else 0
            if left[i] < min_score:
                del left[i]
    return kept


def sample(features: Tensor, y: float, x: float) -> Tensor:
    """Bilinear value of (C, H, W) features; 0 at more than one pixel outside."""
    height, width = features.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return features.new_zeros(features.shape[0])
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = features[:, top, left] * (1 - (x - left)) + features[:, top, right] * (x - left)
    lower = features[:, bottom, left] * (1 - (x - left)) + features[:, bottom, right] * (x - left)
    return upper * (1 - (y - top)) + lower * (y - top)


def reference_roi_align(
    features: Tensor, rois: Tensor, size: tuple[int, int], scale: float, ratio: int, aligned: bool
) -> Tensor:
    pooled = []
    for index, *corners in rois.tolist():
        x1, y1, x2, y2 = (c * scale - (0.5 if aligned else 0.0) for c in corners)
        width, height = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1.0), max(y2 - y1, 1.0))
        bin_h, bin_w = height / size[0], width / size[1]
        along_y, along_x = (ratio, ratio) if ratio else (math.ceil(bin_h), math.ceil(bin_w))
        for row in range(size[0]):
            for column in range(size[1]):
                total = features.new_zeros(features.shape[1])
                for i in range(along_y):
                    for j in range(along_x):
                        y = y1 + (row + (i + 0.5) / along_y) * bin_h
                        x = x1 + (column + (j + 0.5) / along_x) * bin_w
                        total = total + sample(features[int(index)], y, x)
                pooled.append(total / max(along_y * along_x, 1))
    return torch.stack(pooled).view(len(rois), *size, -1).permute(0, 3, 1, 2)


# --- boxes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_nms(device: str, offset: int, threshold: float) -> None:
    # Small boxes, where one pixel more in width changes who is suppressed.
    boxes, scores = random_boxes(120, seed=1, size=12.0)
    dets, kept = ops.nms(boxes.to(device), scores.to(device), threshold, offset=offset)
    assert kept.tolist() == reference_nms(boxes, scores, threshold, offset)
    assert reference_nms(boxes, scores, threshold, 0) != reference_nms(boxes, scores, threshold, 1)
    torch.testing.assert_close(dets.cpu(), torch.cat([boxes, scores[:, None]], dim=1)[kept.cpu()])


def test_nms_arguments_that_mmcv_handles_itself() -> None:
    boxes, scores = random_boxes(60, seed=2)
    high = [i for i in reference_nms(boxes, scores, 0.5) if scores[i] > 0.3]
    _, kept = ops.nms(boxes, scores, 0.5, score_threshold=0.3, max_num=7)
    assert kept.tolist() == high[:7]
    _, kept = ops.nms(boxes.numpy(), scores.numpy(), iou_threshold=0.5)
    assert isinstance(kept, np.ndarray)
    assert kept.tolist() == reference_nms(boxes, scores, 0.5)


def test_nms_compares_in_single_precision() -> None:
    # Overlap 1/10: as float32 it is above the double 0.1, and equal to the float32 0.1, hence kept.
    boxes = torch.tensor([[0.0, 0.0, 10.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    assert ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.1)[1].tolist() == [0, 1]


def test_nms_of_nothing_and_of_other_precisions() -> None:
    dets, kept = ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert dets.shape == (0, 5)
    assert kept.shape == (0,)
    boxes, scores = random_boxes(50, seed=3)
    boxes = boxes.round()
    expected = reference_nms(boxes, scores, 0.5)
    assert ops.nms(boxes.half(), scores.half(), 0.5)[1].tolist() == expected
    assert ops.nms(boxes, scores.half(), 0.5)[1].tolist() == expected


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("split", [10_000, 50])
@pytest.mark.parametrize("kind", ["nms", "soft_nms"])
def test_batched_nms(agnostic: bool, split: int, kind: str) -> None:
    boxes, scores = random_boxes(200, seed=4)
    classes = torch.arange(200) % 3
    # Above split_thr mmcv goes through the classes one by one, even if told to ignore them.
    groups = [torch.arange(200)] if agnostic and split > 200 else [torch.where(classes == c)[0] for c in range(3)]
    expected: dict[int, float] = {}
    for group in groups:
        if kind == "nms":
            kept = reference_nms(boxes[group], scores[group], 0.4)
            expected |= {group[i].item(): scores[group[i]].item() for i in kept}
        else:
            soft = reference_soft_nms(boxes[group], scores[group], "linear", 0.4, 0.5, 0.05, 0)
            expected |= {group[i].item(): score for i, score in soft}
    options = {"type": kind, "iou_threshold": 0.4, "split_thr": split}
    if kind == "soft_nms":
        options["min_score"] = 0.05
    dets, kept = ops.batched_nms(boxes, scores, classes, options, class_agnostic=agnostic)
    assert sorted(kept.tolist()) == sorted(expected)
    torch.testing.assert_close(dets[:, 4], torch.tensor([expected[i] for i in kept.tolist()]))
    torch.testing.assert_close(dets[:, :4], boxes[kept])
    assert (dets[:-1, 4] >= dets[1:, 4]).all()


@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
@pytest.mark.parametrize("offset", [0, 1])
def test_soft_nms(method: str, offset: int) -> None:
    boxes, scores = random_boxes(80, seed=5, size=25.0)
    before = boxes.clone(), scores.clone()
    options = {"sigma": 0.4, "min_score": 0.1, "offset": offset}
    dets, kept = ops.soft_nms(boxes, scores, iou_threshold=0.3, method=method, **options)
    expected = reference_soft_nms(boxes, scores, method, threshold=0.3, **options)
    assert 1 < len(expected) < 80
    assert kept.tolist() == [i for i, _ in expected]
    torch.testing.assert_close(dets[:, 4], torch.tensor([score for _, score in expected]))
    torch.testing.assert_close(dets[:, :4], boxes[kept])
    assert torch.equal(boxes, before[0])
    assert torch.equal(scores, before[1])


def test_soft_nms_of_ties_and_of_nothing() -> None:
    # Boxes 1 and 2 are dropped at once; mmcv then moves its last box, 4, to the first free place, before 3.
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 9], [0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9]])
    _, kept = ops.soft_nms(boxes, torch.tensor([0.9, 0.5, 0.5, 0.4, 0.4]), method="naive")
    assert kept.tolist() == [0, 4, 3]
    dets, kept = ops.soft_nms(torch.zeros(0, 4), torch.zeros(0))
    assert dets.shape == (0, 5)
    assert kept.shape == (0,)


def test_soft_nms_keeps_boxes_without_area() -> None:
    boxes = torch.tensor([[3.0, 1, 3, 1], [3, 1, 3, 1], [5, 5, 9, 9]])
    dets, _ = ops.soft_nms(boxes, torch.tensor([0.5, 0.4, 0.3]), method="gaussian")
    torch.testing.assert_close(dets[:, 4], torch.tensor([0.5, 0.4, 0.3]))


def test_nms_match() -> None:
    boxes, scores = random_boxes(60, seed=6)
    rows, waiting, expected = boxes.double().tolist(), scores.argsort(descending=True).tolist(), []
    while waiting:
        first = waiting[0]
        expected.append([first, *(i for i in waiting[1:] if iou_of(rows[first], rows[i]) >= 0.3)])
        waiting = [i for i in waiting if i not in expected[-1]]
    assert any(len(group) > 1 for group in expected)
    dets = torch.cat([boxes, scores[:, None]], dim=1)
    assert [group.tolist() for group in ops.nms_match(dets, 0.3)] == expected
    assert [group.tolist() for group in ops.nms_match(dets.numpy(), 0.3)] == expected


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("offset", [0, 1])
def test_bbox_overlaps(device: str, offset: int) -> None:
    first, second = random_boxes(7, seed=7)[0], random_boxes(5, seed=8)[0]
    iou = torch.tensor([[iou_of(a, b, offset) for b in second.tolist()] for a in first.tolist()])
    result = ops.bbox_overlaps(first.to(device), second.to(device), offset=offset)
    torch.testing.assert_close(result.cpu(), iou)
    pairs = ops.bbox_overlaps(first[:5].to(device), second.to(device), aligned=True, offset=offset)
    torch.testing.assert_close(pairs.cpu(), iou[:5].diagonal())
    # From intersection over union u of areas a and b, the intersection is u (a + b) / (1 + u).
    area1, area2 = ((b[:, 2] - b[:, 0] + offset) * (b[:, 3] - b[:, 1] + offset) for b in (first, second))
    share = iou * (area1[:, None] + area2) / (1 + iou) / area1[:, None]
    torch.testing.assert_close(ops.bbox_overlaps(first, second, mode="iof", offset=offset), share)


# --- features -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align(device: str, ratio: int, aligned: bool) -> None:
    generator = torch.Generator().manual_seed(9)
    features = torch.randn(2, 3, 9, 11, generator=generator, dtype=torch.float64, requires_grad=True)
    # Inside; less than a pixel; over the border; second image, much wider than high.
    rois = torch.tensor([[0, 4, 6, 20, 30], [1, 9, 9, 10, 10.5], [0, -9, -7, 60, 50], [1, 1, 12, 43, 17.0]])
    expected = reference_roi_align(features, rois, (2, 3), 0.25, ratio, aligned)
    weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((expected * weights).sum(), features)

    served = features.detach().float().to(device).requires_grad_()
    pooled = ops.RoIAlign((2, 3), 0.25, ratio, aligned=aligned)(served, rois.to(device))
    torch.testing.assert_close(pooled.cpu(), expected.float())
    pooled.backward(weights.float().to(device))
    torch.testing.assert_close(served.grad.cpu(), gradient.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_roi_align_in_other_precisions_and_layouts(dtype: torch.dtype) -> None:
    features = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(10)).to(dtype)
    rois = torch.tensor([[0.0, 1, 2, 6, 7]], dtype=dtype)
    served = features.to(memory_format=torch.channels_last).requires_grad_()
    pooled = ops.roi_align(served, rois, (2, 2))
    assert pooled.dtype == dtype
    expected = reference_roi_align(features.double(), rois, (2, 2), 1.0, 0, True)
    torch.testing.assert_close(pooled, expected.to(dtype))
    pooled.sum().backward()
    # Each bin is an average, so that the gradient of its sum adds up to one per channel.
    assert served.grad.sum().item() == pytest.approx(4 * 4, rel=1e-2)


def test_roi_align_of_no_rois() -> None:
    features = torch.randn(2, 3, 8, 8, requires_grad=True)
    pooled = ops.roi_align(features, torch.zeros(0, 5), 7)
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()
    assert torch.equal(features.grad, torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("gamma", [2.0, 1.5, 0.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_sigmoid_focal_loss(device: str, gamma: float, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(11)
    logits = (4 * torch.randn(6, 3, generator=generator)).double().requires_grad_()
    target = torch.tensor([0, 1, 2, 2, 1, 0 if weighted else 3])  # 3 is background
    weight = torch.tensor([0.5, 1.0, 2.0]) if weighted else None
    p = 1 / (1 + torch.exp(-logits))
    loss = -(1 - 0.25) * p**gamma * torch.log(1 - p)
    for row, label in enumerate(target.tolist()):
        if label < 3:
            loss = loss.clone()
            loss[row, label] = -0.25 * (1 - p[row, label]) ** gamma * torch.log(p[row, label])
    if weight is not None:
        loss = loss * weight.double()[target][:, None]
    (gradient,) = torch.autograd.grad(loss.sum(), logits)

    served = logits.detach().float().to(device).requires_grad_()
    result = ops.sigmoid_focal_loss(
        served, target.to(device), gamma, 0.25, None if weight is None else weight.to(device), "none"
    )
    torch.testing.assert_close(result.cpu(), loss.detach().float())
    result.sum().backward()
    torch.testing.assert_close(served.grad.cpu(), gradient.float())


def test_sigmoid_focal_loss_of_certain_logits_is_finite() -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    loss = ops.sigmoid_focal_loss(logits, torch.tensor([0, 0]), 0.5, 0.25, None, "none")
    torch.testing.assert_close(loss, torch.tensor([[0.0, 0.0], [50.0, 150.0]]))
    loss.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[0.0, 0.0], [-0.25, 0.75]]))


# --- installing ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_extension")
def test_install_twice_is_the_same() -> None:
    assert mmcv_ops.install() == "torchvision"
    stand_in = sys.modules["mmcv._ext"]
    assert mmcv_ops.install() == "torchvision"
    assert sys.modules["mmcv._ext"] is stand_in


@pytest.mark.usefixtures("no_extension")
def test_install_keeps_a_compiled_module_that_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = ModuleType("mmcv._ext")
    monkeypatch.setitem(sys.modules, "mmcv._ext", compiled)
    assert mmcv_ops.install() == "compiled"
    assert sys.modules["mmcv._ext"] is compiled
    assert vars(compiled).keys() == vars(ModuleType("mmcv._ext")).keys()


@pytest.mark.usefixtures("no_extension")
def test_install_keeps_a_compiled_module_that_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleSpec(name, loader=None))
    assert mmcv_ops.install() == "compiled"
    assert "mmcv._ext" not in sys.modules


@pytest.mark.usefixtures("no_extension")
@pytest.mark.parametrize("name", ["mmdet.models", "mmdet.structures", "mmseg.models"])
def test_install_after_the_packages_that_miss_the_ops(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    with pytest.raises(RuntimeError, match=f"{name} is imported already"):
        mmcv_ops.install()
    assert "mmcv._ext" not in sys.modules


@pytest.mark.usefixtures("no_extension")
def test_missing_op_raises_when_called_and_not_before() -> None:
    mmcv_ops.install()
    from mmcv.utils import ext_loader

    module = ext_loader.load_ext("_ext", ["nms", "ball_query_forward"])
    with pytest.raises(mmcv_ops.MissingOpError, match=r"'ball_query_forward'.*C\+\+ compiler.*pip") as caught:
        module.ball_query_forward(torch.zeros(3), radius=1)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, MachineError)
    assert not hasattr(module, "__path__")


@pytest.mark.usefixtures("no_extension")
def test_op_modules_serve_the_ops_they_export(monkeypatch: pytest.MonkeyPatch) -> None:
    family = ModuleType("engine.mmcv_ops.added")
    family.__all__, family.added_op, family.helper = ["added_op"], lambda: "served", lambda: "not served"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, family.__name__, family)
    monkeypatch.setattr(extension, "OP_MODULES", (*extension.OP_MODULES, "added"))
    mmcv_ops.install()
    served = sys.modules["mmcv._ext"]
    assert served.added_op() == "served"
    with pytest.raises(mmcv_ops.MissingOpError, match="'helper'"):
        served.helper()


def test_roi_align_forward_refuses_max_pooling() -> None:
    empty = torch.zeros(0)
    with pytest.raises(mmcv_ops.MissingOpError, match=r'roi_align\(pool_mode="max"\)'):
        roi_align_forward(empty, empty, empty, empty, empty, 7, 7, 1.0, 0, pool_mode=0, aligned=True)


def test_install_in_a_fresh_process_serves_mmdet_and_mmseg() -> None:
    script = """
import sys
import engine.mmcv_ops
assert not {"mmcv", "mmdet", "mmseg"} & sys.modules.keys(), "importing has a side effect"
engine.mmcv_ops.install()
import mmcv.ops, mmdet.utils, mmseg.models, mmseg.utils
mmdet.utils.register_all_modules()
mmseg.utils.register_all_modules()
from mmdet.models.layers import bbox_nms
from mmdet.structures.mask import structures
assert bbox_nms.batched_nms is mmcv.ops.batched_nms
assert structures.roi_align is mmcv.ops.roi_align
assert mmdet.registry.MODELS.get("MaskRCNN") and mmseg.registry.MODELS.get("UPerHead")
from mmengine.optim import DefaultOptimWrapperConstructor
import torch
optimizer = dict(type="SGD", lr=0.1, weight_decay=0.1)
build = DefaultOptimWrapperConstructor(dict(optimizer=optimizer), dict(norm_decay_mult=0.0))
build(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)))
print(engine.mmcv_ops.install())
"""
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] in ("torchvision", "compiled")


# --- detectors ----------------------------------------------------------------------------------------


def tiny_detector(base: str) -> torch.nn.Module:
    """The detector of one of mmdet's own base configs on a ResNet-18, narrow and for three classes."""
    from mmdet.registry import MODELS
    from mmengine.config import Config

    model = Config.fromstring(f'_base_ = ["mmdet::_base_/models/{base}.py"]', ".py").model
    model.backbone.update(depth=18, init_cfg=None)
    model.neck.update(in_channels=[64, 128, 256, 512])
    model.rpn_head.anchor_generator.update(scales=[2])
    heads = model.roi_head.bbox_head
    for head in [*(heads if isinstance(heads, list) else [heads]), model.roi_head.mask_head]:
        head.num_classes = 3
    for head in heads if isinstance(heads, list) else [heads]:
        head.fc_out_channels = 32
    model.train_cfg.rpn_proposal.update(nms_pre=100, max_per_img=50)
    model.test_cfg.rpn.update(nms_pre=100, max_per_img=20)
    model.test_cfg.rcnn.score_thr = 0.0
    return MODELS.build(model)


@pytest.mark.parametrize("base", ["mask-rcnn_r50_fpn", "cascade-mask-rcnn_r50_fpn"])
def test_detectors_train_and_predict_with_served_ops(base: str) -> None:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    torch.manual_seed(0)
    detector = tiny_detector(base)
    masks = np.zeros((2, 64, 64), dtype=np.uint8)
    masks[0, 4:28, 6:30], masks[1, 30:60, 20:60] = 1, 1
    sample_ = DetDataSample(metainfo={"img_shape": (64, 64), "ori_shape": (64, 64), "scale_factor": (1.0, 1.0)})
    sample_.gt_instances = InstanceData(
        bboxes=torch.tensor([[6.0, 4, 30, 28], [20, 30, 60, 60]]),
        labels=torch.tensor([0, 2]),
        masks=BitmapMasks(masks, 64, 64),
    )
    data = {"inputs": [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)], "data_samples": [sample_]}

    losses = detector(**detector.data_preprocessor(data, training=True), mode="loss")
    total, values = detector.parse_losses(losses)
    assert any("loss_mask" in name for name in values)
    total.backward()
    gradients = {name: p.grad for name, p in detector.named_parameters() if p.requires_grad}
    assert all(g is not None and torch.isfinite(g).all() for g in gradients.values())
    assert gradients["neck.lateral_convs.0.conv.weight"].abs().sum() > 0

    detector.eval()
    with torch.no_grad():
        (predicted,) = detector(**detector.data_preprocessor(data, training=False), mode="predict")
    found = predicted.pred_instances
    assert 0 < len(found) <= 100
    assert found.masks.shape == (len(found), 64, 64)
    assert torch.isfinite(found.bboxes).all()
