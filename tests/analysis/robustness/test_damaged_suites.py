"""Suites that are damaged or incomplete are refused by one line, before anything is evaluated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from analysis.robustness.planning import make_evaluation_plan
from backbones.errors import DataError
from classification import robustness
from classification.suites import CORRUPTIONS_OF_C, imagenet_names, subset
from engine.config.load import load_config
from engine.config.world import Launch
from tests.classification.objectnet import objectnet_mappings

ROOT = Path(__file__).resolve().parents[3]
NAMES = imagenet_names()
V2 = "imagenetv2-matched-frequency-format-val"


def fill(folder: Path, names: list[str], side: int = 2, file: str = "a.png") -> Path:
    """An image in each class folder."""
    for name in names:
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (side, side)).save(folder / name / file)
    return folder


def of_200(name: str) -> list[str]:
    return [NAMES[index] for index in subset(name)]


def c_of_256_pixels(root: Path) -> None:
    for corruption in CORRUPTIONS_OF_C:
        for severity in range(1, 6):
            fill(root / "imagenet-c" / corruption / str(severity), NAMES[:1], 256)


def c_with_a_damaged_image(root: Path) -> None:
    c_of_256_pixels(root)
    (root / "imagenet-c/gaussian_noise/1" / NAMES[0] / "a.png").write_bytes(b"")


def objectnet_without_a_mapping(root: Path) -> None:
    place = objectnet_mappings(fill(root / "objectnet-1.0/images", ["object_0"]).parent, 113)
    (place / "mappings/objectnet_to_imagenet_1k.json").unlink()


def damage(folder: Path, names: list[str], lost: str) -> None:
    shutil.rmtree(fill(folder, names) / lost)


CASES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "A lacks a class": (
        "a",
        lambda root: damage(root / "imagenet-a", of_200("a"), of_200("a")[5]),
        f"a: .*: 1 class folders wrong, lacks {of_200('a')[5]} ",
    ),
    "R has A's classes": (
        "r",
        lambda root: fill(root / "imagenet-r", of_200("a")),
        f"r: .* class folders wrong, lacks {NAMES[1]}, ",
    ),
    "R has too few images": ("r", lambda root: fill(root / "imagenet-r", of_200("r")), "holds 200 images, 30,000 are"),
    "Sketch lacks a class": (
        "sketch",
        lambda root: damage(root / "sketch", NAMES, NAMES[999]),
        f"sketch: .*: 1 class folders wrong, lacks {NAMES[999]} ",
    ),
    "V2 lacks a folder": ("v2", lambda root: damage(root / V2, [*map(str, range(1000))], "7"), "wrong, lacks 7 "),
    "C has 256 pixels": ("c", c_of_256_pixels, "gaussian_noise/1': images are 256 x 256 pixels, not 224 x 224"),
    "C has a damaged image": ("c", c_with_a_damaged_image, r"c: .*a\.png' is empty \(0 bytes\)"),
    "C lacks a corruption": (
        "c",
        lambda root: [fill(root / "imagenet-c" / name / "1", NAMES[:1]) for name in CORRUPTIONS_OF_C[1:]],
        "lacks the corruption 'gaussian_noise'",
    ),
    "ObjectNet has no mapping": (
        "objectnet",
        objectnet_without_a_mapping,
        "mappings cannot be read: FileNotFoundError",
    ),
    "ObjectNet lacks classes": (
        "objectnet",
        lambda root: objectnet_mappings(fill(root / "objectnet-1.0/images", ["object_0"]).parent, 113),
        "1 class folders, not 313",
    ),
}


def plan(folder: Path, suite: str) -> None:
    """What an evaluation does before it evaluates."""
    options = {"data_root": str(folder / "imagenet")}
    config = ROOT / "configs/classification/convnext_tiny_in1k_300e.py"
    cfg = load_config(config, options, Launch(), training=False).cfg
    make_evaluation_plan(cfg, (suite,), folder, ()).refuse_problems()


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_suite_is_refused_by_one_line(case: str, tmp_path: Path) -> None:
    suite, make, message = CASES[case]
    make(tmp_path)
    with pytest.raises(DataError, match=message) as refused:
        plan(tmp_path, suite)
    assert str(refused.value).endswith("complete the suite; --no-data-check evaluates what is there")
    assert "\n" not in str(refused.value)


def test_labels_of_real_that_cannot_be_found_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "imagenet/val", NAMES[:1], file="ILSVRC2012_val_00000002.JPEG")
    plan(tmp_path, "real")  # validation images may be some of them
    fill(tmp_path / "imagenet/val", NAMES[1:2], file="ILSVRC2012_val_2.JPEG")
    with pytest.raises(DataError, match=r"'ILSVRC2012_val_2\.JPEG': ReaL's labels are found by the names"):
        plan(tmp_path, "real")
    robustness._real_label_lists.cache_clear()
    monkeypatch.setattr(robustness, "timm_info", lambda name: json.dumps([[1]] * 49_999))
    with pytest.raises(DataError, match="timm has labels of 49,999 images, not 50,000: install timm"):
        plan(tmp_path, "real")
