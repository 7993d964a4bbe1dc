"""COCO-format data in the order of the classes, and average precision equal to pycocotools'."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from pycocotools import mask as masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.utils.data import SequentialSampler

from backbones import UserError
from detection import coco_metric
from detection.coco_metric import COCO_STATS, FastCocoMetric
from detection.data import AspectRatioBatches, CocoInstances, category_ids

SIDE, IMAGES = 240, 15
CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 11, "name": "newt"}, {"id": 5, "name": "owl"}]
# Neither the file's order nor that of its ids, and not all of them.
CLASSES = ("owl", "cat", "newt")
IDS = {"owl": 5, "cat": 7, "newt": 11}


def ellipse(box: list[float]) -> dict[str, Any]:
    """Run-length code of the ellipse in a box ``x, y, w, h``."""
    canvas = Image.new("L", (SIDE, SIDE))
    x, y, w, h = box
    ImageDraw.Draw(canvas).ellipse((x, y, x + w, y + h), fill=1)
    code = masks.encode(np.asfortranarray(np.array(canvas)))
    return {"size": code["size"], "counts": code["counts"].decode()}


def random_box(random: np.random.Generator) -> list[float]:
    w, h = (float(round(side)) for side in np.geomspace(10, 160, 50)[random.integers(0, 50, 2)])  # all size classes
    return [float(random.integers(0, SIDE - int(w))), float(random.integers(0, SIDE - int(h))), w, h]


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    images = [{"id": 100 + i, "file_name": f"{i}.jpg", "height": SIDE, "width": SIDE} for i in range(IMAGES)]
    objects = []
    for image in images[:-1]:  # the last one is empty
        for _ in range(9):
            box = random_box(random)
            code = ellipse(box)
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": image["id"],
                    "category_id": int(random.choice([7, 3, 11, 5])),
                    "bbox": box,
                    "area": float(masks.area(code)),
                    "segmentation": code,
                    "iscrowd": int(random.random() < 0.1),
                }
            )
    path = tmp_path_factory.mktemp("coco") / "truth.json"
    path.write_text(json.dumps({"images": images, "annotations": objects, "categories": CATEGORIES}))
    return path


def detections(truth: COCO, wobble: float) -> dict[int, list[dict[str, Any]]]:
    """Each object found near its place, with a wrong class or a second time now and then, and some of nothing."""
    random = np.random.default_rng(1)
    found: dict[int, list[dict[str, Any]]] = {image: [] for image in truth.getImgIds()}
    for one in truth.loadAnns(truth.getAnnIds()):
        for _ in range(int(random.integers(0, 3))):
            box = [float(v + random.normal(0, wobble)) for v in one["bbox"]]
            label = int(random.integers(0, 3))
            if random.random() < 0.8 and one["category_id"] in IDS.values():
                label = list(IDS.values()).index(one["category_id"])
            found[one["image_id"]].append({"box": box, "label": label, "score": float(random.random())})
    for image in found:
        for _ in range(3):
            found[image].append({"box": random_box(random), "label": 1, "score": float(random.random())})
    return found


def samples(found: dict[int, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Detections in the form that a detector passes to the metric."""
    given = []
    for image, ones in found.items():
        boxes = torch.tensor([one["box"] for one in ones], dtype=torch.float64).reshape(-1, 4)
        instances = {
            "bboxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1),
            "scores": torch.tensor([one["score"] for one in ones], dtype=torch.float64),
            "labels": torch.tensor([one["label"] for one in ones], dtype=torch.int64),
            "masks": [ellipse(one["box"]) for one in ones],
        }
        given.append({"img_id": image, "ori_shape": (SIDE, SIDE), "pred_instances": instances})
    return given


def evaluated(annotations: Path, found: dict[int, list[dict[str, Any]]], classes: tuple[str, ...]) -> dict[str, float]:
    metric = FastCocoMetric(str(annotations))
    metric.dataset_meta = {"classes": classes}
    metric.process({}, samples(found))
    return metric.evaluate(len(found))


