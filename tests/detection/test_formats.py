"""Detections in the formats of other programs: read back by pycocotools, or by the documented layout of each."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData
from PIL import Image
from pycocotools import mask as masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection.coco_metric import FastCocoMetric
from detection.panoptic import read_segments
from detection.panoptic_results import PanopticResults
from detection.results import CocoResults, LabelmeFiles, ObjectList, ObjectTable, YoloFiles
from engine.prediction.images import name_images
from engine.prediction.result_files import ResultRequest
from tests.detection.test_results import CLASSES, HEIGHT, WIDTH, config, folder  # noqa: F401  (fixture)

BOXES = [[5.0, 6.0, 25.0, 16.0], [30.0, 20.0, 50.0, 38.0], [4.0, 7.0, 26.0, 15.0]]
SCORES = [0.9, 0.6, 0.2]


def found(path: Path, image_id: int = 0, with_masks: bool = True) -> dict[str, Any]:
    """Three objects, the second one of two parts."""
    pixels = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.bool)
    pixels[0, 6:16, 5:25] = True
    pixels[1, 20:26, 30:50] = pixels[1, 30:38, 30:50] = True
    pixels[2, 7:15, 4:26] = True
    instances = InstanceData(
        bboxes=torch.tensor(BOXES), scores=torch.tensor(SCORES), labels=torch.tensor([0, 1, 1 - image_id % 2])
    )
    if with_masks:
        instances.masks = pixels
    metainfo = {"img_id": image_id, "img_path": str(path), "ori_shape": (HEIGHT, WIDTH)}
    return DetDataSample(metainfo=metainfo, pred_instances=instances).to_dict()


def written(kind: Any, root: Path, **settings: Any) -> Path:
    """Folder of the files of both images."""
    out = root / "results"
    out.mkdir(exist_ok=True)
    with_masks = settings.pop("with_masks", True)
    writer = kind(ResultRequest(config(root), out, **{"min_score": 0.5, **settings}))
    images = name_images([root / "images/b.png", root / "images/sub/a.png"])
    writer.finish([writer.write(found(one.path, with_masks=with_masks), one) for one in images])
    return out


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_evaluation_of_the_file_is_that_of_the_test(folder: Path, kind: str) -> None:  # noqa: F811
    samples = [found(folder / "images/b.png", 30), found(folder / "images/sub/a.png", 10)]
    metric = FastCocoMetric(str(folder / "a.json"))
    metric.dataset_meta = {"classes": CLASSES}
    metric.process(None, samples)
    writer = CocoResults(ResultRequest(config(folder), folder, test_data=True))
    writer.finish([writer.write(one, None) for one in samples])
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "a.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(folder / f"{kind}.json")), kind)
        evaluation.params.catIds = [7, 9]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] > 0.1
    assert np.allclose(evaluation.stats, metric.statistics(metric.results)[kind])


def test_a_list_has_class_score_box_and_mask(folder: Path) -> None:  # noqa: F811
    listed = json.loads((written(ObjectList, folder) / "predictions.json").read_text())
    assert listed["classes"] == list(CLASSES)
    assert [one["file_name"] for one in listed["images"]] == ["b.png", "sub/a.png"]
    first, second = listed["images"][1]["objects"]
    assert (first["class"], first["class_id"], first["box"]) == ("dog", 0, BOXES[0])
    assert second["score"] == pytest.approx(0.6)
    assert masks.area(second["mask"]) == 14 * 20


def test_a_table_has_a_row_for_each_object(folder: Path) -> None:  # noqa: F811
    with (written(ObjectTable, folder, min_score=0.0) / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert rows[1] == {
        "image": str(folder / "images/b.png"),
        **{"class": "cat", "class_id": "1", "score": "0.6"},
        **dict(zip(("left", "top", "right", "bottom"), map(str, BOXES[1]), strict=True)),
    }


def test_labelme_files_name_their_image_and_have_its_outlines(folder: Path) -> None:  # noqa: F811
    """As labelme's ``LabelFile`` reads them: the path is relative to the file, and the data are in the image."""
    path = written(LabelmeFiles, folder) / "labelme/sub/a.json"
    content = json.loads(path.read_text())
    assert (path.parent / content["imagePath"]).resolve() == (folder / "images/sub/a.png").resolve()
    assert (content["imageData"], content["imageHeight"], content["imageWidth"]) == (None, HEIGHT, WIDTH)
    dog, *cats = content["shapes"]
    assert (dog["label"], dog["shape_type"], dog["group_id"], dog["score"]) == ("dog", "polygon", None, 0.9)
    assert sorted(dog["points"]) == [[5, 6], [5, 16], [25, 6], [25, 16]]
    assert [(one["label"], one["group_id"]) for one in cats] == [("cat", 1), ("cat", 1)]
    assert all(set(one) >= {"label", "points", "group_id", "shape_type", "flags"} for one in content["shapes"])
    content = json.loads((written(LabelmeFiles, folder, with_masks=False) / "labelme/b.json").read_text())
    box = content["shapes"][0]
    assert (box["shape_type"], box["points"]) == ("rectangle", [[5.0, 6.0], [25.0, 16.0]])


