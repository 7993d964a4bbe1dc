"""Scores of each class, label PNGs and pictures of a segmentor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.structures import PixelData
from mmseg.evaluation import IoUMetric
from mmseg.structures import SegDataSample
from PIL import Image
from pycocotools import mask as masks

import segmentation  # noqa: F401
from engine.config.classes import palette
from engine.prediction.images import name_images
from engine.prediction.result_files import ResultMetric, ResultRequest
from segmentation.metric import ClassIoUMetric
from segmentation.results import LabelPngs, RegionList, RegionPolygons, RegionTable

CLASSES = ("wall", "sky", "tree", "car")


def config(folder: Path, **settings: Any) -> Config:
    dataset = dict(
        data_root=str(folder),
        data_prefix=dict(img_path="images", seg_map_path="labels"),
        metainfo=dict(classes=CLASSES),
    )
    return Config(dict(test_dataloader=dict(dataset={**dataset, **settings})))


def sample(path: str, labels: np.ndarray, truth: np.ndarray | None = None) -> dict[str, Any]:
    element = SegDataSample(metainfo={"img_path": path})
    element.pred_sem_seg = PixelData(data=torch.from_numpy(labels)[None])
    if truth is not None:
        element.gt_sem_seg = PixelData(data=torch.from_numpy(truth)[None])
    return element.to_dict()


@pytest.mark.parametrize("settings", [{}, {"iou_metrics": ["mIoU", "mDice", "mFscore"]}, {"nan_to_num": 0}])
def test_the_scores_are_those_of_mmseg_and_those_of_each_class_are_kept(settings: dict[str, Any]) -> None:
    random = np.random.default_rng(0)
    ours, theirs = ClassIoUMetric(**settings), IoUMetric(**settings)
    for _ in range(3):
        truth = random.integers(0, 3, (20, 30))  # never a car
        truth[random.random(truth.shape) < 0.1] = 255
        labels = np.where(random.random(truth.shape) < 0.7, truth % 255, random.integers(0, 3, truth.shape))
        labels[labels > 3] = 0
        for metric in (ours, theirs):
            metric.dataset_meta = {"classes": CLASSES}
            metric.process({}, [sample("a.jpg", labels, truth)])
    theirs.evaluate(3)
    theirs.results = list(ours.results)
    assert ours.compute_metrics(ours.results) == theirs.compute_metrics(theirs.results)
    assert list(ours.class_scores) == list(CLASSES)
    areas = [sum(parts) for parts in zip(*ours.results, strict=True)]
    for index, name in enumerate(CLASSES[:3]):
        iou = 100 * float(areas[0][index] / areas[1][index])
        assert ours.class_scores[name]["IoU"] == pytest.approx(iou, abs=0.005)
    assert ours.class_scores["car"]["IoU"] == (0.0 if "nan_to_num" in settings else None)


def test_the_worst_images_are_those_of_the_lowest_iou_of_their_own_classes() -> None:
    random, metric, ious = np.random.default_rng(0), ClassIoUMetric(), []
    metric.dataset_meta, metric.worst_kept = {"classes": CLASSES}, 2
    for wrong in (0.1, 0.6, 0.0, 0.3):
        truth = random.integers(0, 3, (20, 30))
        labels = np.where(random.random(truth.shape) < wrong, 2, truth)
        truth[:4] = 255
        metric.process({}, [sample("a.jpg", labels, truth)])
        sure = truth != 255
        each = [(sure & (truth == k) & (labels == k), sure & ((truth == k) | (labels == k))) for k in range(3)]
        ious.append(np.mean([both.sum() / either.sum() for both, either in each]))
    nothing = np.full((4, 4), 255)
    metric.process({}, [sample("a.jpg", np.zeros((4, 4), np.int64), nothing)])
    metric.evaluate(5)
    assert metric.details["worst"] == [{"index": i, "caption": f"IoU {100 * ious[i]:.1f}"} for i in (1, 3)]


@pytest.mark.parametrize("reduce, values", [(False, None), (True, None), (False, (0, 255, 38, 7))])
def test_labels_are_stored_as_the_data_set_stores_them(
    reduce: bool, values: tuple[int, ...] | None, tmp_path: Path
) -> None:
    labels = np.arange(4).repeat(6).reshape(4, 6)
    cfg = config(tmp_path, reduce_zero_label=reduce, img_suffix="_leftImg8bit.png", seg_map_suffix="_labels.png")
    if values:
        cfg.test_dataloader.dataset.img_suffix = (".jpg", "_leftImg8bit.png")
    cfg.label_values = values
    writer = ResultMetric(LabelPngs(ResultRequest(cfg, tmp_path / "out", test_data=True)))
    writer.process(None, [sample(str(tmp_path / "images/city/a_leftImg8bit.png"), labels)])
    assert writer.evaluate(1) == {}
    with Image.open(tmp_path / "out/city/a_labels.png") as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), np.take(values, labels) if values else labels + reduce)


def test_labels_of_other_images_have_the_names_of_their_pictures(tmp_path: Path) -> None:
    writer = LabelPngs(ResultRequest(config(tmp_path), tmp_path / "results"))
    labels = np.array([[0, 1, 3]])
    for image in name_images([Path("x/a.jpg"), Path("x/a.png"), Path("x/y/a.png")]):
        writer.write(sample(str(image.path), labels), image)
    for folder in ("results", "results_coloured"):
        names = sorted(path.relative_to(tmp_path / folder).as_posix() for path in (tmp_path / folder).rglob("*.png"))
        assert names == ["a.jpg.png", "a.png.png", "y/a.png"]
    coloured = np.asarray(Image.open(tmp_path / "results_coloured/y/a.png"))
    assert coloured.tolist() == [[list(palette(CLASSES)[label]) for label in (0, 1, 3)]]


def test_regions_in_lists_tables_and_outlines(tmp_path: Path) -> None:
    """Each with the share of the image, and what lies inside of another one after it."""
    labels = np.full((20, 30), 1)
    labels[5:10, 5:20] = 3
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    (image,) = name_images([tmp_path / "a.png"])
    cfg = config(tmp_path, reduce_zero_label=True)
    for kind in (RegionList, RegionTable, RegionPolygons):
        writer = kind(ResultRequest(cfg, tmp_path / "results"))
        (tmp_path / "results").mkdir(exist_ok=True)
        writer.finish([writer.write(sample(str(image.path), labels), image)])
    (entry,) = json.loads((tmp_path / "results/predictions.json").read_text())["images"]
    sky, car = entry["segments"]
    assert (sky["class"], sky["class_id"], sky["value"], sky["share"]) == ("sky", 1, 2, 0.875)
    assert np.array_equal(masks.decode(car["mask"]) == 1, labels == 3)
    table = (tmp_path / "results/predictions.csv").read_text().splitlines()
    assert table[2] == f"{image.path},car,3,4,75,0.125"
    shapes = json.loads((tmp_path / "results/labelme/a.json").read_text())["shapes"]
    assert [one["label"] for one in shapes] == ["sky", "car"]
    assert sorted(shapes[1]["points"]) == [[5, 5], [5, 10], [20, 5], [20, 10]]


@pytest.mark.parametrize("outputs", [4, 1])
def test_probabilities_are_written_by_choice(outputs: int, tmp_path: Path) -> None:
    logits = torch.randn(outputs, 6, 8, generator=torch.Generator().manual_seed(0))
    one = {**sample("a.png", np.zeros((6, 8), np.int64)), "seg_logits": {"data": logits}}
    writer = RegionTable(ResultRequest(config(tmp_path), tmp_path, probabilities=True))
    writer.write(one, *name_images([Path("a.png")]))
    found = np.load(tmp_path / "probabilities/a.npz")["probabilities"]
    expected = logits.softmax(0) if outputs > 1 else logits.sigmoid()
    assert found.dtype == np.float16
    assert np.allclose(found, expected, atol=1e-3)


def test_many_classes_take_16_bits(tmp_path: Path) -> None:
    cfg = config(tmp_path, reduce_zero_label=True, metainfo=dict(classes=tuple(map(str, range(256)))))
    writer = LabelPngs(ResultRequest(cfg, tmp_path))
    writer.write(sample("a.jpg", np.array([[0, 255]])), *name_images([Path("a.jpg")]))
    assert np.asarray(Image.open(tmp_path / "a.png")).tolist() == [[1, 256]]
