"""RoIAlign and its gradient on CPU against torchvision's. (Against plain loops: test_mmcv_ops.py beside it.)"""

from __future__ import annotations

import pytest
import torch
import torchvision  # noqa: F401  (registers its operators)
from mmcv import ops

from engine.mmcv_ops import roi_align
from engine.mmcv_ops.roi_align_cpu import roi_align_cpu, roi_align_gradient

SHAPE = (2, 5, 24, 36)


def boxes(dtype: torch.dtype) -> torch.Tensor:
    """Boxes in both images, some without extent, some outside."""
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(60, 2, 2, generator=generator) * torch.tensor([160.0, 110.0]) - 10
    low, high = corners.min(dim=1).values, corners.max(dim=1).values
    high[::7] = low[::7]
    low[::11] += 400
    high[::11] += 400
    image = torch.randint(0, 2, (60, 1), generator=generator)
    return torch.cat([image, low, high], 1).to(dtype)


def map_of_features(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(SHAPE, dtype=dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_roi_align_and_its_gradient_equal_torchvision(dtype: torch.dtype, ratio: int, aligned: bool) -> None:
    rois, maps = boxes(dtype), map_of_features(dtype)
    expected = torch.ops.torchvision.roi_align(maps, rois, 0.25, 7, 6, ratio, aligned)
    torch.testing.assert_close(roi_align_cpu(maps, rois, 0.25, 7, 6, ratio, aligned), expected)
    grad = torch.randn(60, 5, 7, 6, dtype=dtype)
    expected = torch.ops.torchvision._roi_align_backward(grad, rois, 0.25, 7, 6, *SHAPE, ratio, aligned)
    found = roi_align_gradient(grad, rois, SHAPE, 0.25, ratio, aligned)
    assert found.shape == SHAPE
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected)
    assert (expected != 0).float().mean() > 0.5


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_maps_in_channels_last_are_pooled_here(layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(roi_align, "roi_align_cpu", lambda *args: calls.append(1) or roi_align_cpu(*args))
    maps, rois = map_of_features().contiguous(memory_format=layout), boxes(torch.float32)
    found = ops.roi_align(maps, rois, (7, 6), 0.25, 0, "avg", True)
    assert len(calls) == (layout is torch.channels_last)
    torch.testing.assert_close(found, torch.ops.torchvision.roi_align(maps, rois, 0.25, 7, 6, 0, True))


def test_autocast_leaves_the_sums_in_float32() -> None:
    maps, rois = map_of_features(), boxes(torch.float32)
    grad = torch.randn(60, 5, 7, 6)
    expected = roi_align_cpu(maps, rois, 0.25, 7, 6, 0, True), roi_align_gradient(grad, rois, SHAPE, 0.25, 0, True)
    with torch.autocast("cpu", torch.bfloat16):
        found = roi_align_cpu(maps, rois, 0.25, 7, 6, 0, True), roi_align_gradient(grad, rois, SHAPE, 0.25, 0, True)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_boxes_that_are_no_numbers_and_no_boxes() -> None:
    rois = torch.tensor([[0.0, float("nan"), 1, 2, 3], [0, 0, 0, float("inf"), 9], [1, 4, 4, 44, 44]])
    found = roi_align_cpu(map_of_features(), rois, 0.25, 7, 6, 0, True)
    assert found.isfinite().all()
    assert found[2].any()
    assert roi_align_cpu(map_of_features(), rois[:0], 0.25, 7, 6, 0, True).shape == (0, 5, 7, 6)


def test_roi_align_gradient_of_inverted_boxes_equals_torchvision() -> None:
    rois = torch.tensor([[0.0, 60, 50, 20, 10], [0, 8, 8, 40, 40]])
    grad = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    expected = torch.ops.torchvision._roi_align_backward(grad, rois, 0.25, 4, 4, 1, 3, 20, 20, 0, True)
    torch.testing.assert_close(roi_align_gradient(grad, rois, (1, 3, 20, 20), 0.25, 0, True), expected)