def test_yolo_files_have_fractions(folder: Path) -> None:  # noqa: F811
    out = written(YoloFiles, folder)
    assert yaml.safe_load((out / "data.yaml").read_text()) == {"train": "images", "val": "images"} | {
        "names": {0: "dog", 1: "cat"}
    }
    dog, cat = ((line.split()) for line in (out / "labels/sub/a.txt").read_text().splitlines())
    assert (dog[0], cat[0]) == ("0", "1")
    assert (out / "scores/sub/a.txt").read_text().splitlines()[0] == "0.9000"
    corners = np.array(dog[1:], float).reshape(-1, 2) * (WIDTH, HEIGHT)
    assert np.allclose(sorted(corners.tolist()), [[5, 6], [5, 16], [25, 6], [25, 16]], atol=1e-3)
    outline = (np.array(cat[1:], float).reshape(-1, 2) * (WIDTH, HEIGHT)).ravel().tolist()
    assert masks.area(masks.merge(masks.frPyObjects([outline], HEIGHT, WIDTH))) == pytest.approx(14 * 20, rel=0.05)
    out = written(YoloFiles, folder, with_masks=False)
    dog, _ = ((line.split()) for line in (out / "labels/b.txt").read_text().splitlines())
    assert np.allclose(np.array(dog[1:], float), [15 / WIDTH, 11 / HEIGHT, 20 / WIDTH, 10 / HEIGHT], atol=1e-5)


@pytest.mark.parametrize(("task", "with_masks"), [("segment", True), ("detect", False)])
def test_ultralytics_loads_the_labels(
    folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    with_masks: bool,
) -> None:
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    dataset = pytest.importorskip("ultralytics.data.dataset")
    out = written(YoloFiles, folder, with_masks=with_masks)
    shutil.copytree(folder / "images", out / "images")
    data = {**yaml.safe_load((out / "data.yaml").read_text()), "channels": 3}
    loaded = dataset.YOLODataset(img_path=str(out / "images"), data=data, task=task, augment=False)
    found = {Path(one["im_file"]).stem: one for one in loaded.labels}
    assert found["a"]["cls"].ravel().tolist() == [0, 1]
    assert [round(value * side) for value, side in zip(found["a"]["bboxes"][0], (WIDTH, HEIGHT) * 2)] == [
        15,
        11,
        20,
        10,
    ]
    assert bool(found["a"]["segments"]) == with_masks


def test_labelme_loads_the_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    labelme = pytest.importorskip("labelme._label_file")
    for with_masks, count in ((True, 3), (False, 2)):
        path = written(LabelmeFiles, folder, with_masks=with_masks) / "labelme/sub/a.json"
        loaded = labelme.LabelFile(str(path))
        assert [one["label"] for one in loaded.shapes] == ["dog", "cat", "cat"][:count]


def test_segments_are_written_as_cocos_server_takes_them(folder: Path) -> None:  # noqa: F811
    segments = torch.full((1, HEIGHT, WIDTH), 2)  # the number after the last class: no segment
    segments[0, :10], segments[0, 10:20, :30], segments[0, 10:20, 30:] = 1, 1000, 2000
    metainfo = {"img_id": 30, "img_path": str(folder / "images/b.png"), "ori_shape": (HEIGHT, WIDTH)}
    sample = DetDataSample(metainfo=metainfo, pred_panoptic_seg=PixelData(sem_seg=segments)).to_dict()
    writer = PanopticResults(ResultRequest(config(folder), folder / "results"))
    (image,) = name_images([folder / "images/b.png"])
    writer.finish([writer.write(sample, image)])
    (entry,) = json.loads((folder / "results/panoptic.json").read_text())["annotations"]
    assert (entry["image_id"], entry["file_name"]) == (30, "b.png")
    assert [(one["category_id"], one["area"]) for one in entry["segments_info"]] == [(9, 600), (7, 300), (7, 300)]
    ids = read_segments(str(folder / "results/panoptic/b.png"))
    assert {one["id"]: one["area"] for one in entry["segments_info"]} == {
        int(number): int((ids == number).sum()) for number in np.unique(ids) if number
    }
    assert (ids == 0).sum() == (HEIGHT - 20) * WIDTH
    (listed,) = json.loads((folder / "results/images.json").read_text())["images"]
    with Image.open(folder / "images/b.png") as opened:
        assert (listed["width"], listed["height"]) == opened.size
