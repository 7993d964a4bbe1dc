"""Corruption on the fly: RGB whatever the pipeline reads, seeds by path, and its place for each task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import classification  # noqa: F401
import detection  # noqa: F401
import segmentation  # noqa: F401
from analysis.robustness.corrupt_step import CorruptImage
from analysis.robustness.corruptions import CORRUPTIONS, corrupt, image_seed
from analysis.robustness.planning import CLEAN, make_evaluation_plan
from backbones.errors import ConfigError
from engine.config.datasets import inner_datasets
from engine.config.load import load_config
from engine.config.world import Launch
from engine.task import ImageSet

ROOT = Path(__file__).resolve().parents[3]
RGB = np.random.default_rng(0).integers(0, 256, (32, 40, 3), np.uint8)


@pytest.mark.parametrize("name", ["snow", "frost"])
def test_a_bgr_image_is_corrupted_as_rgb(name: str) -> None:
    """Snow mixes in a grey by unequal weights, frost has colours: on swapped channels they are other corruptions."""
    expected = corrupt(RGB, name, 3, image_seed("val/a.png", name, 3))
    sample = {"img": np.ascontiguousarray(RGB[..., ::-1]), "img_path": "data/val/a.png"}
    found = CorruptImage(name, 3, "BGR", "data")(sample)["img"]
    assert (found[..., ::-1] == expected).all()
    assert not (found == expected).all()
    inputs = torch.from_numpy(np.ascontiguousarray(RGB.transpose(2, 0, 1)))
    found = CorruptImage(name, 3, "RGB", "data")({"inputs": inputs, "img_path": "data/val/a.png"})["inputs"]
    assert (found.permute(1, 2, 0).numpy() == expected).all()


def test_the_seed_is_of_the_path_below_the_root() -> None:
    def corrupted(root: str, path: str) -> np.ndarray:
        return CorruptImage("gaussian_noise", 2, "RGB", root)({"img": RGB, "img_path": path})["img"]

    assert (corrupted("here", "here/val/a.png") == corrupted("there/data", "there/data/val/a.png")).all()
    assert not (corrupted("here", "here/val/a.png") == corrupted("here", "here/val/b.png")).all()


@pytest.mark.parametrize("image", [RGB.astype(np.float32), RGB[..., :1], RGB[..., 0]])
def test_other_images_than_colours_of_8_bits_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ConfigError, match=r"corruption 'fog': images are .*three channels of 8 bits are needed"):
        CorruptImage("fog", 1)({"img": image, "img_path": "a.png"})


def plan(config: str, *protocols: str, suites: tuple[str, ...] = ("c",)) -> tuple[Any, dict[str, ImageSet]]:
    cfg = load_config(ROOT / "configs" / config, None, Launch(), training=False).cfg
    made = make_evaluation_plan(cfg, suites, Path("nowhere"), protocols)
    return made, {one.name: one for suite in made.suites for one in suite.sets}


@pytest.mark.parametrize(
    ("config", "order", "place"),
    [
        ("classification/digits.py", "RGB", ["ClassificationTransform", "CorruptImage"]),
        ("detection/mask_rcnn_digits.py", "BGR", ["LoadCheckedImage", "CorruptImage", "CheckedResize"]),
        ("segmentation/upernet_digits.py", "BGR", ["LoadCheckedImage", "CorruptImage", "LoadLabels"]),
    ],
)
def test_each_task_is_corrupted_behind_its_loading(config: str, order: str, place: list[str]) -> None:
    made, sets = plan(config)
    assert [suite.kind for suite in made.suites] == ["test data", "regenerated"]
    assert len(sets) == 76
    names = {name.split("/")[1] for name in sets if name != CLEAN}
    moved = {"elastic_transform"} if order == "RGB" else {"elastic_transform_in_place"}
    assert names == (set(CORRUPTIONS) - {"elastic_transform"}) | moved
    steps = inner_datasets(sets["c/snow/4"].dataset)[0]["pipeline"]
    assert [step["type"] for step in steps[: len(place)]] == place
    step = next(step for step in steps if step["type"] == "CorruptImage")
    assert (step["name"], step["severity"], step["order"]) == ("snow", 4, order)
    assert not any(step["type"] == "CorruptImage" for step in inner_datasets(sets[CLEAN].dataset)[0]["pipeline"])
    assert any("regenerated on the test data" in note for note in made.notes)


def test_the_practice_of_segmentation_has_72_sets() -> None:
    _, sets = plan("segmentation/upernet_digits.py", "16")
    assert len(sets) == 1 + 72
    assert {name for name in sets if "speckle" in name} == {f"c/speckle_noise/{i}" for i in (1, 2, 3)}
    assert not any("pixelate" in name for name in sets)
    with pytest.raises(ConfigError, match="--protocol 16: no suite that is evaluated has it"):
        plan("detection/mask_rcnn_digits.py", "16")


def test_suites_of_another_task_are_unknown() -> None:
    with pytest.raises(ConfigError, match="--suites sketch: detection has no such suite"):
        plan("detection/mask_rcnn_digits.py", suites=("sketch",))
    made, _ = plan("classification/digits.py", suites=("sketch", "cbar"))
    (absent,) = made.absent
    assert absent == "sketch: it is for classifiers of ImageNet-1K, classes='imagenet-1k'"
