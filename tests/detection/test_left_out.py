"""Objects and images that training leaves out are counted as mmdet leaves them out, and said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from pycocotools import mask as masks

import detection  # noqa: F401
from detection.annotations import fill_areas
from detection.coco_metric import FastCocoMetric
from detection.data import CocoInstances
from detection.left_out import CROWD, IN_DROPPED_IMAGE, MARKED, NO_AREA, NO_BOX, NO_MASK, count_left_out
from engine.data.check import check_datasets
from engine.data.findings import DataCheckResult

CLASSES = ("cat", "dog")
SIDE = 40
FILTERS = dict(filter_empty_gt=True, min_size=32)


def an_object(number: int, image: int, **fields: Any) -> dict[str, Any]:
    polygon = [2, 3, 12, 3, 12, 11, 2, 11]
    plain = {"id": number, "image_id": image, "category_id": 1 + number % 2, "bbox": [2, 3, 10, 8], "area": 80}
    return {**plain, "iscrowd": 0, "segmentation": [polygon], **fields}


def content(objects: list[dict[str, Any]], images: int = 20) -> dict[str, Any]:
    rows = [{"id": i, "file_name": f"{i}.png", "width": SIDE, "height": SIDE} for i in range(1, images + 1)]
    return {
        "images": rows,
        "annotations": objects,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "hare"}],
    }


def written(folder: Path, data: dict[str, Any]) -> Path:
    for i, image in enumerate(data["images"]):
        array = np.full((image["height"], image["width"], 3), i, np.uint8)
        Image.fromarray(array).save(folder / image["file_name"])
    (folder / "a.json").write_text(json.dumps(data))
    return folder


def checked(folder: Path, split: str = "train", **settings: Any) -> DataCheckResult:
    dataset = dict(
        type="CocoInstances", data_root=str(folder), ann_file="a.json", metainfo=dict(classes=CLASSES), **settings
    )
    loader = {f"{split}_dataloader": dict(dataset=dataset)}
    return check_datasets(Config(dict(default_scope="mmdet", **loader)), (split,))


def mixed() -> dict[str, Any]:
    """Every reason for which an object or an image is left out."""
    objects = [an_object(i, i) for i in range(1, 9)]
    objects += [
        an_object(20, 1, iscrowd=1),
        an_object(21, 9, iscrowd=1),  # alone in its image
        an_object(22, 2, area=0),
        an_object(23, 2, ignore=1),
        an_object(24, 2, bbox=[2, 3, 0.5, 8]),
        an_object(25, 2, bbox=[90, 90, 5, 5]),
        an_object(26, 3, category_id=3),  # no class
        an_object(27, 10, category_id=3),
        an_object(28, 11),
    ]
    data = content(objects, images=13)
    data["images"][10]["height"] = data["images"][11]["height"] = 31  # the latter has no object either
    return data


def test_the_counts_are_those_of_the_data_set(tmp_path: Path) -> None:
    data = mixed()
    images = {image["id"]: image for image in data["images"]}
    counts = count_left_out(data["annotations"], images, {1, 2}, FILTERS)
    assert counts.objects == {CROWD: 2, NO_AREA: 1, MARKED: 1, NO_BOX: 2, IN_DROPPED_IMAGE: 1}
    assert (counts.small_images, counts.empty_images, counts.background_images) == (2, 2, 1)
    folder = written(tmp_path, data)
    kept = CocoInstances(
        ann_file="a.json",
        data_prefix=dict(img=""),
        data_root=str(folder),
        metainfo=dict(classes=CLASSES),
        filter_cfg=FILTERS,
        pipeline=[],
    )
    instances = [one for i in range(len(kept)) for one in kept.get_data_info(i)["instances"]]
    assert len(kept) == counts.total_images - counts.small_images - counts.empty_images
    assert sum(not one["ignore_flag"] for one in instances) == counts.total_objects - counts.objects.total()
    alone = [all(one["ignore_flag"] for one in kept.get_data_info(i)["instances"]) for i in range(len(kept))]
    assert sum(alone) == counts.background_images


def test_the_check_says_what_is_left_out(tmp_path: Path) -> None:
    found = checked(written(tmp_path, mixed()), filter_cfg=FILTERS)
    objects, images, background, *_ = found.notes
    assert objects.startswith("objects of the train data that are trained on: 8 of 15; not these: 2 crowds")
    assert "1 with an area of 0" in objects
    assert "1 marked with ignore" in objects
    assert images == (
        "images of the train data that are trained on: 9 of 13; not these: 2 are smaller than 32 pixels, "
        "2 have no object of the classes"
    )
    assert background == "1 images of the train data are learnt as background alone"
    kinds = {item.kind for item in found.findings}
    assert {"crowds", "small images", "images without objects"} <= kinds
    validated = checked(tmp_path, "val", test_mode=True)
    assert validated.notes[0].startswith("objects of the val data that are scored: 9 of 15")
    assert not any("images" in note for note in validated.notes[1:])


@pytest.mark.parametrize("crowds, level", [(0, None), (1, None), (2, "warning"), (10, "warning"), (20, "error")])
def test_crowds_above_a_few_percent_are_worth_a_warning(crowds: int, level: str | None, tmp_path: Path) -> None:
    objects = [an_object(i, i, iscrowd=int(i <= crowds)) for i in range(1, 21)]
    found = checked(written(tmp_path, content(objects)))
    assert [item.level for item in found.findings] == ([] if level is None else [level])
    assert bool(found.notes) == (crowds > 0)
    if level:
        assert "crowds, which are ignored" in str(found.findings[0])
        assert "set iscrowd to 0" in str(found.findings[0])


@pytest.mark.parametrize("fields", [{"category_id": 3}, {"ignore": 1}])
@pytest.mark.parametrize("split, level", [("train", ["error"]), ("val", [])])
def test_a_training_without_an_object_is_an_error(
    fields: dict[str, Any], split: str, level: list[str], tmp_path: Path
) -> None:
    """Also where the file has annotations, and images without objects are kept."""
    folder = written(tmp_path, content([an_object(i, i, **fields) for i in range(1, 21)]))
    found = checked(folder, split, filter_cfg=dict(filter_empty_gt=False))
    assert [item.level for item in found.findings if item.kind == "no objects"] == level


@pytest.mark.parametrize("mask", [[[]], [[2, 3, 12, 3]], [[2, 3, 12, 3, 12, 11, 2]]], ids=["empty", "line", "half"])
def test_objects_whose_mask_cannot_be_drawn_are_left_out(mask: Any, tmp_path: Path) -> None:
    """mmdet ignores them where masks are trained on, as of files for boxes that have empty polygons."""
    data = content([an_object(i, i, **({"segmentation": mask} if i > 2 else {})) for i in range(1, 7)], images=6)
    folder = written(tmp_path, data)
    steps = [dict(type="LoadCheckedImage"), dict(type="mmdet.LoadAnnotations", with_bbox=True, with_mask=True)]
    settings = dict(ann_file="a.json", data_root=str(folder), metainfo=dict(classes=CLASSES))
    kept = CocoInstances(pipeline=steps, **settings)
    used = sum(not flag for i in range(6) for flag in kept[i]["gt_ignore_flags"])
    counts = count_left_out(data["annotations"], {one["id"]: one for one in data["images"]}, {1, 2}, {}, with_mask=True)
    assert counts.objects == {NO_MASK: 4}
    assert counts.total_objects - counts.objects.total() == used == 2
    assert "2 of 6; not these: 4 without a polygon" in checked(folder, pipeline=steps).notes[0]
    assert not checked(folder, pipeline=steps[:1]).notes
    for row in data["annotations"]:
        row["segmentation"] = mask
    found = checked(written(folder, data), pipeline=steps)
    assert [item.kind for item in found.errors] == ["no objects"]


def test_areas_of_zero_are_not_blamed_on_the_boxes(tmp_path: Path) -> None:
    objects = [an_object(i, i, area=0 if i <= 10 else 80) for i in range(1, 21)]
    found = checked(written(tmp_path, content(objects)))
    (error,) = found.errors
    assert "10 of 20 objects have an area of 0 and are ignored" in str(error)
    assert "remove the field area" in str(error)
    assert "box" not in str(error)


def test_areas_that_are_not_stated_are_computed(tmp_path: Path) -> None:
    code = masks.encode(np.asfortranarray(np.pad(np.ones((4, 6), np.uint8), 10)))
    text = {"size": code["size"], "counts": code["counts"].decode()}
    objects = [
        an_object(1, 1, area=None),
        an_object(2, 2, segmentation=text),
        an_object(3, 3, segmentation={"size": [SIDE, SIDE], "counts": [100, 30, SIDE * SIDE - 130]}),
        an_object(4, 4, segmentation=[]),
        an_object(5, 5, segmentation=[[1, 2, 3, 4]]),
        an_object(6, 6, segmentation=[[2, 3, 12, 3, 12, 11, 2, 11], [20, 20, 30, 20, 30, 30, 20, 30], [0, 0]]),
        an_object(7, 7, area=3.5),
    ]
    for one in objects[1:6]:
        del one["area"]
    data = content(objects, images=7)
    copied = json.loads(json.dumps(data))
    assert fill_areas(copied) == 6
    assert [one["area"] for one in copied["annotations"]] == [80, 24, 30, 80, 80, 180, 3.5]
    assert fill_areas(copied) == 0
    folder = written(tmp_path, data)
    found = checked(folder)
    assert not found.errors
    assert found.notes == (
        "6 of 7 objects of the train data state no area: it is computed from the mask, without a mask from the box",
    )
    built = CocoInstances(
        ann_file="a.json", data_prefix=dict(img=""), data_root=str(folder), metainfo=dict(classes=CLASSES), pipeline=[]
    )
    assert [len(built.get_data_info(i)["instances"]) for i in range(7)] == [1] * 7
    metric = FastCocoMetric(str(folder / "a.json"), metric=("bbox",))
    metric.dataset_meta = {"classes": CLASSES}
    metric.statistics([])
    assert [one["area"] for one in metric.ground_truth.dataset["annotations"]][:2] == [80, 24]


def test_a_data_set_that_computes_no_areas_needs_them(tmp_path: Path) -> None:
    objects = [an_object(i, i, area=None) for i in range(1, 4)]
    dataset = dict(
        type="CocoDataset",
        data_root=str(written(tmp_path, content(objects, images=3))),
        ann_file="a.json",
        metainfo=dict(classes=CLASSES),
    )
    found = check_datasets(Config(dict(default_scope="mmdet", train_dataloader=dict(dataset=dataset))), ("train",))
    assert [item.kind for item in found.errors] == ["area field"] * 3


def test_categories_that_are_numbers_are_taken_as_text(tmp_path: Path) -> None:
    data = content([an_object(i, i) for i in range(1, 21)])
    data["categories"] = [{"id": 1, "name": 10}, {"id": 2, "name": 9}]
    folder = written(tmp_path, data)
    built = CocoInstances(
        ann_file="a.json",
        data_prefix=dict(img=""),
        data_root=str(folder),
        metainfo=dict(classes=("9", "10")),
        pipeline=[],
    )
    assert [built.get_data_info(i)["instances"][0]["bbox_label"] for i in range(2)] == [0, 1]
    dataset = dict(type="CocoInstances", data_root=str(folder), ann_file="a.json", metainfo=dict(classes=("9", "10")))
    found = check_datasets(Config(dict(default_scope="mmdet", train_dataloader=dict(dataset=dataset))), ("train",))
    assert not found.findings
