"""Ops that pool from boxes, against loops written from their definitions, and gradients against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from engine import mmcv_ops

mmcv_ops.install()

from mmcv import ops  # noqa: E402

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def continued(plane: Tensor, y: float, x: float) -> float:
    """Bilinear value of (H, W); up to one pixel outside the border's, further outside zero."""
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    total = 0.0
    for row in range(height):
        for column in range(width):
            total += plane[row, column].item() * max(0.0, 1 - abs(y - row)) * max(0.0, 1 - abs(x - column))
    return total


def features(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- RoI pooling --------------------------------------------------------------------------------------

# Inside; less than a pixel; over two borders; outside; without extent.
ROIS = torch.tensor(
    [[0, 3.2, 5.1, 17, 22], [1, 9, 9, 9.5, 9.1], [1, -9, -7, 60, 50], [0, 90, 90, 99, 99], [0, 8, 4, 3, 9]]
).double()


@pytest.mark.parametrize("device", DEVICES)
def test_roi_pool(device: str) -> None:
    image = features(2, 3, 7, 9)
    scale, size = 0.25, (2, 3)
    expected = torch.zeros(len(ROIS), 3, *size, dtype=torch.float64)
    for n, (b, x1, y1, x2, y2) in enumerate(ROIS.tolist()):
        left, top, right, bottom = x1 * scale, y1 * scale, (x2 + 1) * scale, (y2 + 1) * scale
        if right <= left or bottom <= top:
            continue
        for i in range(size[0]):
            for j in range(size[1]):
                step_y, step_x = (bottom - top) / size[0], (right - left) / size[1]
                rows = range(max(0, math.floor(top + i * step_y)), min(7, math.ceil(top + (i + 1) * step_y)))
                columns = range(max(0, math.floor(left + j * step_x)), min(9, math.ceil(left + (j + 1) * step_x)))
                for c in range(3):
                    inside = [image[int(b), c, r, k].item() for r in rows for k in columns]
                    expected[n, c, i, j] = max(inside, default=0.0)
    served = ops.RoIPool(size, scale)(image.to(device), ROIS.to(device))
    assert torch.equal(served.cpu(), expected)
    assert (expected == 0).any()
    leaf = image.requires_grad_()
    torch.autograd.gradcheck(lambda x: ops.roi_pool(x, ROIS, size, scale), leaf)


def test_roi_pool_of_many_boxes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.mmcv_ops import roi_pool

    image = features(2, 3, 7, 9)
    whole = ops.roi_pool(image, ROIS, 2, 0.25)
    monkeypatch.setattr(roi_pool, "_MAX_ELEMENTS", 1)
    assert torch.equal(ops.roi_pool(image, ROIS, 2, 0.25), whole)
    assert ops.roi_pool(image, ROIS[:0], 2, 0.25).shape == (0, 3, 2, 2)


# --- deformable RoI pooling ---------------------------------------------------------------------------


def reference_deform_roi_pool(
    image: Tensor, rois: Tensor, offset: Tensor | None, size: tuple[int, int], scale: float, ratio: int, gamma: float
) -> Tensor:
    pooled = torch.zeros(len(rois), image.shape[1], *size, dtype=torch.float64)
    for n, (b, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (corner * scale - 0.5 for corner in corners)
        step_y, step_x = (y2 - y1) / size[0], (x2 - x1) / size[1]
        along_y, along_x = (ratio, ratio) if ratio else (math.ceil(step_y), math.ceil(step_x))
        for i in range(size[0]):
            for j in range(size[1]):
                dx, dy = (0.0, 0.0) if offset is None else (gamma * offset[n, :, i, j]).tolist()
                for c in range(image.shape[1]):
                    values = [
                        continued(
                            image[int(b), c],
                            y1 + dy * (y2 - y1) + (i + (p + 0.5) / along_y) * step_y,
                            x1 + dx * (x2 - x1) + (j + (q + 0.5) / along_x) * step_x,
                        )
                        for p in range(along_y)
                        for q in range(along_x)
                    ]
                    pooled[n, c, i, j] = sum(values) / max(1, len(values))
    return pooled


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("displaced", [True, False])
def test_deform_roi_pool(displaced: bool, ratio: int, device: str) -> None:
    image, size = features(2, 2, 5, 6), (2, 3)
    rois = torch.tensor([[0, 2.3, 3.1, 14.7, 17.9], [1, -4, 1, 22, 9], [1, 5.2, 5.3, 6.9, 7.8]]).double()
    offset = features(3, 2, *size, seed=3) if displaced else None
    expected = reference_deform_roi_pool(image, rois, offset, size, 0.3, ratio, 0.4)
    given = None if offset is None else offset.to(device)
    served = ops.deform_roi_pool(image.to(device), rois.to(device), given, size, 0.3, ratio, 0.4)
    torch.testing.assert_close(served.cpu(), expected)
    if displaced:
        leaves = image.requires_grad_(), offset.requires_grad_()  # type: ignore[union-attr]
        torch.autograd.gradcheck(lambda x, o: ops.deform_roi_pool(x, rois, o, size, 0.3, ratio, 0.4), leaves)
    else:
        torch.autograd.gradcheck(
            lambda x: ops.deform_roi_pool(x, rois, None, size, 0.3, ratio, 0.4), image.requires_grad_()
        )


def test_deform_roi_pool_of_a_box_without_extent_and_of_none() -> None:
    image = features(1, 2, 5, 6)
    flat = torch.tensor([[0, 3, 3, 3, 3.0]]).double()
    assert torch.equal(ops.deform_roi_pool(image, flat, None, 2, 1.0, 0, 0.1), torch.zeros(1, 2, 2, 2).double())
    assert ops.deform_roi_pool(image, flat[:0], None, 2, 1.0, 0, 0.1).shape == (0, 2, 2, 2)


@pytest.mark.parametrize("name", ["DeformRoIPoolPack", "ModulatedDeformRoIPoolPack"])
def test_packs_of_deform_roi_pool_learn(name: str) -> None:
    torch.manual_seed(0)
    layer = getattr(ops, name)((2, 2), 2, spatial_scale=0.5)
    layer(torch.randn(1, 2, 6, 6), torch.tensor([[0, 1, 1, 9, 8.0]])).square().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


# --- precise RoI pooling ------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_prroi_pool(device: str) -> None:
    image, scale, size = features(2, 2, 5, 6), 0.5, (2, 2)
    rois = torch.tensor([[0, 1.3, 2.2, 7.9, 8.4], [1, -3, -2, 14, 5.5], [0, 4, 4, 4, 6.0]])
    fine = 400  # midpoints along each axis of a bin
    expected = torch.zeros(3, 2, *size, dtype=torch.float64)
    for n, (b, *corners) in enumerate(rois.double().tolist()):
        x1, y1, x2, y2 = (corner * scale for corner in corners)
        if x2 <= x1 or y2 <= y1:
            continue
        steps = (torch.arange(2 * fine, dtype=torch.float64) + 0.5) / (2 * fine)
        # Hat functions: pixels outside are zero.
        near_y = (1 - ((y1 + steps * (y2 - y1))[:, None] - torch.arange(5)).abs()).clamp(min=0)
        near_x = (1 - ((x1 + steps * (x2 - x1))[:, None] - torch.arange(6)).abs()).clamp(min=0)
        surface = near_y @ image[int(b)] @ near_x.T
        expected[n] = surface.view(2, 2, fine, 2, fine).mean(dim=(2, 4))
    served = ops.prroi_pool(image.float().to(device), rois.to(device), size, scale)
    torch.testing.assert_close(served.cpu(), expected.float(), rtol=1e-4, atol=1e-4)


def test_gradients_of_prroi_pool() -> None:
    # The wrapper takes float32 alone; the ops behind it are checked in float64.
    from engine.mmcv_ops import prroi_pool

    image, scale, size = features(2, 2, 4, 5).requires_grad_(), 0.5, (2, 3)
    rois = torch.tensor([[0, 1.3, 2.2, 7.9, 7.4], [1, -3, -2, 9, 5.5]]).double().requires_grad_()

    class Served(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor, boxes: Tensor) -> Tensor:
            ctx.save_for_backward(x, boxes)
            output = x.new_zeros(len(boxes), x.shape[1], *size)
            prroi_pool.prroi_pool_forward(x, boxes, output, *size, scale)
            return output

        @staticmethod
        def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
            x, boxes = ctx.saved_tensors
            grad_x, grad_boxes = torch.zeros_like(x), torch.zeros_like(boxes)
            prroi_pool.prroi_pool_backward(grad, boxes, grad_x, *size, scale)
            prroi_pool.prroi_pool_coor_backward(grad, grad, x, boxes, grad_boxes, *size, scale)
            return grad_x, grad_boxes

    torch.autograd.gradcheck(
        lambda x, corners: Served.apply(x, torch.cat([rois[:, :1].detach(), corners], 1)),
        (image, rois.detach()[:, 1:].requires_grad_()),
    )


def test_prroi_pool_of_no_boxes() -> None:
    image = torch.randn(1, 2, 4, 4, requires_grad=True)
    pooled = ops.prroi_pool(image, torch.zeros(0, 5), (2, 2), 1.0)
    assert pooled.shape == (0, 2, 2, 2)
    pooled.sum().backward()
    assert torch.equal(image.grad, torch.zeros_like(image))


# --- BorderAlign --------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_border_align(device: str) -> None:
    image, points = features(2, 8, 5, 6), 4
    boxes = torch.tensor([[[0.4, 0.7, 3.3, 4.1], [1, 1, 1, 1], [-0.6, 2, 7, 5]]]).double().expand(2, -1, -1)
    expected = torch.zeros(2, 2, 3, 4, dtype=torch.float64)
    for b, c, k in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(3)).tolist():
        x1, y1, x2, y2 = boxes[b, k].tolist()
        for i in range(4):
            plane = image[b, 2 * i + c]
            values = []
            for step in range(points + 1):
                way = step / points
                x = [x1 + way * (x2 - x1), x1, x2 - way * (x2 - x1), x2][i]
                y = [y1, y1 + way * (y2 - y1), y2, y2 - way * (y2 - y1)][i]
                values.append(continued(plane, y, x))
            expected[b, c, k, i] = max(values)
    served = ops.BorderAlign(points)(image.to(device), boxes.contiguous().to(device))
    torch.testing.assert_close(served.cpu(), expected)
    torch.autograd.gradcheck(lambda x: ops.border_align(x, boxes.contiguous(), points), image.requires_grad_())
