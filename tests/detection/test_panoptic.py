"""Panoptic data: what is loaded, the quality against a slow count, mistakes in files, and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.models.utils.misc import samplelist_boxtype2tensor
from mmdet.structures import DetDataSample
from mmengine import DefaultScope
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from PIL import Image

import detection  # noqa: F401
from backbones import UserError
from detection.panoptic import CocoPanoptic, read_segments, segment_colours
from detection.panoptic_metric import PanopticQuality, pair_segments, quality, segment_counts
from detection.panoptic_task import PANOPTIC
from detection.visualizer import DetectionVisualizer
from engine.config.load import load_config
from engine.config.world import Launch
from engine.data.check import check_datasets
from engine.planning.plan import build_on_meta
from engine.report.panels import PAPER

CLASSES, THINGS = ("cat", "dog", "sky"), 2
CONFIG = Path(__file__).resolve().parents[2] / "configs/detection/mask2former_panoptic_digits.py"
FPN_CONFIG = CONFIG.with_name("panoptic_fpn_digits.py")
SKY, CAT, CROWD = 70_000, 5, 300  # ids of segments that need all three colours
META = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "seg_map_path", "segments_info")


def painted() -> np.ndarray:
    """A cat on the sky, a crowd of dogs, and a row without a segment."""
    ids = np.full((20, 30), SKY, np.int64)
    ids[4:10, 5:15], ids[12:16, 20:28], ids[0] = CAT, CROWD, 0
    return ids


def content() -> dict[str, Any]:
    categories = [("sky", 9, 0), ("dog", 7, 1), ("cat", 3, 1)]
    segments = [
        {"id": SKY, "category_id": 9, "iscrowd": 0, "bbox": [0, 1, 30, 19], "area": 478},
        {"id": CAT, "category_id": 3, "iscrowd": 0, "bbox": [5, 4, 10, 6], "area": 60},
        {"id": CROWD, "category_id": 7, "iscrowd": 1, "bbox": [20, 12, 8, 4], "area": 32},
    ]
    return {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 30, "height": 20}],
        "annotations": [{"image_id": 1, "file_name": "one.png", "segments_info": segments}],
        "categories": [{"id": number, "name": name, "isthing": thing} for name, number, thing in categories],
    }


def write(folder: Path, data: Any, ids: np.ndarray) -> Path:
    for name in ("images", "segments"):
        (folder / name).mkdir(exist_ok=True)
    Image.fromarray(np.full((20, 30, 3), 60, np.uint8)).save(folder / "images/1.jpg")
    Image.fromarray(segment_colours(ids)).save(folder / "segments/one.png")
    (folder / "a.json").write_text(json.dumps(data))
    return folder


def settings(folder: Path) -> dict[str, Any]:
    return dict(
        type="CocoPanoptic",
        data_root=str(folder),
        ann_file="a.json",
        data_prefix=dict(img="images", seg="segments"),
        metainfo=dict(classes=CLASSES),
        pipeline=[
            dict(type="LoadCheckedImage"),
            dict(type="LoadPanoptic"),
            dict(type="PackDetInputs", meta_keys=META),
        ],
    )


def loaded(folder: Path) -> Any:
    with DefaultScope.overwrite_default_scope("mmdet"):
        kind = {key: value for key, value in settings(folder).items() if key != "type"}
        return CocoPanoptic(**kind, test_mode=True)[0]["data_samples"]


# --- loading ---------------------------------------------------------------------------------------------------------


def test_things_have_masks_and_all_classes_are_in_the_label_map(tmp_path: Path) -> None:
    sample = loaded(write(tmp_path, content(), painted()))
    assert sample.gt_instances.labels.tolist() == [0]
    assert sample.gt_instances.bboxes.tensor.tolist() == [[5, 4, 15, 10]]
    np.testing.assert_array_equal(sample.gt_instances.masks.masks[0], painted() == CAT)
    labels = sample.gt_sem_seg.sem_seg[0].numpy()
    for label, number in ((0, CAT), (1, CROWD), (2, SKY), (255, 0)):
        np.testing.assert_array_equal(labels == label, painted() == number)


def test_ids_survive_the_png(tmp_path: Path) -> None:
    folder = write(tmp_path, content(), painted())
    np.testing.assert_array_equal(read_segments(str(folder / "segments/one.png")), painted())


# --- the quality -----------------------------------------------------------------------------------------------------


def slow_counts(truth: np.ndarray, segments: list[dict[str, Any]], predicted: np.ndarray) -> np.ndarray:
    """Each pair of segments pixel by pixel, by the definition of the paper."""
    counts = np.zeros((len(CLASSES), 4))
    nothing = ~np.isin(truth, [one["id"] for one in segments])
    crowds = [one for one in segments if one["category"] < THINGS and not one["is_thing"]]
    left = {number for number in np.unique(predicted) if number % 1000 < len(CLASSES)}
    for one in (one for one in segments if one not in crowds):
        own = truth == one["id"]
        for number in sorted(left):
            other = predicted == number
            iou = (own & other).sum() / (own | (other & ~nothing)).sum()
            if number % 1000 == one["category"] and iou > 0.5:
                counts[one["category"]] += iou, 1, 0, 0
                left.remove(number)
                break
        else:
            counts[one["category"], 3] += 1
    for number in left:
        other = predicted == number
        excused = nothing.copy()
        for crowd in crowds:
            excused |= (truth == crowd["id"]) & (crowd["category"] == number % 1000)
        counts[number % 1000, 2] += (other & excused).sum() <= 0.5 * other.sum()
    return counts


@pytest.mark.parametrize("seed", range(30))
def test_the_counts_are_those_of_the_definition(seed: int) -> None:
    draw = np.random.default_rng(seed)

    def blocks(values: list[int]) -> np.ndarray:
        return np.kron(draw.choice(values, (3, 4)), np.ones((4, 5), int))

    kinds = [(11, 0, True), (12, 0, True), (13, 1, True), (14, 1, False), (15, 2, False)]
    segments = [{"id": number, "category": label, "is_thing": thing} for number, label, thing in kinds]
    truth = blocks([0, 11, 12, 13, 14, 15])
    segments = [one for one in segments if (truth == one["id"]).any()]
    names = {0: 3, 11: 1000, 12: 2000, 13: 3001, 14: 4001, 15: 2}
    predicted = np.vectorize(names.get)(truth)
    wrong = draw.random(truth.shape) < draw.choice([0.1, 0.3, 0.6])
    predicted[wrong] = blocks([3, 2, 1000, 2000, 3001, 4001, 5000])[wrong]
    found = segment_counts(pair_segments(truth, segments, predicted, len(CLASSES), THINGS), len(CLASSES))
    np.testing.assert_allclose(found, slow_counts(truth, segments, predicted))


def test_the_scores_are_means_of_the_classes_with_segments() -> None:
    counts = np.array([[1.5, 2.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    np.testing.assert_allclose(quality(counts)[[0, 2]], [[50, 75, 200 / 3], [0, 0, 0]])
    metric = PanopticQuality(stuff_classes=["sky"])
    metric.dataset_meta = {"classes": CLASSES}
    metric.worst_kept = 1
    scores = metric.compute_metrics([counts, np.zeros((3, 4))])
    assert scores == {
        **{"PQ": 25.0, "SQ": 37.5, "RQ": 33.33},
        **{"PQ_th": 50.0, "SQ_th": 75.0, "RQ_th": 66.67},
        **{"PQ_st": 0.0, "SQ_st": 0.0, "RQ_st": 0.0},
    }
    assert tuple(scores) == metric.score_names
    assert metric.class_scores["cat"] == {"PQ": 50.0, "SQ": 75.0, "RQ": 66.67, "segments": 3}
    assert metric.class_scores["dog"] == {"PQ": None, "SQ": None, "RQ": None, "segments": 0}
    assert metric.details["worst"] == [{"index": 0, "caption": "PQ 25.0"}]


def test_the_truth_as_prediction_is_perfect(tmp_path: Path) -> None:
    sample = loaded(write(tmp_path, content(), painted()))
    ids = painted()
    predicted = np.select([ids == CAT, ids == SKY], [1000, 2], 3)
    sample.pred_panoptic_seg = PixelData(sem_seg=torch.from_numpy(predicted)[None])
    metric = PanopticQuality(stuff_classes=["sky"])
    metric.dataset_meta = {"classes": CLASSES}
    metric.process(None, [sample.to_dict()])
    scores = metric.compute_metrics(metric.results)
    assert (scores["PQ"], scores["PQ_th"], scores["PQ_st"]) == (100.0, 100.0, 100.0)
    with pytest.raises(UserError, match="PackDetInputs needs meta_keys with 'seg_map_path' and 'segments_info'"):
        metric.process(None, [{"img_id": 1}])


# --- the check -------------------------------------------------------------------------------------------------------


def checked(folder: Path) -> list[str]:
    cfg = Config(
        dict(
            default_scope="mmdet",
            model={},
            stuff_classes=("sky",),
            train_dataloader=dict(dataset=settings(folder)),
        )
    )
    result = check_datasets(cfg, ("train",))
    return [f"{one.kind}: {Path(one.file).name} {one.problem}" for one in result.findings if one.level == "error"]


def entry(data: dict[str, Any]) -> dict[str, Any]:
    return data["annotations"][0]


def segment(data: dict[str, Any], **changes: Any) -> None:
    entry(data)["segments_info"][1].update(changes)


MISTAKES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda data: entry(data).update(file_name="two.png"), "missing labels: two.png is missing"),
    (lambda data: entry(data).update(file_name="../one.png"), "leads out of"),
    (lambda data: entry(data).pop("file_name"), "annotation field: a.json annotation of image 1 has no 'file_name'"),
    (lambda data: entry(data).update(image_id=4), "is of image 4, which the file does not list"),
    (lambda data: data.update(annotations=[]), "image without segments: a.json image 1 has no annotation"),
    (lambda data: entry(data)["segments_info"].pop(), "has 32 pixels of segment 300, which"),
    (lambda data: segment(data, id=6), "segment without pixels: one.png has no pixel of segment 6, which"),
    (
        lambda data: segment(data, id=SKY),
        "duplicate segment id: a.json annotation of image 1 segment id 70000 occurs 2",
    ),
    (lambda data: segment(data, id=0), "segment id: a.json annotation of image 1 segment 0 cannot be a colour"),
    (lambda data: segment(data, category_id=8), "unknown category: a.json annotation of image 1 segment 5 is of cat"),
    (lambda data: segment(data, bbox=[1, 2]), "box field: a.json annotation of image 1 segment 5 has [1, 2] for its"),
    (lambda data: segment(data, area=None), "area field: a.json annotation of image 1 segment 5 has None for its area"),
    (lambda data: data["categories"][0].update(isthing=1), "category 'sky' is a thing here and stuff in the config"),
    (lambda data: data["categories"][1].update(isthing=0), "category 'dog' is stuff here and a thing in the config"),
    (lambda data: data["categories"][1].pop("isthing"), "category field: a.json category 7 has no 'isthing'"),
    (lambda data: data["categories"][1].update(name="cow"), "classes: a.json classes: 1 of 3 are no category"),
    (
        lambda data: data["images"][0].update(width=31),
        "size of labels: one.png is 30 x 20, the annotations say 31 x 20",
    ),
]


@pytest.mark.parametrize("mistake, line", MISTAKES, ids=[line[:40] for _, line in MISTAKES])
def test_a_mistake_is_one_line(mistake: Callable[[dict[str, Any]], Any], line: str, tmp_path: Path) -> None:
    data = content()
    mistake(data)
    assert any(line in found for found in checked(write(tmp_path, data, painted())))


def test_right_files_have_no_error(tmp_path: Path) -> None:
    assert checked(write(tmp_path, content(), painted())) == []


@pytest.mark.parametrize(
    "name, pixels, line",
    [
        ("one.png", np.zeros((20, 30), np.uint8), "coloured labels: one.png is no RGB image of 8 bits"),
        ("one.jpg", np.zeros((20, 30, 3), np.uint8), "JPEG labels: one.jpg is a JPEG"),
    ],
    ids=["grey", "jpeg"],
)
def test_another_kind_of_picture_holds_no_ids(name: str, pixels: np.ndarray, line: str, tmp_path: Path) -> None:
    data = content()
    entry(data)["file_name"] = name
    folder = write(tmp_path, data, painted())
    Image.fromarray(pixels).save(folder / "segments" / name)
    assert [found for found in checked(folder) if found.startswith(line)]


# --- the config and pictures -----------------------------------------------------------------------------------------


def test_stuff_comes_last_and_reaches_heads_and_metric() -> None:
    cfg = load_config(CONFIG, None, Launch()).cfg
    for head in (cfg.model.panoptic_head, cfg.model.panoptic_fusion_head):
        assert (head.num_things_classes, head.num_stuff_classes) == (10, 1)
    assert cfg.val_evaluator.stuff_classes == cfg.test_evaluator.stuff_classes == ["background"]
    assert cfg.model.test_cfg.panoptic_on is True
    with pytest.raises(UserError, match="things come first in classes, and 'dog' comes after 'sky', which is stuff"):
        load_config(CONFIG, {"classes": ["cat", "sky", "dog"], "stuff_classes": ["sky"]}, Launch())
    others = load_config(CONFIG, {"classes": ["cat", "dog"]}, Launch())
    assert others.cfg.model.panoptic_head.num_stuff_classes == 0
    assert any(note.startswith("stuff_classes: 'background'") for note in others.notes)


THEIRS = """
_base_ = "mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py"
custom_imports = dict(imports=["detection"])
task = "panoptic"
classes = "coco-panoptic"
stuff_classes = "coco-stuff"
data_root = "data"
batch = dict(size=16, per_gpu=2)
"""


@pytest.mark.parametrize(
    "text, things, stuff",
    [(f"_base_ = {str(FPN_CONFIG)!r}", 10, 1), (THEIRS, 80, 53), (THEIRS.replace("stuff_classes =", "_ ="), 80, 53)],
    ids=["digits", "mmdet's own", "with its own numbers"],
)
def test_heads_on_proposals_know_the_things_alone(text: str, things: int, stuff: int, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(text)
    model = load_config(file, None, Launch()).cfg.model
    assert model.roi_head.bbox_head.num_classes == model.roi_head.mask_head.num_classes == things
    for head in (model.semantic_head, model.panoptic_fusion_head):
        assert (head.num_things_classes, head.num_stuff_classes) == (things, stuff)


def test_the_branch_for_stuff_is_counted_and_learns() -> None:
    cfg = load_config(FPN_CONFIG, None, Launch()).cfg
    model = build_on_meta(cfg)
    image = torch.empty(1, 3, 64, 96, device="meta")
    assert PANOPTIC.count_forward(model, image)[-1]["seg_preds"].shape == (1, 2, 16, 24)
    assert PANOPTIC.activation_forward(model, image)[-1][0]["seg_preds"].shape == (1, 2, 16, 24)
    with MODELS.switch_scope_and_registry("mmdet") as registry:
        made = registry.build(cfg.model).train()
    losses = made(**PANOPTIC.dummy_batch(made, torch.randn(1, 3, 64, 96), True))
    losses["loss_seg"].backward()
    assert made.backbone.stages[0][0].dwconv.weight.grad.abs().sum() > 0


def test_a_picture_shows_segments_of_truth_and_prediction(tmp_path: Path) -> None:
    folder = write(tmp_path, content(), painted())
    visualizer = DetectionVisualizer()
    visualizer.dataset_meta = {"classes": CLASSES, "palette": [(255, 0, 0), (0, 255, 0), (0, 0, 255)]}
    image = np.full((320, 480, 3), 100, np.uint8)
    for predicted in (np.full((20, 30), 3), np.where(painted() == CAT, 1000, 3)):
        shown = loaded(folder)
        shown.pred_panoptic_seg = PixelData(sem_seg=torch.from_numpy(predicted)[None])
        samplelist_boxtype2tensor([shown])  # as the data preprocessor does
        PANOPTIC.scale_sample(shown, 16)
        visualizer.add_datasample("one", image, shown, out_file=str(tmp_path / "one.png"))
        picture = np.array(Image.open(tmp_path / "one.png"))
        top = int(np.argmax((picture[:, 1] != PAPER).any(1)))  # below the title
        truth, prediction = picture[top : top + 320, :480], picture[top : top + 320, -480:]
        cat, sky = truth[158, 238].astype(int), truth[310, 20].astype(int)  # away from the names
        assert (cat.argmax(), sky.argmax()) == (0, 2)
        assert (prediction == 100).all() == (predicted == 3).all()


def test_a_sample_without_annotations_shows_the_prediction() -> None:
    sample = DetDataSample(pred_panoptic_seg=PixelData(sem_seg=torch.full((1, 20, 30), 2)))
    visualizer = DetectionVisualizer()
    visualizer.dataset_meta = {"classes": CLASSES, "palette": [(255, 0, 0), (0, 255, 0), (0, 0, 255)]}
    visualizer.add_datasample("one", np.full((20, 30, 3), 100, np.uint8), sample, draw_gt=False)
    assert visualizer.get_image()[1, 1].argmax() == 2
