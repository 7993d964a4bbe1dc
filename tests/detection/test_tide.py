"""Error kinds and gains as TIDE defines them, on images of few boxes whose answers can be counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_masks

from detection.tide import CrowdOverlaps, ImageMatches, Tide, average_precision, match_image

FULL = (0.0, 0.0, 10.0, 10.0)
HALF_RIGHT = (4.0, 0.0, 10.0, 10.0)  # IoU 60 / 140 = 0.43 with FULL
AWAY = (50.0, 50.0, 10.0, 10.0)
GRAZING = (9.5, 0.0, 10.0, 10.0)  # IoU 5 / 195 = 0.03 with FULL


def matched(detections: list[tuple[Any, int, float]], objects: list[tuple[Any, int]], crowds: Any = ()) -> ImageMatches:
    boxes = np.array([box for box, _, _ in detections]).reshape(-1, 4)

    def overlaps(others: Any, crowd: int) -> np.ndarray:
        if not len(boxes) or not len(others):
            return np.zeros((len(boxes), len(others)))
        places = np.array([box for box, _ in others])
        return np.asarray(coco_masks.iou(boxes, places, [crowd] * len(others)))

    labels, scores = (np.array([one[at] for one in detections]) for at in (1, 2))
    there = CrowdOverlaps(overlaps(crowds, 1), np.array([label for _, label in crowds], int))
    return match_image(scores, labels, overlaps(objects, 0), np.array([label for _, label in objects], int), there)


@pytest.mark.parametrize(
    ("box", "label", "kind"),
    [
        (FULL, 1, "classification"),
        (HALF_RIGHT, 0, "localisation"),
        (HALF_RIGHT, 1, "both"),
        (AWAY, 0, "background"),
        (GRAZING, 0, "background"),
        (GRAZING, 1, "background"),
        (FULL, 0, None),
    ],
)
def test_each_kind_by_hand(box: Any, label: int, kind: str | None) -> None:
    found = matched([(box, label, 0.9)], [(FULL, 0)])
    assert found.kinds == [kind]
    assert found.correct.tolist() == [kind is None]
    # What is at the object, with the wrong class or place, would find it: it is not missed.
    claims = kind in (None, "classification", "localisation")
    assert found.missed.tolist() == [not claims]
    assert found.unfound.tolist() == [kind is not None]
    assert found.fixed.tolist() == [0 if claims and kind else -1]


def test_the_surest_detection_finds_and_the_next_is_a_duplicate() -> None:
    found = matched([(FULL, 0, 0.5), (FULL, 0, 0.9)], [(FULL, 0)])
    assert found.kinds == ["duplicate", None]


def test_of_two_errors_about_an_object_the_surer_one_would_find_it() -> None:
    found = matched([(HALF_RIGHT, 0, 0.5), (FULL, 1, 0.9)], [(FULL, 0)])
    assert found.kinds == ["localisation", "classification"]
    assert found.fixed.tolist() == [-1, 0]
    assert found.object_kinds == ["classification"]


def test_what_lies_on_a_crowd_of_its_class_counts_for_nothing() -> None:
    large = (0.0, 0.0, 40.0, 40.0)
    assert matched([(FULL, 0, 0.9)], [], [(large, 0)]).ignored.tolist() == [True]
    assert matched([(FULL, 0, 0.9)], [], [(large, 1)]).ignored.tolist() == [False]


def test_an_image_without_objects_has_background_errors_alone() -> None:
    assert matched([(FULL, 0, 0.9), (AWAY, 1, 0.1)], []).kinds == ["background"] * 2
    assert matched([], [(FULL, 0)]).object_kinds == ["missed"]


def test_only_the_100_surest_detections_count() -> None:
    found = matched([(AWAY, 0, index / 200) for index in range(101)], [(FULL, 0)])
    assert found.kinds[0] is None
    assert found.kinds[1:] == ["background"] * 100


def gains(*images: tuple[list[tuple[Any, int, float]], list[tuple[Any, int]]], classes: int = 1) -> Any:
    tide = Tide(classes)
    for detections, objects in images:
        labels, scores = (np.array([one[at] for one in detections]) for at in (1, 2))
        true = np.array([label for _, label in objects], int)
        tide.add(scores, labels.astype(int), true, matched(detections, objects))
    return tide, tide.summary()


def test_the_gain_of_each_kind_by_hand() -> None:
    # One class, two objects: one is found, the other has a box in the wrong place. AP 50: recall 0.5 at precision 1.
    tide, found = gains(([(FULL, 0, 0.9)], [(FULL, 0)]), ([(HALF_RIGHT, 0, 0.8)], [(FULL, 0)]))
    half = 100 * 51 / 101  # of the 101 recalls those from 0 to 0.50
    assert found.ap == pytest.approx(half)
    assert found.fixed == pytest.approx(dict.fromkeys(found.fixed, 0.0) | {"localisation": 100 - half})
    assert (found.false_positives, found.false_negatives) == pytest.approx((0, 100 - half))
    assert tide.counts == {"localisation": 1}
    # A surer detection of nothing: without it the precision is 1, not 1/2 at recall 1.
    _, found = gains(([(AWAY, 0, 0.95), (FULL, 0, 0.9)], [(FULL, 0)]))
    assert found.ap == pytest.approx(50)
    assert found.fixed["background"] == found.false_positives == pytest.approx(50)
    # A missed object: without it the recall is 1.
    tide, found = gains(([(FULL, 0, 0.9)], [(FULL, 0), (AWAY, 0)]))
    assert found.fixed["missed"] == found.false_negatives == pytest.approx(100 - half)
    assert tide.class_counts == {0: {"missed": 1}}


def test_a_fixed_class_counts_where_the_object_is() -> None:
    _, found = gains(([(FULL, 1, 0.9)], [(FULL, 0)]), ([(FULL, 1, 0.8)], [(FULL, 1)]), classes=2)
    # Class 0 has nothing, class 1 its object behind a wrong detection: (0 + 50) / 2. Fixed, both are whole.
    assert found.ap == pytest.approx(25)
    assert found.fixed["classification"] == pytest.approx(75)


def test_a_class_without_objects_has_no_ap() -> None:
    _, found = gains(([(FULL, 0, 0.9), (AWAY, 1, 0.9)], [(FULL, 0)]), classes=3)
    assert found.ap == pytest.approx(100)
    assert gains(([], []))[1].ap == 0


def test_average_precision_by_hand() -> None:
    # Right, wrong, right of three objects: precision 1 up to recall 1/3, 2/3 up to 2/3, then none.
    scores, correct = np.array([0.9, 0.8, 0.7]), np.array([True, False, True])
    assert average_precision(scores, correct, 3) == pytest.approx(100 * (34 + 33 * 2 / 3) / 101)
    assert average_precision(scores[:0], correct[:0], 3) == average_precision(scores, correct, 0) == 0