def reference(
    truth: COCO, found: dict[int, list[dict[str, Any]]], kind: str, categories: tuple[int, ...] = tuple(IDS.values())
) -> list[float]:
    results = []
    for image, ones in found.items():
        for one in ones:
            shape = {"bbox": one["box"]} if kind == "bbox" else {"segmentation": ellipse(one["box"])}
            results.append(
                {"image_id": image, "category_id": list(IDS.values())[one["label"]], "score": one["score"], **shape}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.params.catIds = list(categories)
        for step in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
            step()
    return evaluation.stats.tolist()


@pytest.fixture(scope="module")
def truth(annotations: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(annotations))


@pytest.mark.parametrize("wobble", [1.0, 3.0])
def test_fast_coco_metric_equals_pycocotools(annotations: Path, truth: COCO, wobble: float) -> None:
    found = detections(truth, wobble)
    scores = evaluated(annotations, found, CLASSES)
    assert set(scores) == {f"{kind}_{name}" for kind in ("bbox", "segm") for name in COCO_STATS}
    for kind in ("bbox", "segm"):
        ours = [scores[f"{kind}_{name}"] for name in COCO_STATS]
        theirs = reference(truth, found, kind)
        assert all(0 < value < 1 for value in theirs)
        assert ours == pytest.approx(theirs[: len(COCO_STATS)], abs=0.5e-4 + 1e-9)  # four decimals are reported


def test_an_annotation_of_id_0_counts_like_any_other(annotations: Path, truth: COCO, tmp_path: Path) -> None:
    """COCO's matching takes 0 for "no object"; the numbers of annotations stand for nothing."""
    content = json.loads(annotations.read_text())
    for number, one in enumerate(content["annotations"]):
        one["id"] = number
    (tmp_path / "a.json").write_text(json.dumps(content))
    found = detections(truth, 1.0)
    assert evaluated(tmp_path / "a.json", found, CLASSES) == evaluated(annotations, found, CLASSES)


def test_fast_coco_metric_statistics_equal_pycocotools(annotations: Path, truth: COCO) -> None:
    found = detections(truth, 2.0)
    metric = FastCocoMetric(str(annotations))
    metric.dataset_meta = {"classes": CLASSES}
    metric.process({}, samples(found))
    numbers = metric.statistics(metric.results)
    for kind in ("bbox", "segm"):
        assert numbers[kind].tolist() == pytest.approx(reference(truth, found, kind), abs=1e-6)


def test_the_worst_images_have_the_most_missed_and_false_of_pycocotools(annotations: Path, truth: COCO) -> None:
    found = detections(truth, 2.0)
    metric = FastCocoMetric(str(annotations))
    metric.dataset_meta, metric.worst_kept = {"classes": CLASSES}, 5
    metric.process({}, samples(found))
    metric.evaluate(len(found))
    sure = {image: [one for one in ones if one["score"] >= 0.3] for image, ones in found.items()}
    images = list(found)
    mistakes = {image: [0, 0] for image in images}
    for one in reference_matches(truth, sure):
        ignored = np.asarray(one["gtIgnore"], bool)
        mistakes[one["image_id"]][0] += int((~ignored & (one["gtMatches"][0] == 0)).sum())
        mistakes[one["image_id"]][1] += int((~one["dtIgnore"][0] & (one["dtMatches"][0] == 0)).sum())
    worst = metric.details["worst"]
    assert [one["caption"] for one in worst] == [
        "{} missed, {} false".format(*mistakes[images[one["index"]]]) for one in worst
    ]
    assert [sum(mistakes[images[one["index"]]]) for one in worst] == sorted(map(sum, mistakes.values()))[:-6:-1]
    assert FastCocoMetric(str(annotations)).details == {}


def reference_matches(truth: COCO, found: dict[int, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The matches of each image and category at box IoU 0.5."""
    entries = [
        {"image_id": image, "category_id": list(IDS.values())[one["label"]], "score": one["score"], "bbox": one["box"]}
        for image, ones in found.items()
        for one in ones
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(entries), "bbox")
        evaluation.params.catIds, evaluation.params.iouThrs = list(IDS.values()), np.array([0.5])
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.evaluate()
    return [one for one in evaluation.evalImgs if one is not None]


def test_the_scores_of_a_class_are_those_of_an_evaluation_of_it_alone(annotations: Path, truth: COCO) -> None:
    found = detections(truth, 2.0)
    classes = ("owl", "hen", "cat", "newt")  # a category without an object
    content = json.loads(annotations.read_text())
    content["categories"].append({"id": 1, "name": "hen"})
    more = annotations.with_name("with_hen.json")
    more.write_text(json.dumps(content))
    metric = FastCocoMetric(str(more))
    metric.dataset_meta = {"classes": classes}
    given = samples(found)
    for sample in given:
        sample["pred_instances"]["labels"] += sample["pred_instances"]["labels"] > 0  # "hen" has moved the others
    metric.process({}, given)
    metric.evaluate(len(found))
    assert list(metric.class_scores) == list(classes)
    for name, scores in metric.class_scores.items():
        if name == "hen":
            empty = dict.fromkeys(("bbox_mAP", "bbox_mAP_50", "segm_mAP", "segm_mAP_50"))
            assert scores == {**empty, "objects": 0}
            continue
        for kind in ("bbox", "segm"):
            theirs = reference(truth, found, kind, (IDS[name],))
            assert scores[f"{kind}_mAP"] == pytest.approx(theirs[0], abs=0.5e-4 + 1e-9)
            assert scores[f"{kind}_mAP_50"] == pytest.approx(theirs[1], abs=0.5e-4 + 1e-9)
        assert scores["objects"] == len(truth.getAnnIds(catIds=[IDS[name]], iscrowd=False))
    metric.results = []
    metric.process({}, samples({image: [] for image in truth.getImgIds()}))
    metric.evaluate(IMAGES)
    assert metric.class_scores["cat"]["bbox_mAP"] == 0.0
    assert metric.class_scores["hen"]["bbox_mAP"] is None


def test_fast_coco_metric_uses_mask_scores(annotations: Path, truth: COCO) -> None:
    found = detections(truth, 2.0)
    given = samples(found)
    turned = {image: [{**one, "score": 1 - one["score"]} for one in ones] for image, ones in found.items()}
    for sample in given:
        sample["pred_instances"]["mask_scores"] = 1 - sample["pred_instances"]["scores"]
    metric = FastCocoMetric(str(annotations))
    metric.dataset_meta = {"classes": CLASSES}
    metric.process({}, given)
    numbers = metric.statistics(metric.results)
    assert numbers["bbox"].tolist() == pytest.approx(reference(truth, found, "bbox"), abs=1e-6)
    assert numbers["segm"].tolist() == pytest.approx(reference(truth, turned, "segm"), abs=1e-6)


def test_fast_coco_metric_refuses_what_cannot_be_measured(annotations: Path, truth: COCO) -> None:
    with pytest.raises(UserError, match=r"metric=\('keypoints',\): any of bbox, segm"):
        FastCocoMetric(str(annotations), metric=("keypoints",))
    given = samples(detections(truth, 1.0))
    for sample in given:
        del sample["pred_instances"]["masks"]
    metric = FastCocoMetric(str(annotations))
    metric.dataset_meta = {"classes": CLASSES}
    metric.process({}, given)
    with pytest.raises(UserError, match="metric 'segm': the detector gives no masks"):
        metric.evaluate(IMAGES)


def perfect(truth: COCO) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {image: [] for image in truth.getImgIds()}
    for one in truth.loadAnns(truth.getAnnIds(catIds=list(IDS.values()), iscrowd=False)):
        label = list(IDS.values()).index(one["category_id"])
        found[one["image_id"]].append({"box": one["bbox"], "label": label, "score": 0.9})
    return found


def test_fast_coco_metric_follows_the_order_of_the_classes(annotations: Path, truth: COCO) -> None:
    found = perfect(truth)
    scores = evaluated(annotations, found, CLASSES)
    assert (scores["bbox_mAP"], scores["segm_mAP"]) == (1.0, 1.0)
    assert evaluated(annotations, found, CLASSES[::-1])["bbox_mAP"] < 0.5


def test_fast_coco_metric_without_detections(annotations: Path, truth: COCO, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(coco_metric, "print_log", lambda message, *_: said.append(message))
    scores = evaluated(annotations, {image: [] for image in truth.getImgIds()}, CLASSES)
    assert scores == {f"{kind}_{name}": 0.0 for kind in ("bbox", "segm") for name in COCO_STATS}
    assert said == [f"no {kind} detections at all: AP is 0" for kind in ("bbox", "segm")]


def test_fast_coco_metric_of_images_without_a_detection(annotations: Path, truth: COCO) -> None:
    found = perfect(truth)
    found[100] = []
    scores = evaluated(annotations, found, CLASSES)
    assert scores["bbox_mAP"] == pytest.approx(reference(truth, found, "bbox")[0], abs=0.5e-4)
    assert 0 < scores["bbox_mAP"] < 1


def test_fast_coco_metric_of_boxes_only(annotations: Path, truth: COCO) -> None:
    metric = FastCocoMetric(str(annotations), metric=("bbox",))
    metric.dataset_meta = {"classes": CLASSES}
    metric.process({}, samples(perfect(truth)))
    assert set(metric.evaluate(IMAGES)) == {f"bbox_{name}" for name in COCO_STATS}


def test_data_without_masks_has_no_mask_ap(annotations: Path, truth: COCO, tmp_path: Path) -> None:
    content = json.loads(annotations.read_text())
    for one in content["annotations"]:
        del one["segmentation"]
    boxes_alone = tmp_path / "boxes.json"
    boxes_alone.write_text(json.dumps(content))
    scores = evaluated(boxes_alone, perfect(truth), CLASSES)
    assert set(scores) == {f"bbox_{name}" for name in COCO_STATS}
    assert scores["bbox_mAP"] == 1


def test_category_ids_refuses_an_unknown_class(annotations: Path, truth: COCO) -> None:
    message = r"[12] of 2 are no category of the annotation file \('(hare|elk)'\.\.\.\); it has 4: cat, dog, newt, owl"
    with pytest.raises(UserError, match=message):
        category_ids(truth.dataset["categories"], ("cat", "hare"))
    with pytest.raises(UserError, match=message):
        evaluated(annotations, perfect(truth), ("elk", "hare"))
    with pytest.raises(UserError, match=message):
        CocoInstances(ann_file=str(annotations), metainfo=dict(classes=("cat", "hare")))
    assert category_ids(truth.dataset["categories"], ("owl", "cat")) == [5, 7]


def test_coco_instances_labels_follow_the_order_of_the_classes(annotations: Path, truth: COCO) -> None:
    found = CocoInstances(
        ann_file=annotations.name,
        data_root=str(annotations.parent),
        data_prefix=dict(img="images/"),
        metainfo=dict(classes=CLASSES),
        test_mode=True,
    )
    assert len(found) == IMAGES
    seen = 0
    for i in range(len(found)):
        info = found.get_data_info(i)
        assert info["img_path"] == str(annotations.parent / f"images/{i}.jpg")
        truths = truth.loadAnns(truth.getAnnIds(imgIds=info["img_id"], catIds=list(IDS.values())))
        assert [IDS[CLASSES[one["bbox_label"]]] for one in info["instances"]] == [one["category_id"] for one in truths]
        assert [one["ignore_flag"] for one in info["instances"]] == [one["iscrowd"] for one in truths]
        seen += len(truths)
    assert 0 < seen < len(truth.getAnnIds())


@pytest.mark.parametrize("prefix", [{}, {"data_prefix": None}, {"data_prefix": dict()}])
def test_coco_instances_without_a_folder_of_images(prefix: dict[str, Any], annotations: Path) -> None:
    found = CocoInstances(
        ann_file=annotations.name, data_root=str(annotations.parent), metainfo=dict(classes=CLASSES), **prefix
    )
    assert Path(found.get_data_info(0)["img_path"]) == annotations.parent / "0.jpg"


def test_coco_instances_drops_training_images_without_an_object(annotations: Path) -> None:
    found = CocoInstances(
        ann_file=str(annotations),
        data_prefix=dict(img="images/"),
        metainfo=dict(classes=CLASSES),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
    )
    assert len(found) == IMAGES - 1


class Shapes(SequentialSampler):
    """The indices of some images, the first of them landscape and the rest portrait."""

    def __init__(self, count: int, landscape: int) -> None:
        super().__init__(range(count))
        self.dataset, self.landscape = self, landscape

    def get_data_info(self, index: int) -> dict[str, int]:
        return {"width": 4 if index < self.landscape else 2, "height": 3}


@pytest.mark.parametrize("count", [8, 9])
@pytest.mark.parametrize("landscape", range(9))
def test_aspect_ratio_batches_are_as_many_in_every_process(count: int, landscape: int) -> None:
    batches = AspectRatioBatches(Shapes(count, landscape), batch_size=4)
    assert [len(batch) for batch in batches] == [4, 4]
    assert len(batches) == 2


def test_a_class_that_the_validation_file_lacks_is_not_counted(annotations: Path, truth: COCO) -> None:
    """Wherever it stands among the classes: labels of the others keep their categories."""
    for classes in (("hare", *CLASSES), (CLASSES[0], "hare", *CLASSES[1:]), (*CLASSES, "hare")):
        found = perfect(truth)
        metric = FastCocoMetric(str(annotations))
        metric.dataset_meta = {"classes": classes}
        shifted = samples(found)
        for one in shifted:
            labels = one["pred_instances"]["labels"]
            one["pred_instances"]["labels"] = torch.tensor([classes.index(CLASSES[label]) for label in labels.tolist()])
        metric.process({}, shifted)
        assert metric.evaluate(len(found)) == evaluated(annotations, found, CLASSES)
        assert metric.class_scores["hare"]["bbox_mAP"] is None
        assert metric.class_scores["hare"]["objects"] == 0
        settings = dict(ann_file=str(annotations), metainfo=dict(classes=classes), data_prefix=dict(img="images/"))
        data, plain = (
            CocoInstances(**{**settings, "metainfo": dict(classes=names)}, test_mode=True)
            for names in (classes, CLASSES)
        )
        partial = CocoInstances(**settings, partial_classes=True)
        for index in range(len(plain)):
            names = [CLASSES[one["bbox_label"]] for one in plain.get_data_info(index)["instances"]]
            for other in (data, partial):
                assert [classes[one["bbox_label"]] for one in other.get_data_info(index)["instances"]] == names
