"""Mistakes in COCO annotation files, each field in turn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

import detection  # noqa: F401
from backbones import UserError
from detection.data import CocoInstances
from engine.data.check import check_datasets
from engine.data.findings import DataCheckResult

CLASSES = ("cat", "dog")
BOX = [2, 3, 10, 8]
POLYGON = [2, 3, 12, 3, 12, 11, 2, 11]


def content() -> dict[str, Any]:
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 30, "height": 20} for i in (1, 2)]
    categories = [{"id": 7, "name": "dog"}, {"id": 5, "name": "cat"}]
    objects = [
        {
            "id": i,
            "image_id": 1 + i % 2,
            "category_id": 5 + 2 * (i % 2),
            "bbox": list(BOX),
            "area": 80,
            "iscrowd": 0,
            "segmentation": [list(POLYGON)],
        }
        for i in range(1, 21)
    ]
    return {"images": images, "annotations": objects, "categories": categories}


def write(folder: Path, data: Any) -> Path:
    (folder / "images").mkdir(exist_ok=True)
    for i in (1, 2):
        Image.fromarray(np.full((20, 30, 3), 60 * i, np.uint8)).save(folder / f"images/{i}.jpg")
    (folder / "a.json").write_text(data if isinstance(data, str) else json.dumps(data))
    return folder


def checked(
    folder: Path,
    classes: tuple[str, ...] = CLASSES,
    masks: bool = True,
    loading: str = "LoadAnnotations",
) -> DataCheckResult:
    dataset = dict(
        type="CocoInstances",
        data_root=str(folder),
        ann_file="a.json",
        data_prefix=dict(img="images/"),
        metainfo=dict(classes=classes),
        pipeline=[dict(type="NoSuchStep"), dict(type=loading, with_bbox=True, with_mask=masks)],
    )
    return check_datasets(Config(dict(default_scope="mmdet", train_dataloader=dict(dataset=dataset))), ("train",))


def kinds(found: DataCheckResult) -> list[tuple[str, str]]:
    return [(item.level, item.kind) for item in found.findings]


def setting(part: str, index: int, **fields: Any) -> Callable[[dict[str, Any]], None]:
    """A change of some fields of one entry; ``None`` removes a field."""

    def change(data: dict[str, Any]) -> None:
        for name, value in fields.items():
            data[part][index][name] = value
            if value is None:
                del data[part][index][name]

    return change


SECOND_CAT = {"id": 9, "name": "cat"}
NAN, INF = float("nan"), float("inf")
RLE = {"size": [20, 30], "counts": [100, 80, 420]}
HARM = {
    "image without a name": (setting("images", 0, file_name=None), "error", "image field"),
    "image name is a number": (setting("images", 0, file_name=9), "error", "image field"),
    "image without a width": (setting("images", 0, width=None), "error", "image field"),
    "image without an id": (setting("images", 0, id=None), "error", "image field"),
    "image of no height": (setting("images", 0, height=0), "error", "image field"),
    "image is a list": (lambda data: data["images"].append([]), "error", "image field"),
    "image of another size": (setting("images", 0, width=31), "error", "image size"),
    "image id twice": (setting("images", 1, id=1), "error", "duplicate image id"),
    "image name twice": (setting("images", 1, file_name="1.jpg"), "warning", "duplicate file name"),
    "image that is absent": (setting("images", 0, file_name="9.jpg"), "error", "missing image"),
    "image above its folder": (setting("images", 0, file_name="../1.jpg"), "error", "path"),
    "image anywhere": (setting("images", 0, file_name="/etc/passwd"), "error", "path"),
    "no images": (lambda data: data.update(images=[]), "error", "no images"),
    "images is no list": (lambda data: data.update(images={}), "error", "annotation file"),
    "without annotations": (lambda data: data.pop("annotations"), "error", "annotation file"),
    "no objects": (lambda data: data.update(annotations=[]), "error", "no objects"),
    "category id twice": (setting("categories", 1, id=7), "error", "duplicate category id"),
    "category name twice": (lambda data: data["categories"].append(SECOND_CAT), "error", "duplicate category"),
    "category without a name": (setting("categories", 1, name=None), "error", "category field"),
    "category of another name": (setting("categories", 1, name="Cat"), "error", "classes"),
    "object id twice": (setting("annotations", 0, id=2), "error", "duplicate annotation id"),
    "object without an id": (setting("annotations", 0, id=None), "error", "annotation field"),
    "object of no image": (setting("annotations", 0, image_id=99), "warning", "unknown image"),
    "object of no category": (setting("annotations", 0, category_id=99), "error", "unknown category"),
    "object without a category": (setting("annotations", 0, category_id="cat"), "error", "annotation field"),
    "no box": (setting("annotations", 0, bbox=None), "error", "box field"),
    "box of three": (setting("annotations", 0, bbox=[1, 2, 3]), "error", "box field"),
    "box of words": (setting("annotations", 0, bbox=["1", "2", "3", "4"]), "error", "box field"),
    "box with NaN": (setting("annotations", 0, bbox=[1, NAN, 3, 4]), "error", "box field"),
    "box without end": (setting("annotations", 0, bbox=[1, 2, INF, 4]), "error", "box field"),
    "empty box": (setting("annotations", 0, bbox=[2, 3, 0, 8]), "warning", "empty box"),
    "inverted box": (setting("annotations", 0, bbox=[12, 3, -10, 8]), "warning", "inverted box"),
    "box elsewhere": (setting("annotations", 0, bbox=[40, 3, 10, 8]), "warning", "box outside the image"),
    "box over the edge": (setting("annotations", 0, bbox=[25, 3, 10, 8]), "warning", "box over the edge"),
    "box over the upper edge": (setting("annotations", 0, bbox=[2, -3, 10, 8]), "warning", "box over the edge"),
    "area is text": (setting("annotations", 0, area="80"), "error", "area field"),
    "area NaN": (setting("annotations", 0, area=NAN), "error", "area field"),
    "area zero": (setting("annotations", 0, area=0), "warning", "empty object"),
    "area too large": (setting("annotations", 0, area=200), "warning", "area"),
    "crowd of two": (setting("annotations", 0, iscrowd=2), "warning", "iscrowd"),
    "no mask": (setting("annotations", 0, segmentation=None), "error", "mask field"),
    "empty mask": (setting("annotations", 0, segmentation=[]), "error", "mask field"),
    "mask is text": (setting("annotations", 0, segmentation="abc"), "error", "mask field"),
    "flat polygon": (setting("annotations", 0, segmentation=POLYGON), "error", "mask field"),
    "polygon with NaN": (setting("annotations", 0, segmentation=[[*POLYGON[:5], NAN]]), "error", "mask field"),
    "polygon of two points": (setting("annotations", 0, segmentation=[POLYGON[:4]]), "warning", "polygon"),
    "polygon of half a point": (setting("annotations", 0, segmentation=[POLYGON[:7]]), "warning", "polygon"),
    "code of another size": (setting("annotations", 0, segmentation={**RLE, "size": [30, 20]}), "error", "mask field"),
    "code too short": (setting("annotations", 0, segmentation={**RLE, "counts": [9]}), "error", "mask field"),
    "code of words": (setting("annotations", 0, segmentation={**RLE, "counts": ["9"]}), "error", "mask field"),
    "no code": (setting("annotations", 0, segmentation={"size": [20, 30]}), "error", "mask field"),
}  # fmt: skip


def test_coco_checker_of_sound_annotations(tmp_path: Path) -> None:
    data = content()
    data["annotations"][0].update(iscrowd=1, segmentation=RLE)
    data["annotations"][1].update(segmentation={**RLE, "counts": "T3`2T="}, bbox=[20.5, 3, 11, 8])
    del data["annotations"][2]["iscrowd"]
    found = checked(write(tmp_path, data))
    assert found.findings == []
    assert found.inspected == {"train images": (2, 2)}


@pytest.mark.parametrize("name", HARM)
def test_coco_checker_finds_a_single_fault(tmp_path: Path, name: str) -> None:
    change, level, kind = HARM[name]
    data = content()
    change(data)
    found = checked(write(tmp_path, data))
    assert (level, kind) in kinds(found)
    if level == "warning":
        assert not found.errors
    assert all("\n" not in str(item) and len(str(item)) < 600 for item in found.findings)


@pytest.mark.parametrize("text", ["", "{", "[]", '"text"', "[" * 100_000, "\0"])
def test_coco_checker_of_a_file_in_another_format(tmp_path: Path, text: str) -> None:
    assert kinds(checked(write(tmp_path, text))) == [("error", "annotation file")]


def test_coco_checker_needs_masks_where_they_are_trained_on(tmp_path: Path) -> None:
    data = content()
    setting("annotations", 0, segmentation=None)(data)
    assert checked(write(tmp_path, data), masks=False).findings == []
    assert kinds(checked(write(tmp_path, data), loading="mmdet.LoadAnnotations")) == [("error", "mask field")]


def test_coco_checker_compares_classes_with_categories(tmp_path: Path) -> None:
    found = checked(write(tmp_path, content()), ("cat", "dgo"))
    assert [item.kind for item in found.findings] == ["classes", "category without a class"]
    assert "classes: 1 of 2 are no category of the annotation file ('dgo'...)" in found.findings[0].problem
    assert found.findings[0].problem.endswith("nearest: 'dog'")
    assert "its 10 objects are background" in found.findings[1].problem


def test_coco_checker_warns_of_a_class_without_objects(tmp_path: Path) -> None:
    data = content()
    for item in data["annotations"]:
        item["category_id"] = 5
    assert kinds(checked(write(tmp_path, data))) == [("warning", "class without objects")]


@pytest.mark.parametrize(
    "box, fix",
    [
        ([0.1, 0.2, 0.4, 0.3], "in pixels, not in parts of the image"),
        ([15, 8, 25, 16], "not x1, y1, x2, y2"),
    ],
)
def test_coco_checker_recognises_other_box_formats(tmp_path: Path, box: list[float], fix: str) -> None:
    data = content()
    for item in data["annotations"]:
        item["bbox"] = box
    errors = checked(write(tmp_path, data)).errors
    assert [item.kind for item in errors] == ["boxes"]
    assert fix in errors[0].fix


def test_coco_checker_refuses_crowds_alone(tmp_path: Path) -> None:
    data = content()
    for item in data["annotations"]:
        item["iscrowd"] = 1
    assert kinds(checked(write(tmp_path, data))) == [("error", "crowds")]


def test_a_turned_image_whose_size_tells_nothing_of_its_boxes(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    path = write(tmp_path, content()) / "images/1.jpg"
    Image.open(path).save(path, exif=exif)
    (item,) = checked(tmp_path).findings
    assert (item.level, item.kind, item.file) == ("warning", "turned image", str(path))


def test_coco_checker_names_exif_orientation_as_the_cause(tmp_path: Path) -> None:
    write(tmp_path, content())
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (30, 20)).save(tmp_path / "images/1.jpg", exif=exif)
    (item,) = checked(tmp_path).findings
    assert item.problem == "is 20 x 30 as its EXIF orientation 8 turns it, the annotations say 30 x 20"


def test_coco_instances_refuses_names_that_lead_out(tmp_path: Path) -> None:
    data = content()
    data["images"][0]["file_name"] = "../secret.jpg"
    write(tmp_path, data)
    with pytest.raises(UserError, match=r"file name '\.\./secret\.jpg' leads out of"):
        CocoInstances(
            ann_file="a.json",
            data_root=str(tmp_path),
            data_prefix=dict(img="images/"),
            metainfo=dict(classes=CLASSES),
            pipeline=[],
        )


def of_other_splits(folder: Path, classes: tuple[str, ...], split: str = "val") -> DataCheckResult:
    dataset = dict(
        type="CocoInstances",
        data_root=str(folder),
        ann_file="a.json",
        data_prefix=dict(img="images/"),
        metainfo=dict(classes=classes),
        test_mode=True,
    )
    return check_datasets(Config({"default_scope": "mmdet", f"{split}_dataloader": dict(dataset=dataset)}), (split,))


def test_a_class_without_validation_objects_is_a_warning_that_names_it(tmp_path: Path) -> None:
    data = content()
    for item in data["annotations"]:
        item.update(category_id=5) if item["id"] > 1 else item.update(category_id=7, iscrowd=1)
    (item,) = of_other_splits(write(tmp_path, data), CLASSES).findings
    assert (item.level, item.kind) == ("warning", "class without objects")
    assert item.problem == "has no val object of 'dog', of which no AP is counted"
    data["categories"] += [{"id": 20 + i, "name": f"fish {i}"} for i in range(9)]
    write(tmp_path, data)
    (item,) = of_other_splits(tmp_path, (*CLASSES, *(f"fish {i}" for i in range(9))), "test").findings
    assert item.problem.startswith(
        "has no test object of 'dog', 'fish 0', 'fish 1', 'fish 2', 'fish 3', 'fish 4' and 4"
    )


def test_a_validation_file_may_lack_a_class(tmp_path: Path) -> None:
    write(tmp_path, content())
    (item,) = of_other_splits(tmp_path, ("cat", "dogs", "dog")).findings
    assert (item.level, item.kind) == ("warning", "class without a category")
    assert item.problem == "has no category 'dogs', of 3 classes: no AP of them is counted; nearest: 'dog'"
    assert [item.level for item in of_other_splits(tmp_path, ("owl", "hare")).findings][:1] == ["error"]


@pytest.mark.parametrize("other, levels", [("owl", ["warning", "warning"]), ("hare", ["error", "error", "warning"])])
def test_a_part_of_the_training_data_may_lack_what_another_has(tmp_path: Path, other: str, levels: list[str]) -> None:
    parts = []
    for name in ("cat", other):
        data = content()
        data["categories"][1]["name"] = name
        (tmp_path / name).mkdir()
        settings = dict(type="CocoInstances", data_root=str(write(tmp_path / name, data)), ann_file="a.json")
        parts.append(dict(settings, data_prefix=dict(img="images/"), metainfo=dict(classes=("cat", "dog", "owl"))))
    loader = dict(dataset=dict(type="ConcatDataset", datasets=parts))
    found = check_datasets(Config(dict(default_scope="mmdet", train_dataloader=loader)), ("train",))
    assert [item.level for item in found.findings] == levels
    if other == "owl":
        assert [item.problem.split(":")[0] for item in found.findings] == [
            "has no category 'owl', of 3 classes",
            "has no category 'cat', of 3 classes",
        ]


@pytest.mark.parametrize("count, found", [(1, ["warning"]), (10, ["warning"] * 10), (11, ["error"]), (20, ["error"])])
def test_masks_outside_their_images_are_one_error_where_they_are_most(
    tmp_path: Path, count: int, found: list[str]
) -> None:
    data = content()
    for item in data["annotations"][:count]:
        item["segmentation"] = [[value + 100 for value in POLYGON]]
    findings = checked(write(tmp_path, data)).findings
    assert [item.level for item in findings] == found
    if "error" in found:
        assert findings[0].problem == f"the polygons of {count} of 20 objects lie outside their images"
