"""ADE20K-format data: every image has its labels, and every label is a class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.dataset import ClassBalancedDataset
from mmengine.registry import DefaultScope
from PIL import Image

from backbones import UserError
from segmentation.data import IGNORE_INDEX, LabelPngDataset, LoadLabels

CLASSES = ("wall", "sky", "tree")


@pytest.fixture
def rooms(tmp_path: Path) -> Path:
    for stem in ("b", "a", "deeper/c"):
        for folder, suffix, mode in (("images", ".jpg", "RGB"), ("labels", ".png", "L")):
            path = tmp_path / folder / f"{stem}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new(mode, (8, 6)).save(path)
    return tmp_path


def dataset(root: Path, **options: Any) -> LabelPngDataset:
    return LabelPngDataset(
        data_root=str(root),
        data_prefix=dict(img_path="images", seg_map_path="labels"),
        metainfo=dict(classes=CLASSES, palette=[(0, 0, 0)] * 3),
        **options,
    )


def test_label_png_dataset_pairs_images_and_labels(rooms: Path) -> None:
    found = dataset(rooms, reduce_zero_label=True)
    assert found.metainfo["classes"] == CLASSES
    pairs = [(found.get_data_info(i)["img_path"], found.get_data_info(i)["seg_map_path"]) for i in range(len(found))]
    assert pairs == [
        (str(rooms / f"images/{stem}.jpg"), str(rooms / f"labels/{stem}.png")) for stem in ("a", "b", "deeper/c")
    ]


def test_label_png_dataset_of_listed_images(rooms: Path) -> None:
    (rooms / "split.txt").write_bytes("deeper/c \r\n\nb\n".encode("utf-8-sig"))
    found = dataset(rooms, ann_file="split.txt")
    paths = [found.get_data_info(index)["img_path"] for index in range(len(found))]
    assert paths == [str(rooms / "images/deeper/c.jpg"), str(rooms / "images/b.jpg")]
    assert found.get_data_info(0)["seg_map_path"] == str(rooms / "labels/deeper/c.png")
    with pytest.raises(UserError, match=r"absent\.txt' is no file with a name of an image per line"):
        dataset(rooms, ann_file="absent.txt")


def test_label_png_dataset_of_several_suffixes(rooms: Path) -> None:
    Image.new("RGB", (8, 6)).save(rooms / "images/d.JPG")
    Image.new("L", (8, 6)).save(rooms / "labels/d.png")
    found = dataset(rooms, img_suffix=[".jpg", ".JPG"])
    paths = [found.get_data_info(index)["img_path"] for index in range(len(found))]
    assert paths == [str(rooms / f"images/{name}") for name in ("a.jpg", "b.jpg", "d.JPG", "deeper/c.jpg")]
    (rooms / "split.txt").write_text("d\na\n")
    found = dataset(rooms, img_suffix=[".jpg", ".JPG"], ann_file="split.txt")
    assert [found.get_data_info(index)["img_path"] for index in range(2)] == [paths[2], paths[0]]
    Image.new("RGB", (8, 6)).save(rooms / "images/d.jpg")
    with pytest.raises(UserError, match=r"d\.JPG and d\.jpg have the same labels"):
        dataset(rooms, img_suffix=[".jpg", ".JPG"])


def test_label_png_dataset_of_listed_images_needs_no_labels_for_the_others(rooms: Path) -> None:
    """As in Pascal VOC, where a sixth of the images have labels."""
    (rooms / "labels/a.png").unlink()
    (rooms / "split.txt").write_text("b\n")
    assert len(dataset(rooms, ann_file="split.txt")) == 1


@pytest.mark.parametrize(
    "reduce, load, classes",
    [
        *((False, {}, [0, 2]), (True, {}, [1]), (False, {"unlabelled": 2}, [0])),
        (False, {"label_values": [255, 2, 0]}, [0, 1, 2]),
    ],
)
def test_label_png_dataset_says_the_classes_of_an_image(
    reduce: bool, load: dict[str, Any], classes: list[int], rooms: Path
) -> None:
    Image.fromarray(np.array([[0, 2, 255, 0]], np.uint8)).save(rooms / "labels/a.png")
    steps = [LoadLabels(len(CLASSES), **load)]
    assert dataset(rooms, reduce_zero_label=reduce, pipeline=steps).get_cat_ids(0) == classes
    Image.fromarray(np.array([[2, 0]], np.uint8)).save(rooms / "labels/a.png")
    repeated = ClassBalancedDataset(dataset(rooms, reduce_zero_label=False), oversample_thr=1.0)
    stems = sorted(Path(repeated.get_data_info(i)["img_path"]).stem for i in range(len(repeated)))
    assert stems == ["a", "a", "b", "c"]  # one of the three has class 2


@pytest.mark.parametrize(
    "lost, message", [("labels/a.png", "'a' has no labels"), ("images/deeper/c.jpg", "'deeper/c' has no image")]
)
def test_label_png_dataset_refuses_a_file_without_its_partner(rooms: Path, lost: str, message: str) -> None:
    (rooms / lost).unlink()
    with pytest.raises(UserError, match=f"1 files under .* have no partner: {message}"):
        dataset(rooms)


def test_label_png_dataset_of_missing_and_empty_folders(rooms: Path) -> None:
    with pytest.raises(UserError, match=r"no \.webp file in"):
        dataset(rooms, img_suffix=".webp")
    with pytest.raises(UserError, match=r"no folder .*images"):
        dataset(rooms / "elsewhere")


def loaded(labels: np.ndarray, folder: Path, reduce: bool, palette: bool = False, **options: Any) -> np.ndarray:
    path = folder / "labels.png"
    image = Image.fromarray(labels.astype(np.uint8))
    if palette:
        image.putpalette([value for i in range(256) for value in (i, 255 - i, 7 * i % 256)])
    image.save(path)
    results = {"seg_map_path": str(path), "reduce_zero_label": reduce, "seg_fields": []}
    return LoadLabels(len(CLASSES), reduce, **options).transform(results)["gt_seg_map"]


def test_load_labels_values_are_the_classes(tmp_path: Path) -> None:
    stored = np.array([[0, 1, 2], [255, 2, 0]])
    assert loaded(stored, tmp_path, reduce=False).tolist() == stored.tolist()


def test_load_labels_zero_can_mean_not_labelled(tmp_path: Path) -> None:
    stored = np.array([[0, 1, 2], [255, 3, 0]])
    assert loaded(stored, tmp_path, reduce=True).tolist() == [[IGNORE_INDEX, 0, 1], [IGNORE_INDEX, 2, IGNORE_INDEX]]


def test_load_labels_ignores_a_palette(tmp_path: Path) -> None:
    stored = np.array([[0, 1, 2], [2, 1, 0]])
    assert loaded(stored, tmp_path, reduce=False, palette=True).tolist() == stored.tolist()


@pytest.mark.parametrize("reduce, least", [(False, 3), (True, 4)])
def test_load_labels_refuses_a_value_that_is_no_class(tmp_path: Path, reduce: bool, least: int) -> None:
    loaded(np.array([[least - 1, 0], [0, 0]]), tmp_path, reduce)
    message = rf"labels\.png: label value {least} stands for no class \(3 classes, reduce_zero_label={reduce}\)"
    with pytest.raises(UserError, match=message):
        loaded(np.array([[1, least], [200, 1]]), tmp_path, reduce)


@pytest.mark.parametrize("reduce", [False, True])
def test_load_labels_unlabelled_is_another_value(tmp_path: Path, reduce: bool) -> None:
    shift = int(reduce)
    stored = np.array([[shift, 99], [255, 2 + shift]])
    assert loaded(stored, tmp_path, reduce, unlabelled=99).tolist() == [[0, IGNORE_INDEX], [IGNORE_INDEX, 2]]


def test_load_labels_classes_can_have_any_values(tmp_path: Path) -> None:
    stored = np.array([[0, 255], [38, 9]])
    assert loaded(stored, tmp_path, False, unlabelled=9, label_values=(38, 0, 255)).tolist() == [[1, 2], [0, 255]]
    assert loaded(stored, tmp_path, False, unlabelled=9, label_values=(38, 0, 200)).tolist() == [[1, 255], [0, 255]]
    with pytest.raises(UserError, match=r"label value 9 stands for no class \(label_values=\(38, 0, 255\)\)"):
        loaded(stored, tmp_path, False, label_values=(38, 0, 255))
    for reduce, values in ((False, (0, 1)), (False, (0, 1, 1)), (False, (0, 1, 256)), (True, (0, 1, 2))):
        with pytest.raises(UserError, match="needs 3 different numbers from 0 to 255, one for each class, and no red"):
            loaded(stored, tmp_path, reduce, label_values=values)
    with pytest.raises(UserError, match="unlabelled=1 is a class in label_values"):
        loaded(stored, tmp_path, False, unlabelled=1, label_values=(0, 1, 2))


def test_load_labels_refuses_coloured_labels(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"labels\.png: a label image has one channel.*not 3"):
        loaded(np.zeros((4, 5, 3)), tmp_path, reduce=False)


def test_label_png_dataset_with_load_labels(rooms: Path) -> None:
    pipeline = [dict(type="LoadCheckedImage"), dict(type="LoadLabels", num_classes=3, reduce_zero_label=True)]
    with DefaultScope.overwrite_default_scope("mmseg"):
        item = dataset(rooms, reduce_zero_label=True, pipeline=pipeline)[0]
    assert item["img"].shape == (6, 8, 3)
    assert (item["gt_seg_map"] == IGNORE_INDEX).all()


@pytest.mark.parametrize(
    "stored, message",
    [
        (np.array([[0.0, 1.5]], np.float32), "32-bit floating-point numbers: save the class numbers with 8 bits"),
        (np.array([[0, -1]], np.int32), "label value -1 stands for no class"),
        (np.array([[0, 70_000]], np.int32), "label value 70000 stands for no class"),
        (np.array([[0, 2]], np.int32), None),
    ],
)
def test_load_labels_of_32_bits(tmp_path: Path, stored: np.ndarray, message: str | None) -> None:
    path = tmp_path / "labels.tif"
    Image.fromarray(stored).save(path)
    results = {"seg_map_path": str(path), "reduce_zero_label": False, "seg_fields": []}
    if message is None:
        assert LoadLabels(3, False).transform(results)["gt_seg_map"].tolist() == stored.tolist()
        return
    with pytest.raises(UserError, match=message):
        LoadLabels(3, False).transform(results)
