"""RoIAlign's gradient on CPU against torchvision's. (Against plain loops: tests/engine/mmcv_ops/test_mmcv_ops.py.)"""

from __future__ import annotations

import pytest
import torch
import torchvision  # noqa: F401  (registers its operators)

from engine.mmcv_ops.roi_gradient import roi_align_gradient


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_roi_align_gradient_equals_torchvision(dtype: torch.dtype, ratio: int, aligned: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    shape = (2, 5, 24, 36)
    corners = torch.rand(60, 2, 2, generator=generator) * torch.tensor([160.0, 110.0]) - 10
    low, high = corners.min(dim=1).values, corners.max(dim=1).values
    high[::7] = low[::7]  # without extent
    low[::11] += 400  # outside of the image
    high[::11] += 400
    image = torch.randint(0, 2, (60, 1), generator=generator)
    rois = torch.cat([image, low, high], 1).to(dtype)
    grad = torch.randn(60, 5, 7, 6, generator=generator, dtype=dtype)
    expected = torch.ops.torchvision._roi_align_backward(grad, rois, 0.25, 7, 6, *shape, ratio, aligned)
    found = roi_align_gradient(grad, rois, shape, 0.25, ratio, aligned)
    assert found.shape == shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected)
    assert (expected != 0).float().mean() > 0.5


def test_roi_align_gradient_of_inverted_boxes_equals_torchvision() -> None:
    rois = torch.tensor([[0.0, 60, 50, 20, 10], [0, 8, 8, 40, 40]])
    grad = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    expected = torch.ops.torchvision._roi_align_backward(grad, rois, 0.25, 4, 4, 1, 3, 20, 20, 0, True)
    torch.testing.assert_close(roi_align_gradient(grad, rois, (1, 3, 20, 20), 0.25, 0, True), expected)
