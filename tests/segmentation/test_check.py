"""Mistakes in images and label PNGs, one in each case."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

import segmentation  # noqa: F401
from engine.data import check as data_check
from engine.data.check import check_datasets
from engine.data.findings import DataCheckResult

CLASSES = ("wall", "sky", "tree")
SIZE = (12, 8)


def store(path: Path, pixels: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def labels(*values: int) -> np.ndarray:
    return np.resize(np.array(values, np.uint8), SIZE)


def rooms(folder: Path, *values: int, count: int = 4) -> Path:
    random = np.random.default_rng(0)
    for i in range(count):
        store(folder / f"images/{i}.jpg", random.integers(0, 255, (*SIZE, 3), np.uint8))
        store(folder / f"labels/{i}.png", labels(*values))
    return folder


def checked(
    root: Path, reduce: bool = True, full: bool = False, img_suffix: str | list[str] = ".jpg", **more: Any
) -> DataCheckResult:
    dataset = dict(
        type="LabelPngDataset",
        data_root=str(root),
        img_suffix=img_suffix,
        seg_map_suffix=".png",
        data_prefix=dict(img_path="images", seg_map_path="labels"),
        reduce_zero_label=reduce,
        metainfo=dict(classes=CLASSES),
        pipeline=[dict(type="LoadLabels", num_classes=3, reduce_zero_label=more.pop("loading", reduce), **more)],
    )
    return check_datasets(Config(dict(default_scope="mmseg", train_dataloader=dict(dataset=dataset))), ("train",), full)


def test_a_mask_s_background_does_not_become_the_only_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "CLASSES", CLASSES[:1])
    ((level, kind), *_) = kinds(checked(rooms(tmp_path, 0, 255), reduce=False))
    assert (level, kind) == ("error", "masks of 0 and 255")


@pytest.mark.parametrize("values, reduce", [((1, 255), False), ((1,), False), ((2, 0), True), ((7, 1), False)])
def test_one_class_in_all_labels_is_nothing_to_learn(values: tuple[int, ...], reduce: bool, tmp_path: Path) -> None:
    (error,) = checked(rooms(tmp_path, *values), reduce, unlabelled=7).errors
    assert error.kind == "one class"
    assert "all labelled pixels are 'sky': there is nothing to tell apart" in str(error)
    store(tmp_path / "labels/0.png", labels(*values, 3 if reduce else 2))
    assert not checked(tmp_path, reduce, unlabelled=7).errors


def test_an_image_that_is_turned_without_a_change_of_size(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 3
    path = rooms(tmp_path, 1, 2) / "images/0.jpg"
    Image.open(path).save(path, exif=turned)
    (found,) = (item for item in checked(tmp_path).findings if item.kind == "turned image")
    assert found.file == str(path)
    assert "is turned by its EXIF orientation 3" in found.problem
    labels_path = tmp_path / "labels/1.png"
    Image.open(labels_path).save(labels_path, exif=turned)
    (found,) = (item for item in checked(tmp_path).findings if item.kind == "EXIF orientation of labels")
    assert found.file == str(labels_path)


def kinds(found: DataCheckResult) -> list[tuple[str, str]]:
    return [(item.level, item.kind) for item in found.findings]


def test_label_checker_of_sound_labels(tmp_path: Path) -> None:
    found = checked(rooms(tmp_path / "reduced", 0, 1, 2, 3, 255))
    assert found.findings == []
    assert found.inspected == {"train images": (4, 4), "train labels": (4, 4)}
    assert "41% are not labelled" in found.notes[0]
    assert "wall 20%" in found.notes[0]
    assert checked(rooms(tmp_path / "plain", 0, 1, 2, 255), reduce=False).findings == []
    assert "labelled" not in checked(rooms(tmp_path / "whole", 0, 1, 2), reduce=False).notes[0]
    assert checked(rooms(tmp_path / "other", 0, 1, 2, 77), reduce=False, unlabelled=77).findings == []
    found = checked(rooms(tmp_path / "values", 0, 100, 255, 7), reduce=False, unlabelled=7, label_values=(0, 100, 255))
    assert found.findings == []


@pytest.mark.parametrize(
    "values, reduce, kind, fix",
    [
        ((0, 1, 2, 9), False, "label value", "check classes, or set unlabelled"),
        ((0, 1, 2, 3, 4), True, "label value", "check classes, or set unlabelled"),
        ((1, 2, 3), False, "label value", "values count from 1: set reduce_zero_label=True"),
        ((0, 1, 2), True, "reduce_zero_label", "set reduce_zero_label=False"),
        ((0, 255), False, "masks of 0 and 255", "store classes as 0, 1, 2..., or set label_values=(0, 255)"),
        ((255,), False, "nothing labelled", "check the labels"),
        ((0,), True, "nothing labelled", "check the labels"),
    ],
)
def test_label_checker_finds_values_of_another_meaning(
    tmp_path: Path, values: tuple[int, ...], reduce: bool, kind: str, fix: str
) -> None:
    errors = checked(rooms(tmp_path, *values), reduce).errors
    assert {item.kind for item in errors} >= {kind}
    assert any(fix in item.fix for item in errors if item.kind == kind)
    assert {item.kind for item in errors} <= {kind, "masks of 0 and 255"}


def test_label_checker_ignores_rare_zeros(tmp_path: Path) -> None:
    rooms(tmp_path, 1, 2)
    seam = labels(1, 2)
    seam[0, 0] = 0
    store(tmp_path / "labels/0.png", seam)
    assert kinds(checked(tmp_path)) == [("warning", "class without pixels")]


def test_label_checker_warns_after_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_check, "MAX_LABEL_FILES", 2)
    root = rooms(tmp_path, 0, 1, 2)
    assert kinds(checked(root)) == [("warning", "reduce_zero_label")]
    assert ("error", "reduce_zero_label") in kinds(checked(root, full=True))


def test_label_checker_warns_of_a_class_without_pixels(tmp_path: Path) -> None:
    found = checked(rooms(tmp_path, 0, 2), reduce=False)
    assert kinds(found) == [("warning", "class without pixels")]
    assert "1 of 3 classes have no pixel: sky" in found.findings[0].problem


def test_label_checker_compares_reduce_zero_label_settings(tmp_path: Path) -> None:
    found = checked(rooms(tmp_path, 0, 1, 2), reduce=False, loading=True)
    assert kinds(found) == [("error", "reduce_zero_label")]
    assert found.findings[0].problem == "reduce_zero_label is False of the data set and True of LoadLabels"


@pytest.mark.parametrize(
    ("kind", "values", "image", "label"),
    [
        ("ADE20KDataset", (0, 1, 2, 3), "0.jpg", "0.png"),
        ("CityscapesDataset", (0, 1, 2), "0_leftImg8bit.png", "0_gtFine_labelTrainIds.png"),
    ],
)
def test_label_checker_knows_the_settings_of_the_library_s_data_sets(
    kind: str, values: tuple[int, ...], image: str, label: str, tmp_path: Path
) -> None:
    store(tmp_path / "images" / image, np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8))
    store(tmp_path / "labels" / label, labels(*values))
    prefix = dict(img_path="images", seg_map_path="labels")
    dataset = dict(type=kind, data_root=str(tmp_path), data_prefix=prefix, metainfo=dict(classes=CLASSES))
    dataset["pipeline"] = [dict(type="LoadAnnotations", reduce_zero_label=len(values) > len(CLASSES))]
    found = check_datasets(
        Config(dict(default_scope="mmseg", train_dataloader=dict(dataset=dataset))), ("train",), True
    )
    assert not found.errors, found.errors


def turned(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    store(root / "images/1.jpg", np.zeros((*SIZE, 3), np.uint8), exif=exif)


@pytest.mark.parametrize(
    "harm, expected",
    [
        (lambda root: (root / "labels/1.png").unlink(), ("error", "image without labels")),
        (lambda root: (root / "images/1.jpg").unlink(), ("error", "labels without image")),
        (lambda root: (root / "images/1.jpg").rename(root / "images/1.jpeg"), ("error", "labels without image")),
        (lambda root: store(root / "labels/1.png", np.ones((8, 8), np.uint8)), ("error", "size of labels")),
        (turned, ("error", "size of labels")),
        (lambda root: store(root / "labels/1.png", np.ones((*SIZE, 3), np.uint8)), ("error", "coloured labels")),
        (lambda root: store(root / "labels/1.png", np.full(SIZE, 256, np.uint16)), ("error", "label value")),
        (lambda root: store(root / "labels/1.png", labels(1), format="JPEG"), ("error", "JPEG labels")),
        (lambda root: store(root / "labels/1.png", labels(0)), ("warning", "nothing labelled")),
        (lambda root: (root / "labels/1.png").write_bytes(b""), ("error", "empty labels")),
        (lambda root: (root / "images/1.jpg").write_bytes(b"\xff\xd8\xff"), ("error", "truncated image")),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_label_checker_finds_a_single_wrong_file(
    tmp_path: Path, harm: Callable[[Path], Any], expected: tuple[str, str]
) -> None:
    harm(rooms(tmp_path, 0, 1, 2, 3))
    found = checked(tmp_path)
    assert expected in kinds(found)
    assert len(found.errors) <= 1
    assert all("1." in item.file for item in found.findings)


def test_label_checker_names_exif_orientation_as_the_cause(tmp_path: Path) -> None:
    turned(rooms(tmp_path, 0, 1, 2, 3))
    assert "is 12 x 8 as its EXIF orientation 6 turns it" in checked(tmp_path).findings[0].problem


def listed(root: Path, *stems: str) -> DataCheckResult:
    (root / "list.txt").write_text("\n".join(stems))
    dataset = dict(
        type="BaseSegDataset",
        data_root=str(root),
        ann_file="list.txt",
        data_prefix=dict(img_path="images", seg_map_path="labels"),
        metainfo=dict(classes=CLASSES),
        pipeline=[],
    )
    return check_datasets(Config(dict(default_scope="mmseg", train_dataloader=dict(dataset=dataset))), ("train",))


def test_label_checker_of_several_suffixes(tmp_path: Path) -> None:
    rooms(tmp_path, 0, 1, 2)
    (tmp_path / "images/0.jpg").rename(tmp_path / "images/0.JPG")
    found = checked(tmp_path, reduce=False)
    assert sorted(kinds(found)) == [("error", "labels without image"), ("warning", "other images")]
    both = checked(tmp_path, reduce=False, img_suffix=[".jpg", ".JPG"])
    assert (kinds(both), both.inspected) == ([], {"train images": (4, 4), "train labels": (4, 4)})
    store(tmp_path / "images/0.jpg", np.full((40, 48, 3), 7, np.uint8))
    assert ("error", "two images") in kinds(checked(tmp_path, reduce=False, img_suffix=[".jpg", ".JPG"]))


def test_label_checker_reads_a_list_of_names(tmp_path: Path) -> None:
    rooms(tmp_path, 0, 1, 2)
    assert listed(tmp_path, "0", "2").inspected == {"train images": (2, 2), "train labels": (2, 2)}
    assert kinds(listed(tmp_path, "0", "0")) == [("warning", "listed twice")]
    assert kinds(listed(tmp_path, "0", "../secret")) == [("error", "path")]
    assert sorted(kinds(listed(tmp_path, "0", "9"))) == [("error", "missing image"), ("error", "missing labels")]


def test_labels_without_a_labelled_pixel_are_counted(tmp_path: Path) -> None:
    rooms(tmp_path, 0, 1, 2)
    for name in ("1", "3"):
        store(tmp_path / f"labels/{name}.png", labels(255))
    found = checked(tmp_path, reduce=False)
    assert kinds(found) == [("warning", "nothing labelled")] * 2
    assert "2 of 4 train labels have no labelled pixel: nothing is learnt there" in found.notes


def test_many_pixels_without_a_label_are_worth_a_warning(tmp_path: Path) -> None:
    found = checked(rooms(tmp_path, 0, 1, 2, 255, 255, 255, 255), reduce=False)
    assert kinds(found) == [("warning", "pixels without a label")]
    assert "56% of the pixels of the train labels are not labelled, nothing is learnt there" in str(found.findings[0])


def stored_as_tiff(root: Path, values: np.ndarray) -> DataCheckResult:
    """The check of labels as TIFFs of other numbers than bytes."""
    for path in (root / "labels").glob("*.png"):
        Image.fromarray(np.resize(values, SIZE)).save(path, "TIFF")
    return checked(root, reduce=False)


def test_label_checker_reads_32_bit_integers(tmp_path: Path) -> None:
    found = stored_as_tiff(rooms(tmp_path, 0), np.array([0, 1, 2], np.int32))
    assert found.errors == []
    assert ("warning", "32-bit labels") in kinds(found)
    found = stored_as_tiff(rooms(tmp_path, 0), np.array([0, 1, 70_000], np.int32))
    assert {item.kind for item in found.errors} == {"label value"}


def test_label_checker_refuses_floating_point_numbers(tmp_path: Path) -> None:
    found = stored_as_tiff(rooms(tmp_path, 0), np.array([0, 1, 2], np.float32))
    assert {item.kind for item in found.errors} == {"32-bit labels"}
    assert "8 bits" in found.errors[0].fix
