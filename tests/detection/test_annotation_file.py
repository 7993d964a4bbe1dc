"""Entries of an annotation file are read one by one, and are the ones that a reading of the whole gives."""

from __future__ import annotations

import copy
import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmdet.datasets import CocoDataset

from backbones.errors import DataError
from detection import annotation_file
from detection.annotation_file import AnnotationFile, list_entries
from detection.data import CocoInstances, CompletedCOCO

CLASSES = ("dog", "straße", "7")
CONTENT: dict[str, Any] = {
    "info": {"description": 'braces } ] and "quotes\\" in text'},
    "annotations": [],
    "categories": [
        {"id": 9, "name": "dog"},
        {"id": 2, "name": "straße"},
        {"id": 4, "name": 7},
        {"id": 5, "name": "none of the classes"},
    ],
    "images": [],
}


def content(images: int = 40, objects: int = 200) -> dict[str, Any]:
    """Images in no order and with names beyond ASCII, with objects of every kind in no order."""
    random, made = np.random.default_rng(0), copy.deepcopy(CONTENT)
    ids = random.permutation(1000)[:images].tolist()
    for place, number in enumerate(ids):
        size = {"height": 90 if place % 7 else 20, "width": 120}
        made["images"].append({"id": number, "file_name": f"bild_ä_{number}.jpg", **size})
    for number in range(objects):
        x, y, width, height = random.uniform(-5, 60, 4).round(2).tolist()
        one: dict[str, Any] = {
            "id": number + 5,
            "image_id": int(random.choice(ids[:-3])),
            "iscrowd": int(number % 9 == 0),
        }
        one |= {"category_id": int(random.choice([9, 2, 4, 5])), "bbox": [x, y, width, height]}
        one["iscrowd"] = int(number % 9 == 0)
        if number % 4:
            one["area"] = float(width * height * 0.5) if number % 8 != 2 else 0
        polygon = random.uniform(0, 80, 8).round(2).tolist()
        one["segmentation"] = {"size": [90, 120], "counts": [10, 20, 10770]} if number % 5 == 0 else [polygon]
        if number % 11 == 0:
            one["ignore"] = 1
        made["annotations"].append(one)
    return made


def write(path: Path, made: Any, **style: Any) -> Path:
    path.write_text(json.dumps(made, **style), encoding="utf-8")
    return path


class WholeFile(CocoInstances):
    """The same data set by mmdet's own reading of the whole file."""

    load_data_list = CocoDataset.load_data_list


def build(kind: type, path: Path, **settings: Any) -> Any:
    filters = dict(filter_empty_gt=True, min_size=32)
    return kind(ann_file=str(path), metainfo=dict(classes=CLASSES), filter_cfg=filters, pipeline=[], **settings)


@pytest.mark.parametrize("kept", [False, True], ids=["in memory", "kept"])
@pytest.mark.parametrize("style", [{}, {"indent": 1}, {"separators": (",", ":"), "ensure_ascii": False}], ids=str)
@pytest.mark.parametrize("settings", [{}, {"test_mode": True}, {"indices": 9}, {"indices": [5, 1, 2]}], ids=str)
def test_samples_are_those_of_a_reading_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool, style: dict[str, Any], settings: dict[str, Any]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(annotation_file, "WINDOW_BYTES", 300)
    if kept:
        monkeypatch.setattr(annotation_file, "MIN_KEPT_BYTES", 0)
    path = write(tmp_path / "a.json", content(), **style)
    ours, theirs = build(CocoInstances, path, **settings), build(WholeFile, path, **settings)
    assert len(ours) == len(theirs) > 0
    assert not hasattr(ours, "data_bytes")
    again = pickle.loads(pickle.dumps(ours.get_subset(list(range(len(ours))))))
    for index in range(-1, len(theirs)):
        expected = pickle.dumps(theirs.get_data_info(index))
        assert pickle.dumps(json_like(ours.get_data_info(index))) == pickle.dumps(json_like(pickle.loads(expected)))
        assert ours.get_data_info(index) == again.get_data_info(index)
    assert (tmp_path / "cache").exists() == kept


def json_like(info: dict[str, Any]) -> Any:
    """A sample without sharing of objects, whose pickle tells types and the last bit."""
    return [(key, repr(value)) for key, value in info.items()]


