"""The measurement of reading: what stands beside what, and when nothing is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from PIL import Image

from analysis.benchmark import loading
from analysis.benchmark.loading import (
    LoadingResult,
    NextBatches,
    compare_augmentation,
    peer_data,
    timm_transform,
    training_settings,
)
from analysis.benchmark.timing import MismatchError
from backbones import UserError
from classification.data import FolderDataset

SETTINGS: dict[str, Any] = dict(size=32, rand_augment="rand-m9-mstd0.5-inc1")


@pytest.fixture
def pets(tmp_path: Path) -> FolderDataset:
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.radial_gradient("L").convert("RGB").save(tmp_path / f"train/{name}/{number}.jpg")
    pipeline = [dict(type="ClassificationTransform", training=True, **SETTINGS)]
    return FolderDataset(str(tmp_path), "train", dict(classes=("cat", "dog")), pipeline)


def test_all_sides_read_the_same_images_in_the_same_order() -> None:
    first, second = NextBatches(100, 2), NextBatches(100, 2)
    once = [list(map(int, batch)) for batch in first]
    assert once == [list(map(int, batch)) for batch in second]
    assert [len(batch) for batch in once] == [loading.LOADING_BATCH] * 2
    again = [list(map(int, batch)) for batch in first]
    places = [place for batch in once + again for place in batch]
    assert again != once
    assert sorted(places[:100]) == sorted(places[100:200]) == list(range(100))


def test_each_peer_gives_images_and_labels(pets: FolderDataset) -> None:
    peers = peer_data(pets, SETTINGS, loading.LOADING_PEERS)
    assert list(peers) == ["timm", "torchvision", "torchvision, v2 on tensors"]
    for data, collate in peers.values():
        images, labels = collate([data[0], data[1]])
        assert (tuple(images.shape), images.dtype) == ((2, 3, 32, 32), torch.uint8)
        assert labels.tolist() == [0, 1]


def test_equal_augmentation_passes_and_another_does_not(pets: FolderDataset) -> None:
    assert compare_augmentation(pets, SETTINGS) < 0.5
    with pytest.raises(MismatchError, match="our images differ from timm's by"):
        compare_augmentation(pets, SETTINGS | {"scale": (0.5, 0.6)})


def test_timms_lowest_posterizing_does_not_end_it() -> None:
    augment = timm_transform(8, "rand-m10-p1-inc1").transforms[2]
    (op,) = (op for op in augment.ops if op.name == "PosterizeIncreasing")
    assert op(Image.new("RGB", (8, 8), (255, 255, 255))).getextrema() == ((0, 0),) * 3


@pytest.mark.parametrize(
    "pipeline",
    [[], [dict(type="LoadLabels")], [dict(type="ClassificationTransform", size=32)]],
    ids=["none", "another", "of the test"],
)
def test_what_cannot_be_measured(pipeline: list[Any]) -> None:
    cfg = Config(dict(train_dataloader=dict(dataset=dict(pipeline=pipeline))))
    with pytest.raises(UserError, match="one ClassificationTransform with training=True"):
        training_settings(cfg)


def test_ratios_are_taken_round_by_round() -> None:
    seconds = {"ours": (0.001, 0.002, 0.001), "timm": (0.002, 0.003, 0.002)}
    found = LoadingResult(5, 0.2, 90.0, 0, 0.02, {"device": "here"}, seconds)
    ours, timm = found.as_dict()["sides"]
    assert ours["images_per_second_and_core"] == pytest.approx(1000)
    assert timm["ours_is_times_faster"] == pytest.approx(2.0)
    assert timm["ours_is_times_faster_quartiles"] == pytest.approx([1.75, 2.0])
    assert "2.00 (1.75-2.00)" in found.as_text()


def test_cold_reading_is_compared_without_decoding_too(pets: FolderDataset) -> None:
    seconds = {"ours": (0.01, 0.02), loading.FOLDER_BYTES: (0.004, 0.006), loading.TAR_BYTES: (0.002, 0.002)}
    text = LoadingResult(5, 0.2, 90.0, 0, 0.02, {"device": "here"}, seconds, cold=True).as_text()
    assert "elapsed time, files not in the page cache before each turn, their names and inodes stay in memory" in text
    text = LoadingResult(5, 0.2, 90.0, 0, 0.02, {"device": "here"}, seconds, cold=True, cold_names=True).as_text()
    assert "files not in the page cache before each turn, nor their names and inodes" in text
    assert "tar is 2.50 (2.25-2.75) times as fast as the folder" in text
    read = loading.ImageBytes(pets).__getitems__([1, 0])
    assert read == [Path(pets.get_data_info(index)["img_path"]).read_bytes() for index in (1, 0)]
