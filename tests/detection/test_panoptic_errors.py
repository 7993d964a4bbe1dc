"""Errors of panoptic segmentation, on maps of a few pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from backbones.errors import ConfigError
from detection import panoptic_errors
from detection.panoptic import read_segments, segment_colours
from detection.panoptic_errors import PanopticErrors
from engine.prediction.error_analysis import AnalysisRequest

CLASSES = ["cat", "dog", "sky"]
CAT, DOG, SKY = range(3)
VOID = 3


def analysis(*metrics: dict[str, Any]) -> PanopticErrors:
    stated = list(metrics) or [{"type": "PanopticQuality", "stuff_classes": ["sky"]}]
    return PanopticErrors(AnalysisRequest(Config({"test_evaluator": stated}), {"classes": CLASSES}))


def sample(folder: Path, truth: list[int], segments: dict[int, int], predicted: list[int]) -> dict[str, Any]:
    """An image of one row of pixels; ids of 0 are no segment."""
    Image.fromarray(segment_colours(np.array([truth]))).save(folder / "truth.png")
    listed = [{"id": one, "category": label, "is_thing": label != SKY} for one, label in segments.items()]
    found = {"sem_seg": torch.tensor([[predicted]])}
    return {"seg_map_path": str(folder / "truth.png"), "segments_info": listed, "pred_panoptic_seg": found}


@pytest.fixture
def mixed(tmp_path: Path) -> dict[str, Any]:
    """Of each kind one: sky found, a cat called dog, a cat half covered, a dog half covered as cat, made up, missed."""
    rows = [
        (1, SKY, 6),  # true segment and predicted number of six pixels
        (2, 1000 + DOG, 6),
        (3, 2000 + CAT, 2),
        (3, VOID, 4),
        (4, 3000 + CAT, 2),
        (4, VOID, 4),
        (5, VOID, 6),
        (6, 4000 + DOG, 1),
        (6, SKY, 11),
    ]
    truth = [own for own, _, pixels in rows for _ in range(pixels)]
    predicted = [number for _, number, pixels in rows for _ in range(pixels)]
    return sample(tmp_path, truth, {1: SKY, 2: CAT, 3: CAT, 4: DOG, 5: DOG, 6: SKY}, predicted)


def test_each_kind_is_counted(mixed: dict[str, Any]) -> None:
    errors = analysis()
    errors.add(7, mixed)
    numbers = errors.findings().numbers
    counts = {kind: found["count"] for kind, found in numbers["errors"].items()}
    # The sky's 17 pixels lie on the larger sky with an IoU of 11 / 18: the smaller one is missed.
    assert counts == {"classification": 1, "localisation": 1, "both": 1, "background": 1, "missed": 3}
    assert numbers["by_class"]["cat"] == {"PQ": 0.0, "SQ": 0.0, "RQ": 0.0, "matches": 0, "false": 2, "missed": 2}
    assert numbers["by_class"]["dog"]["missed"] == 2
    assert numbers["by_class"]["sky"] == {"PQ": 40.74, "SQ": 61.11, "RQ": 66.67, "matches": 1, "false": 0, "missed": 1}
    assert numbers["quality"]["all"]["PQ"] == pytest.approx(40.74 / 3, abs=0.01)
    assert numbers["quality"]["stuff"]["PQ"] == 40.74
    matrix = numbers["confusion"]["matrix"]
    assert matrix == [[0, 1, 0, 1], [0, 0, 0, 2], [0, 0, 1, 1], [2, 1, 0, 0]]


def test_gains_are_those_of_the_repaired_map(mixed: dict[str, Any]) -> None:
    errors = analysis()
    errors.add(0, mixed)
    numbers = errors.findings().numbers
    gain = {kind: found["gain"] for kind, found in numbers["errors"].items()}
    # The cat called dog gets its name: of cats one match of IoU 1, two false and one missed.
    assert gain["classification"] == pytest.approx(100 / (1 + 1 + 0.5) / 3, abs=0.01)
    # The other one gets its place: of cats one match, one false and one missed.
    assert gain["localisation"] == pytest.approx(100 / (1 + 0.5 + 0.5) / 3, abs=0.01)
    assert gain["both"] == gain["background"] == 0  # neither cats nor dogs have a match that they would stand against
    sky = 100 * 11 / 18 / (1 + 0.5)
    assert gain["missed"] == pytest.approx((100 * 11 / 18 - sky) / 3, abs=0.01)
    assert numbers["false_negatives"] == gain["missed"]
    assert numbers["false_positives"] == 0


def test_what_is_found_or_excused_is_no_error(tmp_path: Path) -> None:
    errors = analysis()
    errors.add(0, sample(tmp_path, [1, 1, 0, 0], {1: CAT}, [1000, 1000, 2001, 2001]))
    found = errors.findings()
    assert found.images == []
    assert found.numbers["quality"]["all"] == {"PQ": 100.0, "SQ": 100.0, "RQ": 100.0}


def test_an_image_is_right_if_each_segment_has_a_match(mixed: dict[str, Any], tmp_path: Path) -> None:
    assert analysis().image_score(mixed) == (pytest.approx(40.74 / 3, abs=0.01), False)
    assert analysis().image_score(sample(tmp_path, [1, 1, 1], {1: CAT}, [1000, 1000, VOID])) == (
        pytest.approx(200 / 3),
        True,
    )
    assert analysis().image_score(sample(tmp_path, [0, 0], {}, [VOID, VOID])) is None


def test_images_tell_their_errors(mixed: dict[str, Any]) -> None:
    errors = analysis()
    errors.add(7, mixed)
    (image,) = errors.findings().images
    assert (image.index, image.classes) == (7, CLASSES)
    assert image.caption == ("PQ 13.6, 1 classification, 1 localisation, 1 both, 1 background, 3 missed")
    assert image.total == 7


def test_a_picture_reads_the_segments_once(mixed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[str] = []
    monkeypatch.setattr(panoptic_errors, "read_segments", lambda path: [paths.append(path), read_segments(path)][1])
    analysis().draw(np.zeros((80, 400, 3), np.uint8), (100.0, 80.0), mixed)
    assert paths == [mixed["seg_map_path"]]


def test_the_picture_has_the_colours_of_the_kinds(tmp_path: Path) -> None:
    one = sample(tmp_path, [1, 1, 2, 2], {1: CAT, 2: DOG}, [1000, 1000, VOID, VOID])
    picture = analysis().draw(np.full((80, 400, 3), 90, np.uint8), (100.0, 80.0), one)
    assert picture.shape[1] >= 800
    yellow = (picture[..., 0] > 130) & (picture[..., 2] < 80)
    green = (picture[..., 1] > picture[..., 0] + 15) & (picture[..., 1] > picture[..., 2] + 15)
    assert yellow[:, 200:400].sum() > 5000  # the missed dog, on the right of the truth
    assert yellow[:, 400:].sum() < 1000  # some of the legend
    assert green[:, 400:600].sum() > 5000  # the cat that was found


def test_a_test_without_the_metric_is_refused() -> None:
    with pytest.raises(ConfigError, match="no metric is PanopticQuality"):
        analysis({"type": "CocoMetric"})
