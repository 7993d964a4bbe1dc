"""Overlaps of rotated boxes against shapely's polygons; points and rectangles against loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from shapely.geometry import Point, Polygon
from torch import Tensor

from engine import mmcv_ops

mmcv_ops.install()

from mmcv import ops  # noqa: E402

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def random_boxes(count: int, seed: int) -> Tensor:
    """Centre, size and angle, crowded into a field of 10 x 10."""
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.tensor([0.0, 0, 1, 1, -4]), torch.tensor([10.0, 10, 6, 6, 4])
    return low + torch.rand(count, 5, generator=generator) * (high - low)


def polygon(box: Tensor) -> Polygon:
    x, y, w, h, angle = box.double().tolist()
    corners = []
    for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        u, v = i * w / 2, j * h / 2
        corners.append((x + u * math.cos(angle) - v * math.sin(angle), y + u * math.sin(angle) + v * math.cos(angle)))
    return Polygon(corners)


def quadrilateral(box: Tensor) -> Polygon:
    return Polygon(box.double().view(4, 2).tolist())


def overlap(a: Polygon, b: Polygon, mode: str = "iou") -> float:
    common = a.intersection(b).area
    return common / (a.area if mode == "iof" else a.area + b.area - common)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", ["iou", "iof"])
def test_box_iou_rotated(mode: str, device: str) -> None:
    first, second = random_boxes(12, 1), random_boxes(9, 2)
    expected = torch.tensor([[overlap(polygon(a), polygon(b), mode) for b in second] for a in first])
    assert (expected == 0).any()
    served = ops.box_iou_rotated(first.to(device), second.to(device), mode)
    torch.testing.assert_close(served.cpu(), expected, rtol=1e-5, atol=1e-6)
    pairs = ops.box_iou_rotated(first[:9], second, mode, aligned=True)
    torch.testing.assert_close(pairs, expected[:9].diagonal(), rtol=1e-5, atol=1e-6)


def test_box_iou_rotated_turns_the_other_way_on_demand() -> None:
    first, second = random_boxes(5, 3), random_boxes(4, 4)
    turned = torch.tensor([1.0, 1, 1, 1, -1])
    served = ops.box_iou_rotated(first, second, clockwise=False)
    torch.testing.assert_close(served, ops.box_iou_rotated(first * turned, second * turned))


@pytest.mark.parametrize("angle", [0.0, 0.3, math.pi / 4, 2.5])
def test_boxes_that_share_edges(angle: float) -> None:
    # The same; half; touching a side; touching a corner; within, sharing two edges; the same turned by 90 degrees.
    places = [(0, 0, 4, 2), (1, 0, 2, 2), (4, 0, 4, 2), (4, 2, 4, 2), (1, 0.5, 2, 1), (0, 0, 2, 4)]
    expected = [1, 0.5, 0, 0, 0.25, 1]
    boxes = torch.tensor(
        [
            [x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle), w, h, angle]
            for x, y, w, h in places
        ]
    )
    boxes[5, 4] += math.pi / 2
    served = ops.box_iou_rotated(boxes[:1], boxes)[0]
    torch.testing.assert_close(served, torch.tensor(expected).float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ops.box_iou_rotated(boxes, boxes[:1])[:, 0], served, rtol=1e-5, atol=1e-5)


def test_overlaps_of_boxes_without_area_and_of_none() -> None:
    boxes = torch.tensor([[1.0, 1, 0, 2, 0.3], [1, 1, 2, 2, 0.3]])
    assert ops.box_iou_rotated(boxes[:1], boxes).tolist() == [[0, 0]]
    assert ops.box_iou_rotated(boxes[:0], boxes).shape == (0, 2)


def random_quadrilaterals(count: int, seed: int) -> Tensor:
    """Convex, every other one with its corners the other way round: points on stretched circles."""
    generator = torch.Generator().manual_seed(seed)
    angles = (torch.arange(4) + 0.8 * torch.rand(count, 4, generator=generator)) * math.pi / 2
    angles[::2] = angles[::2].flip(1)
    radius = 1 + 4 * torch.rand(count, 1, 2, generator=generator)
    points = torch.stack([angles.cos(), angles.sin()], dim=2) * radius
    return (points + 8 * torch.rand(count, 1, 2, generator=generator)).flatten(1)


@pytest.mark.parametrize("mode", ["iou", "iof"])
def test_box_iou_quadri(mode: str) -> None:
    first, second = random_quadrilaterals(10, 5), random_quadrilaterals(8, 6)
    expected = torch.tensor([[overlap(quadrilateral(a), quadrilateral(b), mode) for b in second] for a in first])
    torch.testing.assert_close(ops.box_iou_quadri(first, second, mode), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["rotated", "quadri"])
def test_nms_of_polygons(kind: str, device: str) -> None:
    boxes = random_boxes(40, 7) if kind == "rotated" else random_quadrilaterals(40, 7)
    scores = torch.rand(40, generator=torch.Generator().manual_seed(8))
    shape = polygon if kind == "rotated" else quadrilateral
    expected: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        if all(overlap(shape(boxes[i]), shape(boxes[j])) < 0.2 for j in expected):
            expected.append(i)
    assert 1 < len(expected) < 40
    function = ops.nms_rotated if kind == "rotated" else ops.nms_quadri
    dets, kept = function(boxes.to(device), scores.to(device), 0.2)
    assert kept.tolist() == expected
    torch.testing.assert_close(dets[:, -1].cpu(), scores[expected])
    # As in mmcv, labels change nothing.
    assert function(boxes, scores, 0.2, labels=(torch.arange(40) % 3).float())[1].tolist() == expected


@pytest.mark.parametrize("device", DEVICES)
def test_min_area_polygons(device: str) -> None:
    points = torch.randn(6, 9, 2, generator=torch.Generator().manual_seed(9))
    points[4, :, 1] = 3.0  # on a line
    points[5, 4:] = points[5, :1]
    served = ops.min_area_polygons(points.flatten(1).to(device)).cpu().double().view(-1, 4, 2)
    for rectangle, cloud in zip(served, points.double(), strict=True):
        sides = rectangle.roll(-1, 0) - rectangle
        assert (sides * sides.roll(-1, 0)).sum(1).abs().max() < 1e-5  # right angles
        area = Polygon(cloud.tolist()).minimum_rotated_rectangle.area
        assert sides[0].norm() * sides[1].norm() == pytest.approx(area, abs=1e-5)
        around = Polygon(rectangle.tolist()).buffer(1e-4)
        assert all(around.contains(Point(one)) for one in cloud.tolist())


@pytest.mark.parametrize("device", DEVICES)
def test_points_in_polygons(device: str) -> None:
    shapes, points = random_quadrilaterals(6, 10), 10 * torch.rand(50, 2, generator=torch.Generator().manual_seed(11))
    expected = torch.tensor([[float(quadrilateral(s).contains(Point(p))) for s in shapes] for p in points.tolist()])
    assert 0 < expected.mean() < 1
    assert torch.equal(ops.points_in_polygons(points.to(device), shapes.to(device)).cpu(), expected)


def test_points_in_boxes() -> None:
    generator = torch.Generator().manual_seed(12)
    points = 4 * torch.rand(2, 40, 3, generator=generator) - 2
    boxes = torch.cat(
        [
            torch.rand(2, 3, 3, generator=generator) - 1,
            1 + 2 * torch.rand(2, 3, 3, generator=generator),
            6 * torch.rand(2, 3, 1, generator=generator),
        ],
        2,
    )
    expected = torch.zeros(2, 40, 3, dtype=torch.int)
    for b, p, n in itertools.product(range(2), range(40), range(3)):
        x, y, z, w, h, tall, angle = boxes[b, n].tolist()
        ground = polygon(torch.tensor([x, y, w, h, angle]))
        px, py, pz = points[b, p].tolist()
        expected[b, p, n] = int(ground.contains(Point(px, py)) and z <= pz <= z + tall)
    assert 0 < expected.float().mean() < 1
    assert torch.equal(ops.points_in_boxes_cpu(points, boxes), expected)
    # The other two wrappers ask for a GPU; these are the ops behind them.
    from engine.mmcv_ops.polygons import points_in_boxes_all_forward, points_in_boxes_part_forward

    served = torch.zeros_like(expected)
    points_in_boxes_all_forward(boxes, points, served)
    assert torch.equal(served, expected)
    first = torch.full((2, 40), -1, dtype=torch.int)
    points_in_boxes_part_forward(boxes, points, first)
    for b, p in itertools.product(range(2), range(40)):
        inside = expected[b, p].nonzero().flatten().tolist()
        assert first[b, p] == (inside[0] if inside else -1)
