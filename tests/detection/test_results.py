"""COCO's results files, read by pycocotools, and pictures of detections."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.structures import InstanceData
from PIL import Image
from pycocotools import mask as masks
from pycocotools.coco import COCO

import detection  # noqa: F401
from backbones import UserError
from detection.coco_metric import ClassCocoMetric, FastCocoMetric
from detection.results import CocoResults
from detection.visualizer import DetectionVisualizer
from engine.config.classes import palette
from engine.prediction.images import name_images
from engine.prediction.result_files import ResultMetric, ResultRequest

WIDTH, HEIGHT = 60, 40
CLASSES = ("dog", "cat")
CATEGORIES = [{"id": 4, "name": "hare"}, {"id": 9, "name": "cat"}, {"id": 7, "name": "dog"}]


def config(folder: Path, ann_file: str = "a.json") -> Config:
    dataset = dict(
        data_root=str(folder), ann_file=ann_file, data_prefix=dict(img="images"), metainfo=dict(classes=CLASSES)
    )
    return Config(dict(test_dataloader=dict(dataset=dataset)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images/sub").mkdir(parents=True)
    rows = []
    for number, name in ((30, "b.png"), (10, "sub/a.png")):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / name)
        rows.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
    truth = [
        {"id": i, "image_id": n, "category_id": c, "bbox": [5, 6, 20, 10], "area": 200, "iscrowd": 0}
        for i, (n, c) in enumerate(((30, 7), (10, 9)), 1)
    ]
    for one in truth:
        one["segmentation"] = [[5, 6, 25, 6, 25, 16, 5, 16]]
    (tmp_path / "a.json").write_text(json.dumps({"images": rows, "annotations": truth, "categories": CATEGORIES}))
    return tmp_path


def sample(image_id: int, path: Path, label: int, with_masks: bool = True) -> dict[str, Any]:
    mask = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    mask[:, 6:16, 5:25] = True
    instances = InstanceData(
        bboxes=torch.tensor([[5.0, 6.0, 25.0, 16.0]]), scores=torch.tensor([0.75]), labels=torch.tensor([label])
    )
    if with_masks:
        instances.masks = mask
    metainfo = {"img_id": image_id, "img_path": str(path), "ori_shape": (HEIGHT, WIDTH)}
    return DetDataSample(metainfo=metainfo, pred_instances=instances).to_dict()


def loaded(folder: Path, name: str, truth: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(truth)).loadRes(str(folder / f"{name}.json"))


def test_results_of_the_test_data_have_the_ids_of_the_annotation_file(folder: Path) -> None:
    writer = ResultMetric(CocoResults(ResultRequest(config(folder), folder, test_data=True)))
    given = [sample(30, folder / "images/b.png", 0), sample(10, folder / "images/sub/a.png", 1)]
    for one in given:
        writer.process(None, [one])
    assert writer.evaluate(2) == {}
    assert json.loads((folder / "bbox.json").read_text()) == [
        {"image_id": 30, "category_id": 7, "bbox": [5.0, 6.0, 20.0, 10.0], "score": 0.75},
        {"image_id": 10, "category_id": 9, "bbox": [5.0, 6.0, 20.0, 10.0], "score": 0.75},
    ]
    results = loaded(folder, "segm", folder / "a.json")
    for one in results.anns.values():
        mask = masks.decode(one["segmentation"])
        assert mask.shape == (HEIGHT, WIDTH)
        assert mask[6:16, 5:25].all()
        assert mask.sum() == 200
    metric = FastCocoMetric(str(folder / "a.json"))
    metric.dataset_meta = {"classes": CLASSES}
    metric.process({}, given)
    assert metric.evaluate(2)["segm_mAP"] == 1.0
    assert not (folder / "images.json").exists()


@pytest.mark.parametrize("classes", [("dog", "cat"), ("cat", "dog"), ("cat", "owl", "dog"), ("hare", "dog", "cat")])
def test_mmdets_own_metric_keeps_the_scores_of_the_classes(classes: tuple[str, ...], folder: Path) -> None:
    """Of boxes and of masks, whose names are the same in its metrics; in any order, also without an owl in the file."""
    dog = classes.index("dog")
    given = [sample(30, folder / "images/b.png", dog), sample(10, folder / "images/sub/a.png", dog)]
    given[1]["pred_instances"]["masks"] &= False
    logger = MMLogger.get_instance("classwise", log_level="INFO")
    shown: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: shown.append(record.getMessage())
    logger.addHandler(handler)
    found = {}
    for kind in ("CocoMetric", "plain"):
        settings = dict(ann_file=str(folder / "a.json"), metric=["bbox", "segm"], classwise=kind == "CocoMetric")
        metric = ClassCocoMetric(**settings)
        metric.dataset_meta = {"classes": classes}
        metric.process({}, given)
        found[kind] = (metric.evaluate(2), metric.class_scores, metric.metrics)
    assert found["CocoMetric"][0] == found["plain"][0]
    assert found["plain"][1] == {}
    scores = found["CocoMetric"][1]
    assert list(scores) == list(classes)
    assert scores["dog"]["bbox_mAP"] == 0.5, "two found, of which the first, that of the lower image id, is a cat"
    assert scores["cat"] == {"bbox_mAP": 0.0, "segm_mAP": 0.0}
    fast = FastCocoMetric(str(folder / "a.json"))
    fast.dataset_meta = {"classes": classes}
    fast.process({}, given)
    assert found["plain"][0]["coco/bbox_mAP"] == pytest.approx(fast.evaluate(2)["bbox_mAP"], abs=1e-3)
    assert {name: one["bbox_mAP"] for name, one in scores.items()} == {
        name: one["bbox_mAP"] for name, one in fast.class_scores.items()
    }
    assert found["CocoMetric"][2] == ["bbox", "segm"]
    assert not [line for line in shown if "category" in line], "the table of all metrics is enough"
    assert [line for line in shown if "bbox_mAP_copypaste" in line]


def test_results_of_other_images_come_with_a_list_of_them(folder: Path) -> None:
    new = folder / "new.png"
    Image.new("L", (30, 20)).save(new)
    known = folder / "images/sub/a.png"
    writer = CocoResults(ResultRequest(config(folder), folder))
    images = name_images([new, known, folder / "b.png"])
    writer.finish([writer.write(sample(0, one.path, 1, with_masks=False), one) for one in images])
    assert [one["image_id"] for one in json.loads((folder / "bbox.json").read_text())] == [31, 10, 32]
    assert not (folder / "segm.json").exists()
    listed = json.loads((folder / "images.json").read_text())
    assert listed["images"] == [
        {"id": 31, "file_name": "new.png", "width": WIDTH, "height": HEIGHT},
        {"id": 10, "file_name": "images/sub/a.png", "width": WIDTH, "height": HEIGHT},
        {"id": 32, "file_name": "b.png", "width": WIDTH, "height": HEIGHT},
    ]
    assert listed["categories"] == [{"id": 7, "name": "dog"}, {"id": 9, "name": "cat"}]
    assert len(loaded(folder, "bbox", folder / "images.json").anns) == 3


def test_without_an_annotation_file_classes_and_images_are_numbered(folder: Path) -> None:
    writer = CocoResults(ResultRequest(config(folder, "absent.json"), folder))
    (image,) = name_images([folder / "images/b.png"])
    writer.finish([writer.write(sample(0, image.path, 1), image)])
    (entry,) = json.loads((folder / "segm.json").read_text())
    assert (entry["image_id"], entry["category_id"]) == (1, 2)


def test_an_image_without_detections_and_no_image_at_all(folder: Path) -> None:
    writer = CocoResults(ResultRequest(config(folder), folder, test_data=True))
    empty = sample(30, folder / "images/b.png", 0)
    empty["pred_instances"] = InstanceData(
        bboxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.int64)
    )
    writer.finish([writer.write(empty, None)])
    assert json.loads((folder / "bbox.json").read_text()) == []


def test_a_class_that_the_file_lacks_is_an_error(folder: Path) -> None:
    cfg = config(folder)
    cfg.test_dataloader.dataset.metainfo.classes = ("owl",)
    with pytest.raises(UserError, match="no category of the annotation file"):
        CocoResults(ResultRequest(cfg, folder, test_data=True))


@pytest.mark.parametrize("name", ["кошка", "قطة", "$\\frac$", "a_b^c"])
def test_a_name_is_drawn_above_its_object_in_any_script(name: str, tmp_path: Path) -> None:
    visualizer = DetectionVisualizer()
    image = np.full((120, 160, 3), 120, np.uint8)
    mask = torch.zeros(1, 120, 160, dtype=torch.bool)
    mask[:, 30:100, 30:150] = True
    instances = InstanceData(
        bboxes=torch.tensor([[30.0, 30.0, 150.0, 100.0]]),
        labels=torch.tensor([0]),
        scores=torch.tensor([0.9]),
        masks=mask,
    )
    drawn = {}
    for label in (name, "\U0010fffd"):
        visualizer.dataset_meta = {"classes": [label], "palette": palette([label])}
        path = tmp_path / "drawn.png"
        visualizer.add_datasample("a", image, DetDataSample(pred_instances=instances), draw_gt=False, out_file=path)
        drawn[label] = np.asarray(Image.open(path))
    place = drawn[name][30:50, 30:90]
    box = (place == palette([name])[0]).all(axis=2)
    assert box.sum() > 100, "the box of the text lies above the mask"
    assert not np.array_equal(place, drawn["\U0010fffd"][30:50, 30:90])