def test_the_kept_table_follows_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(annotation_file, "MIN_KEPT_BYTES", 0)
    path = write(tmp_path / "a.json", content())
    read: list[Any] = []
    monkeypatch.setattr(annotation_file, "list_entries", lambda file: read.append(0) or list_entries(file))
    assert len(AnnotationFile(path).annotations) == len(AnnotationFile(path).annotations) == 200
    assert len(read) == 1
    before = AnnotationFile(path)
    write(path, content(objects=3))
    with pytest.raises(DataError, match="has changed since its images were listed: start again"):
        before.annotations[0]
    assert len(AnnotationFile(path).annotations) == 3
    (table,) = (tmp_path / "cache").rglob("*.table")
    table.write_bytes(table.read_bytes()[:-64])
    assert AnnotationFile(path).annotations[2] == content(objects=3)["annotations"][2]
    assert len(read) == 3


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("kept", [False, True], ids=["in memory", "kept"])
def test_a_file_in_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: int, kept: bool) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if kept:
        monkeypatch.setattr(annotation_file, "MIN_KEPT_BYTES", 0)
    with zipfile.ZipFile(tmp_path / "annotations_2017.zip", "w", method) as archive:
        archive.writestr("annotations/a.json", json.dumps(content()))
    for _ in range(2):
        file = AnnotationFile(tmp_path / "annotations/a.json")
        assert list(file.annotations) == content()["annotations"]
    with zipfile.ZipFile(tmp_path / "annotations_2017.zip", "w", method) as archive:
        archive.writestr("annotations/a.json", json.dumps(content(objects=3)))
    assert list(AnnotationFile(tmp_path / "annotations/a.json").annotations) == content(objects=3)["annotations"]
    # Of the archive as it was nothing is left.
    assert [len(list((tmp_path / "cache").rglob(f"annotations/*{end}"))) for end in (".json", ".table")] == [kept] * 2
    assert not (tmp_path / "annotations").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value at byte 0"),
        ('{"images": [{"id": 1}', ", or ] is expected at byte 21, not the end of the file"),
        ('{"images": [{"id": 1},]}', "Expecting value at byte 22"),
        ('{"images": [], }', "\" is expected at byte 15, not '}'"),
        ('{"images": []} {}', "Extra data at byte 15"),
        ('{"images": [{"id": 1 2}]}', "Expecting ',' delimiter at byte 21"),
        ('{"images": [{"id": "\udcff"}]}', "'utf-8' codec can't decode byte 0xff in position 20: invalid start byte"),
    ],
)
def test_what_is_no_json(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as told:
        list_entries(io.BytesIO(text.encode("utf-8", "surrogateescape")))
    assert str(told.value) == message
    with pytest.raises(ValueError, match=r"."):
        json.loads(text.encode("utf-8", "surrogateescape"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda made: made.pop("images"), "has no list 'images'"),
        (lambda made: made["annotations"][1].pop("image_id"), "has no id, image_id or category_id"),
        (lambda made: made["images"][1].pop("width"), "has no id, file_name, width or height"),
        (lambda made: made["annotations"].append(made["annotations"][3]), "annotation id 8 occurs 2 times"),
    ],
)
def test_an_entry_that_cannot_be_used_is_one_line(tmp_path: Path, change: Any, message: str) -> None:
    made = content()
    change(made)
    path = write(tmp_path / "a.json", made)
    with pytest.raises(DataError) as told:
        build(CocoInstances, path)
    assert str(told.value).startswith(f"{path}: ")
    assert str(told.value).endswith(f"{message}: tools/check_data.py CONFIG finds all of it")


def test_of_two_images_with_one_id_the_last_counts_as_in_coco(tmp_path: Path) -> None:
    made = content()
    made["images"].append({**made["images"][3], "file_name": "last.jpg"})
    path = write(tmp_path / "a.json", made)
    ours, theirs = (build(kind, path, test_mode=True) for kind in (CocoInstances, WholeFile))
    assert [ours.get_data_info(i) for i in range(len(ours))] == [theirs.get_data_info(i) for i in range(len(theirs))]
    assert issubclass(ours.COCOAPI, CompletedCOCO)
