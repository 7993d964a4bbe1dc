"""EXIF orientation in every format: the data check judges an image as the pipeline of its data set reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config, ConfigDict
from PIL import Image

from classification.check import FolderChecker
from classification.decode import read_crop, read_rgb
from engine.data import orientation
from engine.data.checker import DataFile, DatasetChecker
from engine.data.image_files import LoadCheckedImage, inspect_image
from engine.data.orientation import applies_orientation
from segmentation.check import LabelChecker

STORED = (20, 12)
FORMATS = ("jpg", "png", "webp", "tif", "avif")


def stored(path: Path, orientation: int, mode: str = "RGB") -> str:
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise = np.random.default_rng(0).integers(0, 255, (*STORED[::-1], 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(path, exif=exif)
    return str(path)


def checker(kind: type[DatasetChecker], *pipeline: dict[str, Any]) -> DatasetChecker:
    return kind("train", ConfigDict(pipeline=list(pipeline)), Config())


LOADERS: dict[str, dict[str, Any]] = {
    "OpenCV": {},
    "OpenCV, as stored": {"color_type": "unchanged"},
    "OpenCV, orientation ignored": {"color_type": "color_ignore_orientation"},
    "Pillow": {"imdecode_backend": "pillow"},
}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
@pytest.mark.parametrize("loader", LOADERS)
def test_the_size_that_the_check_compares_is_that_of_the_loaded_image(
    tmp_path: Path, suffix: str, orientation: int, loader: str
) -> None:
    path = stored(tmp_path / f"a.{suffix}", orientation)
    step = dict(type="LoadImageFromFile", **LOADERS[loader])
    height, width = LoadCheckedImage(**LOADERS[loader])({"img_path": path})["img"].shape[:2]
    judge = checker(DatasetChecker, step)
    assert judge.size_as_read(inspect_image(path)) == (width, height)
    judge.check_file(DataFile(path, stated_size=(width, height)), inspect_image(path))
    assert not [finding for finding in judge.findings if finding.level == "error"]
    judge.check_file(DataFile(path, stated_size=(height, width)), inspect_image(path))
    (wrong,) = [finding for finding in judge.findings if finding.level == "error"]
    assert ("EXIF orientation" in wrong.problem) is (orientation > 4)


@pytest.mark.parametrize("suffix", FORMATS)
def test_classification_is_judged_by_its_own_reader(tmp_path: Path, suffix: str) -> None:
    path = stored(tmp_path / f"a.{suffix}", 6)
    judge = checker(FolderChecker)
    assert judge.size_as_read(inspect_image(path)) == read_rgb(path).size
    crops: list[tuple[int, ...]] = []
    read_crop(path, lambda picture: crops.append(tuple(picture.shape)) or (0, 0, 4, 4), 4)
    assert crops == [(3, *read_rgb(path).size[::-1])]
    DatasetChecker.check_file(judge, DataFile(path), inspect_image(path))
    assert [finding.kind for finding in judge.findings] == ([] if suffix == "tif" else ["EXIF orientation"])


@pytest.mark.parametrize("labels", ["png", "tif"])
@pytest.mark.parametrize("image", FORMATS)
def test_labels_are_compared_with_the_image_as_both_are_read(tmp_path: Path, image: str, labels: str) -> None:
    from segmentation.data import read_labels

    image_path, labels_path = stored(tmp_path / f"a.{image}", 6), stored(tmp_path / f"l.{labels}", 6, "L")
    judge = checker(LabelChecker, dict(type="LoadCheckedImage"))
    image_size = LoadCheckedImage()({"img_path": image_path})["img"].shape[:2]
    judge._check_pair(labels_path, inspect_image(labels_path), image_path, inspect_image(image_path))
    assert (judge.findings == []) is (read_labels(labels_path).shape == image_size)


def test_orientation_in_xmp_data_alone_is_none(tmp_path: Path) -> None:
    """Pillow reports it, the decoders ignore it."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    exif = Image.Exif()
    exif[0x0131] = "a program"
    Image.new("RGB", STORED).save(tmp_path / "a.jpg", xmp=xmp, exif=exif)
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.getexif()[0x0112] == 6
    assert inspect_image(str(tmp_path / "a.jpg")).orientation == 1
    assert LoadCheckedImage()({"img_path": str(tmp_path / "a.jpg")})["img"].shape[:2] == STORED[::-1]


def test_what_a_kill_leaves_of_a_trial_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the folder of the process, which the next start clears."""
    places: list[Path] = []

    def read_size(path: str) -> tuple[int, int]:
        places.append(Path(path))
        return STORED

    monkeypatch.setattr(orientation, "process_folder", lambda: tmp_path)
    applies_orientation(read_size, "PNG")
    assert [place.parents[1] for place in places] == [tmp_path]


def test_a_format_that_cannot_be_tried_counts_as_not_turned() -> None:
    assert not applies_orientation(lambda path: STORED, "XYZ")
