"""Every field of a COCO annotation file damaged in turn, in every way: an error that stops, or a warning and a result.

What the check calls sound, or warns of, is then loaded: all samples have to come, with boxes and masks of their images.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

import detection  # noqa: F401
from detection.annotations import names_in_file
from detection.coco_metric import FastCocoMetric
from engine.config.building import building
from engine.config.load import load_config
from engine.config.world import Launch
from engine.data.check import check_datasets
from tests.bad_inputs.builders import CONFIG, contents, pixels, refused

HEIGHT, WIDTH = 40, 60
NAN, INF = float("nan"), float("inf")
ABSENT = object()
CONTENT: dict[str, list[dict[str, Any]]] = {
    "images": [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in (1, 2)],
    "categories": [{"id": 5, "name": "cat"}, {"id": 7, "name": "dog"}],
    "annotations": [
        {
            "id": i,
            "image_id": 1 + i % 2,
            "category_id": 5 + 2 * (i % 2),
            "bbox": [2, 3, 10, 8],
            "area": 80,
            "iscrowd": 0,
            "segmentation": [[2, 3, 12, 3, 12, 11, 2, 11]],
        }
        for i in range(1, 21)
    ],
}
VALUES = {
    "absent": ABSENT,
    "null": None,
    "text": "x",
    "empty text": "",
    "negative": -1,
    "fraction": 0.5,
    "NaN": NAN,
    "infinite": INF,
    "huge": 10**400,
    "an empty list": [],
    "a list of null": [None],
    "a mapping": {},
    "true": True,
}
FIELDS = [(part, field) for part, rows in CONTENT.items() for field in rows[0]]
# All else is an error.
WARNED = {
    "images.id": ["negative"],
    "annotations.image_id": ["negative"],
    "annotations.area": ["negative"],
    "annotations.iscrowd": [name for name in VALUES if name not in ("absent", "true")],
}
SOUND = {
    "annotations.id": ["negative"],
    "annotations.area": ["absent", "null", "fraction"],
    "annotations.iscrowd": ["absent", "true"],
}
SHAPES: dict[str, tuple[Any, str]] = {
    "bbox of three": ([1, 2, 3], "error"),
    "bbox of five": ([1, 2, 3, 4, 5], "error"),
    "bbox of words": (["1", "2", "3", "4"], "error"),
    "bbox of flags": ([True] * 4, "error"),
    "bbox with NaN": ([2, 3, NAN, 8], "error"),
    "bbox beyond any float": ([10**400, 0, 5, 5], "error"),
    "bbox that is inverted": ([12, 11, -10, -8], "warning"),
    "bbox without size": ([2, 3, 0, 0], "warning"),
    "bbox outside": ([100, 100, 5, 5], "warning"),
    "bbox over all edges": ([-9, -9, 1e9, 1e9], "warning"),
    "segmentation of 3.5 points": ([[1, 2, 3, 4, 5, 6, 7]], "warning"),
    "segmentation of two points": ([[1, 2, 3, 4]], "warning"),
    "segmentation of nothing": ([[]], "warning"),
    "segmentation outside": ([[100, 100, 120, 100, 120, 120]], "warning"),
    "segmentation left of the image": ([[-9, 2, -1, 2, -1, 9]], "warning"),
    "segmentation without its list": ([2, 3, 12, 3, 12, 11], "error"),
    "segmentation of points": ([[[1, 2], [3, 4], [5, 6]]], "error"),
    "segmentation of words": (["a"], "error"),
    "segmentation with NaN": ([[1, NAN, 3, 4, 5, 6]], "error"),
    "segmentation in other galaxies": ([[1, 2, 1e30, 4, 5, 1e30]], "error"),
    "segmentation of another size": ({"size": [10, 10], "counts": [40, 20, 40]}, "error"),
    "segmentation of too few pixels": ({"size": [40, 60], "counts": [1, 2]}, "error"),
    "segmentation of negative pixels": ({"size": [40, 60], "counts": [-1, 2401]}, "error"),
    "segmentation without a pixel": ({"size": [40, 60], "counts": [2400]}, "error"),
    "segmentation without counts": ({"size": [40, 60]}, "error"),
    "segmentation without size": ({"counts": [100, 80, 2220]}, "error"),
    "segmentation by empty counts": ({"size": [40, 60], "counts": []}, "error"),
    "segmentation by empty text": ({"size": [40, 60], "counts": ""}, "error"),
    "segmentation by other text": ({"size": [40, 60], "counts": "no code ☃"}, "error"),
    "segmentation by half a text": ({"size": [40, 60], "counts": "oooo"}, "error"),
    "segmentation by counts": ({"size": [40, 60], "counts": [100, 80, 2220]}, "sound"),
}
FILES = {
    "an empty file": b"",
    "half of it": json.dumps(CONTENT).encode()[:1000],
    "no JSON": b"These are notes.\n",
    "UTF-16": json.dumps(CONTENT).encode("utf-16"),
    "bytes": bytes(range(256)),
    "a list": b"[]",
    "a number": b"3",
    "brackets without end": b"[" * 100_000,
    "two documents": json.dumps(CONTENT).encode() * 2,
}


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = tmp_path_factory.mktemp("coco")
    for split in ("train", "val"):
        (root / f"{split}2017").mkdir()
        for image in CONTENT["images"]:
            array = pixels(HEIGHT, WIDTH, seed=10 * image["id"] + len(split))
            Image.fromarray(array).save(root / f"{split}2017" / image["file_name"])
    (root / "annotations").mkdir()
    (root / "annotations/instances_val2017.json").write_text(json.dumps(CONTENT))
    options = {"data_root": str(root), "classes": ("cat", "dog"), "work_dir": str(root / "work")}
    return load_config(CONFIG["detector"], options, Launch()).cfg


@pytest.fixture
def outcome(cfg: Config) -> Callable[[dict[str, Any] | bytes], str]:
    """What the check says of this content; nothing but lines, and nothing on the disk is changed."""

    def judge(content: dict[str, Any] | bytes) -> str:
        root = Path(cfg.data_root)
        written = content if isinstance(content, bytes) else json.dumps(content).encode()
        (root / "annotations/instances_train2017.json").write_bytes(written)
        before = contents(root)
        found = check_datasets(cfg, ("train", "val"))
        assert contents(root) == before
        assert not [item for item in found.findings if item.split == "val"]
        assert all(len(line.splitlines()) == 1 for line in found.to_lines("data_check.json"))
        assert all(
            "instances_train2017.json" in str(item) or f"{root}/train2017" in str(item) for item in found.findings
        )
        return "error" if found.errors else "warning" if found.findings else "sound"

    return judge


def loads(cfg: Config) -> None:
    with DefaultScope.overwrite_default_scope(cfg.default_scope), building(cfg, "train_dataloader"):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
        for index in range(len(dataset)):
            sample = dataset[index]["data_samples"]
            objects, height, width = sample.gt_instances, *sample.img_shape
            boxes = objects.bboxes.tensor.numpy()
            assert np.isfinite(boxes).all()
            assert (boxes >= 0).all()
            assert (boxes <= [width, height, width, height]).all()
            assert objects.masks.masks.shape == (len(boxes), height, width)
            assert set(objects.labels.tolist()) <= {0, 1}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("part, field", FIELDS, ids=".".join)
def test_a_field(cfg: Config, outcome: Any, part: str, field: str, value: str) -> None:
    content, place = copy.deepcopy(CONTENT), f"{part}.{field}"
    if VALUES[value] is ABSENT:
        del content[part][0][field]
    else:
        content[part][0][field] = VALUES[value]
    expected = "warning" if value in WARNED.get(place, ()) else "sound" if value in SOUND.get(place, ()) else "error"
    if place == "categories.id" and value == "negative":
        expected = "error"  # ten objects are of a category that is not there
    assert outcome(content) == expected
    if expected != "error":
        loads(cfg)


@pytest.mark.parametrize("case", SHAPES)
def test_a_box_or_a_mask(cfg: Config, outcome: Any, case: str) -> None:
    content = copy.deepcopy(CONTENT)
    value, expected = SHAPES[case]
    content["annotations"][0][case.partition(" ")[0]] = value
    assert outcome(content) == expected
    if expected != "error":
        loads(cfg)


@pytest.mark.parametrize("part", CONTENT)
@pytest.mark.parametrize("value", ["absent", "null", "text", "an empty list", "a list of null", "a mapping"])
def test_a_list_of_the_file(outcome: Any, part: str, value: str) -> None:
    content: dict[str, Any] = copy.deepcopy(CONTENT)
    content[part] = VALUES[value]
    if content[part] is ABSENT:
        del content[part]
    assert outcome(content) == "error"


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_holds_something_else(cfg: Config, outcome: Any, case: str) -> None:
    assert outcome(FILES[case]) == "error"
    with refused():
        loads(cfg)


def test_a_byte_order_mark_is_no_part_of_the_content(cfg: Config, outcome: Any) -> None:
    marked = json.dumps(CONTENT | {"info": "Käse"}, ensure_ascii=False).encode("utf-8-sig")
    assert outcome(marked) == "sound"
    loads(cfg)
    file = str(Path(cfg.data_root) / cfg.train_dataloader.dataset.ann_file)
    assert names_in_file({"ann_file": file}) == [row["name"] for row in CONTENT["categories"]]
    metric = FastCocoMetric(file, ("bbox",))
    metric.dataset_meta = {"classes": ("cat", "dog")}
    assert metric.statistics([])["bbox"].tolist() == [0] * 12


@pytest.mark.parametrize("name", ["../val2017/1.png", "/etc/hostname", "a/../../val2017/1.png", "..", "", "."])
def test_a_name_that_leads_elsewhere(cfg: Config, outcome: Any, name: str) -> None:
    """Found by the check; and where that is left out, nothing is read either."""
    content = copy.deepcopy(CONTENT)
    content["images"][0]["file_name"] = name
    assert outcome(content) == "error"
    if name not in ("", "."):
        with refused("instances_train2017.json", name, "leads out of"):
            loads(cfg)


def test_images_that_are_all_too_small(cfg: Config, outcome: Any) -> None:
    content = copy.deepcopy(CONTENT)
    content["annotations"] = [row | {"image_id": 99} for row in content["annotations"]]
    outcome(content)
    with refused("instances_train2017.json", "none of its 2 images is left"):
        loads(cfg)
