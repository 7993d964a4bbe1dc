"""Outlines of masks: along the edges of the pixels, and one polygon of several parts."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_masks

from engine.prediction.polygons import joined_polygon, mask_polygons, polygon_area


def pixels(polygon: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    code = coco_masks.merge(coco_masks.frPyObjects([polygon.ravel().tolist()], *size))
    return coco_masks.decode(code).astype(bool)


def test_the_outline_of_a_rectangle_is_its_edge() -> None:
    mask = np.zeros((20, 30), bool)
    mask[3:9, 4:11] = True
    (outline,) = mask_polygons(mask)
    assert sorted(outline.tolist()) == [[4, 3], [4, 9], [11, 3], [11, 9]]
    mask[5:7, 6:8] = False
    assert len(mask_polygons(mask)) == 1, "holes are filled"
    assert mask_polygons(np.zeros((4, 4), bool)) == []


def test_parts_are_joined_and_the_largest_comes_first() -> None:
    mask = np.zeros((40, 60), bool)
    mask[2:6, 50:55], mask[10:30, 5:40], mask[35:38, 3:20] = True, True, True
    parts = mask_polygons(mask)
    assert [polygon_area(part) for part in parts] == [700, 51, 20]
    assert np.array_equal(
        pixels(parts[0], mask.shape), mask & (np.arange(40)[:, None] >= 8) & (np.arange(40)[:, None] < 32)
    )
    joined = pixels(joined_polygon(parts), mask.shape)
    assert (joined & mask).sum() / (joined | mask).sum() > 0.97


def test_masks_of_any_shape_come_back() -> None:
    random = np.random.default_rng(0)
    yy, xx = np.mgrid[:50, :70]
    for _ in range(5):
        x, y, a, b = *random.uniform(20, 40, 2), *random.uniform(5, 15, 2)
        mask = ((xx - x) / a) ** 2 + ((yy - y) / b) ** 2 < 1
        (outline,) = mask_polygons(mask)
        again = pixels(outline, mask.shape)
        assert (again & mask).sum() / (again | mask).sum() > 0.95
