"""Boundary IoU: the overlap of the edges of regions, which IoU says little of where regions are large.

Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation" (CVPR 2021), section 4: of both
masks only those pixels count that are within a distance of the mask's own contour. As in the authors' code the distance
is 2 % of the image's diagonal, and the image's border is a contour.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

DISTANCE_RATIO = 0.02  # of the image's diagonal


def boundary_distance(height: int, width: int) -> int:
    """Distance from the contour in whole pixels, at least 1, for an image of a height and width in pixels."""
    return max(1, round(DISTANCE_RATIO * math.hypot(height, width)))


def boundary(mask: np.ndarray, neutral: np.ndarray, distance: int) -> np.ndarray:
    """Pixels of a mask within a distance of its contour.

    Args:
        mask: Pixels of a region, bool, (H, W).
        neutral: Pixels without a label, bool, (H, W), towards which a region has no contour.
        distance: Distance in pixels.

    Returns:
        Pixels of the mask, bool, (H, W).
    """
    padded = np.pad((mask | neutral).astype(np.uint8), 1)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)[1:-1, 1:-1]
    return mask & (np.asarray(inner) == 0)


def boundary_areas(truth: np.ndarray, predicted: np.ndarray, num_classes: int, ignored: int) -> np.ndarray:
    """Pixels in the intersection and in the union of the boundaries of each class in an image.

    Args:
        truth: Labels, (H, W).
        predicted: Predicted labels, (H, W).
        num_classes: Number of classes.
        ignored: Label of pixels that do not count.

    Returns:
        Counts, int, (2, num_classes).
    """
    areas, neutral = np.zeros((2, num_classes), np.int64), truth == ignored
    distance = boundary_distance(*truth.shape)
    for label in np.union1d(truth[~neutral], predicted[~neutral]).tolist():
        edges = [boundary((labels == label) & ~neutral, neutral, distance) for labels in (truth, predicted)]
        areas[:, label] = (edges[0] & edges[1]).sum(), (edges[0] | edges[1]).sum()
    return areas


def near_edges(labels: np.ndarray, distance: int) -> np.ndarray:
    """Pixels within a distance of another label.

    Args:
        labels: Labels from 0 to 65535, (H, W).
        distance: Distance in pixels.

    Returns:
        Pixels, bool, (H, W).
    """
    window = np.ones((2 * distance + 1,) * 2, np.uint8)
    values = labels.astype(np.uint16)
    return np.asarray(cv2.dilate(values, window)) != np.asarray(cv2.erode(values, window))
