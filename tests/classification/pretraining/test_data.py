"""Images without labels: which are held out, and the masks' dependence on seed and image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from PIL import Image
from torch import Tensor

from backbones.errors import ConfigError, DataError
from classification.pretraining.check import UnlabelledChecker
from classification.pretraining.data import MaskedImageTransform, UnlabelledImages


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images of several sizes at several depths, a text and a hidden file."""
    random = np.random.default_rng(0)
    for number in range(10):
        place = tmp_path / ("", "day one", "day one/b")[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (40 + 7 * number, 70, 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._0.png").write_bytes(b"")
    return tmp_path


def paths(folder: Path, **options: Any) -> list[str]:
    dataset = UnlabelledImages(data_root=str(folder), pipeline=[], **options)
    return [dataset.get_data_info(index)["img_path"] for index in range(len(dataset))]


def test_every_image_at_any_depth_is_there_once(folder: Path) -> None:
    assert sorted(Path(path).stem for path in paths(folder)) == [str(number) for number in range(10)]
    assert len(paths(folder, split="day one")) == 6
    assert paths(folder, every=4) == paths(folder)[::4]


def test_held_out_images_are_not_trained_on(folder: Path) -> None:
    trained, held_out = paths(folder, hold_out=4), paths(folder, hold_out=4, held_out=True)
    assert sorted(trained + held_out) == sorted(paths(folder))
    assert held_out == paths(folder)[::4]


@pytest.mark.parametrize("options", [dict(hold_out=1), dict(hold_out=-2), dict(held_out=True), dict(every=0)])
def test_wrong_numbers_are_named(folder: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.(hold_out|every)"):
        paths(folder, **options)


def test_nothing_to_train_on_is_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image folder"):
        paths(folder / "absent")
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds 0 images"):
        paths(folder / "empty")
    (folder / "0.png").rename(folder / "empty/0.png")
    with pytest.raises(DataError, match=r"holds 1 image \(.*\), of which every 20th is held out: too few"):
        paths(folder / "empty", hold_out=20)


def test_the_check_finds_what_is_not_read_and_what_cannot_be(folder: Path) -> None:
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:100])
    dataset = ConfigDict(type="UnlabelledImages", data_root=str(folder))
    checker = UnlabelledChecker("train", dataset, Config())
    assert len(checker.list_files()) == 11
    assert [finding.file for finding in checker.findings] == [str(folder / "notes.txt")]


def order(transform: MaskedImageTransform, path: str, index: int = 0) -> Tensor:
    found: Tensor = transform({"img_path": path, "sample_idx": index})["data_samples"]["order"]
    return found


def test_masks_of_a_training_follow_the_random_state_of_the_sample(folder: Path) -> None:
    transform = MaskedImageTransform(96, training=True)
    found = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        found.append(order(transform, str(folder / "0.png")))
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    assert found[0].sort().values.tolist() == list(range(9))


def test_masks_of_a_test_belong_to_the_image(folder: Path) -> None:
    transform = MaskedImageTransform(224)
    torch.manual_seed(1)
    first, second = order(transform, str(folder / "0.png"), 0), order(transform, str(folder / "0.png"), 1)
    torch.manual_seed(2)
    assert torch.equal(first, order(transform, str(folder / "0.png"), 0))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("size", [48, 0, 32.0])
def test_a_size_without_whole_units_is_named(size: Any) -> None:
    with pytest.raises(ConfigError, match=r"MaskedImageTransform\.size"):
        MaskedImageTransform(size)
